"""Fashion-MNIST: the right files or one clear line, exact resizing, one batch order for everyone."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st

from common import data
from common.data import fashion_mnist, pipeline
from common.errors import BadInput, MissingFile
from tests.damage import flips
from tests.data.helpers import same
from tests.helpers import one_line

NAMES = tuple(fashion_mnist.FULL_SHA256)
TRAIN_IMAGES = f"{NAMES[0]}.gz"

lengths = st.integers(1, 40)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No full set anywhere, unless a test puts one there; returns where the user's cache would be."""
    monkeypatch.delenv("RESNET_TABS_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "user_cache_path", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    return tmp_path / "cache" / "resnet-tabs" / "fashion-mnist"


@pytest.fixture
def sample_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample's files pass for the full set, so that its whole path runs on any machine."""
    monkeypatch.setattr(fashion_mnist, "FULL_SHA256", fashion_mnist.SAMPLE_SHA256)


def put_sample(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in NAMES:
        shutil.copy(fashion_mnist.SAMPLE / f"{name}.gz", folder)
    return folder


# The files


def test_sample_is_small_and_whole() -> None:
    images = data.sample()
    assert images.train_images.shape == (1000, 28, 28) and images.train_labels.shape == (1000,)
    assert images.test_images.shape == (500, 28, 28) and images.test_labels.shape == (500,)
    for array in (images.train_images, images.train_labels, images.test_images, images.test_labels):
        assert array.dtype == np.uint8
    assert images.source == "the shipped sample (1,000 + 500 images)"
    assert set(images.train_labels) == set(images.test_labels) == set(range(len(data.CLASSES)))
    assert images.train_images.min() == 0 and images.train_images.max() == 255


def test_sample_files_have_the_digests_and_are_under_a_megabyte() -> None:
    assert {path.name for path in fashion_mnist.SAMPLE.iterdir()} == {f"{name}.gz" for name in NAMES} | {
        "LICENSE"
    }
    for name, digest in fashion_mnist.SAMPLE_SHA256.items():
        content = gzip.decompress((fashion_mnist.SAMPLE / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == digest
    assert sum(path.stat().st_size for path in fashion_mnist.SAMPLE.iterdir()) < 1_000_000
    licence = (fashion_mnist.SAMPLE / "LICENSE").read_text(encoding="utf-8")
    assert "Zalando SE" in licence and "Permission is hereby granted" in licence


def test_sample_is_the_head_of_the_full_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # look where a user's set would be found
    try:
        everything = data.full()
    except MissingFile as error:
        pytest.skip(str(error))
    head = data.sample()
    assert everything.train_images.shape == (60_000, 28, 28) and everything.train_labels.shape == (60_000,)
    assert everything.test_images.shape == (10_000, 28, 28) and everything.test_labels.shape == (10_000,)
    assert everything.source.endswith("(60,000 + 10,000 images)")
    np.testing.assert_array_equal(everything.train_images[:1000], head.train_images)
    np.testing.assert_array_equal(everything.train_labels[:1000], head.train_labels)
    np.testing.assert_array_equal(everything.test_images[:500], head.test_images)
    np.testing.assert_array_equal(everything.test_labels[:500], head.test_labels)
    assert (np.bincount(everything.train_labels) == 6000).all()
    assert (np.bincount(everything.test_labels) == 1000).all()


def test_full_looks_in_the_named_folder_then_the_variable_then_cache_then_debian(
    sample_is_full: None, nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> str:
        return data.full().source

    put_sample(fashion_mnist.DEBIAN)
    assert f"in {fashion_mnist.DEBIAN} " in found()
    put_sample(nowhere)
    assert f"in {nowhere} " in found()
    monkeypatch.setenv("RESNET_TABS_DATA", str(put_sample(tmp_path / "variable")))
    assert f"in {tmp_path / 'variable'} " in found()
    named = put_sample(tmp_path / "named")
    assert data.full(named).source == f"the full set in {named} (1,000 + 500 images)"
    assert f"in {named} " in data.full(str(named)).source


def test_a_cache_with_a_file_missing_is_passed_over(sample_is_full: None, nowhere: Path) -> None:
    put_sample(fashion_mnist.DEBIAN)
    (put_sample(nowhere) / TRAIN_IMAGES).unlink()
    assert f"in {fashion_mnist.DEBIAN} " in data.full().source


def test_unpacked_files_are_read_and_checked_too(sample_is_full: None, tmp_path: Path) -> None:
    folder = put_sample(tmp_path / "unpacked")
    for name in NAMES:
        packed = folder / f"{name}.gz"
        (folder / name).write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    np.testing.assert_array_equal(data.full(folder).train_images, data.sample().train_images)

    with (folder / NAMES[0]).open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BadInput) as error:
        data.full(folder)
    one_line(error, str(folder / NAMES[0]), "wrong SHA-256")


def test_found_nowhere_says_every_way_to_get_it() -> None:
    with pytest.raises(MissingFile) as error:
        data.full()
    one_line(error, "--data", "RESNET_TABS_DATA", "resnet-tabs download", "dataset-fashion-mnist")


@pytest.mark.parametrize("how", ["argument", "variable"])
@pytest.mark.parametrize("what", ["no folder", "empty folder", "one file missing"])
def test_a_named_folder_without_the_files_is_an_error(
    sample_is_full: None, nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, what: str
) -> None:
    put_sample(nowhere)  # there, and not to be fallen back on
    folder = tmp_path / "named"
    if what == "one file missing":
        (put_sample(folder) / TRAIN_IMAGES).unlink()
    elif what == "empty folder":
        folder.mkdir()
    if how == "variable":
        monkeypatch.setenv("RESNET_TABS_DATA", str(folder))
    with pytest.raises(MissingFile) as error:
        data.full(folder if how == "argument" else None)
    one_line(error, str(folder), TRAIN_IMAGES, "resnet-tabs download")
    assert ("RESNET_TABS_DATA=" in str(error.value)) == (how == "variable")


def flip_a_byte(content: bytes) -> bytes:
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


def other_pixels(content: bytes) -> bytes:
    return gzip.compress(flip_a_byte(gzip.decompress(content)))


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut short": (lambda content: content[:-100], "not a whole gzip file"),
    "cut in the header": (lambda content: content[:5], "not a whole gzip file"),
    "a bit flipped": (flip_a_byte, "not a whole gzip file"),
    "not gzip": (lambda content: b"<html>404</html>", "not a whole gzip file"),
    "empty": (lambda content: b"", "wrong SHA-256"),
    "other pixels": (other_pixels, "wrong SHA-256"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", ["sample", "full"])
def test_a_damaged_file_is_one_line_that_names_it(
    sample_is_full: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, which: str
) -> None:
    folder = put_sample(tmp_path / "damaged")
    change, words = DAMAGE[damage]
    path = folder / TRAIN_IMAGES
    path.write_bytes(change(path.read_bytes()))
    monkeypatch.setattr(fashion_mnist, "SAMPLE", folder)
    with pytest.raises(BadInput) as error:
        data.sample() if which == "sample" else data.full(folder)
    one_line(error, str(path), words, "install resnet-tabs again" if which == "sample" else "replace it")


@pytest.mark.parametrize("packed", [True, False])
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path, packed: bool) -> None:
    """A bit of the gzip header that says when and where a file was packed is none of the images'."""
    folder = put_sample(tmp_path / "damaged")
    for name, sha256 in list(fashion_mnist.SAMPLE_SHA256.items())[2:]:
        path = folder / f"{name}.gz"
        if not packed:
            content = gzip.decompress(path.read_bytes())
            path.unlink()
            path = folder / name
            path.write_bytes(content)
        expected = fashion_mnist._array(folder, name, sha256, "replace it")
        for where in flips(path, 150):
            try:
                found = fashion_mnist._array(folder, name, sha256, "replace it")
            except BadInput as error:
                assert str(path) in str(error) and "\n" not in str(error)
            else:
                assert packed and np.array_equal(found, expected), where


def test_an_incomplete_sample_says_install_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "SAMPLE", tmp_path)
    with pytest.raises(MissingFile) as error:
        data.sample()
    one_line(error, TRAIN_IMAGES, "install resnet-tabs again")


# Downloading, from a mirror on this machine


class Mirror(SimpleHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served in the place of the official mirror; it holds the sample's files."""
    folder = put_sample(tmp_path / "mirror")
    Mirror.asked = []
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Mirror, directory=str(folder))) as server:
        monkeypatch.setattr(fashion_mnist, "MIRROR", f"http://127.0.0.1:{server.server_address[1]}/")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder
        server.shutdown()
        thread.join()


def test_download_puts_the_files_where_full_finds_them(
    mirror: Path, sample_is_full: None, nowhere: Path
) -> None:
    assert data.download() == nowhere
    assert sorted(path.name for path in nowhere.iterdir()) == sorted(f"{name}.gz" for name in NAMES)
    for path in nowhere.iterdir():
        assert path.read_bytes() == (mirror / path.name).read_bytes()
    np.testing.assert_array_equal(data.full().test_images, data.sample().test_images)


def test_download_fetches_only_what_is_missing_or_damaged(
    mirror: Path, sample_is_full: None, tmp_path: Path
) -> None:
    folder = put_sample(tmp_path / "mine")
    (folder / f"{NAMES[1]}.gz").write_bytes(b"not gzip")
    (folder / f"{NAMES[3]}.gz").unlink()
    assert data.download(folder) == folder
    assert Mirror.asked == [f"/{NAMES[1]}.gz", f"/{NAMES[3]}.gz"]
    assert data.full(folder).train_images.shape == (1000, 28, 28)


@pytest.mark.parametrize("damage", DAMAGE)
def test_download_of_something_else_leaves_nothing(
    mirror: Path, sample_is_full: None, nowhere: Path, damage: str
) -> None:
    change, words = DAMAGE[damage]
    path = mirror / TRAIN_IMAGES
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BadInput) as error:
        data.download()
    one_line(error, fashion_mnist.MIRROR + TRAIN_IMAGES, words, "dataset-fashion-mnist")
    assert list(nowhere.iterdir()) == []


def test_download_checks_against_the_published_files(mirror: Path, nowhere: Path) -> None:
    with pytest.raises(BadInput) as error:  # whole files, though not the full set's
        data.download()
    one_line(error, "wrong SHA-256")
    assert list(nowhere.iterdir()) == []


def test_download_of_a_file_the_mirror_lacks(mirror: Path, sample_is_full: None, nowhere: Path) -> None:
    (mirror / TRAIN_IMAGES).unlink()
    with pytest.raises(BadInput) as error:
        data.download()
    one_line(error, fashion_mnist.MIRROR + TRAIN_IMAGES, "cannot download", "not found")
    assert list(nowhere.iterdir()) == []


def test_download_that_breaks_off(
    mirror: Path, sample_is_full: None, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Mirror) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"half")

    monkeypatch.setattr(Mirror, "do_GET", half)
    with pytest.raises(BadInput) as error:
        data.download()
    one_line(error, fashion_mnist.MIRROR + TRAIN_IMAGES, "cannot download", "IncompleteRead")
    assert list(nowhere.iterdir()) == []


def test_download_without_a_network(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fashion_mnist, "MIRROR", "http://127.0.0.1:1/")  # nobody listens on port 1
    with pytest.raises(BadInput) as error:
        data.download()
    one_line(error, "cannot download", "http://127.0.0.1:1/", "dataset-fashion-mnist")
    assert list(nowhere.iterdir()) == []


def test_download_into_something_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput) as error:
        data.download(tmp_path / "file")
    one_line(error, str(tmp_path / "file"), "choose another place")


# The data module


def test_the_data_module_has_the_chapters_defaults() -> None:
    module = data.FashionMNIST()
    assert (module.batch_size, module.resize, module.augment, module.seed) == (64, (28, 28), (), 0)
    assert (module.num_train, module.num_val) == (1000, 500)
    assert (module.num_train_batches, module.num_val_batches) == (16, 8)
    train, val = list(module.train_dataloader()), list(module.val_dataloader())
    assert [len(y) for _, y in train] == [64] * 15 + [40]
    assert [len(y) for _, y in val] == [64] * 7 + [52]
    for x, y in train + val:
        assert x.shape == (len(y), 1, 28, 28) and x.dtype == np.float32 and y.dtype == np.int32
        assert x.min() == 0 and 0.9 < x.max() <= 1


def test_the_data_module_deals_out_the_same_batches_as_everyone() -> None:
    images = data.sample()
    module = data.FashionMNIST(50, [20, 24], augment=["crop"], limit_train=120, limit_val=70, seed=5)  # type: ignore[arg-type]
    assert (module.num_train, module.num_val) == (120, 70)
    assert (module.num_train_batches, module.num_val_batches) == (3, 2)
    train = data.batches(
        images.train_images[:120],
        images.train_labels[:120],
        50,
        seed=5,
        epoch=3,
        size=(20, 24),
        channels=3,
        dtype="float64",
        augment=["crop"],
        start=1,
    )
    same(module.train_dataloader(epoch=3, start=1, dtype="float64", channels=3), train)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_validation_is_in_the_order_of_the_file_and_never_augmented(dtype: str) -> None:
    images = data.sample()
    module = data.FashionMNIST(48, (30, 30), augment=("flip", "crop"), limit_val=100, seed=9)
    for _ in range(2):
        xs, ys = zip(*module.val_dataloader(dtype, channels=2), strict=True)
        x, y = np.concatenate(xs), np.concatenate(ys)
        assert x.shape == (100, 2, 30, 30) and x.dtype == dtype
        np.testing.assert_array_equal(y, images.test_labels[:100])
        for channel in range(2):
            expected = data.resize(images.test_images[:100], (30, 30), dtype)
            np.testing.assert_allclose(x[:, channel], expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("start", [1, 9, 16])
def test_an_epoch_goes_on_in_the_middle(start: int) -> None:
    module = data.FashionMNIST(augment=("flip", "crop"), seed=2)
    whole = list(module.train_dataloader(epoch=4))
    same(data.FashionMNIST(augment=("flip", "crop"), seed=2).train_dataloader(4, start), iter(whole[start:]))


def test_the_batches_passed_over_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = data.FashionMNIST(10, augment=("flip", "crop"))
    done: list[int] = []

    def resize(images: np.ndarray, *rest: object) -> np.ndarray:
        done.append(len(images))
        return np.zeros((len(images), 1, 1), np.float32)

    monkeypatch.setattr(pipeline, "resize", resize)
    list(module.train_dataloader(start=97))
    assert done == [10, 10, 10]


def test_the_epoch_is_resized_a_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    module = data.FashionMNIST(10, (96, 96))
    resize, done = data.resize, []

    def counted(images: np.ndarray, *rest: tuple[int, int]) -> np.ndarray:
        done.append(len(images))
        return resize(images, *rest)

    monkeypatch.setattr(pipeline, "resize", counted)
    with closing(module.train_dataloader()) as loader:  # type: ignore[type-var]
        for _ in range(5):
            next(loader)
    assert max(done) == 10 and len(done) <= 1 + 5 + 2 + 1


def test_limits_beyond_what_there_is_mean_all() -> None:
    module = data.FashionMNIST(limit_train=10**6, limit_val=501)
    assert (module.num_train, module.num_val) == (1000, 500)
    module = data.FashionMNIST(1, limit_train=1, limit_val=1)
    assert (module.num_train_batches, module.num_val_batches) == (1, 1)
    assert len(list(module.train_dataloader())) == len(list(module.val_dataloader())) == 1


def test_without_the_full_set_the_module_takes_the_sample_and_says_so() -> None:
    module = data.FashionMNIST()
    assert module.source == (
        "the shipped sample (1,000 + 500 images): "
        "the full set is not on this machine, `resnet-tabs download` fetches it"
    )


@pytest.mark.parametrize("how", ["argument", "variable", "cache", "debian"])
def test_the_module_takes_the_full_set_where_it_is(
    sample_is_full: None, nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    folder = put_sample({"cache": nowhere, "debian": fashion_mnist.DEBIAN}.get(how, tmp_path / "named"))
    if how == "variable":
        monkeypatch.setenv("RESNET_TABS_DATA", str(folder))
    module = data.FashionMNIST(directory=folder if how == "argument" else None)
    assert module.source == f"the full set in {folder} (1,000 + 500 images)"


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_the_module_does_not_fall_back_from_a_named_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "variable":
        monkeypatch.setenv("RESNET_TABS_DATA", str(tmp_path))
    with pytest.raises(MissingFile) as error:
        data.FashionMNIST(directory=tmp_path if how == "argument" else None)
    one_line(error, str(tmp_path), TRAIN_IMAGES, "resnet-tabs download")


def test_the_module_does_not_fall_back_from_a_damaged_file(sample_is_full: None, nowhere: Path) -> None:
    (put_sample(nowhere) / TRAIN_IMAGES).write_bytes(b"not gzip")
    with pytest.raises(BadInput) as error:
        data.FashionMNIST()
    one_line(error, str(nowhere / TRAIN_IMAGES), "replace it")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"batch_size": 6.4}, "batch_size must be a whole number, not 6.4"),
        ({"batch_size": 1001}, "batch_size 1001 is larger than the 1000 training images; give 1000 or less"),
        ({"limit_train": 10}, "batch_size 64 is larger than the 10 training images; give 10 or less"),
        ({"limit_train": 0}, "limit_train must be 1 or more, not 0"),
        ({"limit_val": -3}, "limit_val must be 1 or more, not -3"),
        ({"limit_val": 0.5}, "limit_val must be a whole number, not 0.5"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"resize": 28}, "resize must be a height and a width of 1 or more, not 28"),
        ({"resize": (28,)}, "not (28,)"),
        ({"resize": (28, 28, 1)}, "not (28, 28, 1)"),
        ({"resize": [28, 0]}, "not [28, 0]"),
        ({"resize": (28.0, 28)}, "not (28.0, 28)"),
        ({"resize": "96"}, "not '96'"),
        (
            {"augment": ["flip", "crops"]},
            "unknown augmentation 'crops'; did you mean crop? Known: flip, crop",
        ),
        ({"augment": "flip"}, "augment must be a list of names, not 'flip'; give ['flip']"),
    ],
)
def test_the_module_refuses_at_once(options: dict, words: str) -> None:
    with pytest.raises(BadInput) as error:
        data.FashionMNIST(**options)
    one_line(error, words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epoch": -1}, "epoch must be 0 or more, not -1"),
        ({"start": -1}, "start must be 0 or more, not -1"),
        ({"start": 17}, "start 17 is beyond the epoch's 16 batches; give 16 or less"),
        ({"dtype": "float16"}, "unknown dtype 'float16'; give float32 or float64"),
        ({"channels": 0}, "channels must be 1 or more, not 0"),
    ],
)
def test_the_dataloaders_refuse_at_the_call(options: dict, words: str) -> None:
    module = data.FashionMNIST()
    with pytest.raises(BadInput) as error:
        module.train_dataloader(**options)
    one_line(error, words)
    if options.keys() <= {"dtype", "channels"}:
        with pytest.raises(BadInput) as error:
            module.val_dataloader(**options)
        one_line(error, words)

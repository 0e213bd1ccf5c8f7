"""Image folders: found, split, checked, prepared as torchvision does, the same whoever deals them out."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common import data
from common.data import ImageFolder
from common.data.folder import evaluation_images, find_images, leaving_out
from common.data.imagenet import random_resized_crop
from common.data.preparation import Preparation
from common.errors import BadInput
from tests.data.folders import dealt_out, make_folder, picture
from tests.data.helpers import same, torchvisions_evaluation
from tests.helpers import one_line

SIZE = (24, 24)
AUGMENTED = {"augment": ("crop", "flip"), "batch_size": 5, "resize": SIZE}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "animals")


# Finding and splitting


def test_classes_are_the_folders_sorted_and_images_are_in_the_order_of_their_names(root: Path) -> None:
    shutil.copy(root / "train/dog/dog003.jpg", root / "train/cat/aaa.JPG")
    (root / "train/cat/notes.txt").write_text("no image")
    (root / "train/.hidden").mkdir()
    module = ImageFolder(root, 25)
    assert module.classes == ("cat", "dog")
    assert (module.num_train, module.num_val) == (25, 8)
    assert module.train.names[:2] == ["cat/aaa.JPG", "cat/cat000.jpg"]
    assert module.train.labels.tolist() == [0] * 13 + [1] * 12
    assert (module.resize, module.augment, module.normalize) == ((224, 224), (), "imagenet")


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_share_is_for_validation_and_which_images_depends_on_their_names_alone(
    tmp_path: Path, share: float
) -> None:
    make_folder(tmp_path, train=60)
    whole = ImageFolder(tmp_path / "train", 4, val_share=share)
    assert set(whole.train.names).isdisjoint(whole.val.names)
    assert whole.num_train + whole.num_val == 120
    assert abs(whole.num_val / 120 - share) < 0.12
    for i in range(0, 60, 2):
        (tmp_path / f"train/cat/cat{i:03}.jpg").unlink()
    fewer = ImageFolder(tmp_path / "train", 4, val_share=share)
    assert set(fewer.val.names) <= set(whole.val.names) and set(fewer.train.names) <= set(whole.train.names)
    assert ImageFolder(tmp_path / "train").settings()["val_share"] == 0.1


def test_limits_take_the_first_images(root: Path) -> None:
    module = ImageFolder(root, batch_size=2, resize=SIZE, limit_train=5, limit_val=3)
    assert (module.num_train, module.num_val, module.num_train_batches, module.num_val_batches) == (
        5,
        3,
        3,
        2,
    )
    assert len(list(module.train_dataloader())) == 3


def test_settings_say_which_images_there_are_wherever_they_lie(root: Path, tmp_path: Path) -> None:
    before = ImageFolder(root, 4).settings()
    shutil.move(root, tmp_path / "moved")
    assert ImageFolder(tmp_path / "moved", 4).settings() == before
    shutil.move(tmp_path / "moved/train/cat/cat000.jpg", tmp_path / "moved/train/dog/cat000.jpg")
    assert ImageFolder(tmp_path / "moved", 4).settings()["data"] != before["data"]


def empty_class(root: Path) -> None:
    (root / "train/bird").mkdir()


def class_of_others(root: Path) -> None:
    (root / "train/bird").mkdir()
    (root / "train/bird/a.gif").touch()
    (root / "train/notes.txt").touch()


def folder_above(root: Path) -> None:
    (root / "train").rename(root / "inner")
    (root / "train").mkdir()
    (root / "inner").rename(root / "train/train")


def class_only_in_val(root: Path) -> None:
    shutil.copytree(root / "val/cat", root / "val/bird")


def not_utf8(root: Path) -> None:
    shutil.copy(root / "train/cat/cat000.jpg", os.fsencode(root / "train/cat") + b"/caf\xe9.jpg")


def newline(root: Path) -> None:
    shutil.copy(root / "train/cat/cat000.jpg", root / "train/cat/two\nlines.jpg")


def loop(root: Path) -> None:
    (root / "train/bird").symlink_to("bird")


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (newline, {}, r"control characters: cat/two\nlines.jpg"),
        (loop, {}, "links that lead nowhere: bird"),
        (empty_class, {}, "classes without images: bird"),
        (
            class_of_others,
            {},
            "classes without images: bird; remove them, or add images (leaving out 1 file: ",
        ),
        (folder_above, {}, "train has one class only, train"),
        (class_only_in_val, {}, "classes that are not among those trained: bird"),
        (not_utf8, {}, r"not UTF-8, or have control characters: cat/caf\xe9.jpg"),
        (lambda root: shutil.rmtree(root / "val"), {}, "has no folder val"),
        (lambda root: shutil.rmtree(root / "train"), {}, "has no folder train"),
        (shutil.rmtree, {}, "is not a folder"),
        (lambda root: [f.unlink() for f in root.glob("val/*/*")], {}, "has no images"),
        (lambda root: None, {"val_share": 0.1}, "has its own folder val"),
        (lambda root: None, {"normalize": "mean"}, "unknown normalize"),
        (lambda root: None, {"augment": ["crops"]}, "did you mean crop"),
        (lambda root: None, {"batch_size": 25}, "larger than the 24 training images"),
        (lambda root: None, {"num_workers": -1}, "num_workers must be 0 or more"),
        (lambda root: None, {"resize": 224}, "height and a width"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line(
    root: Path, spoil: Any, options: dict[str, Any], said: str
) -> None:
    spoil(root)
    with pytest.raises(BadInput) as error:
        ImageFolder(root, **{"batch_size": 4, **options})
    one_line(error)
    assert said in str(error.value)


@pytest.mark.parametrize("share", [0, 1, 1.5, 1e-9])
def test_a_share_that_leaves_nothing_is_one_line(root: Path, share: float) -> None:
    with pytest.raises(BadInput, match="share"):
        ImageFolder(root / "train", val_share=share)


# What is left out


def lay(root: Path, *names: str) -> list[str]:
    """Files of these names that are no images, and their paths."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return [str(root / name) for name in names]


def test_all_that_is_left_out_is_named_and_counted_and_changes_nothing(root: Path) -> None:
    before = ImageFolder(root, 4)
    suffix = lay(root, "train/cat/a.gif", "train/cat/more/a.HEIC", "val/dog/notes.txt")
    hidden = lay(root, "train/cat/._cat000.jpg", "val/dog/.ipynb_checkpoints/a.jpg", ".git/HEAD")
    no_class = lay(root, "train/a.jpg", "val/list.csv")
    beside = lay(root, "README.md", "test/cat/a.jpg", "test/b.png", "two\nlines.txt")
    lay(root, ".DS_Store", "train/Thumbs.db", "val/dog/desktop.ini", "test/.DS_Store")
    module = ImageFolder(root, 4)
    module.check()
    assert before.skipped == {} and module.settings() == before.settings()
    reasons = {
        why: {path for path in module.skipped if module.skipped[path] == why}
        for why in module.skipped.values()
    }
    assert reasons == {
        "not .jpg .jpeg .png .webp .bmp .tif .tiff": set(suffix),
        "hidden": set(hidden),
        "in no class's folder": set(no_class),
        "beside train and val": set(beside),
    }
    line = leaving_out(module.skipped)
    assert line.startswith("leaving out 12 files: ") and line.isprintable()
    assert f"2 in no class's folder ({', '.join(no_class)})" in line
    assert re.search(r"; 4 beside train and val \(.*/README.md, .* and 1 more\)", line)

    lay(root, "train/cat/bad.jpg")
    skipped = ImageFolder(root, 4, skip_bad=True).skipped
    assert len(skipped) == 13
    assert leaving_out(skipped).endswith(f"; 1 that cannot be read ({root}/train/cat/bad.jpg)")
    found = evaluation_images(root, ("cat", "dog"), 2)
    assert set(found.left_out) == {
        path for path in module.skipped if not path.startswith(str(root / "train"))
    }
    flat = ImageFolder(root / "train", 4, val_share=0.5)
    assert set(flat.skipped) == {path for path in module.skipped if path.startswith(str(root / "train"))}


def test_links_are_followed_but_not_in_circles_and_nothing_is_left_out_twice(root: Path) -> None:
    cats = root / "train/cat"
    lay(cats, "more/notes.txt")
    shutil.copy(cats / "cat000.jpg", cats / "more/again.jpg")
    (cats / "again").symlink_to(cats / "more")
    (cats / "around").symlink_to(cats)
    (cats / "up").symlink_to(root)  # whose val would be trained on
    (root / "loop").symlink_to(root)
    (root / "train/cow").symlink_to(root / "val/dog")
    module = ImageFolder(root / "train", 4, val_share=0.5)
    assert module.classes == ("cat", "cow", "dog")
    assert module.num_train + module.num_val == 12 + 1 + 4 + 12
    assert module.skipped == {
        str(cats / "again/notes.txt"): "not .jpg .jpeg .png .webp .bmp .tif .tiff",
        str(cats / "up"): "linked to a folder above",
    }
    (root / "train/cow").unlink()
    assert ImageFolder(root, 4).skipped == module.skipped | {str(root / "loop"): "beside train and val"}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_a_hidden_folder_that_cannot_be_read_is_named(root: Path) -> None:
    trash = root / "train/cat/.trash"
    trash.mkdir(mode=0)
    found = ImageFolder(root, 4).skipped
    trash.chmod(0o700)  # which whoever clears up needs
    assert found == {str(trash): "hidden"}


# Names in NFC and NFD, as Linux and macOS write them


def renamed(root: Path, form: Any) -> Path:
    """The folder with other names, of classes and images, in this form."""
    for part in ("train", "val"):
        for i, file in enumerate(sorted((root / part / "cat").iterdir())):
            file.rename(file.with_name(unicodedata.normalize(form, f"{'éeẑz'[i % 4]}{i}.jpg")))
        (root / part / "cat").rename(root / part / unicodedata.normalize(form, "café"))
    return root


def test_the_form_of_names_changes_nothing(tmp_path: Path) -> None:
    roots = [renamed(make_folder(tmp_path / form), form) for form in ("NFC", "NFD")]
    for options in ({}, {"val_share": 0.3}):
        places = [root / "train" if options else root for root in roots]
        composed, decomposed = (ImageFolder(place, 4, SIZE, **options) for place in places)
        assert composed.classes == ("café", "dog") == decomposed.classes
        assert composed.settings() == decomposed.settings()
        assert composed.train.names != decomposed.train.names  # which are the files'
        names = [unicodedata.normalize("NFC", name) for name in decomposed.train.names]
        assert composed.train.names == names
    augmented = [dealt_out(root, 0, **AUGMENTED) for root in roots]
    assert augmented[0] == augmented[1]


def test_a_class_is_one_in_both_forms(root: Path) -> None:
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    (root / "train/cat").rename(root / "train" / forms[0])
    (root / "train/dog").rename(root / "train" / forms[1])
    make_folder(root / "more", 3)
    (root / "more/train/dog").rename(root / "train/dog")
    (root / "val/cat").rename(root / "val" / forms[1])
    module = ImageFolder(root, 4)
    assert (module.classes, module.num_train, module.num_val) == (("café", "dog"), 27, 8)
    assert np.bincount(module.train.labels).tolist() == [24, 3]
    for known in ((form, "dog") for form in forms):
        assert evaluation_images(root, known, 2).labels.tolist() == [0] * 4 + [1] * 4


# Reading and checking


def png(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def spoil(folder: Path, name: str) -> Path:
    path = folder / name
    whole = (folder / "cat000.jpg").read_bytes()
    path.write_bytes(
        {
            "empty.jpg": b"",
            "text.jpg": b"no image at all",
            "cut.jpg": whole[: len(whole) // 2],
            "bomb.png": png(30_000, 30_000),
            "html.webp": b"<html>not found</html>",
        }[name]
    )
    return path


@pytest.mark.parametrize("name", ["empty.jpg", "text.jpg", "cut.jpg", "bomb.png", "html.webp"])
def test_files_that_are_no_images_are_named_before_training(root: Path, name: str) -> None:
    spoil(root / "train/cat", name)
    module = ImageFolder(root, 4)
    for _ in range(2):  # the second from what is remembered
        with pytest.raises(BadInput, match="1 file that is no image") as error:
            module.check()
        one_line(error)
        assert f"cat/{name}" in str(error.value)
    without = ImageFolder(root, 4, skip_bad=True)
    without.check()
    assert list(without.skipped) == [str(root / "train/cat" / name)]
    assert (without.num_train, without.num_val) == (24, 8)
    (root / "train/cat" / name).write_bytes((root / "train/dog/dog000.jpg").read_bytes())
    module.check()  # a file that changed is read again


def test_the_first_ten_are_named_and_how_many_there_are(root: Path) -> None:
    for i in range(14):
        (root / f"train/cat/x{i:02}.png").write_bytes(b"x")
    with pytest.raises(BadInput, match="14 files that are no images") as error:
        ImageFolder(root, 4).check()
    one_line(error)
    assert str(error.value).count(".png (") == 10 and "and 4 more" in str(error.value)


def test_a_bad_file_that_nobody_checked_is_named_when_its_turn_comes(root: Path) -> None:
    bad = spoil(root / "train/cat", "text.jpg")
    with pytest.raises(BadInput, match="skip bad ones") as error:
        list(ImageFolder(root, 4, SIZE).train_dataloader())
    one_line(error)
    assert str(bad) in str(error.value)


def test_a_reason_that_may_pass_is_not_remembered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ImageFolder(root, 4)
    with monkeypatch.context() as patch:
        patch.setattr("common.data.folder.why_bad", lambda path: "cannot be opened: Permission denied")
        with pytest.raises(BadInput, match="24 files that are no images"):
            module.check()
    module.check()


def test_what_is_called_an_image_and_is_no_file_is_named_and_counted(root: Path) -> None:
    """None is opened: a pipe would wait for somebody who writes."""
    cats = root / "train/cat"
    (cats / "nowhere.png").symlink_to(root / "gone.png")
    (cats / "itself.png").symlink_to("itself.png")
    (cats / "more").symlink_to(root / "gone")  # perhaps a folder of images
    (cats / "zero.jpg").symlink_to("/dev/zero")
    (cats / "folder.png").mkdir()
    os.mkfifo(cats / "pipe.jpg")
    with pytest.raises(BadInput) as error:
        ImageFolder(root, 4).check()
    one_line(
        error,
        "has 6 files that are no images",
        "cat/nowhere.png (cannot be opened: a link to nothing)",
        "cat/itself.png (cannot be opened: Too many levels of symbolic links)",
        "cat/more (cannot be opened: a link to nothing)",
        "cat/zero.jpg (cannot be opened: a pipe or a device)",
        "cat/folder.png (cannot be opened: a folder)",
        "cat/pipe.jpg (cannot be opened: a pipe or a device)",
    )
    left = ImageFolder(root, 4, skip_bad=True)
    assert (left.num_train, len(left.skipped)) == (24, 6)


def test_images_in_folders_within_a_class_are_of_the_class(root: Path) -> None:
    (root / "train/cat/more").mkdir()
    shutil.copy(root / "train/cat/cat000.jpg", root / "train/cat/more/again.jpg")
    (root / "train/cat/more/around").symlink_to(root / "train/cat")
    module = ImageFolder(root, 4)
    assert module.num_train == 25 and "cat/more/again.jpg" in module.train.names
    module.check()


def test_a_ribbon_does_not_fill_the_memory(tmp_path: Path) -> None:
    pixels = np.linspace(0, 255, 20_000).astype(np.uint8)[None].repeat(2, 0)
    image = Image.fromarray(pixels).convert("RGB")
    tracemalloc.start()
    found = Preparation((24, 24), 3, fit="folder").pixels(image)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
    assert found.shape == (24, 24, 3) and abs(int(found.mean()) - 127) <= 1


def test_a_folder_of_nothing_but_bad_files_is_one_line(root: Path) -> None:
    for file in root.glob("train/*/*"):
        file.write_bytes(b"")
    with pytest.raises(BadInput, match=r"nothing is left besides 24 files that are no images: .*cat000\.jpg"):
        ImageFolder(root, 4, skip_bad=True)


def test_an_image_20000_pixels_wide_is_prepared(root: Path) -> None:
    Image.new("RGB", (20_000, 40), "red").save(root / "val/cat/aaa.png")
    module = ImageFolder(root, 4, SIZE, normalize="none")
    module.check()
    x, _ = next(module.val_dataloader())
    assert x[0, 0].min() == 1 and x[0, 1:].max() == 0


# Preparing


def test_validation_is_torchvisions(root: Path, backends: list[str]) -> None:
    theirs = torchvisions_evaluation(backends)
    for i, size in enumerate([(300, 400), (401, 299), (64, 91), (1000, 225)]):
        picture(*size, i).save(root / f"val/cat/a{i}.png")
    module = ImageFolder(root, batch_size=4)
    x, y = next(module.val_dataloader())
    assert (x.shape, x.dtype, y.tolist(), y.dtype) == ((4, 3, 224, 224), np.float32, [0] * 4, np.int32)
    for image, name in zip(x, module.val.names, strict=False):
        expected = theirs(Image.open(root / "val" / name).convert("RGB")).numpy()
        np.testing.assert_allclose(image, expected, rtol=0, atol=1e-6)


def test_random_crops_are_drawn_as_torchvision_draws_them(backends: list[str]) -> None:
    if "torch" not in backends:
        pytest.skip("torchvision needs PyTorch, which is not under test")
    import torch

    from tests.interop.families import torchvision

    theirs, bilinear = torchvision().transforms.RandomResizedCrop(8), Image.Resampling.BILINEAR
    for size in ((60, 40), (30, 200), (200, 31)):
        image = Image.fromarray(np.mgrid[: size[1], : size[0]][0].astype(np.uint8))
        wide = Image.fromarray(np.mgrid[: size[1], : size[0]][1].astype(np.uint8))
        ours = []
        for seed in range(400):  # a crop's mean row and column say where its middle is
            ours.append(
                [
                    random_resized_crop(i, (8, 8), bilinear, np.random.default_rng(seed)).mean()
                    for i in (image, wide)
                ]
            )
        expected = []
        for seed in range(400):
            row = []
            for each in (image, wide):
                torch.manual_seed(seed)
                row.append(np.asarray(theirs(each)).mean())
            expected.append(row)
        ours_, expected_ = np.array(ours), np.array(expected)
        spread = expected_.std(0) + 0.5
        assert (abs(ours_.mean(0) - expected_.mean(0)) < 0.25 * spread).all()
        assert (abs(ours_.std(0) - expected_.std(0)) < 0.2 * spread).all()


def test_an_image_of_the_size_is_taken_as_it_is(tmp_path: Path) -> None:
    make_folder(tmp_path, size=(24, 24))
    module = ImageFolder(tmp_path, 4, SIZE, normalize="none")
    x, _ = next(module.val_dataloader("float64"))
    for image, name in zip(x, module.val.names, strict=False):
        pixels = np.asarray(Image.open(tmp_path / "val" / name)).transpose(2, 0, 1)
        np.testing.assert_array_equal(image, pixels / 255)


def test_greys_are_of_one_channel_or_of_three(tmp_path: Path) -> None:
    make_folder(tmp_path)
    module = ImageFolder(tmp_path, 4, SIZE, normalize="none")
    assert next(module.val_dataloader(channels=1))[0].shape == (4, 1, 24, 24)
    with pytest.raises(BadInput, match="3 channels, or 1"):
        module.val_dataloader(channels=4)
    with pytest.raises(BadInput, match="normalize none"):
        ImageFolder(tmp_path, 4, SIZE).val_dataloader(channels=1)


def test_a_draw_depends_on_seed_epoch_and_image_alone(root: Path) -> None:
    def drawn(**options: Any) -> dict[bytes, int]:
        """Each training image as it comes out, by its name."""
        epoch = options.pop("epoch", 0)
        module = ImageFolder(root, **{**AUGMENTED, "batch_size": 1, **options})
        order = np.random.default_rng([module.seed, epoch]).permutation(module.num_train)
        return {
            module.train.names[i]: x.tobytes()
            for i, (x, _) in zip(order, module.train_dataloader(epoch), strict=True)
        }

    whole = drawn()
    some = drawn(limit_train=7)
    assert some == {name: whole[name] for name in some}
    assert not set(drawn(epoch=1).values()) & set(whole.values())
    assert not set(drawn(seed=1).values()) & set(whole.values())
    for names in (("crop",), ("flip",), ()):
        assert drawn(augment=names) != whole
    flipped, plain = drawn(augment=("flip",)), drawn(augment=())
    assert 0 < sum(flipped[name] != plain[name] for name in plain) < len(plain)


# Dealing out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_epoch_begins_anywhere(root: Path, dtype: str) -> None:
    module = ImageFolder(root, **AUGMENTED)
    whole = list(module.train_dataloader(2, dtype=dtype))
    assert len(whole) == 5 and whole[-1][0].shape == (4, 3, 24, 24) and whole[0][0].dtype == dtype
    for start in (0, 1, 4, 5):
        same(module.train_dataloader(2, start, dtype), iter(whole[start:]))
    with pytest.raises(BadInput, match="beyond the epoch's 5 batches"):
        module.train_dataloader(0, 6)


@pytest.mark.parametrize("num_workers", [2, pytest.param(1, marks=pytest.mark.deep)])
def test_processes_deal_out_what_threads_do(root: Path, num_workers: int) -> None:
    program = (
        "from tests.data.folders import dealt_out\n"
        f"if __name__ == '__main__':\n    print(dealt_out({str(root)!r}, {num_workers}, **{AUGMENTED!r}))\n"
    )
    file = root.parent / "program.py"
    file.write_text(program)
    path = {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, env=os.environ | path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == dealt_out(root, 0, **AUGMENTED)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fashion") / "images"
    data.write_images(data.sample(), folder)
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_fashion_mnist_as_images_is_fashion_mnist(
    written: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    monkeypatch.setattr("common.data.fashion_mnist._full_or_sample", lambda directory: data.sample())
    built_in = data.FashionMNIST(128, seed=3)
    folder = ImageFolder(written, 128, (28, 28), normalize="none", seed=3)
    for epoch in (0, 1):
        same(
            folder.train_dataloader(epoch, dtype="float64", channels=channels),
            built_in.train_dataloader(epoch, dtype="float64", channels=channels),
        )
    same(folder.val_dataloader(channels=channels), built_in.val_dataloader(channels=channels))
    assert [name[2:] for name in folder.classes] == [name.replace("/", "-") for name in data.CLASSES]


def test_images_are_written_to_a_new_folder_only(written: Path) -> None:
    with pytest.raises(BadInput, match="is not empty") as error:
        data.write_images(data.sample(), written)
    one_line(error)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it")
@pytest.mark.parametrize("files", [10_000, pytest.param(100_000, marks=pytest.mark.deep)])
def test_many_files_are_listed_in_seconds(tmp_path: Path, files: int) -> None:
    for number in range(20):
        folder = tmp_path / f"class{number:02}"
        folder.mkdir()
        for i in range(files // 20):
            os.close(os.open(folder / f"image{number:02}_{i:05}.jpg", os.O_CREAT | os.O_WRONLY))
    program = (
        "import sys, time; from common.data import ImageFolder; begun = time.process_time()\n"
        "module = ImageFolder(sys.argv[1])\n"
        "seconds = time.process_time() - begun\n"
        "memory = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(module.num_train + module.num_val, seconds, memory.split()[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    )
    count, seconds, kilobytes = map(float, done.stdout.split())
    assert count == files and seconds < files / 10_000 and kilobytes < 200_000


def test_known_classes_keep_their_order(root: Path) -> None:
    found = find_images(root / "val", ("dog", "bird", "cat"))
    assert found.labels.tolist() == [2] * 4 + [0] * 4

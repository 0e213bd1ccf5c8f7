"""The commands on a person's own images: train, fine-tune, evaluate and predict; and bad ones."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common import Architecture, architecture, initial_weights, load_checkpoint, save_checkpoint
from common.data import CLASSES, ImageFolder, sample, write_images
from common.data.preparation import Preparation
from common.training import confusion
from common.training.runs import read_history, read_settings
from tests.cli.commands import command, run, run_here, succeed, succeed_here, wait_for
from tests.data.folders import make_folder

pytestmark = pytest.mark.usefixtures("no_full_set", "small")

SHORT = ["--epochs", "1", "--batch-size", "8", "--resize", "28", "--precision", "float64"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "animals", size=(28, 28))


@pytest.fixture(scope="module")
def pretrained(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of three channels and seven classes."""
    arch = architecture(small, in_channels=3, num_classes=7)
    path = tmp_path_factory.mktemp("network") / "seven.safetensors"
    save_checkpoint(path, arch, initial_weights(arch, seed=5))
    return path


@pytest.fixture(scope="module")
def trained(small: str, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    succeed_here("train", "small", "--backend", "oracle", "--data", root, *SHORT, "--out", out)
    return out


@pytest.mark.parametrize("out", ["run", "train/run", "train/cat/run", "../animals", "../link/run"])
def test_a_run_inside_the_folder_of_images_is_refused(
    root: Path, tmp_path: Path, small: str, out: str
) -> None:
    """It would be found as a class later."""
    images = Path(shutil.copytree(root, tmp_path / "animals"))
    (tmp_path / "link").symlink_to(images / "train")
    before = sorted(images.rglob("*"))
    options = [small, "--backend", "oracle", "--data", images, *SHORT]
    for arguments in (["--out", images / out], ["--out", images / out, "--backend", "all"]):
        done = run_here("train", *options, *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert f"is inside the folder of images {images}" in done.stderr
        assert sorted(images.rglob("*")) == before
    done = run_here("train", small, "--backend", "oracle", "--data", ".", *SHORT, folder=images)
    assert done.returncode == 2 and "is inside the folder of images ." in done.stderr


@pytest.mark.core_in("torch")
def test_train_evaluate_and_predict_on_a_folder(
    backend: str, device: str, root: Path, pretrained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    here = ["--backend", backend, "--device", device]
    options = [*SHORT, "--augment", "crop,flip", "--weights", pretrained]
    said = succeed_here("train", "small", "--data", root, *options, *here, "--out", out)
    assert "2 classes, not its 7, so the last layer is new" in said
    assert f"24 training and 8 validation images at 28×28 from {root}" in said
    arch, _ = load_checkpoint(out / "best.safetensors")
    assert (arch.in_channels, arch.num_classes) == (3, 2)

    shown = run_here("evaluate", out, "--data", root, *here, "--precision", "float64").stdout
    accuracy = read_history(out)[-1]["val_accuracy"]
    assert f"accuracy {accuracy:.4f}  top-5 1.0000  (8 images at 28×28 from {root}" in shown
    assert re.search(r"^ *cat +4 ", shown, re.MULTILINE) and re.search(r"^ *dog +4 ", shown, re.MULTILINE)
    assert Image.open(out / "confusion.png").size[0] > 300

    written = tmp_path / "predictions.csv"
    run_here("predict", out, root / "val", *here, "--precision", "float64", "--out", written)
    with written.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "class", "probability", "cat", "dog"]
    assert len(rows) == 8
    right = 0
    for name, told, probability, *probabilities in rows:
        assert float(probability) == max(map(float, probabilities))
        assert sum(map(float, probabilities)) == pytest.approx(1)
        assert told == ("cat", "dog")[np.argmax([float(p) for p in probabilities])]
        right += name.startswith(told)
    assert right / 8 == accuracy


def test_the_weights_are_those_given_and_only_the_last_layer_is_new(
    root: Path, pretrained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = ["--backend", "oracle", *SHORT, "--lr", "1e-300", "--seed", "4"]
    succeed_here("train", "small", "--data", root, *options, "--weights", pretrained, "--out", out)
    given = load_checkpoint(pretrained)[1]
    arch, found = load_checkpoint(out / "last.safetensors")
    drawn = initial_weights(arch, 4)
    for name, array in found.items():
        if not name.endswith(("running_mean", "running_var")):
            expected = drawn[name] if name.startswith("last.") else given[name]
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-200)
    same = tmp_path / "same"  # so many classes as before: all of it is taken
    said = succeed_here("train", "small", "--data", root, *options, "--weights", out, "--out", same)
    assert "new" not in said.splitlines()[0]
    assert read_settings(same).weights != read_settings(out).weights != ""


@pytest.mark.deep
@pytest.mark.xdist_group("signals")
def test_a_killed_run_goes_on_with_the_command_it_printed(root: Path, tmp_path: Path) -> None:
    pretrained, arch = tmp_path / "seven.safetensors", architecture("resnet18", in_channels=3, num_classes=7)
    save_checkpoint(pretrained, arch, initial_weights(arch, seed=5))
    options = ["train", "resnet18", "--data", root / "train", "--backend", "oracle", *SHORT, "--epochs", "2"]
    options += ["--augment", "crop,flip", "--weights", pretrained, "--val-share", "0.3"]
    process = subprocess.Popen(
        command(*options, "--out", tmp_path / "killed"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "killed", 1, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = ["train", "resnet18", "--data", root / "train", "--out", tmp_path / "killed", "--resume"]
    succeed(*again)
    succeed(*options, "--out", tmp_path / "whole")
    killed, whole = (load_checkpoint(tmp_path / name / "last.safetensors")[1] for name in ("killed", "whole"))
    assert all(killed[name].tobytes() == whole[name].tobytes() for name in whole)
    shown = succeed("evaluate", tmp_path / "whole", "--data", root / "train", "--backend", "oracle")
    own = ImageFolder(root / "train", 1, val_share=0.3).num_val
    assert 0 < own < 24 and f"({own} images at 28×28" in shown


def test_evaluate_takes_a_folder_of_some_of_the_classes(trained: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test/dog").symlink_to(root / "val/dog")
    shown = succeed(
        *("evaluate", trained, tmp_path / "test", "--backend", "oracle", "--out", tmp_path / "dogs.png")
    )
    assert "(4 images at 28×28" in shown
    assert (tmp_path / "dogs.png").exists()


def test_a_fashion_mnist_network_sees_png_files_as_it_saw_the_set(tmp_path: Path) -> None:
    arch = architecture("small")
    path = tmp_path / "fashion.safetensors"
    how = Preparation((96, 96), 1, fit="fashion-mnist").to_json()
    save_checkpoint(path, arch, initial_weights(arch), {"preparation": how, "classes": json.dumps(CLASSES)})
    write_images(sample(), tmp_path / "numbered")
    for number, name in enumerate(CLASSES):  # by their own names, which are sorted otherwise
        (tmp_path / "named").mkdir(exist_ok=True)
        link = tmp_path / "named" / name.replace("/", "-")
        link.symlink_to(tmp_path / "numbered/val" / f"{number}-{link.name}")
    options = ["--backend", "oracle", "--resize", "32", "--limit-val", "40", "--precision", "float64"]
    expected = re.search(r"loss \S+  accuracy \S+", run_here("evaluate", path, *options).stdout)
    for folder in ("numbered", "named"):
        said = run_here("evaluate", path, tmp_path / folder, *options).stdout
        assert expected and expected.group() in said
        assert "sorted, are taken for them" in said or folder == "named"


def test_a_moved_checkpoint_is_evaluated_on_the_share_it_was_validated_on(root: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(root / "train", flat)
    out = ["--backend", "oracle", "--out", tmp_path / "run"]
    succeed_here("train", "small", "--data", flat, *SHORT, "--val-share", "0.3", *out)
    moved = tmp_path / "moved.safetensors"
    shutil.copy(tmp_path / "run/best.safetensors", moved)
    share = ImageFolder(flat, 1, val_share=0.3).num_val
    assert f"({share} images at 28×28" in run_here("evaluate", moved, flat, "--backend", "oracle").stdout
    shutil.copy(root / "val/cat/cat000.jpg", flat / "cat/another.jpg")
    said = run_here("evaluate", moved, flat, "--backend", "oracle").stdout
    assert "those trained on included" in said and "(25 images at 28×28" in said


def test_weights_bring_their_conventions(root: Path, tmp_path: Path) -> None:
    arch = dataclasses.replace(architecture("small", 3, 7), epsilon=1.001e-5, decay=0.99, padding="same")
    save_checkpoint(tmp_path / "keras.safetensors", arch, initial_weights(arch))
    options = ["--data", root, "--backend", "oracle", *SHORT, "--weights", tmp_path / "keras.safetensors"]
    succeed_here("train", "small", *options, "--out", tmp_path / "run")
    found, _ = load_checkpoint(tmp_path / "run/best.safetensors")
    assert found == dataclasses.replace(arch, num_classes=2)


def named(path: Path, classes: list[str], **options: Any) -> Path:
    """A small network of these classes, of which it finds the last in every image."""
    arch = architecture("small", 3, len(classes))
    weights = initial_weights(arch)
    weights["last.bias"] = 100.0 * np.arange(len(classes))
    says = {"classes": json.dumps(classes), "preparation": Preparation((28, 28), 3, **options).to_json()}
    save_checkpoint(path, arch, weights, says)
    return path


@pytest.mark.parametrize(
    ("classes", "bias", "said"),
    [
        (["cat", "dog"], [0, 1], ""),
        (["Dog", "CAT"], [1, 0], "the last layer's rows are in the order of cat, dog\n"),
        (["fox", "cat"], [1, None], "the last layer's rows are in the order of cat, dog, and 1 are new\n"),
        (["hen", "fox"], [0, 1], "it calls its classes otherwise, and they are taken in their order\n"),
        (["a", "b", "c"], [None, None], "2 classes, not its 3, so the last layer is new\n"),
    ],
)
def test_what_weights_know_of_a_class_stays_with_it(
    root: Path, tmp_path: Path, classes: list[str], bias: list[int | None], said: str
) -> None:
    weights = named(tmp_path / "named.safetensors", classes)
    options = ["--data", root, "--backend", "oracle", *SHORT, "--lr", "1e-30", "--weights", weights]
    shown = succeed_here("train", "small", *options, "--out", tmp_path / "run")
    assert (said in shown and said) or f"starting from {weights}\n" in shown
    found = load_checkpoint(tmp_path / "run/best.safetensors")[1]["last.bias"]
    assert found.round(9).tolist() == [0 if row is None else 100 * row for row in bias]


def test_training_starts_from_the_images_that_weights_had(root: Path, tmp_path: Path) -> None:
    how = {"normalize": "caffe", "scaled": (40, 36), "interpolation": "lanczos"}
    weights = named(tmp_path / "named.safetensors", ["cat", "dog"], **how)
    options = ["--data", root, "--backend", "oracle", "--epochs", "2", "--batch-size", "8"]
    run, train = tmp_path / "run", ["train", "small", *options, "--weights", weights]
    shown = succeed_here(*train, "--out", run)
    line = "images: 28×28 as they are, others brought to cover 40×36 (lanczos), the centre of 28×28; BGR"
    assert line in shown
    settings = read_settings(run)
    assert settings.preparation(3) == Preparation((28, 28), 3, fit="folder", **how)
    for what in ("evaluate", "predict"):
        assert line in succeed_here(what, run, root / "val", "--backend", "oracle")
    succeed_here("train", "small", "--data", root, "--out", run, "--resume")  # the same settings
    shown = succeed_here(*train, "--resize", "14", "--normalize", "none", "--out", tmp_path / "other")
    assert "others brought to cover 20×18 (lanczos), the centre of 14×14; RGB in [0, 1]" in shown


def test_evaluate_finds_classes_by_their_names(root: Path, tmp_path: Path) -> None:
    options = ["--backend", "oracle", "--out", tmp_path / "x.png"]
    for classes, accuracy in ((["dog", "cat"], "0.5000"), (["DOG", "Cat", "fox"], "0.0000")):
        path = named(tmp_path / "named.safetensors", classes)
        shown = succeed_here("evaluate", path, root / "val", *options)
        assert "taken for them" not in shown and f"accuracy {accuracy}" in shown
    done = run_here("evaluate", named(tmp_path / "named.safetensors", ["hen", "fox"]), root / "val", *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "has no class of those that" in done.stderr and "hen, fox; call its folders so" in done.stderr


def test_folders_of_parts_are_no_classes(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for part, name in (("train", "Train"), ("val", "validation")):
        (tmp_path / "data" / name).symlink_to(root / part)
    done = run_here("train", "small", "--data", tmp_path / "data", "--backend", "oracle", *SHORT)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert (
        "Train, validation for classes, which are no classes; call the folders train and val" in done.stderr
    )


def test_an_array_is_taken_as_it_is_and_that_is_said(trained: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 28, 28), np.uint8))
    shown = succeed_here("predict", trained, tmp_path / "x.npy", "--backend", "oracle")
    assert shown.startswith("array, taken as it is; images: 28×28 as they are, others the shorter side to 32")
    for option in (["--normalize", "none"], ["--resize", "28"]):
        done = run_here("predict", trained, tmp_path / "x.npy", *option)
        assert done.returncode == 2 and "an array is taken as it is; leave out --resize" in done.stderr


def test_predict_takes_folders_as_training_does_and_names_images_by_their_place(
    trained: Path, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "images/.hidden").mkdir(parents=True)
    (tmp_path / "images/._a.jpg").write_bytes(b"no image")
    (tmp_path / "images/cat").symlink_to(root / "val/cat")
    (tmp_path / "images/circle").symlink_to(tmp_path / "images")
    done = run_here("predict", trained, tmp_path / "images", "--backend", "oracle")
    first, _, *lines = done.stdout.splitlines()
    assert first == f"leaving out 1 file: 1 hidden ({tmp_path}/images/._a.jpg)"
    assert [line.split(":")[0] for line in lines] == [f"cat/cat{i:03}.jpg" for i in range(4)]


def test_each_command_says_what_it_leaves_out_in_one_line(trained: Path, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "animals", size=(28, 28))
    options = ["--data", root, "--backend", "oracle"]
    train = ["train", "small", *options, *SHORT, "--out", tmp_path / "run"]
    succeed_here(*train)
    (root / "notes.txt").touch()
    for part in ("train", "val"):
        (root / part / "cat/a.gif").touch()
    said = succeed_here(*train, "--resume")  # the same run, wherever it is
    assert said.count("leaving out") == 1 and "leaving out 3 files: " in said
    for arguments, count in (
        (["evaluate", trained, *options], "2 files"),
        (["predict", trained, root / "val", "--backend", "oracle"], "1 file"),
        (["predict", trained, root / "val", root / "val/cat/cat000.jpg", "--backend", "oracle"], "1 file"),
    ):
        said = succeed_here(*arguments)
        assert said.count("leaving out") == 1 and f"leaving out {count}: " in said
        assert f".tiff ({root}/val/cat/a.gif)" in said
    named = ["predict", trained, root / "val", root / "val/cat/a.gif", "--backend", "oracle", "--skip-bad"]
    line = f"leaving out 1 file: 1 that cannot be read ({root}/val/cat/a.gif)\n"
    assert succeed_here(*named).startswith(line)


def test_predict_names_the_classes(trained: Path, root: Path) -> None:
    shown = run_here("predict", trained, root / "val/cat/cat000.jpg", "--backend", "oracle").stdout
    assert re.fullmatch(r"images: .*\ncat000\.jpg: (cat|dog) [\d.]+, (cat|dog) [\d.]+\n", shown)


def test_bad_files_are_left_out_where_asked(trained: Path, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "animals", size=(28, 28))
    for part in ("train", "val"):
        (root / part / "cat/bad.jpg").write_bytes(b"no image")
    line = "resnet-tabs: {} has 1 file that is no image that can be read: cat/bad.jpg "
    options = ["--data", root, "--backend", "oracle"]
    train = ["train", "small", *options, *SHORT, "--out", tmp_path / "run"]
    for arguments, folder in ((train, root / "train"), (["evaluate", trained, *options], root / "val")):
        done = run_here(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(line.format(folder))
        assert not (tmp_path / "run").exists()
    assert "leaving out 2 files" in succeed_here(*train, "--skip-bad")
    assert "leaving out 1 file" in run_here("evaluate", trained, *options, "--skip-bad").stdout
    images = ["predict", trained, root / "val", "--backend", "oracle"]
    assert run_here(*images).returncode == 2
    assert len(run_here(*images, "--skip-bad").stdout.splitlines()) == 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "small", "--skip-bad"], "are for a folder of images"),
        (["train", "small", "--normalize", "none"], "are for a folder of images"),
        (["train", "small", "--data", "{root}", "--normalize", "mean"], "unknown normalize 'mean'"),
        (["train", "small", "--data", "{root}", "--val-share", "2"], "has its own folder val"),
        (["train", "small", "--data", "{root}/train", "--val-share", "2"], "above 0 and below 1"),
        (["train", "small", "--data", "{root}/none"], "or images in folders of their classes"),
        (
            ["train", "small", "--data", "{root}", "--batch-size", "8", "--weights", "none.safetensors"],
            "none.safetensors",
        ),
        (
            ["train", "resnet34", "--data", "{root}", "--batch-size", "8", "--weights", "{seven}"],
            "is of another network, small",
        ),
        (["train", "small", "--data", "{root}", "--augment", "crops"], "did you mean crop"),
        (["evaluate", "{seven}", "--data", "{root}"], "has 2 classes but the network tells 7"),
        (["evaluate", "{trained}", "--data", "{strange}"], "not among those trained: bird"),
        (["evaluate", "{trained}", "{root}", "--batch-size", "0"], "batch_size must be 1 or more"),
        (["evaluate", "{trained}", "{root}", "--limit-val", "0"], "limit_val must be 1 or more"),
        (["evaluate", "{trained}", "{root}", "--loaders", "-1"], "loaders must be 0 or more"),
        # as it was called
        (["evaluate", "{trained}", "{root}", "--num-workers", "-1"], "loaders must be 0 or more"),
        (["evaluate", "{trained}", "{root}", "--val-share", "0.3"], "has its own folder val"),
        (["evaluate", "{trained}", "{root}", "--data", "{root}"], "named twice"),
        (["train", "small", "--out", "{trained}", "--resume"], "give it again, with --data"),
        (["train", "small", "--data", "{root}", "--resize", "0"], "height and a width of 1 or more"),
        (["predict", "{trained}", "{empty}"], "has no images"),
        (["predict", "{trained}", "{others}"], ".tiff ({others}/a.gif)"),
        (
            ["predict", "{trained}", "{strange}", "--skip-bad"],
            "nothing is left besides 1 file that is no image",
        ),
        (["predict", "{trained}", "{root}/val", "--out", "found.txt"], "ends in .csv or .npy"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, root: Path, pretrained: Path, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "others/a.gif").touch()
    (tmp_path / "strange/bird").mkdir(parents=True)
    (tmp_path / "strange/bird/a.jpg").write_bytes(b"")
    places = {"root": root, "seven": pretrained, "trained": trained}
    places |= {name: tmp_path / name for name in ("empty", "others", "strange")}
    done = run_here(*[argument.format(**places) for argument in arguments], folder=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said.format(**places) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_whose_classes_are_damaged_is_one_line(
    trained: Path, root: Path, tmp_path: Path
) -> None:
    arch, weights = load_checkpoint(trained / "best.safetensors")
    for classes, size, share in (
        ("cat", "[28, 28]", "0.1"),
        (json.dumps(["a"] * 3), "[28, 28]", "0.1"),
        ('["a", "b"]', "28", "0.1"),
        ('["a", 5]', "[28, 28]", "0.1"),
        ('["a", "\\ud800"]', "[28, 28]", "0.1"),
        ("[" * 100_000, "[28, 28]", "0.1"),
        ('["a", "b"]', "[28, 28]", "xx"),
        ('["a", "b"]', "[28, 28]", '"xx"'),
        ('["a", "b"]', "[28, 28]", "NaN"),
        ('["a", "b"]', "[28, 28]", "-3"),
        ('["a", "b"]', "[1e999, 16]", "0.1"),
        ('["a", "b"]', "[60000, 60000]", "0.1"),
        ('["a", "b"]', "[28.0, 28]", "0.1"),
        ('["a", "b"]', f"[{'9' * 5000}, 28]", "0.1"),
        ('["a", "b"]', "[" * 100_000, "0.1"),
    ):
        path = tmp_path / "bad.safetensors"
        save_checkpoint(path, arch, weights, {"classes": classes, "resize": size, "val_share": share})
        done = run_here("predict", path, root / "val", "--backend", "oracle")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "is damaged" in done.stderr and len(done.stderr) < 500


def test_fashion_mnist_is_written_as_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.data.full", lambda directory: sample())
    folder = tmp_path / "images"
    said = run_here("download", "--as-images", folder).stdout
    assert said == f"1,500 images of Fashion-MNIST are in {folder}, a folder for `train --data`\n"
    first = folder / "train/9-Ankle boot/00000.png"
    np.testing.assert_array_equal(np.asarray(Image.open(first)), sample().train_images[0])
    assert run("download", "--as-images", folder).returncode == 2


HOSTILE = ("\x1b]0;mine\x07cat", "dog\n\x9b2J\u202egod\u200b")


@pytest.fixture
def hostile(root: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A network whose classes are called so, and an image."""
    arch = Architecture(((1, 4),), in_channels=3, num_classes=2, stem_channels=4)
    says = {"classes": json.dumps(HOSTILE), "resize": "[28, 28]"}
    save_checkpoint(tmp_path / "net.safetensors", arch, initial_weights(arch), says)
    return tmp_path / "net.safetensors", root / "val/cat/cat000.jpg"


def test_what_a_checkpoint_calls_its_classes_does_nothing_to_a_terminal(
    hostile: tuple[Path, Path], root: Path, tmp_path: Path
) -> None:
    network, image = hostile
    options = ["--backend", "oracle"]
    shown = [r"\x1b]0;mine\x07cat", r"dog\n\x9b2J\u202egod\u200b"]
    _, line = succeed_here("predict", network, image, *options).splitlines()
    assert line.isprintable() and all(name in line for name in shown)
    succeed_here("predict", network, image, *options, "--out", tmp_path / "found.csv")
    table = (tmp_path / "found.csv").read_text(encoding="utf-8")
    assert table.splitlines()[0] == f"image,class,probability,{','.join(shown)}"
    done = run_here("evaluate", network, root / "val", *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and done.stderr[:-1].isprintable()


def test_a_table_of_classes_does_nothing_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    confusion.show(np.eye(2, dtype=np.int64), HOSTILE)
    said = capsys.readouterr().out
    assert all(line.isprintable() for line in said.splitlines())
    assert r"\x1b]0;mine\x07cat" in said and r"dog\n\x9b2J\u202egod\u200b" in said


def test_a_picture_of_classes_is_drawn_whatever_they_are_called(tmp_path: Path) -> None:
    confusion.draw(tmp_path / "found.png", np.eye(3, dtype=np.int64), (*HOSTILE, "$x^$" * 100))
    assert (tmp_path / "found.png").stat().st_size > 0


def test_no_name_in_a_table_is_a_formula(root: Path, tmp_path: Path) -> None:
    arch = Architecture(((1, 4),), in_channels=3, num_classes=4, stem_channels=4)
    classes = ["=1+1", "+cat", "@dog", "-3"]
    says = {"classes": json.dumps(classes), "resize": "[28, 28]"}
    save_checkpoint(tmp_path / "net.safetensors", arch, initial_weights(arch), says)
    shutil.copy(root / "val/cat/cat000.jpg", tmp_path / "=cat.jpg")
    inputs = [tmp_path / "net.safetensors", tmp_path / "=cat.jpg"]
    succeed_here("predict", *inputs, "--backend", "oracle", "--out", tmp_path / "found.csv")
    header, line = csv.reader((tmp_path / "found.csv").read_text(encoding="utf-8").splitlines())
    assert header[3:] == ["'=1+1", "'+cat", "'@dog", "'-3"]
    assert line[0] == "'=cat.jpg" and line[1] in header[3:]

"""Weights: the same numbers from a seed everywhere, and checkpoints that are whole and right or one line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from common import architecture, initial_weights, load_checkpoint, save_checkpoint
from common.architecture import Architecture
from common.errors import BadInput, MissingFile
from common.weights import Weights, check_weights, is_statistic, load_metadata
from tests.damage import flips
from tests.helpers import one_line, random_weights

# SHA-256 of the weights of ResNet-18 drawn from seed 0: everyone's results depend on these numbers.
RESNET18_SEED_0 = "ebc599b5e6c2fbfc"

ARCH = Architecture(
    stages=((1, 8), (1, 12)), block="resnext", groups=(2, 3), bot_mul=0.5, in_channels=2, stem_channels=6
)


def digest(weights: Weights) -> str:
    content = b"".join(name.encode() + array.astype("<f8").tobytes() for name, array in weights.items())
    return hashlib.sha256(content).hexdigest()[:16]


# Drawn from a seed


def test_the_weights_of_seed_0_never_change() -> None:
    arch = architecture("resnet18")
    assert digest(initial_weights(arch)) == RESNET18_SEED_0
    assert digest(initial_weights(arch, seed=0)) == RESNET18_SEED_0


def test_the_weights_depend_on_the_seed_only() -> None:
    assert digest(initial_weights(ARCH, 5)) == digest(initial_weights(ARCH, 5))
    assert len({digest(initial_weights(ARCH, seed)) for seed in range(5)}) == 5


def test_initial_weights_have_the_names_and_shapes_of_the_architecture_in_float64() -> None:
    weights = initial_weights(ARCH)
    assert {name: w.shape for name, w in weights.items()} == ARCH.parameter_shapes()
    assert list(weights) == list(ARCH.parameter_shapes())
    assert {w.dtype for w in weights.values()} == {np.dtype("float64")}


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("b1.conv.weight", (6 / (49 * (1 + 64))) ** 0.5),
        ("b3.0.conv1.weight", (6 / (9 * (64 + 128))) ** 0.5),
        ("b3.0.conv3.weight", (6 / (64 + 128)) ** 0.5),
        ("last.weight", (6 / (512 + 10)) ** 0.5),
    ],
)
def test_convolutions_and_the_dense_layer_are_glorot_uniform(name: str, limit: float) -> None:
    weight = initial_weights(architecture("resnet18"), seed=3)[name]
    assert 0.99 * limit < weight.max() < limit and -limit < weight.min() < -0.99 * limit
    assert abs(weight.mean()) < 4 * limit / (3 * weight.size) ** 0.5  # four standard errors
    assert weight.std() == pytest.approx(limit / 3**0.5, rel=0.05)


def test_a_grouped_convolution_counts_the_channels_of_its_group() -> None:
    weight = initial_weights(
        Architecture(stages=((1, 256),), block="resnext", groups=64, stem_channels=256), seed=1
    )["b2.0.conv2.weight"]
    limit = (6 / (9 * (256 + 64))) ** 0.5
    assert weight.shape == (256, 64, 3, 3) and 0.99 * limit < weight.max() < limit


def test_biases_are_0_and_batch_norm_starts_as_the_identity() -> None:
    for name, weight in initial_weights(ARCH, seed=1).items():
        if weight.ndim == 1:
            is_one = name.endswith("running_var") or (".bn" in name and name.endswith(".weight"))
            assert (weight == is_one).all(), name


def test_statistics_are_told_from_parameters() -> None:
    assert is_statistic("b1.bn.running_mean") and is_statistic("b2.0.bn3.running_var")
    assert not is_statistic("b1.bn.weight") and not is_statistic("last.bias")


# Checked


def nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flat[-1] = np.nan
    return array


BAD_WEIGHTS: dict[str, tuple[Callable[[Weights], dict[str, Any]], str]] = {
    "missing": (
        lambda w: {name: a for name, a in w.items() if name != "b2.0.bn1.running_var"},
        "missing: b2.0.bn1.running_var",
    ),
    "extra": (lambda w: w | {"b2.0.conv5.weight": np.zeros(3)}, "extra: b2.0.conv5.weight"),
    "wrong shape": (
        lambda w: w | {"last.weight": w["last.weight"].T},
        "wrong shape: last.weight is (12, 10), expected (10, 12)",
    ),
    "NaN": (lambda w: w | {"b1.conv.weight": nan(w["b1.conv.weight"])}, "NaN or infinite: b1.conv.weight"),
    "infinite": (lambda w: w | {"last.bias": w["last.bias"] + np.inf}, "NaN or infinite: last.bias"),
    "integers": (
        lambda w: w | {"last.bias": np.zeros(10, np.int64)},
        "not float16, float32 or float64: last.bias (int64)",
    ),
    "all missing": (lambda w: {}, "missing: b1.conv.weight, b1.conv.bias, b1.bn.weight and"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_that_do_not_fit_are_refused_in_one_line(case: str) -> None:
    change, words = BAD_WEIGHTS[case]
    with pytest.raises(BadInput) as error:
        check_weights(ARCH, change(initial_weights(ARCH)))
    one_line(error, "the weights do not fit this architecture", words)


def test_checked_weights_come_in_canonical_order() -> None:
    weights = random_weights(ARCH)
    found = check_weights(ARCH, dict(reversed(weights.items())))
    assert list(found) == list(weights)
    assert all(found[name] is weights[name] for name in weights)


# Checkpoints


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    weights = {name: array.astype(dtype) for name, array in random_weights(ARCH).items()}
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, ARCH, dict(reversed(weights.items())))
    arch, found = load_checkpoint(str(path))
    assert arch == ARCH and list(found) == list(weights)
    for name, array in found.items():
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, weights[name])
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_checkpoint_holds_arrays_however_they_lie_in_memory(tmp_path: Path) -> None:
    weights = {name: np.asfortranarray(array) for name, array in random_weights(ARCH).items()}
    weights["last.bias"] = np.arange(20.0)[::2]
    save_checkpoint(tmp_path / "run.safetensors", ARCH, weights)
    _, found = load_checkpoint(tmp_path / "run.safetensors")
    for name, array in found.items():
        np.testing.assert_array_equal(array, weights[name])


def content(**changes: Any) -> bytes:
    """A checkpoint's bytes, with other weights or metadata."""
    options = {"weights": random_weights(ARCH), "metadata": {"architecture": ARCH.to_json()}, **changes}
    return save(options["weights"], metadata=options["metadata"])


OTHER = Architecture(stages=((1, 8), (1, 12)), in_channels=2, stem_channels=6)

BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "not a complete safetensors file"),
    "cut in the length": (lambda: content()[:4], "not a complete safetensors file"),
    "cut in the header": (lambda: content()[:100], "not a complete safetensors file"),
    "cut in the numbers": (lambda: content()[:-8], "not a complete safetensors file"),
    "too long": (lambda: content() + b"12345678", "not a complete safetensors file"),
    "not safetensors": (lambda: b"<html>404 not found</html>" * 9, "not a complete safetensors file"),
    "a pickle": (lambda: b"\x80\x02}q\x00." * 9, "bring it with `resnet-tabs convert"),
    "no metadata": (lambda: content(metadata=None), "names no architecture"),
    "other metadata": (lambda: content(metadata={"format": "pt"}), "names no architecture"),
    "no architecture": (lambda: content(metadata={"architecture": "x"}), "not the description of an arch"),
    "a bad architecture": (lambda: content(metadata={"architecture": '{"stages": []}'}), "stages must be"),
    "another architecture": (
        lambda: content(metadata={"architecture": OTHER.to_json()}),
        "the weights do not fit this architecture",
    ),
    **{
        f"weights {case}": (lambda change=change: content(weights=change(random_weights(ARCH))), words)
        for case, (change, words) in BAD_WEIGHTS.items()
    },
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_checkpoint_is_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    make, words = BAD_FILES[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(make())
    with pytest.raises(BadInput) as error:
        load_checkpoint(path)
    one_line(error, f"checkpoint {path}", words)
    assert not isinstance(error.value, FileNotFoundError)


@pytest.mark.parametrize("metadata", [{}, {"source": "torchvision", "dataset": "imagenet"}])
def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, ARCH, random_weights(ARCH), metadata)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    for where in chain(flips(path, 150, end=header), flips(path, 150)):
        with pytest.raises(BadInput) as error:
            load_checkpoint(path)
            pytest.fail(f"{where} went unnoticed")
        one_line(error, f"checkpoint {path}")
    load_checkpoint(path)


def test_damaged_weights_are_said_to_be_so(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, ARCH, random_weights(ARCH))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BadInput) as error:
        load_checkpoint(path)
    one_line(error, str(path), "damaged or was changed", "wrong SHA-256", "take another copy")


def test_a_checkpoint_without_sums_loads(tmp_path: Path) -> None:
    weights = random_weights(ARCH)
    save_file(weights, tmp_path / "theirs.safetensors", {"architecture": ARCH.to_json()})
    arch, found = load_checkpoint(tmp_path / "theirs.safetensors")
    assert arch == ARCH and digest(found) == digest(weights)


def test_a_checkpoint_keeps_its_sums_through_another_program(tmp_path: Path) -> None:
    path, again = tmp_path / "run.safetensors", tmp_path / "again.safetensors"
    save_checkpoint(path, ARCH, random_weights(ARCH), {"source": "timm"})
    arch, weights = load_checkpoint(path)
    save_file(dict(reversed(weights.items())), again, dict(reversed(load_metadata(path).items())))
    assert digest(load_checkpoint(again)[1]) == digest(weights)
    save_checkpoint(again, arch, random_weights(ARCH, seed=1), load_metadata(path))  # with stale sums given
    assert load_metadata(again)["source"] == "timm"
    assert digest(load_checkpoint(again)[1]) == digest(random_weights(ARCH, seed=1))


@pytest.mark.parametrize("where", ["missing.safetensors", ".", "file/run.safetensors"])
def test_a_missing_checkpoint_is_a_file_not_found(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError) as error:
        load_checkpoint(tmp_path / where)
    one_line(error, f"checkpoint {tmp_path / where} not found", ".safetensors")
    assert isinstance(error.value, MissingFile) and isinstance(error.value, ValueError)


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_not_saved(tmp_path: Path, case: str) -> None:
    with pytest.raises(BadInput, match="do not fit this architecture"):
        save_checkpoint(tmp_path / "run.safetensors", ARCH, BAD_WEIGHTS[case][0](random_weights(ARCH)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["file/run.safetensors", "missing/run.safetensors"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput) as error:
        save_checkpoint(tmp_path / where, ARCH, random_weights(ARCH))
    one_line(error, f"cannot write {tmp_path / where}", "choose another place")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def disk_full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "run.safetensors"
    save_checkpoint(path, ARCH, random_weights(ARCH, seed=1))
    old = path.read_bytes()
    monkeypatch.setattr(os, step, disk_full)
    with pytest.raises(BadInput) as error:
        save_checkpoint(path, ARCH, random_weights(ARCH, seed=2))
    one_line(error, f"cannot write {path}: No space left on device")
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def write_header(path: Path, header: str, tensors: bytes = bytes(8)) -> Path:
    """A safetensors file with this header."""
    path.write_bytes(len(header.encode()).to_bytes(8, "little") + header.encode() + tensors)
    return path


BIAS = '{"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}'
HEADERS = {
    "a name twice": (f'{{"a": {BIAS % (0, 4)}, "a": {BIAS % (4, 8)}}}', "'a' is there twice"),
    "metadata twice": ('{"__metadata__": {"a": "1", "a": "2"}}', "'a' is there twice"),
    "metadata of numbers": ('{"__metadata__": {"architecture": 5}}', "not of texts"),
    "depth": ("[" * 100_000, "nested"),
    "half a character": (f'{{"\\ud800": {BIAS % (0, 4)}, "b": {BIAS % (4, 8)}}}', "half a character"),
    "overlap": (f'{{"a": {BIAS % (0, 4)}, "b": {BIAS % (0, 4)}}}', "not a complete"),
    "a negative shape": ('{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', "not a complete"),
    "beyond the end": (f'{{"a": {BIAS % (0, 400)}}}', "not a complete"),
    "an absurd type": ('{"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}', "not a complete"),
    "an absurd shape": (
        '{"a": {"dtype": "F32", "shape": [9000000000, 9000000000, 9000000000], "data_offsets": [0, 8]}}',
        "not a complete",
    ),
    "5 MiB": (" " * (5 << 20), "larger than 4 MiB"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_of_a_stranger_is_one_line(tmp_path: Path, case: str) -> None:
    header, words = HEADERS[case]
    for load in (load_checkpoint, load_metadata):
        with pytest.raises(BadInput) as error:
            load(write_header(tmp_path / "a.safetensors", header))
        one_line(error, words)
        assert len(str(error.value)) < 500


def test_names_of_tensors_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    save_file(
        {"a\nb\x1b[2J\u202e": np.zeros(1)}, tmp_path / "a.safetensors", {"architecture": ARCH.to_json()}
    )
    with pytest.raises(BadInput) as error:
        load_checkpoint(tmp_path / "a.safetensors")
    one_line(error, r"extra: a\nb\x1b[2J\u202e")


def test_a_checkpoint_of_a_type_numpy_lacks_says_so(tmp_path: Path) -> None:
    header = b'{"last.bias":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    path = tmp_path / "bfloat16.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(BadInput) as error:
        load_checkpoint(path)
    one_line(error, str(path), "holds BF16", "save it as float32")

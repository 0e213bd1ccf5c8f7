"""Two thousand damaged and hostile inputs, drawn from a seed: each is read, or refused in one line, soon.

None takes ten seconds, all together no more than 1 GB, and nothing is written.
"""

from __future__ import annotations

import dataclasses
import io
import json
import random
import shutil
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import Architecture, initial_weights, save_checkpoint
from common.bench import against
from common.bench.measure import Workload, forget_peak, peak_memory
from common.bench.report import KIND
from common.cli.options import open_checkpoint
from common.data.decode import decode
from common.data.images import read_array
from common.errors import BadInput
from common.interop.configs import read_config
from common.interop.convert import from_family, to_family
from common.interop.families import FAMILIES
from common.interop.files import read_tensors, write_tensors
from common.processes.meeting import _is_report, _Line
from common.proof.verify import read_recording
from common.recipe import Recipe
from common.training.runs import Position, Run, read_history, read_settings
from common.training.settings import Settings
from common.weights import load_checkpoint, read_with_sums
from tests.data.folders import FILES, write_file

pytestmark = pytest.mark.deep

ARCH = Architecture(((1, 4), (1, 8)), in_channels=3, num_classes=2, stem_channels=4, shortcut_norm=True)
SAYS = {
    "classes": '["cat", "dog"]',
    "resize": "[32, 32]",
    "normalize": "imagenet",
    "val_share": "0.1",
    "data": "animals",
}

EVIL_TEXTS = ("", "\x1b]0;a\x07", "a\nb", "\u202e\u200b\x9b", "../../../etc/passwd", "x" * 100_000, "=1+1")
EVIL: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**53, 2**63, -(2**63), 10**30, 10**5000, 1e308, -0.5),
    *(float("nan"), float("inf"), [], {}, [[]], [1e308] * 3, {"a": {}}, *EVIL_TEXTS),
)
EVIL_WHOLE = (
    0,
    1,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
)


def dumps(value: Any) -> str:
    """JSON of whatever it is; Python writes no number of more than 4,300 digits."""
    return json.dumps(value, default=str).replace(json.dumps(str(EVIL_MARK)), "1" + "0" * 5000)


EVIL_MARK = "ten to the 5000"
EVIL = tuple(EVIL_MARK if value == 10**5000 else value for value in EVIL)


def spoilt_value(draw: random.Random, value: Any) -> Any:
    """JSON's value with one place in it made something else, left out, or there more than once."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        name = draw.choice(list(value))
        kind = draw.random()
        if kind < 0.1:
            return {other: value[other] for other in value if other != name}
        if kind < 0.2:
            return {**value, draw.choice(EVIL_TEXTS): value[name]}
        return {**value, name: spoilt_value(draw, value[name])}
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        if draw.random() < 0.2:
            return value[:place] * draw.choice((0, 2, 1000))
        return [*value[:place], spoilt_value(draw, value[place]), *value[place + 1 :]]
    return draw.choice(EVIL)


def spoilt_json(draw: random.Random, value: Any) -> bytes:
    """The same as text, which may be none."""
    text = dumps(spoilt_value(draw, value)) if draw.random() < 0.7 else dumps(value)
    kind = draw.randrange(12)
    place = draw.randrange(len(text) + 1)
    if kind == 0:
        text = text[:place] + draw.choice(("[", '{"a":')) * draw.choice((100, 100_000)) + text[place:]
    elif kind == 1:
        text = text.replace(
            '":', '": ' + draw.choice(("NaN", "-Infinity", "1e999", "9" * 5000)) + ', "b":', 1
        )
    elif kind == 2 and text.startswith("{"):
        text = "{" + text[1:-1] + ", " + text[1:]  # every name twice
    elif kind == 3:
        text = text.replace('"', '"\\ud800', draw.choice((1, 3)))
    elif kind == 4:
        return draw.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0")) + text.encode()
    elif kind == 5:
        return spoilt_bytes(draw, text.encode())
    return text.encode()


def spoilt_bytes(draw: random.Random, content: bytes) -> bytes:
    """Bytes cut, changed, left out, doubled, or with a number of another size in a place."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(len(data) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            del data[place : place + draw.choice((1, 4, 8, 100))]
        elif kind == 2:
            data[place:place] = data[place : place + draw.choice((1, 8, 64, 1000))]
        elif kind == 3:
            data[place : place + 1] = bytes([draw.randrange(256)])
        else:
            length = draw.choice((1, 2, 4, 8))
            number = draw.choice(EVIL_WHOLE) % 256**length
            place -= place % draw.choice((1, length))
            data[place : place + length] = number.to_bytes(length, draw.choice(("little", "big")))
    return bytes(data)


def spoilt_start(draw: random.Random, content: bytes) -> bytes:
    """`spoilt_bytes`, mostly of what comes first, which says what the rest is."""
    end = draw.choice((64, 1000, len(content)))
    return spoilt_bytes(draw, content[:end]) + content[end:]


def spoilt_safetensors(draw: random.Random, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    if draw.random() < 0.2:
        return spoilt_start(draw, content)
    header = json.loads(content[8 : 8 + length])
    if draw.random() < 0.5:  # what is said inside what is said
        name = draw.choice(list(header["__metadata__"]))
        try:
            inner = json.loads(header["__metadata__"][name])
        except ValueError:
            inner = header["__metadata__"][name]
        header["__metadata__"][name] = spoilt_json(draw, inner).decode(errors="replace")
        for sum_ in ("header_sha256", "tensors_sha256"):
            header["__metadata__"].pop(sum_, None)
        text = json.dumps(header).encode()
    else:
        text = spoilt_json(draw, header)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def spoilt_zip(draw: random.Random, content: bytes) -> bytes:
    """Its bytes, or its members, spoilt, doubled or blown up."""
    if draw.random() < 0.4:
        return spoilt_bytes(draw, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    place = draw.randrange(len(members))
    name, inside = members[place]
    kind = draw.randrange(4)
    if kind == 0:
        members.append((name, inside))
    elif kind == 1:
        members[place] = (name, inside + bytes(draw.choice((100, 100, 100, 80 << 20))))
    elif kind == 2:
        members[place] = (draw.choice(EVIL_TEXTS) or "a", inside)
    else:
        members[place] = (name, spoilt_start(draw, inside))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, inside in members:
            archive.writestr(name[:60_000], inside)
    return made.getvalue()


Spoil = Callable[[random.Random, bytes], bytes]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the inputs; the current, the temporary and the user's folders stay empty."""
    for name, variable in (("tmp", "TMPDIR"), ("cache", "XDG_CACHE_HOME"), ("home", "HOME")):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere" / name))
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "inputs").mkdir()
    forget_peak()
    before = peak_memory() or 0
    yield tmp_path / "inputs"
    assert (peak_memory() or 0) - before < 1 << 30
    assert not [file for file in (tmp_path / "elsewhere").rglob("*") if not file.is_dir()]
    shutil.rmtree(tmp_path)


def check(case: str, read: Callable[[], object]) -> bool:
    """It reads, or refuses in one line that does nothing, and soon; whether it refuses."""
    began = time.monotonic()
    refused = False
    try:
        read()
    except BadInput as error:
        refused, line = True, str(error)
        assert line and line.isprintable() and len(line) < 5000, (case, line)
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
    assert time.monotonic() - began < 10, case
    return refused


def check_spoilt(
    path: Path, spoil: Spoil, read: Callable[[Path], object], count: int, whole: bytes | None = None
) -> None:
    """So many files in the place of one that is whole, each spoilt in another way; many are refused."""
    whole = path.read_bytes() if whole is None else whole
    path.write_bytes(whole)
    assert not check(f"{path.name}, whole", lambda: read(path))
    refused = 0
    for number in range(count):
        case = f"{path.name} {number}"
        content = spoil(random.Random(case), whole)
        path.write_bytes(content)
        refused += check(case, lambda: read(path))
        assert path.read_bytes() == content, case
    path.write_bytes(whole)
    assert refused > count / 4


@pytest.mark.filterwarnings("ignore")  # of zipfile, of doubled names; of Pillow
def test_checkpoints(place: Path) -> None:
    path = place / "net.safetensors"
    save_checkpoint(path, ARCH, initial_weights(ARCH), SAYS)
    check_spoilt(path, spoilt_safetensors, lambda path: open_checkpoint(path, None), 300)
    check_spoilt(path, spoilt_safetensors, load_checkpoint, 100)


@pytest.mark.filterwarnings("ignore")
def test_descriptions_of_networks(place: Path) -> None:
    resnext = Architecture(((1, 8), (2, 8)), "resnext", groups=4, bot_mul=0.5)
    for number in range(200):
        draw = random.Random(f"architecture {number}")
        arch = json.loads(draw.choice((ARCH, resnext)).to_json())
        text = spoilt_json(draw, arch).decode(errors="surrogateescape")
        check(f"architecture {number}", lambda text=text: Architecture.from_json(text).parameter_shapes())


def settings() -> Settings:
    return Settings(
        *("oracle", ARCH.to_json(), 2, 8, (32, 32), 0.1, Recipe(), "constant", 0, (), "float64", "cpu", 0),
        *(None, None, "animals"),
        classes=("cat", "dog"),
    )


@pytest.mark.filterwarnings("ignore")
def test_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.start(place / "run", settings())
    weights = initial_weights(ARCH)
    for step in range(1, 4):
        run.log({"event": "step", "epoch": 1, "step": step, "lr": 0.1, "loss": 2.0, "accuracy": 0.5})
    run.save(weights, weights, Position(step=3, batch=3, images=24))
    folder = run.folder
    state, history = folder / "last.optimizer.safetensors", folder / "history.jsonl"
    check_spoilt(state, spoilt_safetensors, lambda _: Run.load(folder), 100)
    lines = [json.loads(line) for line in history.read_bytes().splitlines()]

    def spoilt_lines(draw: random.Random, _: bytes) -> bytes:
        spoilt = [spoilt_json(draw, line) if draw.random() < 0.7 else dumps(line).encode() for line in lines]
        return b"\n".join(spoilt)

    for number in range(100):  # a line that is none is left out
        history.write_bytes(spoilt_lines(random.Random(f"history {number}"), b""))
        assert not check(f"history {number}", lambda: (Run.load(folder), read_history(folder)))
    monkeypatch.setattr("common.training.runs._fields_sha256", lambda fields: "any")  # so all are believed
    said = json.loads((folder / "run.json").read_bytes()) | {"sha256": "any"}
    text = json.dumps(said).encode()
    check_spoilt(folder / "run.json", lambda draw, _: spoilt_json(draw, said), read_of_run, 150, text)


def read_of_run(path: Path) -> None:
    """What `--resume` reads first."""
    found = read_settings(path.parent)
    assert dataclasses.is_dataclass(found)
    found.differences(settings())
    found.metadata()
    Architecture.from_json(found.architecture)


CONFIGS: list[dict[str, Any]] = [
    {"model_type": "resnet", "hidden_act": "relu", "downsample_in_bottleneck": True},
    {
        **{"architecture": "resnet18", "num_features": 512, "label_names": ["a", "b"]},
        "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3},
    },
]
PREPROCESSOR: dict[str, Any] = {
    **{"image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "resample": 3},
    **{"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}},
    **{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]},
}


def test_measurements_and_configs(place: Path) -> None:
    workload = Workload("small", ARCH, (3, 32, 32), (1,))
    cell = {
        **{"backend": "torch", "precision": "float32", "reference": False, "mode": "train", "batch_size": 1},
        **{"images_per_second": 3.0, "quickest_round": 4.0, "slowest_round": 2.0},
    }
    bench = {
        **{"kind": KIND, "cells": [cell], "busy_elsewhere": 0.1, "architecture": json.loads(ARCH.to_json())},
        **{"input_shape": [3, 32, 32], "device": "cpu", "compile": False, "processor": "one", "threads": 2},
        **{"versions": {"torch": "2.13"}, "failures": ["none"]},
    }

    def read_and_compare(path: Path) -> None:
        record = against.read(path, workload)
        against.show(against.compare(record, record), "then")

    text = json.dumps(bench).encode()
    path = place / "bench.json"
    check_spoilt(path, lambda draw, _: spoilt_json(draw, bench), read_and_compare, 150, text)

    def read_and_prepare(path: Path) -> None:
        said = read_config(path.parent)  # in a folder they are its own
        if said.prepare:
            said.prepare(3)

    path = place / "config.json"
    for config in CONFIGS:
        text = json.dumps(config).encode()
        check_spoilt(
            path, lambda draw, _, config=config: spoilt_json(draw, config), read_and_prepare, 100, text
        )
    path.write_text(json.dumps(CONFIGS[0]))
    text = json.dumps(PREPROCESSOR).encode()
    path = place / "preprocessor_config.json"
    check_spoilt(path, lambda draw, _: spoilt_json(draw, PREPROCESSOR), read_and_prepare, 100, text)


@pytest.mark.filterwarnings("ignore")
def test_arrays(place: Path) -> None:
    x = np.random.default_rng(0).random((2, 3, 8, 8))
    np.save(place / "x.npy", x)
    check_spoilt(place / "x.npy", spoilt_start, read_array, 100)
    np.savez(place / "x.npz", b1=x, last=x[:, :, 0, 0], x=x)
    check_spoilt(place / "x.npz", spoilt_zip, lambda path: read_recording(path, ARCH), 100)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FILES)
def test_images(place: Path, kind: str) -> None:
    check_spoilt(write_file(place, kind, 40), spoilt_start, lambda path: decode(path, 3), 25)


def test_callers_of_worker_0(place: Path) -> None:
    report = {"rank": 1, "workers": 2, "address": "host:1", "about": {"lr": "0.1"}}
    for number in range(150):
        text = spoilt_json(random.Random(f"caller {number}"), report)
        here, there = socket.socketpair()
        there.setblocking(False)
        with here, there:
            with suppress(BlockingIOError):  # more than fits, and more than is heard
                there.sendall(text + b"\n")
            check(f"caller {number}", lambda here=here: _is_report(_Line(here, 1).receive()))


FORMATS = {
    "torch": ("torchvision", "net.pth", spoilt_zip),
    "mxnet": ("gluon", "net.params", spoilt_start),
    "jax": ("flax-example", "net.msgpack", spoilt_start),
    "tf": ("transformers-tf", "net.h5", spoilt_bytes),
}


@pytest.fixture
def written(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as another library has it, and with it all that this takes to import."""
    family, name, _ = FORMATS[backend]
    arch = dataclasses.replace(ARCH, **FAMILIES[family].axes(basic=True))
    path = tmp_path_factory.mktemp("whole") / name
    write_tensors(path, family, arch, to_family(arch, initial_weights(arch), family).tensors, {})
    read_tensors(path)
    return path


@pytest.mark.filterwarnings("ignore")
def test_other_peoples_networks(backend: str, written: Path, place: Path) -> None:
    path = Path(shutil.copy(written, place))
    check_spoilt(path, FORMATS[backend][2], lambda path: from_family(read_tensors(path)[0]), 150)


@pytest.mark.filterwarnings("ignore")
def test_other_peoples_safetensors(place: Path) -> None:
    converted = to_family(ARCH, initial_weights(ARCH), "torchvision")
    write_tensors(place / "net.safetensors", "torchvision", ARCH, converted.tensors, {"a": "b"})
    path = place / "net.safetensors"
    check_spoilt(path, spoilt_safetensors, lambda path: from_family(read_tensors(path)[0]), 100)
    check_spoilt(path, spoilt_safetensors, read_with_sums, 50)

"""Flax and Orbax checkpoints: theirs are read, ours they load, and hostile ones are one line."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import BadInput
from tests.damage import flips
from tests.helpers import one_line

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def jax_files(backends: list[str]) -> Any:
    if "jax" not in backends:
        pytest.skip("JAX is not under test")
    from resnet_jax import files

    return files


def read(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    from resnet_jax.files import read_tensors

    return read_tensors(path)


def write(path: Path, tensors: dict[str, NDArray]) -> None:
    from resnet_jax.files import write_tensors

    write_tensors(path, tensors)


@pytest.fixture(scope="module")
def network() -> Any:
    """A small Flax network, its variables and a training state of it."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen as nn
    from flax.training.train_state import TrainState

    class State(TrainState):
        batch_stats: Any

    class Block(nn.Module):
        @nn.compact
        def __call__(self, X):
            return nn.BatchNorm(use_running_average=True)(nn.Conv(3, (3, 3), use_bias=False)(X))

    class Network(nn.Module):
        @nn.compact
        def __call__(self, X):
            X = Block()(nn.BatchNorm(use_running_average=True, name="bn_init")(X))
            return nn.Dense(5)(X.mean((1, 2)))

    net, X = Network(), jnp.linspace(0, 1, 2 * 6 * 6 * 2).reshape(2, 6, 6, 2)
    shapes = net.init(jax.random.key(0), X)
    generator = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: np.float32(generator.uniform(0.5, 1, a.shape)), shapes)
    state = State.create(apply_fn=net.apply, tx=optax.adam(0.1), **variables)
    return SimpleNamespace(net=net, X=X, variables=variables, state=state)


def names_of(variables: Any) -> dict[str, NDArray]:
    """What must be read of variables, by Flax's own flattening."""
    from flax.traverse_util import flatten_dict

    return {
        name: np.asarray(a) for tree in variables.values() for name, a in flatten_dict(tree, sep="/").items()
    }


def same(a: dict[str, NDArray], b: dict[str, NDArray]) -> None:
    """The same names, in whatever order, types, shapes and bits."""
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].tobytes() == b[name].tobytes(), name


# What Flax and Orbax wrote


def flax_bytes(path: Path, tree: Any) -> None:
    from flax import serialization

    path.write_bytes(serialization.to_bytes(tree))


def flax_checkpoint(path: Path, tree: Any, **options: Any) -> None:
    """As flax/examples/imagenet does."""
    import orbax.checkpoint as ocp
    from flax.training import checkpoints

    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options))
    checkpoints.save_checkpoint(path.parent, tree, 7, path.name, orbax_checkpointer=checkpointer)
    (path.parent / f"{path.name}7").rename(path)


def standard(path: Path, tree: Any) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def managed(path: Path, tree: Any) -> None:
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(path.parent / "run") as manager:
        manager.save(3, args=ocp.args.StandardSave(tree))
    (path.parent / "run" / "3").rename(path)


WRITERS: dict[str, Callable[[Path, Any], None]] = {
    "to_bytes": flax_bytes,
    "save_checkpoint": flax_checkpoint,
    "without a database": lambda path, tree: flax_checkpoint(path, tree, use_ocdbt=False),
    "Zarr 3": lambda path, tree: flax_checkpoint(path, tree, use_zarr3=True),
    "StandardCheckpointer": standard,
    "CheckpointManager": managed,
}


@pytest.mark.parametrize(
    ("writer", "what"),
    [
        *((writer, "state") for writer in WRITERS),
        ("to_bytes", "variables"),
        ("save_checkpoint", "variables"),
    ],
)
def test_their_checkpoint_is_read(tmp_path: Path, network: Any, writer: str, what: str) -> None:
    path = tmp_path / "mlp.params"  # the suffix says nothing
    WRITERS[writer](path, getattr(network, what))
    tensors, halves = read(path)
    same(tensors, names_of(network.variables))
    assert halves == []
    assert all(array.flags.writeable for array in tensors.values())


@pytest.mark.parametrize("writer", ["to_bytes", "save_checkpoint"])
def test_parameters_alone_are_read(tmp_path: Path, network: Any, writer: str) -> None:
    WRITERS[writer](tmp_path / "model", network.variables["params"])
    same(read(tmp_path / "model")[0], names_of({"params": network.variables["params"]}))


@pytest.mark.parametrize("writer", ["to_bytes", "save_checkpoint"])
def test_bfloat16_comes_as_float32(tmp_path: Path, writer: str) -> None:
    import jax.numpy as jnp

    half = jnp.array([1.0, -0.0, 3.140625, jnp.inf, jnp.nan, 1e-40], jnp.bfloat16)
    WRITERS[writer](tmp_path / "model", {"params": {"fc": {"kernel": half, "bias": np.ones(2)}}})
    tensors, halves = read(tmp_path / "model")
    assert halves == ["fc/kernel"]
    same(tensors, {"fc/bias": np.ones(2), "fc/kernel": np.asarray(half.astype(jnp.float32))})


def test_chunks_and_scalars_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flax.serialization.MAX_CHUNK_SIZE", 64)
    tree = {"large": np.arange(60.0).reshape(5, 3, 4), "scalar": np.float32(3), "no_axes": np.array(2.0)}
    flax_bytes(tmp_path / "model", {"params": tree})
    assert b"__msgpack_chunked_array__" in (tmp_path / "model").read_bytes()
    tensors, _ = read(tmp_path / "model")
    same(tensors, {name: np.asarray(array) for name, array in tree.items()})


def test_of_several_checkpoints_one_is_to_be_given(tmp_path: Path, network: Any) -> None:
    for step in (1, 20):
        flax_checkpoint(tmp_path / f"checkpoint_{step}", network.variables)
    with pytest.raises(BadInput) as error:
        read(tmp_path)
    one_line(error, str(tmp_path), "checkpoint_1, checkpoint_20", "give the path of one")


# What is written

ODD = {
    "conv_init/kernel": np.arange(24.0).reshape(2, 3, 4).T,  # not contiguous
    "bn_init/scale": np.array([np.nan, -0.0, np.inf, 5e-324, 1e308]),
    "bn_init/mean": np.array([1 / 3], ">f8"),  # big-endian, as NumPy reads some files
    "Dense_0/kernel": np.array([[0.1, 65504, 6e-8]], np.float16),
    "Dense_0/bias": np.float32([1e-45, np.pi]),
    "stages.0/layers.1/norm/var": np.array(7, np.float32),
}


@pytest.mark.parametrize("name", ["model.msgpack", "model"])
def test_there_and_back_the_bits_are_the_same(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, ODD)
    tensors, halves = read(tmp_path / name)
    same(tensors, {name: array.astype(array.dtype.newbyteorder("=")) for name, array in ODD.items()})
    assert halves == []
    assert [file.name for file in tmp_path.iterdir()] == [name]
    if name == "model.msgpack":
        assert list(tensors) == sorted(ODD, key=lambda name: name.endswith(("mean", "var")))


def test_flax_loads_what_is_written(tmp_path: Path, network: Any) -> None:
    import jax
    from flax import serialization
    from flax.training import checkpoints

    write(tmp_path / "model.msgpack", names_of(network.variables))
    write(tmp_path / "checkpoint_3", names_of(network.variables))
    target = jax.tree.map(np.zeros_like, network.variables)
    theirs = {
        "bytes": serialization.from_bytes(target, (tmp_path / "model.msgpack").read_bytes()),
        "one": checkpoints.restore_checkpoint(tmp_path / "checkpoint_3", target),
        "latest": checkpoints.restore_checkpoint(tmp_path, target, prefix="checkpoint_"),
    }
    for loaded in theirs.values():
        assert jax.tree.structure(loaded) == jax.tree.structure(network.variables)
        same(names_of(loaded), names_of(network.variables))
        assert (network.net.apply(loaded, network.X) == network.net.apply(network.variables, network.X)).all()


@pytest.mark.parametrize(
    ("name", "tensors", "words"),
    [
        ("model.h5", {}, "end it in .msgpack"),
        ("model.msgpack", {"a": np.ones(1), "a/b": np.ones(1)}, "cannot lie below a"),
        ("model.msgpack", {"a/b": np.ones(1), "a": np.ones(1)}, "is an array and a module"),
        ("taken", {"a": np.ones(1)}, "choose another place"),
        ("taken/file/model", {"a": np.ones(1)}, "choose another place"),
        ("none/model.msgpack", {"a": np.ones(1)}, "choose another place"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    tmp_path: Path, name: str, tensors: dict[str, NDArray], words: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(BadInput) as error:
        write(tmp_path / name, tensors)
    one_line(error, words)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["taken", "taken/file"]


# Hostile msgpack


def packed(value: Any) -> bytes:
    import msgpack

    return msgpack.packb(value)


def extension(content: bytes, code: int = 1) -> bytes:
    return b"\xc9" + struct.pack(">Ib", len(content), code) + content


def array(shape: Any, kind: Any = "float32", content: bytes = bytes(16)) -> bytes:
    return extension(packed([shape, kind, content]))


def tree(leaf: bytes, key: bytes = b"\xa4fc\n\x07") -> bytes:
    """{"params": {key: leaf}}; the name has a line break."""
    return b"\x81\xa6params\x81" + key + leaf


def chunked(shape: dict[str, int], *chunks: bytes) -> bytes:
    parts = b"".join(packed(str(i)) + chunk for i, chunk in enumerate(chunks))
    head = packed("__msgpack_chunked_array__") + packed(True) + packed("shape") + packed(shape)
    return b"\x83" + head + packed("chunks") + bytes([0x80 | len(chunks)]) + parts


FOUR = array([4])
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it ends too soon"),
    "a web page": (b"<html>404 not found</html>", "it holds int"),
    "a list": (packed([]), "it holds list"),
    "more behind": (tree(FOUR) + b"\0", "1 bytes follow its end"),
    "an endless list": (tree(b"\xdd\xff\xff\xff\xff"), "exceeds max_array_len"),
    "an endless map": (tree(b"\xdf\xff\xff\xff\xff"), "exceeds max_map_len"),
    "an endless extension": (tree(b"\xc9\xff\xff\xff\xff\x01"), "exceeds max_ext_len"),
    "an endless string": (tree(b"\xdb\xff\xff\xff\xff"), "it ends too soon"),
    "endless bytes": (tree(b"\xc6\xff\xff\xff\xff"), "it ends too soon"),
    "lists of lists": (b"\x91" * 100_000, "exceeds max_array_len"),
    "maps of maps": (b"\x81\xa1a" * 100_000, "complete Flax file"),
    "deep names": (b"\x81\xa1a" * 100 + FOUR, "more than 64 deep"),
    "too many names": (
        packed({str(i): {str(j): 0 for j in range(4096)} for i in range(17)}),
        "more than 65536",
    ),
    "a shape of too many": (tree(array([5])), "shape is not that of its values"),
    "a shape of 10^12": (tree(array([10**6, 10**6])), "shape is not that of its values"),
    "a shape that overflows": (tree(array([2**62 + 1, 4])), "shape is not that of its values"),
    "a negative shape": (tree(array([-2, -2])), "shape is not that of its values"),
    "a shape to be guessed": (tree(array([2, -1])), "shape is not that of its values"),
    "a shape of truths": (tree(array([True, 4])), "shape is not that of its values"),
    "a shape of halves": (tree(array([0.5, 8])), "shape is not that of its values"),
    "a shape of 65 axes": (tree(array([1] * 64 + [4])), "which is damaged"),
    "no shape": (tree(array(None)), "which is damaged"),
    "half an element": (tree(array([4], content=bytes(15))), "which is damaged"),
    "no values": (tree(extension(packed([[4], "float32"]))), "which is damaged"),
    "values that are lists": (tree(extension(b"\x91" * 100_000)), "which is damaged"),
    "endless values": (tree(extension(b"\x93\x90\xa7float32\xc6\xff\xff\xff\xff")), "which is damaged"),
    "objects": (tree(array([2], "object")), "which is object"),
    "objects by letter": (tree(array([2], "O")), "which is O"),
    "void": (tree(array([2], "V8")), "which is V8"),
    "fields": (tree(array([2], "f4,O")), "which is f4,O"),
    "whole numbers": (tree(array([2], "int64")), "which is int64"),
    "complex numbers": (tree(array([2], "complex64")), "which is complex64"),
    "a type of another alphabet": (tree(array([4], "floаt32")), "not float16"),
    "no type": (tree(array([4], 5)), "which is damaged"),
    "a number": (tree(packed(1.5)), "which is no array"),
    "text": (tree(packed("weights")), "which is no array"),
    "a complex number": (tree(extension(packed([1.0, 2.0]), 2)), "which is no array"),
    "an unknown extension": (tree(extension(b"", 9)), "which is no array"),
    "a damaged time": (tree(extension(b"\xff" * 12, -1)), "complete Flax file"),
    "a name of bytes": (tree(FOUR, b"\xc4\x01a"), "a name is not text"),
    "a name that is a number": (tree(FOUR, b"\x05"), "int is not allowed"),
    "a name that is no UTF-8": (tree(FOUR, b"\xa2\xc3\x28"), "complete Flax file"),
    "a name of a surrogate": (tree(FOUR, b"\xa3\xed\xa0\x80"), "complete Flax file"),
    "a name twice": (b"\x82" + (packed("a") + FOUR) * 2, "a name is there twice"),
    "a path twice": (
        b"\x82" + packed("a/b") + FOUR + packed("a") + b"\x81\xa1b" + FOUR,
        "a/b is there twice",
    ),
    "a name in both": (
        b"\x82" + b"".join(packed(c) + b"\x81\xa1a" + FOUR for c in ("params", "batch_stats")),
        "in two collections",
    ),
    "chunks that are too few": (tree(chunked({"0": 8}, FOUR)), "shape is not that of its values"),
    "chunks of 10^12": (tree(chunked({"0": 10**6, "1": 10**6}, FOUR)), "shape is not that of its values"),
    "chunks of two types": (tree(chunked({"0": 6}, FOUR, array([2], "float64"))), "which is damaged"),
    "no chunks": (tree(chunked({"0": 0})), "which is damaged"),
    "chunks of chunks": (tree(chunked({"0": 4}, chunked({"1": 4}, FOUR))), "which is damaged"),
    "chunks that are missing": (
        tree(b"\x81" + packed("__msgpack_chunked_array__") + b"\xc3"),
        "which is damaged",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_line(tmp_path: Path, case: str) -> None:
    content, words = HOSTILE[case]
    (tmp_path / "model.msgpack").write_bytes(content)
    with pytest.raises(BadInput) as error:
        read(tmp_path / "model.msgpack")
    one_line(error, str(tmp_path / "model.msgpack"), words)
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_the_hostile_files_are_hostile_by_one_thing_only(tmp_path: Path) -> None:
    """The parts they are made of are read where nothing is wrong with them."""
    good = {"whole": FOUR, "chunks": chunked({"0": 2, "1": 4}, FOUR, FOUR)}
    for leaf, shape in zip(good.values(), [(4,), (2, 4)], strict=True):
        (tmp_path / "model").write_bytes(tree(leaf))
        assert read(tmp_path / "model")[0]["fc\n\x07"].shape == shape


def test_what_is_neither_file_nor_folder_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("pipe", "neither file nor folder"), ("none", "not found")):
        with pytest.raises(BadInput) as error:
            read(tmp_path / name)
        one_line(error, words)


def sample() -> bytes:
    from flax import serialization

    mean = np.ones(3, np.float16)
    return serialization.to_bytes(
        {
            "params": {"fc": {"kernel": np.ones((3, 4)), "bias": np.ones(4)}},
            "batch_stats": {"bn": {"mean": mean}},
        }
    )


def test_every_cut_file_is_refused(tmp_path: Path) -> None:
    content = sample()
    for length in range(len(content)):
        (tmp_path / "model").write_bytes(content[:length])
        with pytest.raises(BadInput) as error:
            read(tmp_path / "model")
        one_line(error, "it ends too soon" if length < len(content) - 100 else "complete Flax file")


@settings(max_examples=300, derandomize=True, deadline=None)
@given(data=st.data())
def test_damage_is_one_line_wherever_it_is(data: st.DataObject) -> None:
    content = bytearray(sample())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.write_bytes(content)
        try:
            read(path)
        except BadInput as error:
            assert str(path) in str(error) and "\n" not in str(error)


# Hostile folders


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory, network: Any) -> Path:
    """An Orbax checkpoint whose arrays are Zarr folders."""
    path = tmp_path_factory.mktemp("orbax") / "ckpt"
    flax_checkpoint(path, network.variables, use_ocdbt=False)
    return path


@pytest.fixture
def folder(tmp_path: Path, whole_folder: Path) -> Path:
    """A copy of it, to be spoilt."""
    return shutil.copytree(whole_folder, tmp_path / "ckpt")


KERNEL = "params.Block_0.Conv_0.kernel"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rename_leaf(folder: Path, *names: str) -> None:
    """Let the tree name its first parameter otherwise."""
    description = json.loads((folder / "_METADATA").read_text())
    entries = description["tree_metadata"].values()
    entry = next(entry for entry in entries if entry["key_metadata"][0]["key"] == "params")
    entry["key_metadata"] = [{"key": name, "key_type": 2} for name in names]
    (folder / "_METADATA").write_text(json.dumps(description))


def link(folder: Path) -> None:
    chunk = folder / KERNEL / "0.0.0.0"
    chunk.rename(folder.parent / "secret")
    chunk.symlink_to(folder.parent / "secret")


def link_folder(folder: Path) -> None:
    (folder / KERNEL).rename(folder.parent / "secret")
    (folder / KERNEL).symlink_to(folder.parent / "secret")


def link_item(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.mkdir()
    (folder / "default").symlink_to(folder.parent / "elsewhere")


def lead_out(folder: Path) -> None:
    (folder / KERNEL).rename(folder.parent / "secret")
    rename_leaf(folder, "params", "/../../secret")


def replace_chunk(folder: Path, content: bytes) -> None:
    (folder / KERNEL / "0.0.0.0").write_bytes(content)


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "no _METADATA"),
    "a link": (link, "0.0.0.0 is a link"),
    "a linked folder": (link_folder, f"{KERNEL} is a link"),
    "a linked item": (link_item, "default is a link"),
    "a pipe": (lambda folder: os.mkfifo(folder / "pipe"), "pipe is a link or a device"),
    "a name that leads out": (lead_out, "Invalid"),
    "an absolute name": (lambda folder: rename_leaf(folder, "params", "x", "/etc/passwd"), "complete Orbax"),
    "a name that is no text": (lambda folder: rename_leaf(folder, "params", 5), "complete Orbax"),
    "a name twice": (lambda folder: rename_leaf(folder, "batch_stats", "bn_init", "mean"), "there twice"),
    "no tree": (lambda folder: change(folder / "_METADATA", tree_metadata=5), "complete Orbax"),
    "a tree that is no JSON": (lambda folder: (folder / "_METADATA").write_text("{"), "complete Orbax"),
    "a deep tree": (lambda folder: (folder / "_METADATA").write_text('{"a":' * 100_000), "complete Orbax"),
    "a missing array": (lambda folder: shutil.rmtree(folder / KERNEL), "complete Orbax"),
    "a missing chunk": (lambda folder: (folder / KERNEL / "0.0.0.0").unlink(), "is missing"),
    "a cut chunk": (lambda folder: os.truncate(folder / KERNEL / "0.0.0.0", 40), "complete Orbax"),
    "no chunk": (lambda folder: replace_chunk(folder, b""), "complete Orbax"),
    "a shape of 10^12": (
        lambda folder: change(folder / KERNEL / ".zarray", shape=[10**6, 10**6, 1, 1]),
        "its arrays are to be of",
    ),
    "a shape that overflows": (
        lambda folder: change(folder / KERNEL / ".zarray", shape=[2**62, 4, 2**62, 4]),
        "complete Orbax",
    ),
    "a negative shape": (
        lambda folder: change(folder / KERNEL / ".zarray", shape=[-1, 3, 2, 3]),
        "complete Orbax",
    ),
    "objects": (lambda folder: change(folder / KERNEL / ".zarray", dtype="|O"), "complete Orbax"),
    "whole numbers": (lambda folder: change(folder / KERNEL / ".zarray", dtype="<i4"), "which is int32"),
    "an unknown compressor": (
        lambda folder: change(folder / KERNEL / ".zarray", compressor={"id": "pickle"}),
        "complete Orbax",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_hostile_folder_is_one_line(folder: Path, case: str) -> None:
    spoil, words = FOLDERS[case]
    spoil(folder)
    with pytest.raises(BadInput) as error:
        read(folder)
    one_line(error, str(folder), words)
    assert len(str(error.value)) < 500 + len(str(folder))


def test_a_reader_that_hangs_is_one_line(
    folder: Path, jax_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = partial(subprocess.run, ["sleep", "60"], timeout=0.1)
    monkeypatch.setattr(jax_files.subprocess, "run", lambda *_, **__: slow())
    with pytest.raises(BadInput) as error:
        read(folder)
    one_line(error, str(folder), "it takes too long")


def test_a_damaged_database_is_one_line(tmp_path: Path, network: Any) -> None:
    """It has sums of its own, but not of the arrays' values."""
    path = tmp_path / "ckpt"
    flax_checkpoint(path, network.variables)
    expected = names_of(network.variables)
    refused = 0
    for file in [path / "manifest.ocdbt", *(path / "d").iterdir(), path / "_METADATA"]:
        for _ in flips(file, 2):
            try:
                assert {name: a.shape for name, a in read(path)[0].items()} == {
                    name: a.shape for name, a in expected.items()
                }
            except BadInput as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
    assert refused >= 2
    same(read(path)[0], expected)
    for file in [path / "manifest.ocdbt", *(path / "d").iterdir()]:
        content = file.read_bytes()
        for spoilt in (content[:-9], None):
            file.unlink()
            if spoilt is not None:
                file.write_bytes(spoilt)
            with pytest.raises(BadInput) as caught:
                read(path)
            one_line(caught, "complete Orbax checkpoint")
        file.write_bytes(content)


# Bombs

READ = """
import os, resource, runpy, sys
from pathlib import Path
read_tensors = runpy.run_path(sys.argv[1])["read_tensors"]  # without JAX, whose import takes memory too
def cpu_seconds():  # of the processes it starts, too; a busy machine takes none of them
    return sum(os.times()[:4])
for path in sys.argv[2:]:
    start = cpu_seconds()
    try:
        read_tensors(Path(path))
        print("read", path)
    except ValueError as error:
        print("refused", cpu_seconds() - start, error)
status = Path("/proc/self/status").read_text().split()  # getrusage remembers the test runner
print(status[status.index("VmHWM:") + 1])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def zstandard_of_zeros(size: int) -> bytes:
    """A Zstandard frame of blocks that each stand for 128 KB of zeros. RFC 8878, section 3.1.1."""
    block = 128 * 1024
    count = size // block
    blocks = [(block << 3 | 1 << 1 | (i == count - 1)).to_bytes(3, "little") + b"\0" for i in range(count)]
    return b"\x28\xb5\x2f\xfd" + b"\x00" + b"\x58" + b"".join(blocks)


@pytest.mark.deep
def test_bombs_stay_small(tmp_path: Path, folder: Path, jax_files: Any) -> None:
    """10 s and 1 GB, of the reader and of the process that it starts."""
    bombs = {
        "lists": b"\x81\xa1a" + b"\xdd\x00\x98\x96\x80" * 100 + bytes(10_000_000),
        "maps": (
            b"\xde\x0f\xff"
            + b"".join(b"\xa3%03x\xcb%s" % (i % 4095, b"\x01" * 8) for i in range(4094))
            + b"\xa1z"
        )
        * 900,
        "names": packed({str(i): {str(j): {} for j in range(1000)} for i in range(4000)}),
        "one name": b"\x81\xdb" + struct.pack(">I", 50_000_000) + b"\n" * 50_000_000 + b"\xc0",
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
    folders = []
    for name, spoil in {
        "zeros": lambda folder: replace_chunk(folder, zstandard_of_zeros(8 << 30)),
        "a chunk that is 2 GB indeed": lambda folder: (
            change(folder / KERNEL / ".zarray", chunks=[2048, 2048, 32, 4]),
            replace_chunk(folder, zstandard_of_zeros(2 << 30)),
        ),
        "no values": lambda folder: (
            change(folder / "_METADATA", store_array_data_equal_to_fill_value=False),
            (folder / KERNEL / "0.0.0.0").unlink(),
            change(folder / KERNEL / ".zarray", shape=[10**4, 10**4, 10, 3]),
        ),
    }.items():
        shutil.copytree(folder, tmp_path / name)
        spoil(tmp_path / name)
        folders.append(tmp_path / name)
    paths = [*(tmp_path / name for name in bombs), *folders]
    done = subprocess.run(
        [sys.executable, "-c", READ, jax_files.__file__, *paths],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    *lines, ours, childs = done.stdout.splitlines()
    assert len(lines) == len(paths), done.stdout + done.stderr
    for line in lines:
        word, seconds, _ = line.split(maxsplit=2)
        assert word == "refused" and float(seconds) < 10, line
    assert 10_000 < int(ours) < 1_000_000 and 10_000 < int(childs) < 1_000_000  # kB

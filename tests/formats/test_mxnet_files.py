"""Gluon's files: read as MXNet wrote them, written as it reads them, and refused where they are damaged."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.typing import NDArray

from common.architecture import Architecture
from common.errors import BadInput, MissingFile
from tests.helpers import one_line

SMALL = Architecture(stages=((1, 4), (2, 6)), num_classes=5, stem_channels=4)
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
TWO = struct.pack("<2f", 1.5, -0.0)
TYPES = ("float16", "float32", "float64")

# Every example of a test may write the same path.
often: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


@pytest.fixture
def mx(backends: list[str]) -> Any:
    if "mxnet" not in backends:
        pytest.skip("MXNet is not under test")
    import_module("resnet_mxnet")  # first: it lends NumPy what MXNet needs
    return import_module("mxnet")


@pytest.fixture
def files(mx: Any) -> Any:
    return import_module("resnet_mxnet.files")


def without_numpy(mx: Any, run: Callable[[], Any]) -> Any:
    """What `run` returns without NumPy semantics, as in scripts of before MXNet 1.6."""
    with mx.util.np_array(False), mx.util.np_shape(False):
        return run()


def same(a: Mapping[str, NDArray], b: Mapping[str, NDArray]) -> None:
    """Names, order, types, shapes and bits are the same."""
    assert [(name, x.dtype, x.shape) for name, x in a.items()] == [
        (name, x.dtype, x.shape) for name, x in b.items()
    ]
    assert [x.tobytes() for x in a.values()] == [x.tobytes() for x in b.values()]


def zoo_network(mx: Any) -> Any:
    """A small network of Gluon's zoo, with its weights."""
    net = mx.gluon.model_zoo.vision.resnet18_v1(classes=3, thumbnail=True)
    net.initialize()
    net((mx.np if mx.util.is_np_array() else mx.nd).zeros((1, 3, 32, 32)))
    return net


def our_network(mx: Any) -> Any:
    net = import_module("resnet_mxnet").ResNet(SMALL)
    net(mx.np.zeros((1, 1, 32, 32)))
    return net


def parameters(net: Any) -> dict[str, NDArray]:
    return {name: p.data().asnumpy() for name, p in net._collect_params_with_prefix().items()}


def numbers(net: Any) -> dict[str, NDArray]:
    """Random arrays of the shapes of its parameters."""
    generator = np.random.default_rng(0)
    return {name: generator.random(x.shape, x.dtype) for name, x in parameters(net).items()}


# Files that MXNet wrote.


@pytest.mark.parametrize("network", [zoo_network, our_network])
def test_what_gluon_saves_is_read(mx: Any, files: Any, network: Any, tmp_path: Path) -> None:
    net = network(mx)
    net.save_parameters(str(tmp_path / "net.params"))
    tensors, halves = files.read_tensors(tmp_path / "net.params")
    same(tensors, parameters(net))
    assert halves == []


def test_what_gluon_saves_without_numpy_semantics_is_read(mx: Any, files: Any, tmp_path: Path) -> None:
    def save() -> dict[str, NDArray]:
        net = zoo_network(mx)
        net.save_parameters(str(tmp_path / "net.params"))
        return parameters(net)

    expected = without_numpy(mx, save)
    same(files.read_tensors(tmp_path / "net.params")[0], expected)
    assert "features.1.0.body.0.weight" in expected


def test_what_gluon_exports_is_read(mx: Any, files: Any, tmp_path: Path) -> None:
    """A Module's checkpoint is the same file."""
    net = zoo_network(mx)
    net.hybridize()
    net(mx.np.zeros((1, 3, 32, 32)))
    net.export(str(tmp_path / "net"))
    tensors, _ = files.read_tensors(tmp_path / "net-0000.params")
    expected = {name: p.data().asnumpy() for name, p in net.collect_params().items()}
    assert len(expected) > 50
    same(dict(sorted(tensors.items())), dict(sorted(expected.items())))


def test_a_modules_checkpoint_is_read(mx: Any, files: Any, tmp_path: Path) -> None:
    def save() -> None:
        symbol = mx.sym.BatchNorm(mx.sym.Variable("data"), name="bn")
        gamma, mean = mx.nd.array([1, 2]), mx.nd.array([3, 4])
        mx.model.save_checkpoint(str(tmp_path / "m"), 7, symbol, {"bn_gamma": gamma}, {"bn_mean": mean})

    without_numpy(mx, save)
    expected = {"bn_gamma": np.array([1, 2], "f4"), "bn_mean": np.array([3, 4], "f4")}
    same(files.read_tensors(tmp_path / "m-0007.params")[0], expected)


@pytest.mark.parametrize("dtype", [*TYPES, "uint8", "int32", "int8", "int64", "bool"])
@pytest.mark.parametrize("semantics", ["legacy", "numpy"])
def test_every_type_is_read_bit_for_bit(
    mx: Any, files: Any, dtype: str, semantics: str, tmp_path: Path
) -> None:
    x = (np.arange(6).reshape(2, 3) % 5 - 2 if dtype != "uint8" else np.arange(6)).astype(dtype)
    path = str(tmp_path / "x.params")
    if semantics == "numpy":
        mx.npx.save(path, {"x": mx.np.array(x, dtype=dtype)})
    else:
        without_numpy(mx, lambda: mx.nd.save(path, {"x": mx.nd.array(x, dtype=dtype)}))
    same(files.read_tensors(Path(path))[0], {"x": x})


def test_bfloat16_comes_as_float32(mx: Any, files: Any, tmp_path: Path) -> None:
    bfloat16 = np.dtype([("bfloat16", np.uint16)])
    x = np.array([1.5, -2.25, 3e38, 0], "f4")

    def save() -> NDArray:
        half = mx.nd.array(x).astype(bfloat16)
        mx.nd.save(str(tmp_path / "x"), {"half": half, "whole": mx.nd.array(x)})
        return half.astype("float32").asnumpy()

    rounded = without_numpy(mx, save)
    tensors, halves = files.read_tensors(tmp_path / "x")
    same(tensors, {"half": rounded, "whole": x})
    assert halves == ["half"] and rounded[2] != x[2]


def test_arrays_of_no_dimension_and_of_no_values_are_read(mx: Any, files: Any, tmp_path: Path) -> None:
    mx.npx.save(str(tmp_path / "x"), {"scalar": mx.np.array(3.5), "none": mx.np.zeros((0, 3))})
    expected = {"scalar": np.array(3.5, "f4"), "none": np.zeros((0, 3), "f4")}
    same(files.read_tensors(tmp_path / "x")[0], expected)


# Files made by hand.


def record(
    magic: int = V2,
    storage: int = 0,
    ndim: int | None = None,
    shape: tuple[int, ...] = (2,),
    flag: int = 0,
    values: bytes = TWO,
    device: tuple[int, int] = (1, 0),
) -> bytes:
    """An array as it lies in a file; all but `magic` as for a V2."""
    ndim = len(shape) if ndim is None else ndim
    return struct.pack(f"<Iii{len(shape)}q3i", magic, storage, ndim, *shape, *device, flag) + values


def listed(*names: bytes, count: int | None = None) -> bytes:
    text = b"".join(struct.pack("<Q", len(name)) + name for name in names)
    return struct.pack("<Q", len(names) if count is None else count) + text


def whole(records: list[bytes], names: bytes, count: int | None = None, magic: int = 0x112) -> bytes:
    """A file of these arrays and names."""
    count = len(records) if count is None else count
    return struct.pack("<QQQ", magic, 0, count) + b"".join(records) + names


def old_record(magic: bytes, dims: str) -> bytes:
    return magic + struct.pack(f"<I2{dims}iii", 2, 1, 2, 1, 0, 0) + TWO


@pytest.mark.parametrize(
    "array",
    [
        old_record(struct.pack("<I", V1), "q"),
        old_record(b"", "I"),
        record(shape=(1, 2), device=(2, 3)),
        record(V3, shape=(1, 2), device=(2, 3)),
    ],
    ids=["V1", "before V1", "of a GPU", "of a GPU, V3"],
)
def test_other_records_are_read_as_mxnet_reads_them(
    mx: Any, files: Any, array: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "x"
    path.write_bytes(whole([array], listed("μ.0".encode())))
    numpy_only = array.startswith(struct.pack("<I", V3))
    theirs = mx.npx.load(str(path)) if numpy_only else without_numpy(mx, lambda: mx.nd.load(str(path)))
    ours, _ = files.read_tensors(path)
    same(ours, {name: x.asnumpy() for name, x in theirs.items()})
    same(ours, {"μ.0": np.array([[1.5, -0.0]], "f4")})
    ours["μ.0"][0, 0] = 2  # a caller may write in what it was given


# Files we write.


def test_what_is_written_is_what_mxnet_writes(mx: Any, files: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    tensors = {f"layer.{t}.μ": generator.random((2, 3, 1)).astype(t) for t in TYPES}
    tensors["none"] = np.zeros((2, 0), "f4")

    def save() -> None:
        theirs = {name: mx.nd.array(x, dtype=x.dtype) for name, x in tensors.items()}
        mx.nd.save(str(tmp_path / "theirs"), theirs)

    without_numpy(mx, save)
    files.write_tensors(tmp_path / "ours", tensors)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("network", [zoo_network, our_network])
def test_gluon_loads_what_is_written(mx: Any, files: Any, network: Any, tmp_path: Path) -> None:
    net = network(mx)
    tensors = numbers(net)
    files.write_tensors(tmp_path / "net.params", tensors)
    net.load_parameters(str(tmp_path / "net.params"))
    same(parameters(net), tensors)


def test_gluon_loads_what_is_written_without_numpy_semantics(mx: Any, files: Any, tmp_path: Path) -> None:
    """Our own network has them always."""

    def load() -> None:
        net = zoo_network(mx)
        tensors = numbers(net)
        files.write_tensors(tmp_path / "net.params", tensors)
        net.load_parameters(str(tmp_path / "net.params"))
        same(parameters(net), tensors)

    without_numpy(mx, load)


tensors_of_any_bits = st.dictionaries(
    st.text(st.characters(categories=("L", "N", "P")), max_size=20).filter(
        lambda name: not name.startswith(("arg:", "aux:"))
    ),
    arrays_of.arrays(
        st.sampled_from(TYPES), arrays_of.array_shapes(min_dims=1, max_dims=6, min_side=0, max_side=4)
    ),
    max_size=5,
)


@settings(max_examples=100, **often)
@given(tensors=tensors_of_any_bits)
def test_there_and_back_is_the_same_bits(files: Any, tensors: dict[str, NDArray], tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "x", tensors)
    same(files.read_tensors(tmp_path / "x")[0], tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_arrays_that_lie_otherwise_in_memory_are_written(files: Any, tmp_path: Path) -> None:
    x = np.arange(24, dtype="f4").reshape(2, 3, 4)
    files.write_tensors(tmp_path / "x", {"turned": x.T, "some": x[:, ::2], "big-endian": x.astype(">f4")})
    expected = {"turned": x.T.copy(), "some": x[:, ::2].copy(), "big-endian": x}
    same(files.read_tensors(tmp_path / "x")[0], expected)


@pytest.mark.parametrize(
    ("name", "x", "words"),
    [
        ("x", np.array(1.0), "x is float64 of shape ()"),
        ("x", np.zeros((1,) * 33), "x is float64 of shape (1, 1,"),
        ("x", np.zeros(2, "complex64"), "x is complex64"),
        ("x", np.zeros(2, "uint16"), "x is uint16"),
        ("x", np.array(["text"]), "x is <U4"),
        ("x", np.array([None]), "x is object"),
        ("a\nb", np.zeros(2), r"'a\nb' is no name"),
        ("\ud800", np.zeros(2), r"'\ud800' is no name"),
        ("arg:x", np.zeros(2), "'arg:x' is no name"),
    ],
)
def test_what_mxnet_cannot_load_is_not_written(
    files: Any, name: str, x: NDArray, words: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as error:
        files.write_tensors(tmp_path / "x", {name: x})
    one_line(error, words)
    assert list(tmp_path.iterdir()) == []


# Files of a stranger.

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it ends too soon"),
    "a pickle": (b"\x80\x04cos\nsystem\n(S'touch /tmp/hit'\ntR." + bytes(99), "it is something else"),
    "safetensors": (struct.pack("<Q", 2) + b"{}" + bytes(99), "it is something else"),
    "a zip": (b"PK\x03\x04" + bytes(99), "it is something else"),
    "a page": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "it is something else"),
    "big-endian": (struct.pack(">QQQQ", 0x112, 0, 0, 0), "it is something else"),
    "2⁶⁰ arrays": (whole([record()], listed(b"x"), count=2**60), f"announces {2**60} arrays"),
    "an array too many": (whole([record()], listed(b"x"), count=2), "array 2 of 2"),
    "an array too few": (whole([record()] * 2, listed(b"x", b"y"), count=1), "names for 1 arrays"),
    "2³¹ − 1 dimensions": (whole([record(ndim=2**31 - 1)], listed(b"x")), "damaged or of an unknown"),
    "33 dimensions": (whole([record(shape=(1,) * 33)], listed(b"x")), "damaged or of an unknown"),
    "−2³¹ dimensions": (whole([record(ndim=-(2**31))], listed(b"x")), "it has no values"),
    "unknown dimensions": (whole([record(V3, ndim=-1, shape=())], listed(b"x")), "it has no values"),
    "no array": (whole([record(shape=())], listed(b"x")), "it has no values"),
    "an unknown dimension": (whole([record(V3, shape=(-1,))], listed(b"x")), "negative dimension"),
    "two negative dimensions": (whole([record(shape=(-1, -2))], listed(b"x")), "negative dimension"),
    "10¹² values": (whole([record(shape=(10**6, 10**6))], listed(b"x")), "it ends too soon"),
    "2⁶⁴ + 2 values": (whole([record(shape=(2, 2**63 - 1))], listed(b"x")), "it ends too soon"),
    "2¹²⁴ values": (whole([record(shape=(2**62, 2**62))], listed(b"x")), "it ends too soon"),
    "2⁶⁴ values, 0 in 64 bits": (whole([record(shape=(2**32,) * 2)], listed(b"x")), "it ends too soon"),
    "0 × 2⁶² values": (whole([record(shape=(0, 2**62), values=b"")], listed(b"x")), "does not fit"),
    "values cut short": (whole([record(values=TWO[:7])], b""), "array 1 of 1: it ends too soon"),
    "row-sparse": (whole([record(storage=1)], listed(b"x")), "it is not dense"),
    "unknown storage": (whole([record(storage=-7)], listed(b"x")), "it is not dense"),
    "a later version": (whole([record(V3 + 1)], listed(b"x")), "of an unknown version"),
    "unknown type": (whole([record(flag=11)], listed(b"x")), "its type 11 is unknown"),
    "negative type": (whole([record(flag=-1)], listed(b"x")), "its type -1 is unknown"),
    "no names": (whole([record()], listed()), "0 names for 1 arrays"),
    "2⁶⁰ names": (whole([record()], listed(b"x", count=2**60)), f"{2**60} names"),
    "a name of 2⁶⁰ bytes": (
        whole([record()], struct.pack("<QQ", 1, 2**60) + b"x"),
        f"a name of {2**60} bytes",
    ),
    "a name cut short": (whole([record()], struct.pack("<QQ", 1, 5) + b"x"), "it ends too soon"),
    "a name in Latin-1": (whole([record()], listed("é".encode("latin-1"))), "no text"),
    "a name of two lines": (whole([record()], listed(b"x\ny")), r"the name 'x\ny'"),
    "a name with a NUL": (whole([record()], listed(b"x\0y")), r"the name 'x\x00y'"),
    "a name twice": (whole([record()] * 2, listed(b"x", b"x")), "it holds x twice"),
    "a name twice, but for prefixes": (whole([record()] * 2, listed(b"arg:x", b"aux:x")), "x twice"),
    "more after the end": (whole([record()], listed(b"x") + b"\0"), "it goes on after its end"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_line(files: Any, kind: str, tmp_path: Path) -> None:
    content, words = HOSTILE[kind]
    path = tmp_path / "net.params"
    path.write_bytes(content)
    with pytest.raises(BadInput) as error:
        files.read_tensors(path)
    one_line(error, str(path), words, "; ")


@pytest.mark.parametrize("kind", ["row_sparse", "csr"])
def test_sparse_arrays_of_mxnet_are_refused(mx: Any, files: Any, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    without_numpy(mx, lambda: mx.nd.save(str(path), {"x": mx.nd.zeros((3, 2), stype=kind)}))
    with pytest.raises(BadInput) as error:
        files.read_tensors(path)
    one_line(error, "array 1 of 1: it is not dense; save array.tostype('default')")


def test_a_list_of_mxnets_without_names_is_refused(mx: Any, files: Any, tmp_path: Path) -> None:
    mx.npx.save(str(tmp_path / "x"), [mx.np.zeros(2)])
    with pytest.raises(BadInput) as error:
        files.read_tensors(tmp_path / "x")
    one_line(error, "0 names for 1 arrays; save it with net.save_parameters")


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir], ids=["nothing", "a folder"])
def test_what_is_no_file_is_one_line(files: Any, make: Any, tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(MissingFile) as error:
        files.read_tensors(tmp_path / "x")
    one_line(error, "x not found; give the path of a .params file")


def good_file() -> bytes:
    """One array of each record, and of each size of values."""
    records = [
        record(flag=0),
        record(V3, shape=(1, 2), flag=1, values=bytes(16)),
        record(shape=(2, 1, 2), flag=2, values=bytes(8)),
        record(V3, shape=(), flag=12, values=b"\xc0\x3f"),
        old_record(struct.pack("<I", V1), "q"),
        old_record(b"", "I"),
    ]
    return whole(records, listed(*(f"arg:layer.{i}".encode() for i in range(len(records)))))


def test_the_good_file_is_good(files: Any, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(good_file())
    tensors, halves = files.read_tensors(tmp_path / "x")
    assert list(tensors) == [f"layer.{i}" for i in range(6)] and halves == ["layer.3"]
    same({"layer.3": tensors["layer.3"]}, {"layer.3": np.array(1.5, "f4")})


def test_a_file_that_ends_anywhere_is_one_line(files: Any, tmp_path: Path) -> None:
    content, path = good_file(), tmp_path / "x"
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(BadInput) as error:
            files.read_tensors(path)
        one_line(error, "it ends too soon; take another copy")


@settings(max_examples=1000, **often)
@given(
    flips=st.lists(
        st.tuples(st.integers(0, len(good_file()) - 1), st.integers(1, 255)), min_size=1, max_size=3
    )
)
def test_a_damaged_file_is_read_or_one_line(files: Any, flips: list[tuple[int, int]], tmp_path: Path) -> None:
    content = bytearray(good_file())
    for place, bits in flips:
        content[place] ^= bits
    (tmp_path / "x").write_bytes(content)
    try:
        tensors, _ = files.read_tensors(tmp_path / "x")
    except BadInput as error:
        assert "\n" not in str(error)
    else:
        assert sum(x.nbytes for x in tensors.values()) <= 2 * len(content)


GUARDED = """
import resource, sys, time
from pathlib import Path
from common.errors import BadInput
from resnet_mxnet.files import read_tensors
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + 256 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        print(len(read_tensors(Path(path))[0]), "arrays")
    except BadInput as error:
        print(error)
    assert time.process_time() - start < 10, path
"""


@pytest.mark.deep
def test_the_worst_files_take_neither_memory_nor_time(mx: Any, tmp_path: Path) -> None:
    """A quarter of a gigabyte more than MXNet imported, and ten seconds a file."""
    nothing = record(shape=(0,), values=b"")
    many = 100_000
    worst = {
        "count": HOSTILE["2⁶⁰ arrays"][0],
        "values": HOSTILE["10¹² values"][0],
        "name": HOSTILE["a name of 2⁶⁰ bytes"][0],
        "many": whole([nothing] * many, listed(*(b"%d" % i for i in range(many)))),
        "more": whole([nothing] * (many + 1), listed()),
        "hole": whole([record(shape=(2**30,))], b""),
    }
    for name, content in worst.items():
        (tmp_path / name).write_bytes(content)
    with (tmp_path / "hole").open("r+b") as file:  # 4 GiB that take no room on a disk
        file.truncate(2**32 + 1000)
    command = [sys.executable, "-c", GUARDED, *(str(tmp_path / name) for name in worst)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    expected = (
        "announces 115",
        "it ends too soon",
        "a name of 115",
        "100000 arrays",
        "announces 100001",
        "fit",
    )
    assert len(lines) == len(worst)
    for line, words in zip(lines, expected, strict=True):
        assert words in line

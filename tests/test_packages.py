"""The packages side by side: the same names, signatures and rooms, and nobody imports a neighbour."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

import common
from common.architecture import ZOO, Architecture, architecture
from common.backend import BACKENDS
from tests.helpers import one_line

ZOO_CLASSES = {
    "ResNet18": "resnet18",
    "ResNet34": "resnet34",
    "ResNet50": "resnet50",
    "ResNet101": "resnet101",
    "ResNet152": "resnet152",
    "ResNeXt50_32x4d": "resnext50_32x4d",
    "ResNeXt101_32x8d": "resnext101_32x8d",
    "ResNeXt101_64x4d": "resnext101_64x4d",
    "Wide_ResNet50_2": "wide_resnet50_2",
    "Wide_ResNet101_2": "wide_resnet101_2",
}
CLASSES = ("Residual", "ResNeXtBlock", "ResNet", *ZOO_CLASSES)
ROOMS = {
    "__init__.py",
    "backend.py",
    "blocks.py",
    "families.py",
    "files.py",
    "layers.py",
    "resnet.py",
    "speed.py",
    "training.py",
}
MAY_HAVE = {"compat.py"}  # what must be said before the framework is imported
FRAMEWORKS = {"mxnet", "torch", "tensorflow", "keras", "jax", "jaxlib", "flax", "optax"}

PACKAGES = {name: backend.module.split(".")[0] for name, backend in BACKENDS.items()}


def package(backend: str) -> ModuleType:
    return import_module(PACKAGES[backend])


def folder(name: str) -> Path:
    """Where a package's source lies, found without importing it."""
    spec = find_spec(name)
    assert spec and spec.origin
    return Path(spec.origin).parent


# By inspection


CONVENTIONS = "epsilon=1e-05, padding='symmetric', decay=0.9"
SIGNATURES = {
    "Residual": f"(num_channels, use_1x1conv=False, strides=1, shortcut_norm=False, {CONVENTIONS})",
    "ResNeXtBlock": (
        f"(num_channels, groups, bot_mul, use_1x1conv=False, strides=1, stride_on='3x3', {CONVENTIONS})"
    ),
    "ResNet": "(arch, lr=0.1, num_classes=10)",
    **dict.fromkeys(ZOO_CLASSES, "(lr=0.1, num_classes=10)"),
}
CHAPTER_CALLS = {
    "FashionMNIST": {"batch_size": 64, "resize": (28, 28)},
    "ImageFolder": {"root": inspect.Parameter.empty, "batch_size": 64, "resize": (224, 224)},
    "Trainer": {"max_epochs": inspect.Parameter.empty, "num_gpus": 0},
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_signatures_are_those_of_the_chapter(backend: str, name: str) -> None:
    """And what other networks of the name need comes after them.

    In Flax the parameters are fields, and `training`, `dtype`, `axis_name` and Flax's own come last; in Gluon
    and Keras, what any block or layer takes.
    """
    signature = inspect.signature(getattr(package(backend), name).__init__)
    own = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"]
    if backend in ("mxnet", "tf"):
        assert own.pop().kind is inspect.Parameter.VAR_KEYWORD
    if backend == "jax":
        assert [p.name for p in own[-5:]] == ["training", "dtype", "axis_name", "parent", "name"]
        assert [p.default for p in own[-5:-2]] == [True, None, None]
        del own[-5:]
    found = signature.replace(parameters=own, return_annotation=signature.empty)
    assert str(found) == SIGNATURES[name]


@pytest.mark.parametrize("name", CHAPTER_CALLS)
def test_data_and_trainer_are_called_as_in_the_chapter(backend: str, name: str) -> None:
    parameters = inspect.signature(getattr(package(backend), name)).parameters.values()
    chapter = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(chapter.items()) == list(CHAPTER_CALLS[name].items())


def test_the_packages_export_the_same_names(backend: str) -> None:
    found = package(backend)
    data = {"FashionMNIST", "ImageFolder"}  # the same for all four
    assert set(found.__all__) == {*CLASSES, *data, "Classifier", "Trainer"}
    for name in found.__all__:
        home = "common.data" if name in data else PACKAGES[backend]
        assert getattr(found, name).__module__.startswith(home)


@pytest.mark.parametrize("name", PACKAGES.values())
def test_the_packages_have_the_same_rooms(name: str) -> None:
    files = {path.name for path in folder(name).glob("*.py")}
    assert ROOMS <= files <= ROOMS | MAY_HAVE


def contents(path: Path) -> list[tuple[str, str]]:
    """Classes, public methods without the framework's word for "call", and what each is, up to the colon."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
            for item in [node, *(method for method in methods if ast.get_docstring(method))]:
                found.append((item.name, (ast.get_docstring(item) or "").split(":")[0]))
    return found


@pytest.mark.parametrize("room", ["blocks.py", "resnet.py"])
def test_the_pages_a_student_reads_have_the_same_classes_with_the_same_words(room: str) -> None:
    first, *others = (contents(folder(name) / room) for name in PACKAGES.values())
    assert set(dict(first)) & set(CLASSES)
    for other in others:
        assert other == first


# Who imports whom


def imports(path: Path) -> set[str]:
    """The top-level packages that a source file names in import statements, wherever they stand."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add((node.module or "").split(".")[0])
    return found


def test_common_names_no_framework_and_no_backend_in_an_import() -> None:
    for path in folder("common").rglob("*.py"):
        assert not imports(path) & (FRAMEWORKS | set(PACKAGES.values())), path


IMPORTERS = {"import_module", "__import__", "find_spec", "run_module", "run_path", "exec", "eval"}


def test_common_imports_nothing_by_a_string_but_the_registrys_packages() -> None:
    """In `backend.py` the registry's modules are imported; nowhere else is a module found by its name."""
    for path in folder("common").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)
        }
        named = {getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(tree)}
        strings = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
        ]
        if path.name == "backend.py":
            assert named & IMPORTERS == {"import_module", "find_spec"}
        else:
            assert not named & IMPORTERS, path
            assert not [text for text in strings for name in PACKAGES.values() if name in text], path


@pytest.mark.parametrize("backend_name", PACKAGES)
def test_a_package_imports_its_own_framework_and_no_other_package(backend_name: str) -> None:
    own = {"mxnet": {"mxnet"}, "torch": {"torch"}, "tf": {"tensorflow", "keras"}}
    allowed = {PACKAGES[backend_name], *own.get(backend_name, {"jax", "flax", "optax"})}
    for path in folder(PACKAGES[backend_name]).rglob("*.py"):
        assert imports(path) & (FRAMEWORKS | set(PACKAGES.values())) <= allowed, path


IMPORT_ALL_OF_COMMON = """
import importlib, pkgutil, sys
import common
names = [module.name for module in pkgutil.walk_packages(common.__path__, "common.")]
for name in names:
    importlib.import_module(name)
print(*names)
print(*{name.split(".")[0] for name in sys.modules})
"""


def python(code: str, *args: str) -> str:
    """Standard output of a Python process of its own."""
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_all_of_common_imports_no_framework() -> None:
    names, modules = python(IMPORT_ALL_OF_COMMON).splitlines()
    assert {"common.oracle", "common.backend", "common.weights", "common.data"} <= set(names.split())
    assert "numpy" in modules.split()
    assert not set(modules.split()) & (FRAMEWORKS | set(PACKAGES.values()))


def test_available_backends_lists_those_under_test(backends: list[str]) -> None:
    assert set(backends) <= set(common.available_backends())
    assert "oracle" not in common.available_backends()


PREDICT_IN_THIS_ORDER = """
import sys
from importlib import import_module
import numpy as np
from common import Architecture, load_backend

names = sys.argv[1:]
for name in names:
    import_module(load_backend(name).module)
arch = Architecture(stages=((1, 2),), stem_channels=2)
x = np.random.default_rng(0).random((1, 1, 32, 32))
expected = load_backend("oracle").build(arch).predict(x)
for name in names:
    found = load_backend(name).build(arch, "float64").predict(x)
    assert np.linalg.norm(found - expected) <= 1e-12 * np.linalg.norm(expected), name
print("all agree")
"""


@pytest.mark.deep
@pytest.mark.parametrize("order", [1, -1], ids=["in order", "reversed"])
def test_all_frameworks_live_in_one_process_whichever_comes_first(backends: list[str], order: int) -> None:
    if set(backends) != set(BACKENDS):
        pytest.skip("not all backends are under test")
    assert python(PREDICT_IN_THIS_ORDER, *backends[::order]) == "all agree\n"


THREADS = """
import torch
before = torch.get_num_threads()
import resnet_mxnet, mxnet
mxnet.np.ones((2, 2)).asnumpy()
assert torch.get_num_threads() == before
print("as before")
"""


@pytest.mark.deep
def test_mxnet_leaves_pytorch_its_threads(backends: list[str]) -> None:
    if not {"mxnet", "torch"} <= set(backends):
        pytest.skip("MXNet and PyTorch are not both under test")
    assert python(THREADS) == "as before\n"


# The chapter's calls


def shape_after(backend: str, block: Any, shape: tuple[int, int, int, int]) -> tuple[int, ...]:
    """The shape of a block's output for a batch of this (N, C, H, W) shape, as (N, C, H, W)."""
    X = np.random.default_rng(0).normal(size=shape).astype("float32")
    if backend in ("tf", "jax"):
        X = X.transpose(0, 2, 3, 1)
    if backend == "torch":
        import torch

        Y = block(torch.from_numpy(X))
    elif backend == "jax":
        import jax

        Y, _ = block.init_with_output(jax.random.key(0), X)
    elif backend == "mxnet":
        import mxnet

        block.initialize()
        Y = block(mxnet.np.array(X))
    else:
        Y = block(X)
    n, *rest = Y.shape
    return (n, rest[2], rest[0], rest[1]) if backend in ("tf", "jax") else (n, *rest)


def test_a_residual_block_keeps_the_shape(backend: str) -> None:
    assert shape_after(backend, package(backend).Residual(3), (4, 3, 6, 6)) == (4, 3, 6, 6)


def test_a_residual_block_with_a_1x1_convolution_halves_and_widens(backend: str) -> None:
    block = package(backend).Residual(6, use_1x1conv=True, strides=2)
    assert shape_after(backend, block, (4, 3, 6, 6)) == (4, 6, 3, 3)


def test_a_resnext_block_keeps_the_shape(backend: str) -> None:
    assert shape_after(backend, package(backend).ResNeXtBlock(32, 16, 1), (4, 32, 96, 96)) == (4, 32, 96, 96)


def test_a_resnext_block_with_a_1x1_convolution_halves_and_widens(backend: str) -> None:
    block = package(backend).ResNeXtBlock(12, groups=2, bot_mul=0.5, use_1x1conv=True, strides=2)
    assert shape_after(backend, block, (2, 8, 7, 10)) == (2, 12, 4, 5)


def test_a_bottleneck_that_does_not_divide_is_refused(backend: str) -> None:
    with pytest.raises(ValueError) as error:
        package(backend).ResNeXtBlock(32, 5, 1)
    one_line(error, "bot_channels = int(round(32 * 1)) = 32 does not divide into groups of width 5")


def pooled(backend: str, X: NDArray, padding: str) -> NDArray:
    """The layer alone, on images (N, C, H, W)."""
    layers = import_module(f"{PACKAGES[backend]}.layers")
    if backend == "torch":
        import torch

        return layers.MaxPool2d(padding)(torch.from_numpy(X)).numpy()
    if backend == "mxnet":
        import mxnet

        return layers.MaxPool2D(padding)(mxnet.np.array(X)).asnumpy()
    pool = layers.MaxPool2D(padding) if backend == "tf" else partial(layers.max_pool, padding=padding)
    return np.asarray(pool(X.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(("padding", "above", "left"), [("symmetric", 1, 1), ("same", 0, 1)])
def test_max_pool_pads_with_less_than_any_value(backend: str, padding: str, above: int, left: int) -> None:
    """Zeros would win at the border. In a network they cannot, because a ReLU comes before."""
    X = -1 - np.random.default_rng(0).random((2, 3, 6, 7), "float32")
    framed = np.pad(X, [(0, 0), (0, 0), (above, 1), (left, 1)], constant_values=-np.inf)
    windows = sliding_window_view(framed, (3, 3), (2, 3))[:, :, ::2, ::2]
    np.testing.assert_array_equal(pooled(backend, X, padding), windows.max((4, 5)))


def convolution(backend: str, channels: int, size: int, strides: int, padding: Any) -> Any:
    """The layer alone, of square kernels."""
    layers = import_module(f"{PACKAGES[backend]}.layers")
    if backend == "torch":
        return layers.LazyConv2d(channels, size, strides, padding)
    if backend == "jax":
        return layers.Conv(channels, (size, size), padding, strides=strides)
    return layers.Conv2D(channels, kernel_size=size, strides=strides, padding=padding)


def summed(backend: str, layer: Any, X: NDArray) -> NDArray:
    """What a convolution of one channel with kernels of ones and no bias makes of images (N, C, H, W)."""
    if backend == "torch":
        import torch

        layer(torch.from_numpy(X))
        torch.nn.init.ones_(layer.weight)
        return layer(torch.from_numpy(X)).detach().numpy()
    if backend == "mxnet":
        import mxnet

        layer.initialize(mxnet.init.One())
        return layer(mxnet.np.array(X)).asnumpy()
    X = X.transpose(0, 2, 3, 1)
    if backend == "jax":
        import jax

        parameters = layer.init(jax.random.key(0), X)["params"]
        parameters["kernel"] = np.ones_like(parameters["kernel"])
        return np.asarray(layer.apply({"params": parameters}, X)).transpose(0, 3, 1, 2)
    layer.build(X.shape)
    layer.kernel.assign(np.ones(layer.kernel.shape, "float32"))
    return np.asarray(layer(X)).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("padding", ["symmetric", "same", 2])
def test_a_convolution_pads_as_it_is_told(backend: str, padding: Any, size: int, strides: int) -> None:
    if (backend, padding, size) == ("mxnet", "same", 2):
        with pytest.raises(ValueError) as error:
            convolution(backend, 1, size, strides, padding)
        one_line(error, "a kernel over 2 pixels", "give an odd kernel")
        return
    X = np.random.default_rng(0).integers(0, 9, (2, 3, 7, 6)).astype("float32")
    zeros = []
    for pixels in X.shape[2:]:
        total = max((-(-pixels // strides) - 1) * strides + size - pixels, 0)
        around = {"symmetric": size // 2, "same": total // 2}.get(padding, padding)
        zeros.append((around, total - around if padding == "same" else around))
    framed = np.pad(X, [(0, 0), (0, 0), *zeros])
    windows = sliding_window_view(framed, (size, size), (2, 3))[:, :, ::strides, ::strides]
    found = summed(backend, convolution(backend, 1, size, strides, padding), X)
    np.testing.assert_array_equal(found, windows.sum((1, 4, 5))[:, None])


@pytest.mark.parametrize("padding", ["valid", "SAME", "symetric", "", None, -1, 0.0, True])
def test_an_unknown_padding_is_one_line_and_the_same_everywhere(backend: str, padding: Any) -> None:
    with pytest.raises(ValueError) as error:
        convolution(backend, 4, 3, 1, padding)
    assert str(error.value) == (
        f"padding must be 'symmetric' or 'same', or a number of zeros, not {padding!r}"
    )
    with pytest.raises(ValueError) as error:
        shape_after(backend, package(backend).Residual(3, padding=padding), (4, 3, 6, 6))
    one_line(error, f"padding must be 'symmetric' or 'same', or a number of zeros, not {padding!r}")
    with pytest.raises(ValueError) as error:
        pooled(backend, np.zeros((1, 1, 6, 6), "float32"), padding)
    assert str(error.value) == f"padding must be 'symmetric' or 'same', not {padding!r}"


STAGES = [
    ("b1", (1, 64, 24, 24)),
    ("b2", (1, 64, 24, 24)),
    ("b3", (1, 128, 12, 12)),
    ("b4", (1, 256, 6, 6)),
    ("b5", (1, 512, 3, 3)),
    ("last", (1, 10)),
]


def test_layer_summary_prints_the_stages(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    channels_last = backend in ("tf", "jax")
    package(backend).ResNet18().layer_summary((1, 96, 96, 1) if channels_last else (1, 1, 96, 96))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(STAGES)
    for line, (name, shape) in zip(lines, STAGES, strict=True):
        if channels_last and len(shape) == 4:
            shape = (shape[0], shape[2], shape[3], shape[1])
        assert line.split(maxsplit=1)[0] == name
        assert line.endswith(f"output shape:\t{shape}")


def test_a_class_derived_from_one_of_the_zoo_is_that_network(backend: str) -> None:
    mine = type("Mine", (package(backend).ResNet34,), {})
    assert mine().arch == architecture("resnet34")


def test_every_network_of_the_zoo_has_a_class() -> None:
    """The chapter's kind of network; v1 and other people's kinds are data alone."""
    assert list(ZOO_CLASSES.values()) == [name for name in ZOO if not name.endswith("_v1")]


@pytest.mark.parametrize("name", ZOO_CLASSES)
def test_a_class_of_the_zoo_is_its_network(backend: str, name: str) -> None:
    net = getattr(package(backend), name)(0.3, num_classes=7)
    assert net.arch == architecture(ZOO_CLASSES[name], num_classes=7)
    assert net.lr == 0.3


@pytest.mark.parametrize("name", ["ResNet", "ResNet18"])
def test_num_classes_is_the_number_of_logits(
    backend: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = getattr(package(backend), name)
    net = kind(((1, 4), (1, 6)), num_classes=7) if name == "ResNet" else kind(num_classes=7)
    net.layer_summary((2, 40, 33, 1) if backend in ("tf", "jax") else (2, 1, 40, 33))
    assert capsys.readouterr().out.splitlines()[-1].endswith("(2, 7)")


def test_lr_is_kept_for_the_optimizer(backend: str) -> None:
    assert package(backend).ResNet(((1, 4),)).lr == 0.1
    assert package(backend).ResNet(((1, 4),), lr=0.3).lr == 0.3
    assert package(backend).ResNet18(0.3).lr == 0.3


def test_an_architecture_says_all_there_is_to_say(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    arch = Architecture(
        stages=((1, 4),), block="resnext", groups=2, in_channels=3, num_classes=6, stem_channels=2
    )
    net = package(backend).ResNet(arch, num_classes=9)
    net.layer_summary((1, 32, 34, 3) if backend in ("tf", "jax") else (1, 3, 32, 34))
    shapes = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    assert shapes == (
        ["(1, 8, 9, 2)", "(1, 8, 9, 4)", "(1, 6)"]
        if backend in ("tf", "jax")
        else ["(1, 2, 8, 9)", "(1, 4, 8, 9)", "(1, 6)"]
    )


def test_mxnet_blocks_hybridize(backends: list[str]) -> None:
    if "mxnet" not in backends:
        pytest.skip("MXNet is not under test")
    blocks = package("mxnet")
    import mxnet  # after the package, which lends NumPy what MXNet needs

    for block in (
        blocks.Residual(6, use_1x1conv=True, strides=2),
        blocks.ResNeXtBlock(6, 2, 1, use_1x1conv=True, strides=2),
    ):
        X = mxnet.np.random.normal(size=(4, 3, 6, 6))
        block.initialize()
        eager = block(X).asnumpy()
        block.hybridize()
        compiled = block(X).asnumpy()
        assert compiled.shape == (4, 6, 3, 3)
        np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strides", [2, (2, 2), (2, 1)])
def test_flax_blocks_take_a_pair_of_strides(backends: list[str], strides: Any) -> None:
    if "jax" not in backends:
        pytest.skip("JAX is not under test")
    expected = (4, 6, 3, 3 if strides != (2, 1) else 6)
    blocks = package("jax")
    for block in (
        blocks.Residual(6, use_1x1conv=True, strides=strides),
        blocks.ResNeXtBlock(6, 2, 1, use_1x1conv=True, strides=strides),
    ):
        assert shape_after("jax", block, (4, 3, 6, 6)) == expected

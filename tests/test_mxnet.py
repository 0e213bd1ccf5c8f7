"""What holds for MXNet alone: its names, types, contexts and random state are a Gluon user's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import load_backend
from common.architecture import Architecture
from common.recipe import Recipe
from tests.helpers import one_line, random_weights

SMALL = Architecture(stages=((1, 4), (2, 6)), num_classes=5, stem_channels=4)


@pytest.fixture
def mx(backends: list[str]) -> Any:
    if "mxnet" not in backends:
        pytest.skip("MXNet is not under test")
    import_module("resnet_mxnet")  # first: it lends NumPy what MXNet needs
    return import_module("mxnet")


@pytest.fixture
def net(mx: Any) -> Any:
    """A small network that has its weights."""
    from resnet_mxnet import ResNet

    net = ResNet(SMALL)
    net(mx.np.zeros((2, 1, 32, 32)))
    return net


def test_layers_and_gluons_files_have_the_canonical_names(mx: Any, net: Any, tmp_path: Path) -> None:
    assert list(net.activations(mx.np.zeros((2, 1, 32, 32)))) == SMALL.stage_names()
    assert net.net.last.dense.weight.shape == (5, 6)
    path = str(tmp_path / "net.params")
    net.save_parameters(path)
    expected = set()
    for name in SMALL.parameter_shapes():
        if "bn" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        expected.add("net." + name.replace("last.", "last.dense."))
    assert set(mx.npx.load(path)) == expected


@pytest.mark.parametrize("case", ["float64", "another context"])
@pytest.mark.parametrize("lazy", [False, True], ids=["", "lazy"])
def test_a_summary_is_taken_where_and_as_the_network_is(
    mx: Any, net: Any, case: str, lazy: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from resnet_mxnet import ResNet

    net = ResNet(SMALL) if lazy else net
    if case == "float64":
        net.cast("float64")
    else:
        net.collect_params().reset_ctx(mx.cpu(1))
    net.layer_summary((2, 1, 32, 32))
    assert capsys.readouterr().out.splitlines()[-1].endswith("(2, 5)")


def test_a_summary_leaves_the_network_as_it_was(mx: Any, net: Any) -> None:
    before = {name: p.data().asnumpy() for name, p in net.collect_params().items()}
    with mx.autograd.record():
        net.layer_summary((2, 1, 32, 32))
        assert mx.autograd.is_training()
    for name, p in net.collect_params().items():
        np.testing.assert_array_equal(p.data().asnumpy(), before[name])


def test_a_network_cast_to_float64_draws_its_weights(mx: Any) -> None:
    from resnet_mxnet import ResNet

    net = ResNet(SMALL)
    net.cast("float64")
    assert net(mx.np.zeros((2, 1, 32, 32), dtype="float64")).dtype == np.float64
    conv = net.net.b2[0].conv1.weight.data().asnumpy()
    assert conv.dtype == np.float64
    assert 0.8 < np.abs(conv).max() / np.sqrt(6 / ((4 + 4) * 9)) <= 1


def test_building_leaves_the_random_state(mx: Any) -> None:
    def draws() -> list[np.ndarray]:
        return [mx.np.random.uniform(size=3).asnumpy(), mx.nd.random.uniform(shape=3).asnumpy()]

    mx.random.seed(3)
    expected = draws()
    mx.random.seed(3)
    model = load_backend("mxnet").build(SMALL)
    model.load_weights(random_weights(SMALL))
    model.weights()
    np.testing.assert_array_equal(draws(), expected)


# As any Gluon block


def structure(block: Any) -> list[str]:
    """The names of its parameters without its own."""
    names = list(block.collect_params())
    assert all(name.startswith(block.prefix) for name in names)
    return [name.removeprefix(block.prefix) for name in names]


def values(net: Any) -> dict[str, np.ndarray]:
    parameters = net._collect_params_with_prefix()
    return {name: parameter.data(parameter.list_ctx()[0]).asnumpy() for name, parameter in parameters.items()}


def test_names_do_not_count_what_the_process_made_before(mx: Any) -> None:
    from resnet_mxnet import ResNet, ResNeXtBlock

    bottlenecks = Architecture(((1, 4),), "resnext", groups=2, stem_channels=4)
    for make in (partial(ResNet, SMALL), partial(ResNet, bottlenecks), partial(ResNeXtBlock, 8, 2, 1, True)):
        nets = [make(), make(prefix="mine_"), make()]
        assert nets[1].prefix == "mine_" and nets[0].prefix != nets[2].prefix
        assert structure(nets[0]) == structure(nets[1]) == structure(nets[2])


WAYS_THROUGH_FILES = {
    "save_parameters": (
        lambda net, path: net.save_parameters(path),
        lambda net, path: net.load_parameters(path),
    ),
    "of the parameters": (
        lambda net, path: net.collect_params().save(path, strip_prefix=net.prefix),
        lambda net, path: net.collect_params().load(path, restore_prefix=net.prefix),
    ),
    "save": (lambda net, path: net.save(path), lambda net, path: net.load(path)),
}


@pytest.mark.parametrize("hybrid", [False, True], ids=["", "hybridised"])
@pytest.mark.parametrize("way", WAYS_THROUGH_FILES)
def test_gluons_files_are_those_of_another_network_of_the_process(
    mx: Any, net: Any, way: str, hybrid: bool, tmp_path: Path
) -> None:
    from resnet_mxnet import ResNet

    X, other = mx.np.random.uniform(size=(2, 1, 32, 32)), ResNet(SMALL)
    net.hybridize(hybrid)
    expected = net(X).asnumpy()
    save, load = WAYS_THROUGH_FILES[way]
    save(net, str(tmp_path / "net"))
    load(other, str(tmp_path / "net"))
    np.testing.assert_allclose(other(X).asnumpy(), expected, rtol=1e-5, atol=1e-6)


def test_parameters_are_loaded_where_one_says(mx: Any, net: Any, tmp_path: Path) -> None:
    from resnet_mxnet import ResNet

    net.save_parameters(str(tmp_path / "net.params"))
    other = ResNet(SMALL)
    other.load_parameters(str(tmp_path / "net.params"), mx.cpu(1))
    assert {p.list_ctx()[0] for p in other.collect_params().values()} == {mx.cpu(1)}
    for name, array in values(other).items():
        np.testing.assert_array_equal(array, values(net)[name])


def test_parameters_are_shared_with_params(mx: Any) -> None:
    from resnet_mxnet import ResNet

    first = ResNet(SMALL)
    second = ResNet(SMALL, params=first.collect_params())
    first(mx.np.zeros((1, 1, 32, 32)))
    pairs = zip(first.collect_params().values(), second.collect_params().values(), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)


WAYS_TO_TWO_CONTEXTS = {
    "initialize": lambda net, contexts: net.initialize(ctx=contexts),
    "of the parameters": lambda net, contexts: net.collect_params().initialize(ctx=contexts),
    "reset_ctx": lambda net, contexts: net.collect_params().reset_ctx(contexts),
}


@pytest.mark.parametrize("hybrid", [False, True], ids=["", "hybridised"])
@pytest.mark.parametrize("way", WAYS_TO_TWO_CONTEXTS)
def test_a_new_network_goes_where_it_is_told(mx: Any, way: str, hybrid: bool) -> None:
    from resnet_mxnet import ResNet

    net, contexts = ResNet(SMALL), [mx.cpu(0), mx.cpu(1)]
    net.hybridize(hybrid)
    WAYS_TO_TWO_CONTEXTS[way](net, contexts)
    X = mx.np.random.uniform(size=(2, 1, 32, 32))
    first, second = (net(X.copyto(context)) for context in contexts)
    assert [first.ctx, second.ctx] == contexts
    np.testing.assert_array_equal(first.asnumpy(), second.asnumpy())


@pytest.mark.parametrize("drawn", [False, True], ids=["new", "drawn"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initialize_draws_as_it_is_told(mx: Any, drawn: bool, dtype: str) -> None:
    from resnet_mxnet import ResNet

    net, X = ResNet(SMALL), mx.np.zeros((1, 1, 32, 32), dtype=dtype)
    net.cast(dtype)
    if drawn:
        net(X)
    net.initialize(mx.init.Constant(0.5), force_reinit=True)
    net(X)
    for name, array in values(net).items():
        expected = {"weight": 0.5, "gamma": 1, "running_var": 1}.get(name.rpartition(".")[2], 0)
        np.testing.assert_array_equal(array, expected)


def test_initialize_draws_from_glorots_unless_told_otherwise(mx: Any) -> None:
    from resnet_mxnet import Residual

    def largest(*initializer: Any) -> float:
        block = Residual(4)
        block.initialize(*initializer)
        block(mx.np.zeros((1, 4, 6, 6)))
        return float(np.abs(block.conv1.weight.data().asnumpy()).max())

    assert 0.9 * np.sqrt(6 / 72) < largest() <= np.sqrt(6 / 72)
    assert 0.06 < largest(mx.init.Uniform()) <= 0.07


def batch(mx: Any, count: int = 4) -> tuple[Any, Any]:
    return mx.np.random.uniform(size=(count, 1, 32, 32)), mx.np.array([1, 0, 3, 2][:count])


def test_the_weights_on_several_contexts_stay_the_same(mx: Any, net: Any, tmp_path: Path) -> None:
    """And where each has the same images, they are those of one context."""
    from resnet_mxnet import ResNet

    net.save_parameters(str(tmp_path / "net.params"))
    X, Y = batch(mx)
    found = []
    for contexts in ([mx.cpu(0)], [mx.cpu(0), mx.cpu(1)]):
        net = ResNet(SMALL)
        net.load_parameters(str(tmp_path / "net.params"), ctx=contexts)
        trainer = net.configure_optimizers(Recipe(momentum=0.9))
        pairs = [(X.copyto(context), Y.copyto(context)) for context in contexts]
        for _ in range(3):
            with mx.autograd.record():
                losses = [net.loss(net(images), labels) for images, labels in pairs]
            mx.autograd.backward(losses)
            trainer.step(len(contexts))
        for context in contexts:
            found.append(
                {name: p.data(context).asnumpy() for name, p in net._collect_params_with_prefix().items()}
            )
    for name, expected in found[0].items():
        for array in found[1:]:
            np.testing.assert_array_equal(array[name], expected)


def test_a_trainer_of_a_network_that_has_moved_is_one_line(mx: Any, net: Any) -> None:
    trainer, contexts = net.configure_optimizers(), [mx.cpu(0), mx.cpu(1)]
    net.collect_params().reset_ctx(contexts)
    pairs = [[array.copyto(context) for array in batch(mx)] for context in contexts]
    with mx.autograd.record():
        losses = [net.loss(net(images), labels) for images, labels in pairs]
    mx.autograd.backward(losses)
    with pytest.raises(ValueError) as error:
        trainer.step(2)
    one_line(error, "has moved", "make the trainer")


def test_a_trainers_states_are_those_of_another_network_of_the_process(
    mx: Any, net: Any, tmp_path: Path
) -> None:
    from resnet_mxnet import ResNet
    from resnet_mxnet.training import train_step

    recipe = Recipe(momentum=0.9, weight_decay=0.1, lr_backbone=0.5, no_decay_norm=True)
    X, Y = batch(mx)
    trainer = net.configure_optimizers(recipe)
    train_step(net, trainer, X, Y, recipe)
    net.save_parameters(str(tmp_path / "net.params"))
    trainer.save_states(str(tmp_path / "trainer.states"))
    for _ in range(10):  # Gluon counts the networks of a process, and sorts 10 before 9
        other = ResNet(SMALL)
    other.load_parameters(str(tmp_path / "net.params"))
    others = other.configure_optimizers(recipe)
    others.load_states(str(tmp_path / "trainer.states"))
    train_step(net, trainer, X, Y, recipe)
    train_step(other, others, X, Y, recipe)
    for name, array in values(other).items():
        np.testing.assert_array_equal(array, values(net)[name])


OPTIONS = {
    "clip_gradient": {"clip_gradient": 1.0, "momentum": 0.9},
    "clip_gradient, rescaled and decayed": {"clip_gradient": 0.3, "rescale_grad": 0.5, "wd": 0.1},
    "lr_scheduler": {"lr_scheduler": True},
    "multi_precision": {"multi_precision": True, "wd": 0.1},
    "multi_precision and momentum": {"multi_precision": True, "momentum": 0.9},
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("case", OPTIONS)
def test_gluons_options_of_sgd_are_honoured(mx: Any, case: str, dtype: str) -> None:
    """At one rate, or without momentum, MXNet's own step is the same but for rounding."""
    from resnet_mxnet.layers import SGD

    results = []
    for kind in (SGD, mx.optimizer.SGD):
        options: dict[str, Any] = dict(OPTIONS[case])
        if "lr_scheduler" in options:
            options["lr_scheduler"] = mx.lr_scheduler.FactorScheduler(2, 0.5)
        parameter = mx.gluon.Parameter("weight", shape=(8,), dtype=dtype)
        parameter.initialize(mx.init.One())
        parameter.lr_mult, parameter.wd_mult = 0.5, 2.0
        optimizer = kind(learning_rate=0.1, **options)
        trainer = mx.gluon.Trainer([parameter], optimizer)
        for i in range(4):
            with mx.autograd.record():
                loss = (parameter.data() * mx.np.arange(-4, 4, dtype=dtype) * (i + 1)).sum()
            loss.backward()
            trainer.step(1)
        results.append(parameter.data().asnumpy())
    ours, gluons = results
    rounding = 1e-2 if dtype == "float16" else 1e-6
    np.testing.assert_allclose(ours, gluons, rtol=rounding, atol=rounding)
    assert np.abs(ours - 1).max() > 0.01


def test_gluons_summary_is_of_a_wrapped_network_too(
    mx: Any, net: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    X, _ = batch(mx)
    net.summary(X)
    expected = capsys.readouterr().out
    model = load_backend("mxnet").wrap(net)
    net.summary(X)
    assert capsys.readouterr().out == expected
    assert not net._active  # as it came
    np.testing.assert_array_equal(model.predict(X.asnumpy()), net(X).asnumpy())


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_a_symbol_block_imports_what_a_network_exports(mx: Any, padding: str, tmp_path: Path) -> None:
    from resnet_mxnet import ResNet

    net = ResNet(Architecture(((1, 8),), "resnext", groups=4, stem_channels=4, padding=padding))
    net.hybridize()
    X, _ = batch(mx)
    expected = net(X).asnumpy()
    net.export(str(tmp_path / "net"))
    files = (str(tmp_path / f"net-{end}") for end in ("symbol.json", "0000.params"))
    symbol, parameters = files
    imported = mx.gluon.SymbolBlock.imports(symbol, ["data"], parameters)
    np.testing.assert_array_equal(imported(X).asnumpy(), expected)


@pytest.mark.parametrize("kind", ["mx.nd", "numpy", "symbol"])
def test_arrays_that_are_not_of_mxnets_numpy_are_one_line(mx: Any, net: Any, kind: str) -> None:
    shape = (1, 1, 32, 32)
    given = {"mx.nd": mx.nd.zeros(shape), "numpy": np.zeros(shape), "symbol": mx.sym.var("data")}[kind]
    with pytest.raises(ValueError) as error:
        net(given)
    one_line(error, "images must be mx.np arrays")


# How it is computed


@pytest.mark.parametrize(
    ("kernel", "strides", "dilation"),
    [(3, 2, 2), ((3, 1), 2, 1), ((1, 5), (1, 2), 1), (2, 2, 2), (1, 3, 1), (5, (2, 1), 1)],
)
def test_same_is_as_little_as_makes_every_window_whole(
    mx: Any, kernel: Any, strides: Any, dilation: int
) -> None:
    """As Gluon's convolution of images with the zeros around them, to the bit: all are whole numbers."""
    from resnet_mxnet.layers import Conv2D

    X = np.random.default_rng(0).integers(0, 9, (2, 3, 8, 7)).astype("float32")
    options = {"kernel_size": kernel, "strides": strides, "dilation": dilation}
    ours, plain = Conv2D(2, padding="same", **options), mx.gluon.nn.Conv2D(2, **options)
    zeros = []
    for pixels, size, step in zip(X.shape[2:], plain._kwargs["kernel"], plain._kwargs["stride"], strict=True):
        total = max((-(-pixels // step) - 1) * step + dilation * (size - 1) + 1 - pixels, 0)
        zeros.append((total // 2, total - total // 2))
    framed = np.pad(X, [(0, 0), (0, 0), *zeros])
    outputs = []
    for layer, images in ((ours, X), (plain, framed)):
        layer.initialize()
        layer(mx.np.array(images))
        layer.weight.set_data(mx.np.arange(layer.weight.data().size).reshape(layer.weight.shape))
        outputs.append(layer(mx.np.array(images)).asnumpy())
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize(("kernel", "strides"), [(2, 1), (4, 2), (3, 3), ((3, 2), 1)])
def test_same_that_no_turning_makes_symmetric_is_one_line(mx: Any, kernel: Any, strides: int) -> None:
    from resnet_mxnet.layers import Conv2D

    with pytest.raises(ValueError) as error:
        Conv2D(2, kernel, strides, "same")
    one_line(error, "padding 'same'", "beyond MXNet", "give an odd kernel and strides of 1 or 2")


def convolved(mx: Any, layer: Any, dtype: str, x: Any, weight: Any, bias: Any) -> list[Any]:
    """Output of a layer, and what the sum of its squares has for gradients: of input, weight and bias."""
    layer.initialize()
    layer.cast(dtype)
    arrays = [mx.np.array(array, dtype=dtype) for array in (x, weight, bias)]
    arrays[0].attach_grad()
    layer.weight.set_data(arrays[1])
    layer.bias.set_data(arrays[2])
    with mx.autograd.record():
        output = layer(arrays[0])
        (output**2).sum().backward()
    gradients = [arrays[0].grad, layer.weight.grad(), layer.bias.grad()]
    return [array.asnumpy().astype("float64") for array in (output, *gradients)]


@pytest.mark.parametrize("hybrid", [False, True], ids=["", "hybridised"])
@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(
    ("groups", "width"),
    [(8, 4), (6, 4), (4, 8), (16, 2), (2, 24), (3, 5), (31, 4), (16, 1), (2, 16), (1, 32)],
)
def test_groups_put_together_are_the_convolution_to_the_bit(
    mx: Any, groups: int, width: int, strides: int, padding: str, hybrid: bool
) -> None:
    """Float32 adds whole numbers exactly; float64 is left to MXNet's own groups."""
    from resnet_mxnet.layers import Conv2D

    rng, channels = np.random.default_rng(0), groups * width
    shapes = (2, channels, 7, 6), (channels, width, 3, 3), (channels,)
    x, weight, bias = (rng.integers(-3, 4, shape) for shape in shapes)
    results = []
    for dtype in ("float32", "float64"):
        layer = Conv2D(channels, kernel_size=3, strides=strides, padding=padding, groups=groups)
        layer.hybridize(hybrid)
        results.append(convolved(mx, layer, dtype, x, weight, bias))
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("use_bias", [False, True], ids=["", "bias"])
def test_groups_are_gluons(mx: Any, use_bias: bool) -> None:
    from resnet_mxnet.layers import Conv2D

    options = {"strides": 2, "padding": 1, "groups": 8, "use_bias": use_bias}
    ours, gluons = Conv2D(32, 3, **options), mx.gluon.nn.Conv2D(32, 3, **options)
    x = mx.np.random.uniform(size=(2, 32, 7, 7))
    for layer in (ours, gluons):
        layer.initialize()
        layer(x)
    assert [p.shape for p in ours.collect_params().values()] == [
        p.shape for p in gluons.collect_params().values()
    ]
    gluons.weight.set_data(ours.weight.data())
    np.testing.assert_allclose(ours(x).asnumpy(), gluons(x).asnumpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("groups", "width", "dtype", "together"),
    [
        (32, 4, "float32", 4),
        (32, 8, "float32", 2),
        (4, 24, "float32", 2),
        (6, 4, "float32", 2),  # 24 channels: blocks of 8 throughout
        (32, 16, "float32", 1),
        (32, 1, "float32", 1),
        (3, 5, "float32", 1),
        (32, 4, "float64", 1),
        (32, 4, None, 4),  # as a user's own block is, which nobody casts
    ],
)
def test_narrow_groups_are_put_together_in_float32(
    mx: Any, groups: int, width: int, dtype: str | None, together: int
) -> None:
    from resnet_mxnet.layers import Conv2D

    layer = Conv2D(groups * width, kernel_size=3, groups=groups)
    layer.initialize()
    if dtype:
        layer.cast(dtype)
    graph = json.loads(layer(mx.sym.var("x").as_np_ndarray()).tojson())
    (convolution,) = (node for node in graph["nodes"] if node["op"] == "Convolution")
    assert int(convolution["attrs"]["num_group"]) == groups // together


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_a_step_in_float32_is_that_of_its_formula_to_the_bit(mx: Any, momentum: float) -> None:
    from resnet_mxnet.layers import SGD

    optimizer = SGD(learning_rate=0.1, momentum=momentum, wd=0.01, rescale_grad=0.5)
    optimizer.param_dict = {0: mx.gluon.Parameter("weight", shape=(64,))}
    rng = np.random.default_rng(0)
    expected, velocity = rng.normal(size=64).astype("float32"), np.zeros(64, "float32")
    weight = mx.nd.array(expected)
    state = optimizer.create_state(0, weight)
    for _ in range(3):
        gradient = rng.normal(size=64).astype("float32")
        optimizer.update(0, weight, mx.nd.array(gradient), state)
        velocity = np.float32(momentum) * velocity + (
            np.float32(0.5) * gradient + np.float32(0.01) * expected
        )
        expected = expected - np.float32(0.1) * velocity
        np.testing.assert_array_equal(weight.asnumpy(), expected)
        if momentum:
            np.testing.assert_array_equal(state.asnumpy(), velocity)


def test_the_product_of_matrices_is_of_this_century(mx: Any) -> None:
    """MXNet's OpenBLAS says which CPU it computes for; nobody after it is told."""
    flags = Path("/proc/cpuinfo").read_text().split()
    if not {"avx2", "fma"} <= set(flags):
        pytest.skip("an older CPU")
    code = "import os, resnet_mxnet; assert 'OPENBLAS_CORETYPE' not in os.environ"
    environment = {**os.environ, "OPENBLAS_VERBOSE": "2"}
    environment.pop("OPENBLAS_CORETYPE", None)
    said = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True)
    assert said.returncode == 0, said.stderr
    assert said.stderr.splitlines()[-1] == "Core: Haswell"


# Today's NumPy


TWO, TWELVE = np.int64(2), np.int64(12)


@pytest.mark.parametrize(
    "compute",
    [
        lambda mx, X: mx.gluon.utils.split_and_load(X, [mx.cpu(0), mx.cpu(1)])[1].shape == (2, 6),
        lambda mx, X: X.reshape(TWO, TWELVE).shape == (2, 12),
        lambda mx, X: X.sum(axis=(np.int64(0), np.int64(1))).item() == 24,
        lambda mx, X: X[TWO : np.int64(0) : np.int64(-1)].shape == (2, 6),
        lambda mx, X: X.__setitem__(TWO, np.float32(3)) is None and X[2, 0] == 3,
        lambda mx, X: mx.nd.random.uniform(shape=(TWO, TWELVE)).shape == (2, 12),
        lambda mx, X: mx.np.random.normal(size=[TWO, TWELVE]).shape == (2, 12),
        lambda mx, X: mx.np.pad(X, ((TWO, 0), (0, TWO))).shape == (6, 8),
        lambda mx, X: mx.sym.var("x", shape=(TWO, TWELVE)).attr("__shape__") == "(2, 12)",
        lambda mx, X: mx.npx.image.resize(mx.np.ones((4, 4, 3)), (TWO, TWELVE)).shape == (12, 2, 3),
    ],
)
def test_numpys_whole_numbers_are_numbers(mx: Any, compute: Any) -> None:
    """NumPy 2 writes (4,) as "(np.int64(4),)", and text is what MXNet's operators are handed."""
    assert compute(mx, mx.np.ones((4, 6)))


@pytest.mark.parametrize("hybrid", [False, True], ids=["", "hybridised"])
def test_layers_take_numpys_whole_numbers(mx: Any, hybrid: bool) -> None:
    nn = mx.gluon.nn
    layers = nn.HybridSequential()
    layers.add(nn.Conv2D(TWELVE, TWO, (TWO, TWO)), nn.MaxPool2D(TWO), nn.Dense(TWO))
    layers.initialize(mx.init.Orthogonal())  # which fails by itself on NumPy 2
    layers.hybridize(hybrid)
    assert layers(mx.np.ones((1, 3, 9, 9))).shape == (1, 2)


def test_what_mxnet_runs_has_the_names_numpy_removed(mx: Any) -> None:
    handler = mx.gluon.contrib.estimator.EarlyStoppingHandler(mx.metric.Accuracy(), mode="max")
    handler.train_begin(None)
    assert handler.best == -np.inf
    assert repr(np.int64(4)) == "np.int64(4)"  # NumPy itself is as it was


# A build for GPUs


def test_cuda_is_loaded_from_nvidias_packages_before_mxnet(mx: Any, tmp_path: Path) -> None:
    from resnet_mxnet import compat

    for package, name in compat._CUDA.items():
        folder = tmp_path / "nvidia" / package / "lib"
        folder.mkdir(parents=True)
        source = folder / "library.c"
        source.write_text(f"int of_{package}(void) {{ return 0; }}\n")
        shared = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source]
        subprocess.run(["g++", *shared], check=True)
    program = """
import os, resnet_mxnet
print(os.environ["NVIDIA_TF32_OVERRIDE"], open("/proc/self/maps").read())
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(compat.__file__).parents[1]}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("0 ")
    for package, name in compat._CUDA.items():
        assert str(tmp_path / "nvidia" / package / "lib" / name) in done.stdout


def test_a_library_that_does_not_load_is_one_line(mx: Any, tmp_path: Path) -> None:
    (tmp_path / "mxnet.py").write_text("raise OSError('libcuda.so.1: cannot open shared object file')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}"}
    program = "import resnet_mxnet"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    *_, line = done.stderr.splitlines()
    assert "needs NVIDIA's driver" in line and "resnet-tabs[mxnet-gpu]" in line

"""What only the JAX package has: parameters outside the network, and a type to compute in."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common import data, load_backend
from common.architecture import Architecture
from common.recipe import Recipe
from tests.helpers import ROUNDING, SINGLE, built, deviation, random_batch, random_weights

SMALL = Architecture(stages=((1, 4), (1, 6)), stem_channels=4)
BOTTLENECK = Architecture(((1, 4), (1, 8)), "resnext", stem_channels=4, groups=2)


@pytest.fixture(autouse=True)
def package(backends: list[str]) -> ModuleType:
    if "jax" not in backends:
        pytest.skip("JAX is not under test")
    import resnet_jax

    return resnet_jax


@pytest.fixture
def model(device: str) -> Any:
    """A small float32 model with random weights, compiled once a session."""
    model = built("jax", SMALL, "float32", device)
    model.load_weights(random_weights(SMALL))
    return model


def leaves(tree: Any) -> list[NDArray]:
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def dtypes(tree: Any) -> set[str]:
    import jax

    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


# The network used directly


def pixels(dtype: str) -> tuple[NDArray, NDArray]:
    """Two images of whole numbers, (N, H, W, C), and labels."""
    generator = np.random.default_rng(0)
    return generator.integers(256, size=(2, 32, 32, 1)).astype(dtype), generator.integers(10, size=2)


@pytest.mark.parametrize("dtype", [None, pytest.param("bfloat16", marks=pytest.mark.deep)])
def test_parameters_are_float32_whatever_the_images_are(package: ModuleType, dtype: str | None) -> None:
    import jax

    from resnet_jax.training import loss_and_gradients

    net = package.ResNet(SMALL, dtype=dtype)
    variables = jax.jit(net.init)(jax.random.key(0), pixels("uint8")[0])
    assert dtypes(variables) == {"float32"}
    passes = [
        jax.jit(loss_and_gradients, static_argnums=0)(net, variables, *pixels(t))
        for t in ("uint8", "float32")
    ]
    assert dtypes(passes) == {"float32"}
    for found, expected in zip(*map(leaves, passes), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert all(np.any(gradient) for gradient in leaves(passes[0][2]["net"]["layers_last"]))


def test_dtype_is_that_of_the_products_and_of_batch_norms_output(package: ModuleType) -> None:
    import jax

    net = package.ResNet(SMALL, training=False, dtype="bfloat16")
    X, _ = pixels("float32")
    new = partial(net.init_with_output, capture_intermediates=True)
    outputs = jax.eval_shape(new, jax.random.key(0), X)[1]["intermediates"]
    assert dtypes(outputs["net"]) == {"bfloat16"}
    assert dtypes(outputs["__call__"]) == {"float32"}


def test_products_are_precise_unless_the_caller_says_how(package: ModuleType) -> None:
    import jax

    def program() -> str:
        net = package.ResNet(SMALL, training=False)
        return str(jax.make_jaxpr(net.init)(jax.random.key(0), pixels("float32")[0]))

    with jax.default_matmul_precision("tensorfloat32"):
        assert "HIGHEST" not in program()
    precise = program()
    assert precise.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == precise.count("precision=")


def test_layer_summary_is_the_same_in_every_type(
    package: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    summaries = []
    for dtype in (None, "float32", "bfloat16"):
        package.ResNet(SMALL, dtype=dtype).layer_summary((1, 32, 32, 1))
        summaries.append(capsys.readouterr().out)
    assert len(summaries[0].splitlines()) == 4
    assert summaries[0] == summaries[1] == summaries[2]


def test_parameters_have_the_names_of_their_layers(model: Any) -> None:
    params = model.variables["params"]["net"]
    assert set(params) == {"layers_b1", "layers_b2", "layers_b3", "layers_last"}
    assert set(params["layers_b1"]) == {"layers_conv", "layers_bn"}
    assert set(params["layers_b3"]["layers_0"]) == {"conv1", "conv2", "conv3", "bn1", "bn2"}
    assert set(params["layers_last"]["layers_dense"]) == {"kernel", "bias"}


@pytest.mark.parametrize("transform", ["remat", "jit"])
def test_flaxs_transforms_leave_the_layers_their_order(package: ModuleType, transform: str) -> None:
    import jax
    from flax import linen as nn

    from resnet_jax.layers import Sequential

    class Network(nn.Module):
        kind: Any

        def setup(self) -> None:
            self.net = self.kind({"b": nn.Dense(3), "a": nn.relu, "c": nn.Dense(2)})

        def __call__(self, X: Any) -> Any:
            return self.net(X)

    X = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    expected, variables = Network(Sequential).init_with_output(jax.random.key(0), X)
    found = Network(getattr(nn, transform)(Sequential)).apply(variables, X)
    assert deviation(found, expected) <= SINGLE


# One truth about the classes

STAGES = ((1, 4), (1, 6))
FIVE, THREE = (replace(SMALL, num_classes=n) for n in (5, 3))


@pytest.mark.parametrize(
    ("new", "classes"),
    [
        (lambda p: p.ResNet(STAGES), 10),
        (lambda p: p.ResNet(STAGES, num_classes=7), 7),
        (lambda p: p.ResNet(FIVE), 5),
        (lambda p: p.ResNet(STAGES).clone(num_classes=7), 7),
        (lambda p: p.ResNet(FIVE).clone(training=False), 5),
        (lambda p: p.ResNet(FIVE).clone(num_classes=10), 10),
        (lambda p: p.ResNet(FIVE).clone(arch=THREE), 3),
        (lambda p: p.ResNet(FIVE).clone(arch=STAGES), 5),
        (lambda p: p.ResNet(FIVE, num_classes=7), 5),
        (lambda p: p.ResNet(FIVE).clone(arch=THREE, num_classes=7), 3),
        (lambda p: p.ResNet(p.ResNet(FIVE).arch), 5),
        (lambda p: replace(p.ResNet(STAGES, num_classes=7), arch=FIVE), 5),
        (lambda p: replace(p.ResNet(FIVE), num_classes=np.int64(7)), 7),
        (lambda p: copy.deepcopy(p.ResNet(FIVE)), 5),
        (lambda p: pickle.loads(pickle.dumps(p.ResNet(FIVE))).clone(num_classes=7), 7),
        (lambda p: p.ResNet18(num_classes=5).clone(num_classes=7), 7),
        (lambda p: p.ResNet18(), 10),
    ],
)
def test_what_a_network_says_of_its_classes_is_what_it_has(
    package: ModuleType, new: Callable[[ModuleType], Any], classes: int
) -> None:
    net = new(package)
    bound = net.bind({})
    assert (net.num_classes, net.arch.num_classes, bound.net.layers["last"].layers["dense"].features) == (
        (classes,) * 3
    )
    assert net == net.clone() and hash(net) == hash(net.clone())


# Over an axis


@pytest.mark.deep
@pytest.mark.parametrize("arch", [SMALL, BOTTLENECK], ids=["residual", "resnext"])
def test_batch_norm_goes_over_an_axis_by_name(package: ModuleType, arch: Architecture) -> None:
    """In training; what each part of the batch gives is what the whole one would, statistics too."""
    import jax

    whole, parts = package.ResNet(arch), package.ResNet(arch, axis_name="batch")
    X = np.random.default_rng(0).random((2, 2, 32, 32, 1), "float32")
    variables = jax.jit(parts.init)(jax.random.key(0), X[0])

    def apply(net: Any, X: Any) -> Any:
        return net.apply(variables, X, mutable=["batch_stats"])

    expected, statistics = jax.jit(partial(apply, whole))(X.reshape(4, 32, 32, 1))
    found, own = jax.jit(jax.vmap(partial(apply, parts), axis_name="batch"))(X)
    assert deviation(found.reshape(expected.shape), expected) <= SINGLE
    for leaf, other in zip(leaves(own), leaves(statistics), strict=True):
        assert deviation(leaf, np.stack([other] * 2)) <= SINGLE


@pytest.mark.deep
def test_under_the_contract_the_axis_is_the_batch(package: ModuleType) -> None:
    x, y = random_batch(SMALL, 2, 32, 32)
    plain, named = (load_backend("jax").wrap(package.ResNet(SMALL, axis_name=n)) for n in (None, "batch"))
    assert plain.train_step(x, y, lr=0.1) == named.train_step(x, y, lr=0.1)


# Variables


def test_variables_are_what_apply_takes(package: ModuleType, model: Any) -> None:
    import jax

    x, _ = random_batch(SMALL, 2, 32, 32)
    net = package.ResNet(SMALL, training=False)
    logits = jax.jit(net.apply)(model.variables, x.transpose(0, 2, 3, 1).astype("float32"))
    assert deviation(logits, model.predict(x)) <= SINGLE


def test_variables_are_a_copy_that_outlives_the_next_step(model: Any) -> None:
    x, y = random_batch(SMALL, 2, 32, 32)
    variables = model.variables
    before = [leaf.copy() for leaf in leaves(variables)]
    model.train_step(x, y, lr=0.1)
    for found, expected in zip(leaves(variables), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_variables_in_float64(device: str) -> None:
    model = built("jax", SMALL, "float64", device)
    model.load_weights(random_weights(SMALL))
    assert dtypes(model.variables) == {"float64"}


@pytest.mark.deep
@pytest.mark.usefixtures("sample_only")
def test_a_trainer_gives_the_variables_it_trained(package: ModuleType, tmp_path: Path, device: str) -> None:
    import jax

    images = data.FashionMNIST(batch_size=8, limit_train=16, limit_val=8)
    net = package.ResNet(SMALL, lr=0.01)
    trainer = package.Trainer(max_epochs=1, num_gpus=int(device == "gpu"), out=tmp_path / "run")
    trainer.fit(net, images)
    x, _ = next(images.val_dataloader())
    logits = jax.jit(net.clone(training=False).apply)(trainer.model.variables, x.transpose(0, 2, 3, 1))
    assert deviation(logits, trainer.model.predict(x)) <= SINGLE


# The optimizer


def test_without_momentum_nothing_is_remembered(package: ModuleType) -> None:
    params = {"kernel": np.ones((2, 3), "float32")}
    net = package.ResNet(SMALL)
    optimizers = [net.configure_optimizers(), net.configure_optimizers(Recipe(momentum=0.9))]
    shapes = [[leaf.shape for leaf in leaves(optimizer.init(params))] for optimizer in optimizers]
    assert (2, 3) not in shapes[0]
    assert (2, 3) in shapes[1]


def test_the_step_is_compiled_once_for_all_equal_networks(
    device: str, caplog: pytest.LogCaptureFixture
) -> None:
    """New weights, a second model, another momentum compile nothing; a smaller last batch does once."""
    import jax

    arch = replace(SMALL, num_classes=7)  # no other test's
    x, y = random_batch(arch, 3, 32, 32)

    def compiled(part: str) -> int:
        return sum(f"XLA compilation of jit({part})" in message for message in caplog.messages)

    def programs() -> tuple[int, int]:
        return compiled("loss_and_gradients"), compiled("apply_gradients")

    with jax.log_compiles():
        for seed in range(2):
            model = load_backend("jax").build(arch, device=device)
            for momentum, weight_decay in ((0.9, 1e-4), (0.5, 1e-3)):
                model.load_weights(random_weights(arch, seed))
                model.loss_and_gradients(x, y)
                for _ in range(2):
                    model.train_step(x, y, 0.1, momentum, weight_decay)
            assert programs() == (1, 1)
        for _ in range(2):
            model.train_step(x[:2], y[:2], 0.1, momentum, weight_decay)
            model.train_step(x, y, 0.1, momentum, weight_decay)
        assert programs() == (2, 1)
        model.train_step(x, y, 0.1)
    assert programs() == (2, 2)  # without velocity and decay a step is another, and costs less


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (2, 2),
        *(pytest.param(size, marks=pytest.mark.deep) for size in ((1, 5), (4, 4), (6, 6))),
        (5, 3),
    ],
)
def test_a_convolution_of_small_images_is_the_same_and_not_swapped(
    size: tuple[int, int], strides: tuple[int, int]
) -> None:
    """In output and gradients; XLA's own gives away by its window that the images serve as the kernel."""
    import jax
    from jax import lax

    from resnet_jax.layers import convolve

    generator = np.random.default_rng(0)
    options = {"padding": [(1, 1), (1, 1)], "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    with jax.enable_x64(True):
        X, kernel = generator.random((2, *size, 3)), generator.random((3, 3, 3, 5))

        def both(convolution: Any) -> Any:
            def loss(X: Any, kernel: Any) -> Any:
                Y = convolution(X, kernel, strides, **options)
                return (Y**2).sum(), Y

            return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

        found, expected = (
            both(convolution)(X, kernel) for convolution in (convolve, lax.conv_general_dilated)
        )
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.shape == b.shape and deviation(a, b) <= ROUNDING
        if size == (2, 2):
            programs = [
                both(c).lower(X, kernel).compile().as_text() for c in (convolve, lax.conv_general_dilated)
            ]
            assert ["size=2x2" in program for program in programs] == [False, True]


@pytest.mark.parametrize(
    "padding",
    [pytest.param("SAME", marks=pytest.mark.deep), [(1, 1), (1, 1)]],
    ids=["same", "symmetric"],
)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("size", [*(pytest.param((n, n), marks=pytest.mark.deep) for n in (1, 3)), (7, 6)])
@pytest.mark.parametrize(
    ("groups", "width"),
    [
        (8, 4),
        pytest.param(4, 24, marks=pytest.mark.deep),
        pytest.param(2, 64, marks=pytest.mark.deep),
        (3, 5),
        (40, 1),
    ],
)
def test_groups_put_together_are_the_grouped_convolution(
    groups: int, width: int, size: tuple[int, int], strides: tuple[int, int], padding: Any
) -> None:
    """In output and gradients; two features to each channel."""
    import jax
    from jax import lax

    from resnet_jax.layers import convolve

    generator = np.random.default_rng(0)
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}
    with jax.enable_x64(True):
        X, kernel = (
            generator.random((2, *size, groups * width)),
            generator.random((3, 3, width, groups * width * 2)),
        )

        def results(convolution: Any) -> Any:
            def loss(X: Any, kernel: Any) -> Any:
                Y = convolution(X, kernel, strides, padding, **options)
                return (Y**2).sum(), Y

            return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(X, kernel)

        found, expected = results(convolve), results(lax.conv_general_dilated)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.shape == b.shape and deviation(a, b) <= ROUNDING


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("size", [(2, 3), (5, 4)])
def test_a_convolution_goes_through_jaxs_transformations(size: tuple[int, int], groups: int) -> None:
    import jax
    from jax import lax

    from resnet_jax.layers import convolve

    generator = np.random.default_rng(0)
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}
    with jax.enable_x64(True):
        X, kernels = generator.random((2, *size, 8)), generator.random((3, 3, 3, 8 // groups, 8))

        def results(convolution: Any) -> Any:
            def f(X: Any, kernel: Any) -> Any:
                return convolution(X, kernel, (1, 1), "SAME", **options)

            return (
                jax.vmap(f, (None, 0))(X, kernels),
                jax.jvp(f, (X, kernels[0]), (X, kernels[1])),
                jax.grad(jax.checkpoint(lambda X: (f(X, kernels[0]) ** 2).sum()))(X),
                lax.scan(lambda X, kernel: (f(X, kernel), None), X, kernels)[0],
            )

        found, expected = results(convolve), results(lax.conv_general_dilated)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.shape == b.shape and deviation(a, b) <= ROUNDING

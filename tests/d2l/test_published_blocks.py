"""The blocks published in d2l 1.0.3 against ours, on the same weights, in float64.

The four of d2l are meant to be one block in four languages. On odd sizes they are, and they are ours.
On even sizes at stride 2, "same" padding makes d2l's TensorFlow and JAX blocks another network.
"""

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ROUNDING = 1e-12  # measured: 2e-14 at most, and 0 in most cases
VISIBLE = 0.05  # measured: 0.14 at least, up to 0.7

ODD, EVEN = (9, 7), (10, 8)

frameworks = pytest.mark.parametrize("framework", ["mxnet", "torch", "tf", "jax"])
blocks = pytest.mark.parametrize("block", ["Residual", "ResNeXtBlock"])


def deviation(a: NDArray, b: NDArray) -> float:
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def parameters(block: type) -> list[tuple[str, Any]]:
    """Names and defaults, in order; (1, 1) is Flax's other way to write a stride of 1."""
    found = inspect.signature(block.__init__).parameters.values()
    return [(p.name, 1 if p.default == (1, 1) else p.default) for p in found if p.kind is not p.VAR_KEYWORD]


def test_d2l_is_the_published_version() -> None:
    assert version("d2l") == "1.0.3"


@frameworks
@blocks
def test_parameters_are_those_of_d2l(block_class: Callable, framework: str, block: str) -> None:
    """Ours have more: what other blocks do otherwise, before Flax's `training`, and Flax's dtype and axis."""
    ours, published = (parameters(block_class(framework, origin, block)) for origin in ("ours", "d2l"))
    own = ["shortcut_norm" if block == "Residual" else "stride_on", "epsilon", "padding", "decay"]
    own += ["dtype", "axis_name"] if framework == "jax" else []
    assert [name for name, _ in ours if name in own] == own
    assert [parameter for parameter in ours if parameter[0] not in own] == published


@frameworks
@blocks
@pytest.mark.parametrize("use_1x1conv", [False, True])
def test_layers_are_those_of_d2l(run: Callable, framework: str, block: str, use_1x1conv: bool) -> None:
    """Attribute names, and the shape of every array under them."""
    ours, published = (
        {name: a.shape for name, a in run(framework, origin, block, use_1x1conv, 1, ODD).before.items()}
        for origin in ("ours", "d2l")
    )
    convolutions = (2 if block == "Residual" else 3) + use_1x1conv
    assert {f"conv{i}.weight" for i in range(1, convolutions + 1)} < ours.keys()
    assert ours == published


@frameworks
@blocks
@pytest.mark.parametrize(
    "use_1x1conv, strides, size",
    [
        (False, 1, ODD),
        (False, 1, EVEN),
        (False, 2, (1, 1)),  # the only size that stride 2 leaves as it is, so that X can be added to Y
        (True, 1, ODD),
        (True, 1, EVEN),
        (True, 2, ODD),
    ],
    ids=str,
)
def test_d2l_agrees_with_ours_on_odd_sizes_and_at_stride_1(
    run: Callable, framework: str, block: str, use_1x1conv: bool, strides: int, size: tuple[int, int]
) -> None:
    ours, published = (
        run(framework, origin, block, use_1x1conv, strides, size) for origin in ("ours", "d2l")
    )
    assert deviation(published.evaluation, ours.evaluation) < ROUNDING
    assert deviation(published.training, ours.training) < ROUNDING


@pytest.mark.parametrize("framework", ["mxnet", "torch"])
@blocks
def test_mxnet_and_torch_of_d2l_agree_with_ours_on_even_sizes_at_stride_2(
    run: Callable, framework: str, block: str
) -> None:
    ours, published = (run(framework, origin, block, True, 2, EVEN) for origin in ("ours", "d2l"))
    assert deviation(published.evaluation, ours.evaluation) < ROUNDING
    assert deviation(published.training, ours.training) < ROUNDING


@pytest.mark.parametrize("framework", ["tf", "jax"])
@blocks
def test_tf_and_jax_of_d2l_differ_from_ours_on_even_sizes_at_stride_2(
    run: Callable, framework: str, block: str
) -> None:
    ours, published = (run(framework, origin, block, True, 2, EVEN) for origin in ("ours", "d2l"))
    assert deviation(published.evaluation, ours.evaluation) > VISIBLE
    assert deviation(published.training, ours.training) > VISIBLE


@frameworks
@blocks
def test_published_blocks_agree_on_odd_sizes(run: Callable, framework: str, block: str) -> None:
    published, torch = (run(name, "d2l", block, True, 2, ODD) for name in (framework, "torch"))
    assert deviation(published.evaluation, torch.evaluation) < ROUNDING
    assert deviation(published.training, torch.training) < ROUNDING


@blocks
@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_published_blocks_are_two_networks_on_even_sizes(run: Callable, block: str, mode: str) -> None:
    mxnet, torch, tf, jax = (
        getattr(run(framework, "d2l", block, True, 2, EVEN), mode)
        for framework in ("mxnet", "torch", "tf", "jax")
    )
    assert deviation(mxnet, torch) < ROUNDING
    assert deviation(jax, tf) < ROUNDING
    assert deviation(tf, torch) > VISIBLE


@frameworks
@blocks
def test_running_statistics_differ_from_ours_only_as_known(run: Callable, framework: str, block: str) -> None:
    """From the same batch statistics: d2l keeps each framework's own decay, and PyTorch's n/(n - 1)."""
    mxnet = float(np.float32(0.9))  # Gluon's, d2l's and ours alike; our training step then makes it exact
    ours_keep = {"mxnet": mxnet, "torch": 0.9, "tf": 0.9, "jax": 0.9}[framework]
    d2l_keeps = {"mxnet": mxnet, "torch": 0.9, "tf": 0.99, "jax": 0.99}[framework]

    ours, published = (run(framework, origin, block, True, 1, ODD) for origin in ("ours", "d2l"))
    n = ours.training[:, 0].size  # values a channel, the same before and after a stride of 1
    for name in (name for name in ours.before if "running" in name):
        batch = (ours.after[name] - ours_keep * ours.before[name]) / (1 - ours_keep)
        if framework == "torch" and name.endswith("running_var"):
            batch = batch * n / (n - 1)
        expected = d2l_keeps * published.before[name] + (1 - d2l_keeps) * batch
        assert deviation(expected, ours.before[name]) > 1e-4, f"{name} did not move"
        assert deviation(published.after[name], expected) < ROUNDING, name

"""What holds for PyTorch alone: its layers, devices, autocast and random state are a PyTorch user's own."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import pytest

from common import load_backend
from common.architecture import Architecture
from common.errors import BadInput
from tests.helpers import ROUNDING, built, deviation, random_batch, random_weights

SMALL = Architecture(stages=((1, 4), (1, 6)), num_classes=5, stem_channels=4)
BOTTLENECK = Architecture(((1, 4), (1, 8)), "resnext", stem_channels=4, groups=2, num_classes=5)


@pytest.fixture
def torch(backends: list[str]) -> Any:
    if "torch" not in backends:
        pytest.skip("PyTorch is not under test")
    import torch

    return torch


@pytest.fixture
def net(torch: Any) -> Any:
    """A small network that has its weights."""
    from resnet_torch import ResNet

    net = ResNet(SMALL)
    net(torch.zeros(2, 1, 32, 32))
    return net


# Layers

BATCH_NORM_OPTIONS: dict[str, dict[str, Any]] = {
    "as they are": {},
    "cumulative average": {"momentum": None},
    "no statistics": {"track_running_stats": False},
    "no scale and shift": {"affine": False},
    "no shift": {"bias": False},
}


@pytest.mark.parametrize("case", BATCH_NORM_OPTIONS)
@pytest.mark.parametrize("lazy", [False, True], ids=["", "lazy"])
def test_batch_norm_is_pytorchs_but_for_the_biased_variance(torch: Any, case: str, lazy: bool) -> None:
    from resnet_torch import layers

    options = BATCH_NORM_OPTIONS[case]
    ours = layers.LazyBatchNorm2d(**options) if lazy else layers.BatchNorm2d(3, **options)
    theirs = torch.nn.BatchNorm2d(3, **options)
    biased = [1.0]
    for batch in range(1, 4):
        X = torch.randn(4, 3, 5, 5)
        torch.testing.assert_close(ours(X), theirs(X), rtol=0, atol=0)
        new = 0.1 if options.get("momentum", 0.1) else 1 / batch
        biased.append((1 - new) * biased[-1] + new * X.var((0, 2, 3), correction=0))
    assert type(ours) is layers.BatchNorm2d
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    if ours.track_running_stats:
        torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=0, atol=0)
        torch.testing.assert_close(ours.running_var, biased[-1])
        assert ours.num_batches_tracked == 3
    X = torch.randn(2, 3, 4, 4)
    if ours.track_running_stats:
        theirs.running_var = ours.running_var
    torch.testing.assert_close(ours.eval()(X), theirs.eval()(X))


def test_batch_norm_refuses_what_pytorchs_refuses(torch: Any) -> None:
    from resnet_torch.layers import BatchNorm2d

    with pytest.raises(ValueError, match="expected 4D input"):
        BatchNorm2d(3)(torch.randn(4, 3, 5))


@pytest.mark.parametrize("bias", [True, False])
def test_layers_draw_from_glorot_uniform_whenever_they_draw(torch: Any, bias: bool) -> None:
    from resnet_torch.layers import LazyConv2d, LazyLinear

    for layer, fans in (
        (LazyConv2d(40, kernel_size=3, bias=bias), (10 + 40) * 9),
        (LazyLinear(40, bias=bias), 10 + 40),
    ):
        layer(torch.zeros(2, 10, 10, 10))
        for _ in range(2):
            assert 0.95 < layer.weight.abs().max().item() / (6 / fans) ** 0.5 <= 1
            assert (layer.bias is not None) == bias
            assert not bias or not layer.bias.any()
            torch.nn.init.ones_(layer.weight)
            layer.reset_parameters()


# Devices and types


def test_full_float32_is_switched_on_and_off(torch: Any) -> None:
    from resnet_torch.layers import use_full_float32

    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    try:
        for full in (True, False):
            use_full_float32(full)
            assert [switch.allow_tf32 for switch in switches] == [not full] * 2
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def test_the_network_runs_where_it_is(torch: Any, net: Any) -> None:
    from resnet_torch import ResNet

    with torch.device("meta"):
        born_there = ResNet(SMALL)
    for network in (born_there, net.to("meta")):
        Y = network.train()(torch.empty(2, 1, 32, 32, device="meta"))
        assert Y.shape == (2, 5) and Y.device.type == "meta"
        network.loss(Y, torch.empty(2, dtype=torch.long, device="meta")).backward()


@pytest.mark.parametrize("place", ["float64", "bfloat16", "meta"])
@pytest.mark.parametrize("lazy", [False, True], ids=["", "lazy"])
def test_a_summary_is_taken_where_and_as_the_network_is(
    torch: Any, net: Any, place: str, lazy: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from resnet_torch import ResNet

    if lazy and place == "meta":
        with torch.device("meta"):
            net = ResNet(SMALL)
    else:
        net = (ResNet(SMALL) if lazy else net).to("meta" if place == "meta" else getattr(torch, place))
    net.layer_summary((2, 1, 32, 32))
    assert capsys.readouterr().out.splitlines()[-1].endswith("(2, 5)")


def test_a_summary_leaves_the_network_as_it_was(torch: Any, net: Any) -> None:
    net.train()
    net.net.b1.bn.eval()  # frozen
    modes = [module.training for module in net.modules()]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.layer_summary((2, 1, 32, 32))
    with pytest.raises(RuntimeError):
        net.layer_summary((2, 7, 32, 32))  # seven channels
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


# Mixed precision


def test_a_callers_autocast_reaches_the_network(torch: Any, net: Any) -> None:
    from resnet_torch.training import loss_and_gradients

    X, Y = torch.rand(2, 1, 32, 32), torch.tensor([0, 1])
    seen = []
    net.net.b2[0].conv1.register_forward_hook(lambda layer, given, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert net(X).dtype == torch.bfloat16
        loss, logits = loss_and_gradients(net, X, Y)
    assert seen == [torch.bfloat16] * 2
    assert net(X).dtype == loss.dtype == logits.dtype == torch.float32
    assert {p.grad.dtype for p in net.parameters()} == {torch.float32}


def test_a_bfloat16_model_multiplies_in_bfloat16_and_nothing_else(torch: Any, device: str) -> None:
    x, y = random_batch(SMALL, 4, 32, 32)
    half, single = (built("torch", SMALL, dtype, device) for dtype in ("bfloat16", "float32"))
    for model in (half, single):
        model.load_weights(random_weights(SMALL))
    found, expected = half.activations(x), single.activations(x)
    for name in found:
        assert 1e-4 < deviation(found[name], expected[name]) < 0.1
    assert deviation(half.predict(x), found["last"]) == 0
    evaluation = half.loss_and_gradients(x, y)
    arrays = [*found.values(), evaluation.logits, *evaluation.gradients.values(), *half.weights().values()]
    assert {array.dtype for array in arrays} == {np.dtype("float32")}


# What belongs to the caller


def test_building_leaves_the_random_state(torch: Any, device: str) -> None:
    from resnet_torch import ResNet

    states = [torch.get_rng_state, *([torch.cuda.get_rng_state] if device == "gpu" else [])]
    before = [state() for state in states]
    backend = load_backend("torch")
    for model in (backend.build(SMALL, device=device), backend.wrap(ResNet(SMALL), device)):
        model.load_weights(random_weights(SMALL))
        model.weights()
    assert all(torch.equal(state(), old) for state, old in zip(states, before, strict=True))


def test_evaluating_leaves_all_of_the_network(torch: Any, net: Any) -> None:
    model = load_backend("torch").wrap(net)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x, y = random_batch(SMALL, 3, 32, 32)
    evaluation = model.loss_and_gradients(x, y)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    kept = {name: array.copy() for name, array in evaluation.gradients.items()}
    net.zero_grad(set_to_none=False)
    assert deviation(evaluation.gradients, kept) == 0
    for arrays in (evaluation.gradients, evaluation.running):
        for array in arrays.values():
            array += 1
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert deviation(model.loss_and_gradients(x, y).gradients, kept) <= ROUNDING


def test_a_callers_images_are_copied(torch: Any, net: Any) -> None:
    model = load_backend("torch").wrap(net)
    net.net.register_forward_pre_hook(lambda layer, given: given[0].add_(1))  # a user's, in place
    images, y = random_batch(SMALL, 3, 32, 32)
    x = images.astype("float32")
    kept = x.copy()
    model.predict(x)
    model.activations(x)
    model.loss_and_gradients(x, y)
    model.train_step(x, y, lr=0.1)
    np.testing.assert_array_equal(x, kept)


def test_images_that_may_not_be_written_are_taken_without_a_word(torch: Any, device: str) -> None:
    x, _ = random_batch(SMALL, 3, 32, 32)
    x.flags.writeable = False
    model = built("torch", SMALL, "float64", device)
    with warnings.catch_warnings(action="error"):
        model.predict(x)


# Compiled


@pytest.mark.parametrize("arch", [SMALL, BOTTLENECK], ids=["residual", "resnext"])
def test_the_compiler_takes_a_network_as_one_graph(torch: Any, arch: Architecture) -> None:
    """In training, where batch norm counts, and in evaluation; nothing is left to Python in between."""
    net = importlib.import_module("resnet_torch").ResNet(arch)
    X = torch.zeros(2, arch.in_channels, 32, 32)
    net(X)
    for mode in (net.train(), net.eval()):
        found = torch._dynamo.explain(mode)(X)
        assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


@pytest.mark.deep  # minutes of a C++ compiler
def test_a_compiled_network_is_the_same_network(torch: Any, device: str) -> None:
    x, y = random_batch(SMALL, 2, 32, 32)
    model = load_backend("torch").build(SMALL, "float64", device, compile=True)
    oracle = load_backend("oracle").build(SMALL)
    for m in (model, oracle):
        m.load_weights(random_weights(SMALL))
    assert deviation(model.predict(x), oracle.predict(x)) <= ROUNDING
    for name, output in oracle.activations(x).items():
        assert deviation(model.activations(x)[name], output) <= ROUNDING
    for _ in range(2):
        assert deviation(model.train_step(x, y, 0.1, 0.9), oracle.train_step(x, y, 0.1, 0.9)) <= ROUNDING


def test_without_a_compiler_that_is_said(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BadInput, match=r"needs a C\+\+ compiler; install"):
        load_backend("torch").build(SMALL, compile=True)

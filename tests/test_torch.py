"""What holds for PyTorch alone: its layers, devices, autocast and random state are a PyTorch user's own."""

from __future__ import annotations

import copy
import importlib
import io
import threading
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import data, load_backend
from common.architecture import Architecture
from common.errors import BadInput
from tests.helpers import ROUNDING, SINGLE, built, deviation, one_line, random_batch, random_weights

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


@pytest.mark.parametrize("case", BATCH_NORM_OPTIONS)
def test_batch_norm_of_no_images_keeps_its_statistics_as_pytorchs(torch: Any, case: str) -> None:
    from resnet_torch import layers

    options = BATCH_NORM_OPTIONS[case]
    ours, theirs = layers.BatchNorm2d(3, **options), torch.nn.BatchNorm2d(3, **options)
    for mode in (True, False):
        Y = ours.train(mode)(torch.empty(0, 3, 5, 5))
        assert Y.shape == theirs.train(mode)(torch.empty(0, 3, 5, 5)).shape
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.fixture
def two_workers(torch: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Runs a function for each of two arguments, in threads that PyTorch takes for workers of one group."""
    given: dict[int, Any] = {}
    together = threading.Barrier(2, timeout=60)

    def all_reduce(tensor: Any) -> None:
        given[threading.get_ident()] = tensor.clone()
        together.wait()
        tensor.copy_(sum(given.values()))
        together.wait()

    distributed = torch.distributed
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", all_reduce)

    def run(function: Callable[[Any], Any], arguments: Iterable[Any]) -> list[Any]:
        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(function, arguments))

    return run


@pytest.mark.parametrize("case", BATCH_NORM_OPTIONS)
@pytest.mark.parametrize("shares", [(4, 4), (6, 2), (8, 0)])
def test_batch_norm_of_workers_is_that_of_the_whole_batch(
    torch: Any, two_workers: Callable[..., list[Any]], case: str, shares: tuple[int, int]
) -> None:
    from resnet_torch import layers

    options = {**BATCH_NORM_OPTIONS[case], "dtype": torch.float64}
    whole = torch.nn.BatchNorm2d(3, **options)
    X = torch.randn(8, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    Y = whole(X)
    weights = torch.randn_like(Y)
    (Y * weights).sum().backward()
    ours = [layers.BatchNorm2d(3, **options) for _ in shares]

    def train(worker: int) -> tuple[Any, Any]:
        rows = slice(0, shares[0]) if worker == 0 else slice(shares[0], 8)
        own = X.detach()[rows].requires_grad_()
        Y = ours[worker](own)
        (Y * weights[rows]).sum().backward()
        return Y, own.grad

    found = two_workers(train, range(2))
    torch.testing.assert_close(torch.cat([Y for Y, _ in found]), Y)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in found]), X.grad)
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(sum(bn.get_parameter(name).grad for bn in ours), parameter.grad)
    if whole.track_running_stats:
        biased = 1 + (1 if whole.momentum is None else 0.1) * (X.var((0, 2, 3), correction=0) - 1)
        for bn in ours:
            torch.testing.assert_close(bn.running_mean, whole.running_mean)
            torch.testing.assert_close(bn.running_var, biased)


def test_batch_norm_refuses_what_pytorchs_refuses(torch: Any) -> None:
    from resnet_torch.layers import BatchNorm2d

    with pytest.raises(ValueError, match="expected 4D input"):
        BatchNorm2d(3)(torch.randn(4, 3, 5))


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "dilation": {"padding": 2, "dilation": 2, "stride": 2},
    "pairs": {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2), "dilation": (2, 1)},
    "circular": {"padding": 1, "padding_mode": "circular", "stride": 2},
    "same at stride 1": {"kernel_size": (3, 4), "padding": "same", "dilation": (1, 2)},
    "groups": {"padding": 1, "groups": 2, "bias": False},
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("lazy", [False, True], ids=["", "lazy"])
def test_a_convolution_takes_what_pytorchs_does(torch: Any, case: str, lazy: bool) -> None:
    from resnet_torch import layers

    options = {"kernel_size": 3, **CONVOLUTIONS[case]}
    X = torch.randn(2, 4, 9, 8)
    ours = layers.LazyConv2d(6, **options) if lazy else layers.Conv2d(4, 6, **options)
    theirs = torch.nn.Conv2d(4, 6, **options)
    ours(X)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(X), theirs(X), rtol=0, atol=0)
    torch.testing.assert_close(ours(X[0]), theirs(X[0]), rtol=0, atol=0)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("kernel_size", [1, 2, 3, (5, 2)])
@pytest.mark.parametrize("stride", [2, 3, (2, 1)])
@pytest.mark.parametrize("dilation", [1, 2, (3, 1)])
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate"])
def test_same_is_as_little_as_makes_the_rows(
    torch: Any, kernel_size: Any, stride: Any, dilation: Any, padding_mode: str
) -> None:
    """⌈H / stride⌉ of them; the odd row is below, the odd column to the right."""
    from resnet_torch import layers

    conv = layers.Conv2d(2, 3, kernel_size, stride, "same", dilation, padding_mode=padding_mode)
    bare = torch.nn.Conv2d(2, 3, kernel_size, stride, 0, dilation)
    bare.load_state_dict(conv.state_dict())
    for size in ((17, 12), (10, 9)):
        X = torch.randn(2, 2, *size)
        pads = []
        for axis in (1, 0):
            pixels, step = size[axis], bare.stride[axis]
            reach = bare.dilation[axis] * (bare.kernel_size[axis] - 1) + 1
            rows = next(n for n in range(1, 99) if n * step >= pixels)
            total = next(n for n in range(99) if pixels + n - reach >= (rows - 1) * step)
            pads += [total // 2, total - total // 2]
        mode = "constant" if padding_mode == "zeros" else padding_mode
        expected = bare(torch.nn.functional.pad(X, pads, mode))
        torch.testing.assert_close(conv(X), expected, rtol=0, atol=0)
        assert conv(X).shape[2:] == tuple(
            -(-pixels // step) for pixels, step in zip(size, bare.stride, strict=True)
        )
    assert "padding=same" in repr(conv)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_blocks_take_a_pair_of_strides(torch: Any, padding: str) -> None:
    from resnet_torch import Residual, ResNeXtBlock

    X = torch.randn(2, 4, 8, 6)
    for block in (
        Residual(8, True, (2, 1), padding=padding),
        ResNeXtBlock(8, 2, 0.5, True, (2, 1), padding=padding),
    ):
        assert block(X).shape == (2, 8, 4, 6)


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


# PyTorch's tools

ALIKE = {
    "residual": SMALL,
    "resnext": BOTTLENECK,
    "same": replace(SMALL, padding="same", stem_padding="same"),
}


@pytest.fixture(params=ALIKE)
def any_net(torch: Any, request: pytest.FixtureRequest) -> Any:
    from resnet_torch import ResNet

    net = ResNet(ALIKE[request.param])
    net(torch.rand(4, 1, 32, 32))
    return net


def assert_alike(torch: Any, found: Any, net: Any, training: bool) -> None:
    """In output and in what training leaves behind."""
    X = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(found(X), net(X), rtol=0, atol=0)
    state = net.state_dict()
    assert state.keys() == found.state_dict().keys()
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("tool", ["fx", "export", "script", "deepcopy"])
def test_pytorchs_tools_take_the_network(torch: Any, any_net: Any, tool: str, training: bool) -> None:
    net = any_net.train(training)
    take: dict[str, Callable[[Any], Any]] = {
        "fx": torch.fx.symbolic_trace,
        "export": lambda net: torch.export.export(
            net, (torch.rand(4, 1, 32, 32),), dynamic_shapes=[{0: torch.export.Dim("N")}]
        ).module(),
        "script": torch.jit.script,
        "deepcopy": copy.deepcopy,
    }
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of TorchScript
        found = take[tool](copy.deepcopy(net))
        assert_alike(torch, found, net, training)


def test_a_scripted_network_is_saved_and_loaded(torch: Any, net: Any) -> None:
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        torch.jit.save(torch.jit.script(net), file)
        file.seek(0)
        found = torch.jit.load(file)
    for training in (True, False):
        assert_alike(torch, found.train(training), net.train(training), training)


def test_a_traced_network_has_a_node_for_each_layer(torch: Any, net: Any) -> None:
    nodes = {node.target for node in torch.fx.symbolic_trace(net).graph.nodes if node.op == "call_module"}
    layers = {name for name, module in net.named_modules() if not list(module.children())}
    assert nodes == layers


def test_torchvision_extracts_features(torch: Any, any_net: Any) -> None:
    if not find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    from resnet_torch.speed import torchvision

    torchvision()
    from torchvision.models.feature_extraction import create_feature_extractor

    X = torch.rand(2, 1, 32, 32)
    nodes = {"net.b1": "b1", "net.b2": "b2", "net.b3.0.bn1": "bn", "net.last": "last"}
    net = any_net.eval()
    extracted = create_feature_extractor(net, nodes)(X)
    expected = net.activations(X)
    for name in ("b1", "b2", "last"):
        torch.testing.assert_close(extracted[name], expected[name], rtol=0, atol=0)
    assert extracted["bn"].shape[1] == net.net.b3[0].bn1.num_features


def test_layers_are_fused_as_pytorchs_own(torch: Any, net: Any) -> None:
    from torch.ao import quantization

    names = [["net.b1.conv", "net.b1.bn", "net.b1.relu"]]
    names += [[f"net.b{k}.0.conv{i}", f"net.b{k}.0.bn{i}"] for k in (2, 3) for i in (1, 2)]
    X = torch.rand(2, 1, 32, 32)
    expected = net.eval()(X)
    fused = quantization.fuse_modules(net, names)
    torch.testing.assert_close(fused(X), expected)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(net(X), expected, rtol=0, atol=0)  # its own layers stay
    quantization.fuse_modules_qat(net.train(), names)(X).sum().backward()


def test_what_pytorch_has_nothing_to_fuse_into_is_said(torch: Any) -> None:
    from resnet_torch import ResNet

    net = ResNet(ALIKE["same"])
    net(torch.rand(4, 1, 32, 32))
    with pytest.raises(BadInput) as error:
        torch.ao.quantization.fuse_modules(net.eval(), ["net.b1.conv", "net.b1.bn"])
    one_line(error, "same", "leave it out")


# Networks as their users have them


def test_the_chapters_own_loss_trains(torch: Any) -> None:
    from resnet_torch import ResNet

    class Own(ResNet):
        def loss(self, Y_hat: Any, Y: Any, averaged: bool = True) -> Any:
            return 2 * torch.nn.functional.cross_entropy(Y_hat, Y, reduction="mean" if averaged else "none")

    x, y = random_batch(SMALL, 3, 32, 32)
    own, plain = (load_backend("torch").wrap(net(SMALL)) for net in (Own, ResNet))
    assert own.train_step(x, y, 0.1) == pytest.approx(2 * plain.train_step(x, y, 0.1))
    with pytest.raises(BadInput) as error:
        own.train_step(x, y, 0.1, label_smoothing=0.1)
    one_line(error, "loss takes no label_smoothing")


def test_what_fit_cannot_do_is_said_before_a_run_begins(torch: Any, tmp_path: Path) -> None:
    from resnet_torch import ResNet, Trainer

    class Own(ResNet):
        def loss(self, Y_hat: Any, Y: Any) -> Any:
            return torch.nn.functional.cross_entropy(Y_hat, Y)

    images = data.FashionMNIST(batch_size=8, limit_train=16, limit_val=8)
    parallel = torch.nn.DataParallel(ResNet(SMALL))
    for net, words in (
        (Own(SMALL), "loss takes no label_smoothing"),
        (parallel, "net.module"),
        (torch.compile(parallel, backend="eager"), "net.module"),
    ):
        with pytest.raises(BadInput) as error:
            Trainer(max_epochs=1, label_smoothing=0.1, out=tmp_path / "run").fit(net, images)
        one_line(error, words)
    assert not (tmp_path / "run").exists()


@pytest.mark.deep
@pytest.mark.usefixtures("sample_only")
def test_a_compiled_network_is_trained_compiled(torch: Any, tmp_path: Path) -> None:
    from resnet_torch import ResNet, Trainer

    programs = []

    def compiler(program: Any, inputs: Any) -> Any:
        programs.append(program)
        return program

    arch = replace(SMALL, num_classes=10)
    images = data.FashionMNIST(batch_size=8, limit_train=16, limit_val=8)
    compiled, plain = (Trainer(max_epochs=1, momentum=0.9, out=tmp_path / name) for name in ("a", "b"))
    net = ResNet(arch, lr=0.01)
    compiled.fit(torch.compile(net, backend=compiler), images)
    plain.fit(ResNet(arch, lr=0.01), images)
    assert programs
    assert deviation(compiled.model.weights(), plain.model.weights()) <= SINGLE
    x, _ = random_batch(arch, 2, 32, 32)
    own = net.eval()(torch.from_numpy(x).float()).detach()
    assert deviation(compiled.model.predict(x), own) <= SINGLE


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


@pytest.fixture
def programs(torch: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `build(compile=True)` traces from now on, and does not compile."""
    from resnet_torch import backend

    found = []

    def keep(program: Any, inputs: Any) -> Any:
        found.append(program)
        return program

    monkeypatch.setitem(backend.COMPILED, "backend", keep)
    return found


@pytest.mark.deep
def test_a_compiled_model_takes_any_number_of_batch_sizes(torch: Any, programs: list[Any]) -> None:
    """The first four have programs of their own, and keep them; those after the fifth share one."""
    arch = Architecture(((1, 4),), stem_channels=4, num_classes=5)
    compiled, plain = (load_backend("torch").build(arch, compile=c) for c in (True, False))
    counts = []
    for size in (4, 1, 8, 2, 16, 9, 7, 3, 4, 8):
        x, y = random_batch(arch, size, 32, 32)
        assert deviation(compiled.predict(x), plain.predict(x)) <= SINGLE
        assert compiled.train_step(x, y, 0.01) == pytest.approx(plain.train_step(x, y, 0.01), rel=SINGLE)
        counts.append(len(programs) // 2)  # to predict, and to train
    assert counts == [1, 2, 3, 4, 5, *[6] * 5]


@pytest.mark.deep
def test_any_number_of_models_are_compiled_in_one_process(torch: Any, programs: list[Any]) -> None:
    for channels in range(1, 11):
        arch = Architecture(((1, channels),), stem_channels=channels)
        model = load_backend("torch").build(arch, compile=True)
        assert model.predict(random_batch(arch, 2, 32, 32)[0]).shape == (2, 10)
        assert len(programs) == channels


@pytest.mark.deep
def test_a_compiled_model_trains_on_one_pixel(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where batch norm has one value a channel; all that is compiled but the C++."""
    from resnet_torch import backend

    monkeypatch.setitem(backend.COMPILED, "backend", "aot_eager_decomp_partition")
    arch = Architecture(((1, 4), (1, 6)), stem_channels=4)
    x, y = random_batch(arch, 1, 5, 5)
    compiled, plain = (load_backend("torch").build(arch, "float64", compile=c) for c in (True, False))
    for _ in range(2):
        found, expected = (model.train_step(x, y, 0.1) for model in (compiled, plain))
        assert deviation(found, expected) <= ROUNDING
    assert deviation(compiled.weights(), plain.weights()) <= ROUNDING


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

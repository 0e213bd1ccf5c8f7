"""The code of the chapter's exercises runs, and does what the pages say of it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

EXERCISES = Path(__file__).parents[2] / "docs" / "exercises"


@pytest.fixture
def torch(backends: list[str]) -> Any:
    """PyTorch, in which most solutions are written; without it there is nothing to test."""
    if "torch" not in backends:
        pytest.skip("these solutions are written in PyTorch")
    return pytest.importorskip("torch")


def names(file: str) -> dict[str, Any]:
    """What a file of an exercise defines."""
    return runpy.run_path(str(EXERCISES / file))


def test_shapes_of_blocks(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    names(f"block_{backend}.py")
    first, second = ((4, 3, 6, 6), (4, 6, 3, 3))
    if backend in ("jax", "tf"):
        first, second = ((4, 6, 6, 3), (4, 3, 3, 6))
    assert capsys.readouterr().out == f"{first}\n{second}\n"


def test_the_inception_block(torch: Any) -> None:
    block = names("inception.py")["Inception"](64, (96, 128), (16, 32), 32)
    out = block(torch.randn(2, 192, 12, 10, requires_grad=True))
    assert tuple(out.shape) == (2, 256, 12, 10)
    out.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in block.parameters())


def test_the_pre_activation_block(torch: Any) -> None:
    block = names("preactivation.py")["PreActivation"]
    halved = block(16, use_1x1conv=True, strides=2)
    assert tuple(halved(torch.randn(2, 8, 32, 32)).shape) == (2, 16, 16, 16)
    same = block(8)
    X = torch.randn(2, 8, 6, 6)
    same(X)
    torch.nn.init.zeros_(same.conv2.weight)
    torch.nn.init.zeros_(same.conv2.bias)
    torch.testing.assert_close(same(X), X)  # the identity, also of what is negative


def test_the_plain_network_has_no_way_around_its_layers(torch: Any) -> None:
    plain = names("plain.py")
    block = plain["Plain"](8)
    X = torch.randn(2, 8, 6, 6)
    block(X)
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    assert not block(X).any()
    for kind in (plain["Plain"], plain["Residual"]):
        net = plain["network"](kind, 3)
        assert tuple(net(torch.randn(2, 1, 28, 28)).shape) == (2, 10)
        weights = [name for name, p in net.named_parameters() if p.ndim > 1 and "conv3" not in name]
        assert len(weights) == 6 * 3 + 2

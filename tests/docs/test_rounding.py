"""What stands in for a layer on the pages about rounding computes what the layer does. Needs PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common import Architecture
from common.deviation import distance
from tests.docs.conftest import ROOT

torch = pytest.importorskip("torch")
SMALL = Architecture(stages=((1, 4), (1, 8)), in_channels=1, num_classes=3)


@pytest.fixture(autouse=True)
def docs_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))


def batch() -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    return random.random((4, 1, 33, 32)), random.integers(3, size=4)


def test_kinks_go_the_way_of_the_layers_and_any_other_that_is_given() -> None:
    from measures.relu_kink import compute, names

    from common import load_backend

    model = load_backend("torch").build(SMALL, "float64")
    plain = model.loss_and_gradients(*batch())
    kinks, same = compute(model, *batch())
    assert same.loss == pytest.approx(plain.loss, rel=1e-14)
    assert distance(same.gradients, plain.gradients) < 1e-14  # sums may go in another order
    assert len(kinks.sides) == len(names(SMALL))
    shut = [torch.zeros_like(side) for side in kinks.sides]
    _, none = compute(model, *batch(), shut)
    assert not none.gradients["b1.conv.weight"].any()


@pytest.mark.parametrize(
    ("number", "nearest", "cut"),
    [
        (1 + 2**-11, 1, 1),  # a tie goes to the even one
        (1 + 3 * 2**-11, 1 + 2**-9, 1 + 2**-10),
        (1 + 2**-11 + 2**-20, 1 + 2**-10, 1),
        (-0.75, -0.75, -0.75),
        (2 - 2**-20, 2, 2 - 2**-10),
    ],
)
def test_tf32_keeps_ten_bits(number: float, nearest: float, cut: float) -> None:
    from measures import low_precision

    assert low_precision.rounded(np.float32([number])) == nearest
    assert low_precision.cut(np.float32([number])) == cut

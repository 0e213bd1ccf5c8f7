"""The tests' own measures: NaN is never lost."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import deviation, worst, worst_gradient


@pytest.mark.parametrize("position", [0, 1, 2])
def test_nan_is_the_worst_wherever_it_stands(position: int) -> None:
    b = {name: np.ones(2) for name in "xyz"}
    a = {name: array.copy() for name, array in b.items()}
    a["xyz"[position]][1] = np.nan
    for measure in (worst, worst_gradient, deviation):
        assert np.isnan(measure(a, b))
        assert measure(b, b) == 0

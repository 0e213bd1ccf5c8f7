"""What the tests of the data share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from common import data


def same(found: Iterator[data.Batch], expected: Iterator[data.Batch]) -> None:
    for (x, y), (expected_x, expected_y) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)

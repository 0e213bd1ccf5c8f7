"""What the tests of the data share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from common import data


def torchvisions_evaluation(backends: list[str]) -> Any:
    """How torchvision's reference prepares an image for evaluation."""
    if "torch" not in backends:
        pytest.skip("torchvision needs PyTorch, which is not under test")
    from tests.interop.families import torchvision

    transforms = torchvision().transforms
    return transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def same(found: Iterator[data.Batch], expected: Iterator[data.Batch]) -> None:
    for (x, y), (expected_x, expected_y) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)

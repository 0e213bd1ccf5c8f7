"""What the inference of all is held against: onnxruntime at our network, as `convert --to onnx` writes it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture
from common.backend import Backend
from common.onnx_graph import in_float32, onnx_model
from common.weights import initial_weights

# No backend: it has inference alone, and is measured as a framework's own network is.
ONNXRUNTIME = Backend(
    "onnxruntime",
    "onnxruntime",
    "common.bench.onnx_reference",
    ("onnxruntime", "onnx"),
    'pip install "resnet-tabs[onnx]"',
)


class Reference:
    """Our network in onnxruntime, for inference in float32 on the CPU. Importing it is part of building.

    Raises:
        ImportError: if onnx or onnxruntime is not installed.
    """

    label = "onnxruntime"

    def __init__(self, name: str, arch: Architecture, dtype: str, device: str, compile: bool = False) -> None:
        from onnxruntime import InferenceSession

        model = onnx_model(arch, in_float32(arch, initial_weights(arch)), {})
        self._session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, classes) of images (N, C, H, W)."""
        return self._session.run(None, {"images": x})[0]

"""A network of ours as an ONNX file, written and proven."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture
from common.errors import BadInput, MissingBackend
from common.files import write_atomically
from common.interop.convert import Converted
from common.interop.prove import computed_by, held
from common.onnx_graph import EPSILON_ADDED, OPSETS, USUAL, in_float32, onnx_model, with_epsilon
from common.weights import Weights

NAME = "onnx"  # beside those of the families


def check_request(dest: Path, opset: int, prove: bool) -> None:
    """Raise `ValueError` unless such a file can be written, and proven where that is asked for."""
    if dest.suffix != ".onnx":
        raise BadInput(f"{dest} must end in .onnx, which is what is written")
    if opset not in OPSETS:
        raise BadInput(f"--opset must be from {OPSETS[0]} to {OPSETS[-1]}, not {opset}")
    try:
        import onnx  # noqa: F401

        if prove:
            import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingBackend(
            f"--to onnx takes onnx, and --prove onnxruntime, too ({error}); "
            'run: pip install "resnet-tabs[onnx]"'
        ) from None


def to_onnx(arch: Architecture, weights: Weights) -> Converted:
    """The tensors of the file, in float32.

    Raises:
        ValueError: if they are too large for float32, or too many for one file.
    """
    is_wide = any(array.dtype == np.float64 for array in weights.values())
    return Converted(
        NAME,
        arch,
        in_float32(arch, weights),
        rounded=f"{EPSILON_ADDED}, and float64 becomes float32" if is_wide else EPSILON_ADDED,
        said=(f"images (N, {arch.in_channels}, H, W) → last (N, {arch.num_classes}); N, H and W are open",),
    )


def write_onnx(path: Path, converted: Converted, metadata: Mapping[str, str], opset: int = USUAL) -> None:
    """Write an `onnx_model`, whole or not at all; `ValueError` if it cannot be written."""
    model = onnx_model(converted.arch, converted.tensors, metadata, opset)
    write_atomically(path, model.SerializeToString())


def prove_onnx(path: Path, arch: Architecture, weights: Weights) -> str:
    """How far the logits of a written file are from the oracle's: a sentence.

    ONNX's reference evaluator computes the file's graph with the weights in float64, onnxruntime the file.

    Raises:
        ImportError: if one of the two is not installed.
        ValueError: if they disagree.
    """
    import onnx
    import onnxruntime
    from onnx.reference import ReferenceEvaluator

    evaluator: Any = ReferenceEvaluator(in_float64(onnx.load(path), with_epsilon(arch, weights)))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def evaluate(x: NDArray) -> NDArray:
        return evaluator.run(None, {"images": x})[0]

    def infer(x: NDArray) -> NDArray:
        return session.run(None, {"images": x.astype(np.float32)})[0]

    exact = held(arch, weights, evaluate, "ONNX's reference evaluator")
    single = held(arch, weights, infer, "onnxruntime")
    releases = [f"{package.__name__} {package.__version__}" for package in (onnx, onnxruntime)]
    return f"logits within {exact}, and {single}; {computed_by(*releases)}"


def in_float64(model: Any, tensors: Weights) -> Any:
    """The model with these float64 tensors in place of its own."""
    from onnx import TensorProto, numpy_helper

    for initializer in model.graph.initializer:
        initializer.CopyFrom(numpy_helper.from_array(tensors[initializer.name], initializer.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return model

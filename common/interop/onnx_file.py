"""A network of ours as an ONNX file, from its canonical weights: no framework, only the package `onnx`.

Initialisers have our canonical names. A node, and what it puts out, is named as the layer it is: b1.conv,
b1.bn, b1.relu, b2.0.conv1, …; the end of a stage as in `activations`: b1, b2, …, last. N, H and W are open.

Trap: ONNX keeps a batch norm's epsilon as a float32, with which float64 is off by up to 1e-10. So epsilon is
added to the variance, and the attribute is 0: an initialiser `….running_var` holds the variance plus epsilon.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture, Block
from common.errors import BadInput, MissingBackend
from common.files import write_atomically
from common.interop.convert import Converted, describe
from common.interop.prove import computed_by, held
from common.reading import some
from common.weights import SUMS, Weights, load_metadata

NAME = "onnx"  # beside those of the families
OPSETS = range(13, 29)  # that both packages know
USUAL = 17  # of 2022
MOST = 2_000_000_000  # bytes of tensors: protobuf's files end at 2 GiB
EPSILON_ADDED = "the running variances of an ONNX file have epsilon added"


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
    """The float32 tensors of the file, by canonical name: onnxruntime has no convolution in float64.

    Raises:
        ValueError: if they are too large for float32, or too many for one file.
    """
    exact = with_epsilon(arch, weights)
    with np.errstate(over="ignore"):
        tensors: Weights = {name: array.astype(np.float32) for name, array in exact.items()}
    if beyond := [name for name, array in tensors.items() if not np.isfinite(array).all()]:
        raise BadInput(f"beyond float32, in which onnxruntime computes: {some(beyond)}; give smaller numbers")
    if (size := sum(array.nbytes for array in tensors.values())) > MOST:
        raise BadInput(f"an ONNX file holds {MOST / 1e9:g} GB, and the tensors are {size / 1e9:.1f} GB")
    is_wide = any(array.dtype == np.float64 for array in weights.values())
    return Converted(
        NAME,
        arch,
        tensors,
        rounded=f"{EPSILON_ADDED}, and float64 becomes float32" if is_wide else EPSILON_ADDED,
        said=(f"images (N, {arch.in_channels}, H, W) → last (N, {arch.num_classes}); N, H and W are open",),
    )


def carried(source: Path) -> dict[str, str]:
    """What a checkpoint says of itself and is true of its ONNX file, too: its sums and proof are its own."""
    said = load_metadata(source)
    return {name: text for name, text in said.items() if name not in (*SUMS, "proof")}


def with_epsilon(arch: Architecture, weights: Weights) -> Weights:
    """The weights in float64, with epsilon added to the running variances."""
    return {
        name: array.astype(np.float64) + (arch.epsilon if name.endswith("running_var") else 0.0)
        for name, array in weights.items()
    }


def onnx_model(converted: Converted, metadata: Mapping[str, str], opset: int = USUAL) -> Any:
    """An `onnx.ModelProto` of what `to_onnx` made: "images" (N, C, H, W) in, logits "last" (N, classes) out.

    Its metadata are these and the architecture; `opset` is one of `OPSETS`.
    """
    from onnx import TensorProto, helper, numpy_helper

    arch, tensors = converted.arch, converted.tensors
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    for initializer in initializers:
        if initializer.name.endswith("running_var"):
            initializer.doc_string = f"The running variance, with {arch.epsilon} added."
    value = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    images = value("images", shape=["N", arch.in_channels, "H", "W"])
    last = value("last", shape=["N", arch.num_classes])
    nodes = _Nodes(arch, tensors).network()
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        helper.make_graph(nodes, "resnet-tabs", [images], [last], initializers),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),  # so that older programs read it
        producer_name="resnet-tabs",
        doc_string=f"{describe(arch)}. For inference: {EPSILON_ADDED}.",
    )
    helper.set_model_props(model, {**metadata, "architecture": arch.to_json()})
    return model


def write_onnx(path: Path, converted: Converted, metadata: Mapping[str, str], opset: int = USUAL) -> None:
    """Write an `onnx_model`, whole or not at all; `ValueError` if it cannot be written."""
    write_atomically(path, onnx_model(converted, metadata, opset).SerializeToString())


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


class _Nodes:
    """The nodes of a network, as the oracle's `Pass` goes through it. A node's name is that of its output."""

    def __init__(self, arch: Architecture, tensors: Weights) -> None:
        self.arch, self.tensors = arch, tensors
        self.nodes: list[Any] = []

    def network(self) -> list[Any]:
        """In the order data meets them."""
        y = self._stem("images")
        for k, stage in enumerate(self.arch.blocks(), start=2):
            for block in stage:
                y = self._block(block, y, f"b{k}" if block is stage[-1] else block.name)
        y = self._add("Flatten", "last.flatten", self._add("GlobalAveragePool", "last.pool", y))
        self._add("Gemm", "last", y, "last.weight", "last.bias", transB=1)
        return self.nodes

    def _stem(self, x: str) -> str:
        y = self._convolution("b1.conv", x, self.arch.in_channels, 2, self.arch.stem_padding)
        y = self._add("Relu", "b1.relu", self._batch_norm("b1.bn", y))
        return self._add("MaxPool", "b1", y, **_windows(3, 2, self.arch.padding))

    def _block(self, block: Block, x: str, name: str) -> str:
        y, channels = x, block.in_channels
        for i, stride in enumerate(block.chain, start=1):
            y = self._convolution(f"{block.name}.conv{i}", y, channels, stride, block.padding)
            channels = len(self.tensors[f"{y}.weight"])
            y = self._batch_norm(f"{block.name}.bn{i}", y)
            if i < len(block.chain):
                y = self._add("Relu", f"{block.name}.relu{i}", y)
        if block.use_1x1conv:
            i = len(block.chain) + 1
            x = self._convolution(f"{block.name}.conv{i}", x, block.in_channels, block.strides)
            if block.groups is not None or block.shortcut_norm:
                x = self._batch_norm(f"{block.name}.bn{i}", x)
        return self._add("Relu", name, self._add("Add", f"{block.name}.sum", y, x))

    def _convolution(
        self, name: str, x: str, in_channels: int, stride: int, padding: str = "symmetric"
    ) -> str:
        _, group_channels, size, _ = self.tensors[f"{name}.weight"].shape
        attributes = {"group": in_channels // group_channels, **_windows(size, stride, padding)}
        return self._add("Conv", name, x, f"{name}.weight", f"{name}.bias", **attributes)

    def _batch_norm(self, name: str, x: str) -> str:
        tensors = [f"{name}.{kind}" for kind in ("weight", "bias", "running_mean", "running_var")]
        # Trap: before opset 14, ONNX's reference evaluator adds 1 − momentum of the batch's statistics.
        return self._add("BatchNormalization", name, x, *tensors, epsilon=0.0, momentum=1.0)

    def _add(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name


def _windows(size: int, stride: int, padding: str) -> dict[str, Any]:
    """Attributes of a convolution or a pool."""
    around = {"pads": [size // 2] * 4} if padding == "symmetric" else {"auto_pad": "SAME_UPPER"}
    return {"kernel_shape": [size, size], "strides": [stride, stride], **around}

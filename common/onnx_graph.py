"""A network of ours as an ONNX graph, from its canonical weights: no framework, only the package `onnx`.

Initialisers have our canonical names. A node and its output are named as the layer they are: b1.conv, b1.bn,
b1.relu, b2.0.conv1, …; the end of a stage as in `activations`: b1, b2, …, last. N, H and W are open.

Trap: ONNX keeps a batch norm's epsilon as a float32, with which float64 is off by up to 1e-10. So epsilon is
added to the variance, and the attribute is 0: an initialiser `….running_var` holds the variance plus epsilon.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from common.architecture import Architecture, Block
from common.errors import BadInput
from common.reading import some
from common.weights import Weights

OPSETS = range(13, 29)  # that both packages know
USUAL = 17  # of 2022
MOST = 2_000_000_000  # bytes of tensors: protobuf's files end at 2 GiB
EPSILON_ADDED = "the running variances of an ONNX file have epsilon added"


def with_epsilon(arch: Architecture, weights: Weights) -> Weights:
    """The weights in float64, with epsilon added to the running variances."""
    return {
        name: array.astype(np.float64) + (arch.epsilon if name.endswith("running_var") else 0.0)
        for name, array in weights.items()
    }


def in_float32(arch: Architecture, weights: Weights) -> Weights:
    """The graph's tensors, by canonical name: onnxruntime has no convolution in float64.

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
    return tensors


def onnx_model(arch: Architecture, tensors: Weights, metadata: Mapping[str, str], opset: int = USUAL) -> Any:
    """An `onnx.ModelProto` of what `in_float32` made: "images" (N, C, H, W) → logits "last" (N, classes).

    Its metadata are these and the architecture; `opset` is one of `OPSETS`.
    """
    from onnx import TensorProto, helper, numpy_helper

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
        doc_string=f"For inference: {EPSILON_ADDED}.",
    )
    helper.set_model_props(model, {**metadata, "architecture": arch.to_json()})
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

"""What our speed is held against: MXNet's own matrix product and the network of Gluon's model zoo."""

from collections.abc import Callable
from typing import Any

import mxnet as mx
from mxnet import autograd, gluon, np
from mxnet.gluon import nn
from mxnet.gluon.model_zoo import vision
from numpy.typing import NDArray

from common.architecture import Architecture, Block
from common.errors import BadInput


class Reference:
    """The zoo's network, hybridized with static memory and shapes.

    Its version 1 strides in the first 1×1 convolution of a bottleneck, which is some 7 % less arithmetic
    than ours (He et al. 2015 against torchvision's "v1.5").

    The zoo has no ResNeXt and no wide ResNet: these are written here as Gluon's users do, "plain Gluon".

    Args:
        name: of the network, such as "resnet18".
        arch: its stages, channels and classes.
        dtype: "float32" or "float64".
        device: "cpu" or "gpu".
        compile: hybridizing is Gluon's word for it.

    Raises:
        ValueError: if the zoo has no network of this name and it has no bottlenecks, or MXNet has no such
            products.
    """

    def __init__(self, name: str, arch: Architecture, dtype: str, device: str, compile: bool = True) -> None:
        check_type(dtype)
        self._device = mx.gpu() if device == "gpu" else mx.cpu()
        self._type = dtype
        own = f"{name.removesuffix('_v1')}_v1"
        if hasattr(vision, own):
            self.label = "Gluon's model zoo"
            self._net = getattr(vision, own)(classes=arch.num_classes)
        elif arch.block == "resnext":
            self.label = "plain Gluon"
            self._net = resnext(arch)
        else:
            raise BadInput(f"Gluon's model zoo has no {name}")
        self._net.initialize(mx.init.Xavier(), self._device)
        self._net(np.zeros((1, arch.in_channels, 32, 32), ctx=self._device))  # Gluon draws no float64
        self._net.cast(dtype)
        self._net.hybridize(static_alloc=True, static_shape=True)
        self._loss = gluon.loss.SoftmaxCrossEntropyLoss()
        self._loss.hybridize()
        self._trainer: gluon.Trainer | None = None

    def train_step(self, x: NDArray, y: NDArray, lr: float, momentum: float = 0.0) -> float:
        """One step of SGD on images (N, C, H, W) and labels (N,); returns the loss before it."""
        X, Y = self._array(x, self._type), self._array(y, "int32")
        with autograd.record():
            loss = self._loss(self._net(X), Y).mean()
        loss.backward()
        if self._trainer is None:
            options = {"learning_rate": lr, "momentum": momentum}
            self._trainer = gluon.Trainer(self._net.collect_params(), "sgd", options, kvstore=None)
        self._trainer.set_learning_rate(lr)
        self._trainer.step(1)  # the loss is a mean already
        return loss.item()

    def predict(self, x: NDArray) -> NDArray:
        """Logits (N, classes) of images (N, C, H, W)."""
        return self._net(self._array(x, self._type)).asnumpy()

    def _array(self, array: NDArray, dtype: str) -> np.ndarray:
        return np.array(array, dtype=dtype, ctx=self._device)


class Bottleneck(gluon.HybridBlock):
    """The zoo's, but its 3×3 convolution is grouped and has the stride; as in GluonCV, none has a bias."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        assert block.groups
        width, channels = block.bot_channels, block.num_channels
        number = width // block.groups
        self.body = nn.HybridSequential()
        self.body.add(nn.Conv2D(width, 1, use_bias=False), nn.BatchNorm(), nn.Activation("relu"))
        self.body.add(nn.Conv2D(width, 3, block.strides, 1, groups=number, use_bias=False))
        self.body.add(nn.BatchNorm(), nn.Activation("relu"))
        self.body.add(nn.Conv2D(channels, 1, use_bias=False), nn.BatchNorm())
        self.shortcut = nn.HybridSequential()
        if block.use_1x1conv:
            self.shortcut.add(nn.Conv2D(channels, 1, block.strides, use_bias=False), nn.BatchNorm())

    def hybrid_forward(self, F: Any, X: Any) -> Any:
        """X is (N, C, H, W)."""
        return F.npx.relu(self.body(X) + self.shortcut(X))


def resnext(arch: Architecture) -> nn.HybridSequential:
    """The zoo's stem and end, and these bottlenecks."""
    net = nn.HybridSequential()
    net.add(nn.Conv2D(arch.stem_channels, 7, 2, 3, use_bias=False), nn.BatchNorm(), nn.Activation("relu"))
    net.add(nn.MaxPool2D(3, 2, 1))
    net.add(*[Bottleneck(block) for stage in arch.blocks() for block in stage])
    net.add(nn.GlobalAvgPool2D(), nn.Dense(arch.num_classes))
    return net


def check_type(dtype: str) -> None:
    """Raise `ValueError` unless MXNet has such products."""
    if dtype not in ("float32", "float64"):
        raise BadInput(f"no {dtype} in this backend; give float32 or float64")


def matrix_product(size: int, dtype: str, device: str) -> Callable[[], None]:
    """A function that multiplies two size × size matrices once, and waits for the result.

    Raises:
        ValueError: if MXNet has no such products.
    """
    check_type(dtype)
    A = np.ones((size, size), dtype=dtype, ctx=mx.gpu() if device == "gpu" else mx.cpu())

    def multiply() -> None:
        np.dot(A, A).wait_to_read()

    return multiply


def device_memory() -> int:
    """Bytes in use on the GPU now: MXNet keeps what it once took."""
    free, total = mx.context.gpu_memory_info()
    return total - free

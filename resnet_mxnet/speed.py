"""What our speed is held against: MXNet's own matrix product and the network of Gluon's model zoo."""

from collections.abc import Callable

import mxnet as mx
from mxnet import autograd, gluon, np
from mxnet.gluon.model_zoo import vision
from numpy.typing import NDArray

from common.architecture import Architecture
from common.errors import BadInput

LABEL = "Gluon's model zoo"


class Reference:
    """The zoo's network, hybridized with static memory and shapes.

    Its version 1 strides in the first 1×1 convolution of a bottleneck, which is some 7 % less arithmetic
    than ours (He et al. 2015 against torchvision's "v1.5").

    Args:
        name: of the network, such as "resnet18".
        arch: its channels and classes.
        dtype: "float32" or "float64".
        device: "cpu" or "gpu".
        compile: hybridizing is Gluon's word for it.

    Raises:
        ValueError: if the zoo has no network of this name, or MXNet has no such products.
    """

    def __init__(self, name: str, arch: Architecture, dtype: str, device: str, compile: bool = True) -> None:
        if not hasattr(vision, f"{name}_v1"):
            raise BadInput(f"Gluon's model zoo has no {name}")
        check_type(dtype)
        self._device = mx.gpu() if device == "gpu" else mx.cpu()
        self._type = dtype
        self._net = getattr(vision, f"{name}_v1")(classes=arch.num_classes)
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

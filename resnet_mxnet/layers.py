"""Where Gluon is told to agree with the other three. Every trap is named, with its reason."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import gluon, init
from mxnet.gluon import nn

from common.errors import BadInput


@init.register
class Glorot(init.Xavier):
    """Trap: Gluon draws weights from ±0.07.

    The others start from Glorot uniform (Glorot and Bengio 2010, equation 16), which Gluon calls
    Xavier; biases are 0 everywhere.

    Trap: Gluon draws into float32 only, and a network that was cast before its first batch fails.
    """

    def _init_weight(self, name: str, arr: mx.np.ndarray) -> None:
        drawn = mx.np.empty(arr.shape)
        super()._init_weight(name, drawn)
        arr[:] = drawn


class Conv2D(nn.Conv2D):
    """Convolution over (N, C, H, W).

    `padding` is "symmetric", kernel_size // 2 zeros on every side; "same"; or a number of zeros.

    Trap: TensorFlow and Flax pad "same" with as little as makes ⌈H / stride⌉ rows, the odd one below; Gluon
    knows no such thing, and a hybridised block no shapes. Upside down it is symmetric, at strides 1 and 2.
    """

    def __init__(
        self, channels: int, kernel_size: int, strides: int = 1, padding: int | str = 0, **options: Any
    ) -> None:
        if padding == "same" and strides > 2:
            raise BadInput(f"padding 'same' at strides {strides} is beyond MXNet; give strides of 1 or 2")
        pixels = kernel_size // 2 if isinstance(padding, str) else padding
        super().__init__(channels, kernel_size, strides, pixels, weight_initializer=Glorot(), **options)
        self.turned = padding == "same" and strides > 1

    def hybrid_forward(
        self, F: ModuleType, X: mx.np.ndarray, weight: mx.np.ndarray, bias: mx.np.ndarray | None = None
    ) -> mx.np.ndarray:
        if not self.turned:
            return super().hybrid_forward(F, X, weight, bias)
        turn = partial(F.np.flip, axis=(2, 3))
        return turn(super().hybrid_forward(F, turn(X), turn(weight), bias))


class MaxPool2D(nn.MaxPool2D):
    """3×3 max-pool at stride 2 over (N, C, H, W); `padding`, of −∞, is "symmetric" or "same"."""

    def __init__(self, padding: str = "symmetric") -> None:
        super().__init__(pool_size=3, strides=2, padding=1)
        self.turned = padding == "same"  # see Conv2D

    def hybrid_forward(self, F: ModuleType, X: mx.np.ndarray) -> mx.np.ndarray:
        turn = partial(F.np.flip, axis=(2, 3))
        return turn(super().hybrid_forward(F, turn(X))) if self.turned else super().hybrid_forward(F, X)


Dense = partial(nn.Dense, weight_initializer=Glorot())


def relu(F: ModuleType, X: mx.np.ndarray) -> mx.np.ndarray:
    """Trap: `npx.relu` is not oneDNN's: each would take the images out of its layout and back."""
    return F.npx.activation(X, act_type="relu")


BatchNorm = partial(nn.BatchNorm, epsilon=1e-5, momentum=0.9)


@contextmanager
def exact_decay(net: gluon.Block) -> Iterator[None]:
    """Trap: MXNet holds the decay of running statistics in float32, in a float64 network too.

    Of 0.9 it keeps 0.89999998 of the old value and takes 0.10000002 of the batch's. Around a training pass
    in float64, this finds the batch statistic that went in, and decays by 0.9 exactly.
    """
    before: list[tuple[gluon.Parameter, mx.np.ndarray, float]] = []

    def note(layer: gluon.Block) -> None:
        if isinstance(layer, nn.BatchNorm) and layer.running_mean.dtype == "float64":
            for p in (layer.running_mean, layer.running_var):
                before.append((p, p.data().copy(), layer._kwargs["momentum"]))

    net.apply(note)
    yield
    for p, old, decay in before:
        kept = float(np.float32(decay))
        batch = (p.data() - kept * old) / (1 - kept)
        p.set_data(decay * old + (1 - decay) * batch)


class SGD(mx.optimizer.SGD):
    """SGD in the precision of the weights.

    Trap: MXNet's fused step takes learning rate, momentum and weight decay as float32 whatever the
    weights are, and keeps lr · velocity, so that a new rate would act on old gradients too late.
    """

    def __init__(self, **options: float) -> None:
        super().__init__(**options)
        self.aggregate_num = 0  # one parameter a call

    def update(self, index: int, weight: mx.nd.NDArray, grad: mx.nd.NDArray, state: mx.nd.NDArray) -> None:
        self._update_count(index)
        gradient = grad if self.rescale_grad == 1 else self.rescale_grad * grad
        if decay := self._get_wd(index):
            gradient = gradient + decay * weight
        velocity = gradient
        if state is not None:
            velocity = state
            velocity *= self.momentum
            velocity += gradient
        weight -= self._get_lr(index) * velocity

    update_multi_precision = update

    def _get_lr(self, index: int) -> float:
        """Trap: under a Gluon Trainer, MXNet asks the parameters alone, and not what `set_lr_mult` was told.

        What is written into the parameters would outlive the optimizer.
        """
        return super()._get_lr(index) * self.lr_mult.get(self.param_dict[index].name, 1.0)

    def _get_wd(self, index: int) -> float:
        """The same of `set_wd_mult`."""
        return super()._get_wd(index) * self.wd_mult.get(self.param_dict[index].name, 1.0)

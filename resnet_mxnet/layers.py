"""Where Gluon is told to agree with the other three. Every trap is named, with its reason."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType

import mxnet as mx
import numpy as np
from mxnet import gluon, init
from mxnet.gluon import nn


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


Conv2D = partial(nn.Conv2D, weight_initializer=Glorot())
Dense = partial(nn.Dense, weight_initializer=Glorot())


def relu(F: ModuleType, X: mx.np.ndarray) -> mx.np.ndarray:
    """Trap: `npx.relu` is not oneDNN's: each would take the images out of its layout and back."""
    return F.npx.activation(X, act_type="relu")


DECAY = 0.9  # share of the old value that a running statistic keeps
BatchNorm = partial(nn.BatchNorm, momentum=DECAY, epsilon=1e-5)


@contextmanager
def exact_decay(net: gluon.Block) -> Iterator[None]:
    """Trap: MXNet holds the decay of running statistics in float32, in a float64 network too.

    It keeps 0.89999998 of the old value and takes 0.10000002 of the batch's. Around a training pass
    in float64, this finds the batch statistic that went in, and decays by 0.9 exactly.
    """
    kept = float(np.float32(DECAY))
    statistics = net.collect_params(".*running_(mean|var)").values()
    before = [p.data().copy() for p in statistics if p.dtype == "float64"]
    yield
    for p, old in zip(statistics, before, strict=False):
        batch = (p.data() - kept * old) / (1 - kept)
        p.set_data(DECAY * old + (1 - DECAY) * batch)


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

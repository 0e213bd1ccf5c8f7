"""Where Gluon is told to agree with the other three. Every trap is named, with its reason."""

from __future__ import annotations

import copyreg
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, ClassVar

import mxnet as mx
import numpy as np
from mxnet import gluon, init
from mxnet.gluon import nn
from mxnet.ndarray import CachedOp
from mxnet.symbol.numpy import _Symbol as Symbol

from common.architecture import check_padding
from common.errors import BadInput

Pair = tuple[int, int]


def read_graph(text: str) -> Symbol:
    """The graph that `tojson` wrote."""
    return mx.sym.load_json(text).as_np_ndarray()


# Trap: what Gluon has compiled of a network cannot be copied or pickled, and its graph comes back as one of
# the old interface: neither can the network. A copy compiles anew.
copyreg.pickle(CachedOp, lambda compiled: (type(None), ()))
copyreg.pickle(Symbol, lambda graph: (read_graph, (graph.tojson(),)))


@init.register
class Glorot(init.Xavier):
    """Trap: Gluon draws weights from ±0.07.

    The others start from Glorot uniform (Glorot and Bengio 2010, equation 16), which Gluon calls
    Xavier; biases are 0 everywhere.

    Trap: Gluon draws into float32 only, and a network that was cast before its first batch fails.

    Trap: what a layer has of its own goes before what `initialize` is given. This gives way to it.
    """

    def _init_weight(self, name: str, arr: mx.np.ndarray) -> None:
        drawn, given = mx.np.empty(arr.shape), getattr(name, "global_init", None)
        if given is None or isinstance(given, Glorot) or any(given is default for default in NOT_GIVEN):
            super()._init_weight(name, drawn)
        else:
            given(init.InitDesc(name), drawn)
        arr[:] = drawn


INITIALISED = (gluon.Block, gluon.ParameterDict, gluon.Parameter)
NOT_GIVEN = [default for kind in INITIALISED for default in kind.initialize.__defaults__]


def draw_with_first_images(net: gluon.Block) -> None:
    """Leave every parameter without a value to the first forward pass, as Gluon does those of unknown shape.

    Trap: after `initialize`, those of known shape are there for good, and another moves the rest alone.
    """
    for parameter in net.collect_params().values():
        if not parameter._data:
            parameter._deferred_init = (parameter.init, [mx.current_context()], Glorot(), None)


class Conv2D(nn.Conv2D):
    """Convolution over (N, C, H, W).

    `padding` is "symmetric", kernel_size // 2 zeros on every side; "same"; or a number of zeros.

    Trap: TensorFlow and Flax pad "same" with as little as makes ⌈H / stride⌉ rows, the odd one below; Gluon
    knows no such thing, and a hybridised block no shapes. Upside down it is symmetric, at strides 1 and 2 of
    kernels that reach over an odd number of pixels.

    Trap: on a CPU oneDNN lays float32 out in blocks of 16 channels, but of 4 or 8 for groups of so many. Its
    batch norm has no kernel for blocks of 4, nor for a mixture, and takes 100 times as long. So narrow groups
    become one with a block-diagonal kernel, until their blocks are those of the other layers.

    Trap: a hybridised block that learns its shapes from a first batch keeps what it was before it knew them.
    In groups there are as many channels as come out, unless `in_channels` says otherwise.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | Pair,
        strides: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        **options: Any,
    ) -> None:
        check_padding(padding, zeros=True)
        if groups > 1:
            options.setdefault("in_channels", channels)
        options.setdefault("weight_initializer", Glorot())
        zeros = 0 if isinstance(padding, str) else padding
        super().__init__(channels, kernel_size, strides, zeros, dilation, groups, **options)
        self.turned: list[int] = []  # axes
        if padding == "symmetric":
            self._kwargs["pad"] = tuple(size // 2 for size in self._kwargs["kernel"])
        elif padding == "same":
            self._pad_same(*(self._kwargs[name] for name in ("kernel", "stride", "dilate")))

    def _pad_same(self, kernel: Pair, strides: Pair, dilation: Pair) -> None:
        reach = [rate * (size - 1) + 1 for size, rate in zip(kernel, dilation, strict=True)]
        for axis, pixels, stride in zip((2, 3), reach, strides, strict=True):
            if pixels > 1 and (stride > 2 or pixels % 2 == 0):
                raise BadInput(
                    f"padding 'same' of a kernel over {pixels} pixels at strides {stride} is beyond MXNet; "
                    "give an odd kernel and strides of 1 or 2"
                )
            if pixels > 1 and stride > 1:
                self.turned.append(axis)
        self._kwargs["pad"] = tuple(pixels // 2 for pixels in reach)

    def hybrid_forward(
        self, F: ModuleType, X: mx.np.ndarray, weight: mx.np.ndarray, bias: mx.np.ndarray | None = None
    ) -> mx.np.ndarray:
        if not self.turned:
            return self._convolve(F, X, weight, bias)
        turn = partial(F.np.flip, axis=tuple(self.turned))
        return turn(self._convolve(F, turn(X), turn(weight), bias))

    def _convolve(
        self, F: ModuleType, X: mx.np.ndarray, weight: mx.np.ndarray, bias: mx.np.ndarray | None
    ) -> mx.np.ndarray:
        together = self._groups_together()
        if together == 1:
            return super().hybrid_forward(F, X, weight, bias)
        groups, kernel = self._kwargs["num_group"], self._kwargs["kernel"]
        width = self._channels // groups
        own = F.np.eye(together, dtype=self.weight.dtype)
        own = F.npx.reshape(own, (1, together, 1, together, 1, 1, 1))
        weight = F.npx.reshape(weight, (-1, together, width, 1, self.weight.shape[1], *kernel)) * own
        weight = F.npx.reshape(weight, (self._channels, -1, *kernel))
        options = {**self._kwargs, "num_group": groups // together}
        Y = F.npx.convolution(X, weight, bias, name="fwd", **options)
        return self.act(Y) if self.act else Y

    def _groups_together(self) -> int:
        """How many groups are to be one, where the weights lie as the block is traced."""
        weight, width = self.weight, self._channels // self._kwargs["num_group"]
        if (
            not (weight._data or weight._deferred_init)
            or np.dtype(weight.dtype) != np.float32
            or weight.list_ctx()[0].device_type != "cpu"
        ):
            return 1
        if width == 1:  # oneDNN has kernels of its own
            return 1
        block = math.gcd(16, self._channels)
        return block // math.gcd(block, width)


class MaxPool2D(nn.MaxPool2D):
    """3×3 max-pool at stride 2 over (N, C, H, W); `padding`, of −∞, is "symmetric" or "same"."""

    def __init__(self, padding: str = "symmetric", **options: Any) -> None:
        check_padding(padding)
        super().__init__(pool_size=3, strides=2, padding=1, **options)
        self.turned = padding == "same"  # see Conv2D

    def hybrid_forward(self, F: ModuleType, X: mx.np.ndarray) -> mx.np.ndarray:
        turn = partial(F.np.flip, axis=(2, 3))
        return turn(super().hybrid_forward(F, turn(X))) if self.turned else super().hybrid_forward(F, X)


Dense = partial(nn.Dense, weight_initializer=Glorot())


def relu(F: ModuleType, X: mx.np.ndarray) -> mx.np.ndarray:
    """Trap: `npx.relu` is not oneDNN's: each would take the images out of its layout and back."""
    return F.npx.activation(X, act_type="relu")


def add(F: ModuleType, X: mx.np.ndarray, Y: mx.np.ndarray) -> mx.np.ndarray:
    """Trap: `X + Y` is not oneDNN's either; both have one shape."""
    return F.elemwise_add(X.as_nd_ndarray(), Y.as_nd_ndarray()).as_np_ndarray()


class Store:
    """MXNet's parameter server as sums over the workers, which ask for the same ones in the same order.

    Trap: the server rounds float64 to float32 and adds in the order in which workers arrive. `sum` gives each
    worker a slot of its own, and splits float64 into three float32: the server has nothing to add.
    """

    here: ClassVar[Store | None] = None  # of this process, where there are several workers

    def __init__(self, rank: int, workers: int) -> None:
        self._store = mx.kv.create("dist_sync")
        self.rank, self.workers = rank, workers  # the store's own rank is that of who came first
        self._keys: dict[str, int] = {}

    def open(self, parameters: Iterable[gluon.Parameter]) -> None:
        """Agree with all workers on what training these parameters adds up.

        Trap: a new key waits for all workers, and they need not trace a network at the same time.
        """
        for parameter in parameters:
            name, shape, dtype = parameter.name, parameter.shape, parameter.dtype
            if parameter.grad_req == "null":
                for end in ("", ".back"):
                    self.slots(name + end, shape, dtype)
            elif np.dtype(dtype) == np.float64:
                self.slots(name, shape, dtype)
            else:
                self.key(name, shape)

    def key(self, name: str, shape: tuple[int, ...]) -> int:
        """The number the server knows a sum by."""
        if name not in self._keys:
            self._keys[name] = len(self._keys)
            self._store.init(self._keys[name], mx.np.zeros(shape))
        return self._keys[name]

    def slots(self, name: str, shape: tuple[int, ...], dtype: str) -> int:
        """The key of a sum that `sum` is to make."""
        parts = 3 if np.dtype(dtype) == np.float64 else 1
        return self.key(name, (self.workers, parts, math.prod(shape)))

    def sum(self, key: int, array: mx.np.ndarray) -> mx.np.ndarray:
        """The sum over the workers, in all the same to the bit."""
        parts, rest = [], array.reshape(-1)
        for _ in range(3 if array.dtype == np.float64 else 1):
            parts.append(rest.astype("float32"))
            rest = rest - parts[-1].astype(array.dtype)
        slots = mx.np.zeros((self.workers, len(parts), array.size), ctx=array.ctx)
        slots[self.rank] = mx.np.stack(parts)
        self._store.pushpull(key, slots, out=slots)  # Trap: it overwrites what it is given
        return slots.astype(array.dtype).sum(axis=(0, 1)).reshape(array.shape)

    def add_up(self, key: int, array: mx.np.ndarray, priority: int) -> None:
        """The sum over the workers in place, float32, in whatever order they arrive."""
        self._store.pushpull(key, array, out=array, priority=priority)


class MeanOverWorkers(mx.operator.CustomOp):
    """The mean over the workers, which the running mean follows; in evaluation the running mean itself."""

    def __init__(self, key: int, key_back: int, decay: float) -> None:
        super().__init__()
        self.key, self.key_back, self.decay = key, key_back, decay

    def forward(self, is_train: bool, req: list, in_data: list, out_data: list, aux: list) -> None:
        (running,) = aux
        mean = running
        if is_train:
            mean = self._mean(self.key, in_data[0])
            running[:] = self.decay * running + (1 - self.decay) * mean
        self.assign(out_data[0], req[0], mean)

    def backward(
        self, req: list, out_grad: list, in_data: list, out_data: list, in_grad: list, aux: list
    ) -> None:
        self.assign(in_grad[0], req[0], self._mean(self.key_back, out_grad[0]))

    def _mean(self, key: int, array: mx.np.ndarray) -> mx.np.ndarray:
        assert Store.here
        return Store.here.sum(key, array) / Store.here.workers


@mx.operator.register("mean_over_workers")
class MeanOverWorkersProp(mx.operator.CustomOpProp):
    """What MXNet asks about `MeanOverWorkers`; arguments come as text."""

    def __init__(self, key: str, key_back: str, decay: str) -> None:
        super().__init__(need_top_grad=True)
        self.arguments = int(key), int(key_back), float(decay)

    def list_auxiliary_states(self) -> list[str]:
        return ["running"]

    def infer_shape(self, in_shape: list) -> tuple[list, list, list]:
        return in_shape, in_shape, in_shape

    def infer_type(self, in_type: list) -> tuple[list, list, list]:
        return in_type, in_type, in_type

    def create_operator(self, ctx: str, in_shapes: list, in_dtypes: list) -> MeanOverWorkers:
        return MeanOverWorkers(*self.arguments)


class BatchNormOverWorkers(nn.BatchNorm):
    """Batch norm over the batch of all workers.

    Trap: by itself each worker normalises its share of the batch, and is another network. MXNet's
    `SyncBatchNorm` hangs on CPUs and refuses float64.
    """

    def hybrid_forward(
        self,
        F: ModuleType,
        X: mx.np.ndarray,
        gamma: mx.np.ndarray,
        beta: mx.np.ndarray,
        running_mean: mx.np.ndarray,
        running_var: mx.np.ndarray,
    ) -> mx.np.ndarray:
        mean = self._mean(F, self.running_mean, F.np.mean(X, axis=(0, 2, 3)), running_mean)
        centred = X - F.np.reshape(mean, (1, -1, 1, 1))
        var = self._mean(F, self.running_var, F.np.mean(centred**2, axis=(0, 2, 3)), running_var)
        scale = gamma / F.np.sqrt(var + self._kwargs["eps"])
        return centred * F.np.reshape(scale, (1, -1, 1, 1)) + F.np.reshape(beta, (1, -1, 1, 1))

    def _mean(
        self, F: ModuleType, parameter: gluon.Parameter, own: mx.np.ndarray, running: mx.np.ndarray
    ) -> mx.np.ndarray:
        """The mean of `own`, (C,), over the workers, which this parameter follows."""
        assert Store.here
        keys = [
            Store.here.slots(parameter.name + end, parameter.shape, parameter.dtype) for end in ("", ".back")
        ]
        mean = F.Custom(
            own.as_nd_ndarray(),
            running.as_nd_ndarray(),
            op_type="mean_over_workers",
            key=keys[0],
            key_back=keys[1],
            decay=self._kwargs["momentum"],
        )
        return mean.as_np_ndarray()


def BatchNorm(**options: Any) -> nn.BatchNorm:
    """Batch norm over the channels of (N, C, H, W), of all workers where there are several.

    Trap: on a GPU, cuDNN's running variance follows n / (n − 1) times the batch's; MXNet's own does not.
    """
    kind = BatchNormOverWorkers if Store.here else nn.BatchNorm
    layer = kind(**{"epsilon": 1e-5, "momentum": 0.9, **options})
    layer._kwargs["cudnn_off"] = True
    return layer


class TrainerOverWorkers(gluon.Trainer):
    """A trainer that takes the mean of the gradients over the workers, where there are several.

    Gradients of several contexts add up, as Gluon's do.

    Trap: with a store of its own, Gluon's sends weights that may arrive after the first gradients.

    Trap: of a network that has moved since, Gluon's moves the first contexts' weights alone.
    """

    def __init__(self, parameters: list[gluon.Parameter], optimizer: mx.optimizer.Optimizer) -> None:
        super().__init__(parameters, optimizer, update_on_kvstore=False)  # no store of one context

    def _allreduce_grads(self) -> None:
        here = self._params[0].list_ctx()
        if here != self._contexts:
            raise BadInput(
                f"the network has moved from {self._contexts} to {here}; make the trainer after that"
            )
        store = Store.here
        if not store:
            super()._allreduce_grads()
            return
        for i, parameter in enumerate(self._params):
            if parameter.grad_req != "null":
                gradient = parameter.grad()
                if gradient.dtype == np.float64:
                    key = store.slots(parameter.name, gradient.shape, "float64")
                    gradient[:] = store.sum(key, gradient)
                else:
                    store.add_up(store.key(parameter.name, gradient.shape), gradient, -i)
                gradient /= store.workers


@contextmanager
def exact_decay(net: gluon.Block) -> Iterator[None]:
    """Trap: MXNet holds the decay of running statistics in float32, in a float64 network too.

    Of 0.9 it keeps 0.89999998 of the old value and takes 0.10000002 of the batch's. Around a training pass
    in float64, this finds the batch statistic that went in, and decays by 0.9 exactly.
    """
    before: list[tuple[gluon.Parameter, mx.np.ndarray, float]] = []

    def note(layer: gluon.Block) -> None:
        if type(layer) is nn.BatchNorm and np.dtype(layer.running_mean.dtype) == np.float64:
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
    weights are, and keeps lr · velocity, so that a new rate would act on old gradients too late. In float32
    its step without momentum, taken twice, is ours and quicker.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.aggregate_num = 0  # one parameter a call

    def update(self, index: int, weight: mx.nd.NDArray, grad: mx.nd.NDArray, state: mx.nd.NDArray) -> None:
        self._update_count(index)
        gradient = grad if self.rescale_grad == 1 else self.rescale_grad * grad
        if self.clip_gradient:
            gradient = mx.nd.clip(gradient, -self.clip_gradient, self.clip_gradient)
        if decay := self._get_wd(index):
            gradient = gradient + decay * weight
        velocity = gradient if state is None else state
        if weight.dtype == np.float32:
            if state is not None:  # (1 + wd) · velocity + gradient
                mx.nd.sgd_update(velocity, gradient, out=velocity, lr=-1, wd=self.momentum - 1)
            mx.nd.sgd_update(weight, velocity, out=weight, lr=self._get_lr(index))
        else:
            if state is not None:
                velocity *= self.momentum
                velocity += gradient
            weight -= self._get_lr(index) * velocity

    def update_multi_precision(
        self, index: int, weight: mx.nd.NDArray, grad: mx.nd.NDArray, state: Any
    ) -> None:
        if self.multi_precision and weight.dtype == np.float16:
            velocity, exact = state
            self.update(index, exact, grad.astype(np.float32), velocity)
            weight[:] = exact.astype(np.float16)
        else:
            self.update(index, weight, grad, state)

    def _get_lr(self, index: int) -> float:
        """Trap: under a Gluon Trainer, MXNet asks the parameters alone, and not what `set_lr_mult` was told.

        What is written into the parameters would outlive the optimizer.
        """
        return super()._get_lr(index) * self._told(self.lr_mult, index)

    def _get_wd(self, index: int) -> float:
        """The same of `set_wd_mult`."""
        return super()._get_wd(index) * self._told(self.wd_mult, index)

    def _told(self, multipliers: dict[int | str, float], index: int) -> float:
        """By name or by index; without a Gluon Trainer MXNet asks for itself."""
        if index not in self.param_dict:
            return 1.0
        return multipliers.get(self.param_dict[index].name, multipliers.get(index, 1.0))

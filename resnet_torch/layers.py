"""Where PyTorch is told to agree with the other three. Every trap is named, with its reason.

What holds for the whole process is set only by who owns it. Under the contract, float32 on a GPU is full
float32; to have that with the classes themselves, write this first:

    from resnet_torch.layers import use_full_float32

    use_full_float32()
"""

import math
from collections.abc import Callable
from functools import partial, wraps
from itertools import product
from typing import Any

import torch
from torch import Tensor, distributed, fx, nn
from torch.ao.quantization import fuser_method_mappings
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from common.architecture import check_padding
from common.errors import BadInput

Size = int | tuple[int, int]  # one number for both, or height and width


def glorot_(weight: Tensor, bias: Tensor | None) -> None:
    """Trap: PyTorch draws weights from He uniform and their biases at random.

    The others start from Glorot uniform (Glorot and Bengio 2010, equation 16) and biases of 0.
    """
    nn.init.xavier_uniform_(weight)
    if bias is not None:
        nn.init.zeros_(bias)


def one_operation(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """The `forward` of a layer that `torch.fx` takes whole.

    Trap: it does so with PyTorch's own layers only, and follows all others to where they ask for a size.
    """

    @wraps(forward)
    def forward_or_node(layer: nn.Module, X: Tensor) -> Tensor:
        if isinstance(X, fx.Proxy) and X.tracer.root is not layer:
            return X.tracer.create_proxy("call_module", X.tracer.path_of_module(layer), (X,), {})
        return forward(layer, X)

    return forward_or_node


def pad_same(
    X: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    mode: str = "constant",
    value: float = 0.0,
) -> Tensor:
    """Trap: TensorFlow and Flax pad "same" with as little as makes ⌈H / stride⌉ rows, the odd one below.

    PyTorch pads both sides alike, and knows "same" at stride 1 only.
    """
    pads: list[int] = []
    for axis in (1, 0):  # the last axis comes first
        pixels, step = X.shape[axis - 2], stride[axis]
        reach = (kernel_size[axis] - 1) * dilation[axis] + 1
        total = max((-(-pixels // step) - 1) * step + reach - pixels, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(X, pads, mode, value)


class Conv2d(nn.Conv2d):
    """Convolution over (N, C, H, W), with the arguments of PyTorch's.

    `padding` is "symmetric", kernel_size // 2 zeros on every side; "same"; or a number of zeros, or a pair.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        *args: Any,
        **options: Any,
    ) -> None:
        check_padding(padding, zeros=True)
        same = padding == "same" and _pair(stride) != (1, 1)
        if padding == "symmetric":
            height, width = _pair(kernel_size)
            padding = height // 2, width // 2
        elif same:
            padding = 0
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, *args, **options)
        self.same = same

    def reset_parameters(self) -> None:
        glorot_(self.weight, self.bias)

    @one_operation
    def forward(self, X: Tensor) -> Tensor:
        if self.same:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            X = pad_same(X, self.kernel_size, self.stride, self.dilation, mode)  # type: ignore[arg-type]
        return self._conv_forward(X, self.weight, self.bias)  # TorchScript has no `super()`

    def extra_repr(self) -> str:
        return super().extra_repr() + (", padding=same" if self.same else "")


class LazyConv2d(nn.LazyConv2d, Conv2d):
    """The same; the input channels are inferred from the first batch."""

    cls_to_become = Conv2d  # type: ignore[assignment]

    def __init__(
        self,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        *args: Any,
        **options: Any,
    ) -> None:
        # PyTorch's hands the padding on to ours, whatever type it says it takes.
        super().__init__(out_channels, kernel_size, stride, padding, *args, **options)  # type: ignore[arg-type]


class Linear(nn.Linear):
    """Dense layer."""

    forward = one_operation(nn.Linear.forward)  # type: ignore[assignment]

    def reset_parameters(self) -> None:
        glorot_(self.weight, self.bias)


class LazyLinear(nn.LazyLinear, Linear):
    """The same; the input features are inferred from the first batch."""

    cls_to_become = Linear


class MeanOverWorkers(torch.autograd.Function):
    """The mean of a tensor over the workers, and in the backward pass of its gradient.

    `parts` says how many shares as large as this worker's make up the whole.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, parts: Tensor) -> Tensor:
        ctx.parts = parts
        mean = X / parts
        distributed.all_reduce(mean)
        return mean

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        workers = distributed.get_world_size()
        mean = gradient / workers
        distributed.all_reduce(mean)
        return mean * (workers / ctx.parts), None


def normalise_over_workers(X: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(N, C, H, W) at mean 0 and variance 1 in every channel over all workers, and the moments before.

    Trap: under `DistributedDataParallel` each worker normalises its share of the batch by itself, and is
    another network. PyTorch's `SyncBatchNorm` refuses the CPU.
    """
    pixels = X.numel() // X.size(1)
    total = torch.full((), pixels, dtype=torch.float64, device=X.device)
    distributed.all_reduce(total)

    def mean_over_all(X: Tensor) -> Tensor:
        own = X.mean((0, 2, 3)) if pixels else X.sum((0, 2, 3))  # of nothing the mean is not a number
        return MeanOverWorkers.apply(own, total / pixels)

    mean = mean_over_all(X)
    centred = X - mean[:, None, None]
    var = mean_over_all(centred.square())
    return centred * (var + eps).rsqrt()[:, None, None], mean, var


def has_several_workers() -> bool:
    """Whether this process is one of several of a process group."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the channels of (N, C, H, W), of all workers where there are several."""

    @one_operation
    def forward(self, X: Tensor) -> Tensor:
        self._check_input_dim(X)
        mean, var, count = self.running_mean, self.running_var, self.num_batches_tracked
        if self.training and not self.track_running_stats:
            mean, var, count = None, None, None
        new = 0.0 if self.momentum is None else self.momentum  # the batch's share
        if self.training and count is not None:
            count.add_(1)
            new = 1 / float(count) if self.momentum is None else self.momentum
        if torch.jit.is_scripting():
            pass  # TorchScript knows no workers
        elif self.training and has_several_workers():
            return self.over_workers(X, mean, var, new)
        if not self.training or X.numel() == 0 or mean is None or var is None:
            by_batch = self.training or (mean is None and var is None)
            return F.batch_norm(X, mean, var, self.weight, self.bias, by_batch, new, self.eps)
        # Trap: PyTorch's running variance takes n/(n - 1) times the batch variance the output uses.
        unbiased: Tensor | None = torch.zeros_like(var)
        moved: Tensor | None = mean
        n = X.numel() // X.size(1)
        if n == 1 and torch.compiler.is_compiling():  # the compiler would divide by n - 1
            mean.lerp_(X.detach().mean((0, 2, 3)).to(mean.dtype), new)
            moved, unbiased = None, None
        # The functional form, because the layer refuses one value a channel; the others take it.
        Y = torch.batch_norm(
            X, self.weight, self.bias, moved, unbiased, True, new, self.eps, torch.backends.cudnn.enabled
        )
        var.mul_(1 - new)
        if n > 1 and unbiased is not None:  # of one value the biased variance is 0, the other is none
            var.add_(unbiased, alpha=(n - 1) / n)
        return Y

    def over_workers(self, X: Tensor, mean: Tensor | None, var: Tensor | None, new: float) -> Tensor:
        """As `forward` in training, with the moments of all workers' batch."""
        # bfloat16 is too coarse for moments
        Y, batch_mean, batch_var = normalise_over_workers(
            X.to(torch.promote_types(X.dtype, torch.float32)), self.eps
        )
        with torch.no_grad():
            if mean is not None:
                mean.lerp_(batch_mean.to(mean.dtype), new)
            if var is not None:
                var.lerp_(batch_var.to(var.dtype), new)
        if self.weight is not None:
            Y = Y * self.weight[:, None, None]
        if self.bias is not None:
            Y = Y + self.bias[:, None, None]
        return Y.to(X.dtype)


class LazyBatchNorm2d(nn.LazyBatchNorm2d, BatchNorm2d):
    """The same; the channels are inferred from the first batch."""

    cls_to_become = BatchNorm2d


def momentum(decay: float) -> float:
    """Trap: what the others keep of the old value is 1 less what PyTorch takes of the new."""
    return round(1 - decay, 15)  # 0.1, and not 0.09999999999999998


class MaxPool2d(nn.MaxPool2d):
    """3×3 max-pool at stride 2 over (N, C, H, W); `padding`, of −∞, is "symmetric" or "same"."""

    def __init__(self, padding: str = "symmetric") -> None:
        check_padding(padding)
        super().__init__(kernel_size=3, stride=2, padding=0 if padding == "same" else 1)
        self.same = padding == "same"

    @one_operation
    def forward(self, X: Tensor) -> Tensor:
        if self.same:
            X = pad_same(X, (3, 3), (2, 2), value=-math.inf)
        return F.max_pool2d(X, self.kernel_size, self.stride, self.padding)


def relu(X: Tensor) -> Tensor:
    """ReLU in place: nobody else needs what a layer put out, and new memory costs time."""
    return F.relu(X, inplace=True)


PYTORCHS: dict[type, type] = {Conv2d: nn.Conv2d, Linear: nn.Linear, BatchNorm2d: nn.BatchNorm2d}


def fuse(fuse_pytorchs: Callable[..., nn.Module], is_qat: bool, *layers: nn.Module) -> nn.Module:
    """Fuse ours as what they are to PyTorch: they differ from its own layers in training alone."""
    for layer in layers:
        if isinstance(layer, Conv2d) and layer.same:
            raise BadInput(
                'PyTorch has no convolution padded "same" at a stride to fuse this one into; leave it out'
            )
        layer.__class__ = PYTORCHS.get(type(layer), type(layer))
    return fuse_pytorchs(is_qat, *layers)


def let_fuse() -> None:
    """Trap: `torch.ao.quantization.fuse_modules` knows layers by their very type, not by its parents."""
    ours = {pytorchs: own for own, pytorchs in PYTORCHS.items()}
    fusers: dict[tuple, Any] = getattr(fuser_method_mappings, "_DEFAULT_OP_LIST_TO_FUSER_METHOD", {})
    for types, fuse_pytorchs in list(fusers.items()):
        for mixed in product(*[(kind, ours.get(kind, kind)) for kind in types]):
            fusers.setdefault(mixed, partial(fuse, fuse_pytorchs))


let_fuse()


def use_full_float32(full: bool = True) -> None:
    """Trap: on a GPU, PyTorch rounds float32 convolutions to TF32, ten bits of mantissa, by default.

    With `full` false it may, matrix products too.
    """
    torch.backends.cudnn.allow_tf32 = not full
    torch.backends.cuda.matmul.allow_tf32 = not full

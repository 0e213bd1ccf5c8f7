"""Where PyTorch is told to agree with the other three. Every trap is named, with its reason.

What holds for the whole process is set only by who owns it. Under the contract, float32 on a GPU is full
float32; to have that with the classes themselves, write this first:

    from resnet_torch.layers import use_full_float32

    use_full_float32()
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


def glorot_(weight: Tensor, bias: Tensor | None) -> None:
    """Trap: PyTorch draws weights from He uniform and their biases at random.

    The others start from Glorot uniform (Glorot and Bengio 2010, equation 16) and biases of 0.
    """
    nn.init.xavier_uniform_(weight)
    if bias is not None:
        nn.init.zeros_(bias)


def pad_same(X: Tensor, kernel_size: tuple[int, ...], stride: tuple[int, ...], value: float = 0.0) -> Tensor:
    """Trap: TensorFlow and Flax pad "same" with as little as makes ⌈H / stride⌉ rows, the odd one below.

    PyTorch pads both sides alike, and knows "same" at stride 1 only.
    """
    pads: list[int] = []
    for pixels, size, step in zip(X.shape[2:], kernel_size, stride, strict=True):
        total = max((-(-pixels // step) - 1) * step + size - pixels, 0)
        pads = [total // 2, total - total // 2, *pads]  # the last axis comes first
    return F.pad(X, pads, value=value)


class Conv2d(nn.Conv2d):
    """Convolution over (N, C, H, W).

    `padding` is "symmetric", kernel_size // 2 zeros on every side; "same"; or a number of zeros.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | str = 0,
        *args: Any,
        **options: Any,
    ) -> None:
        same = padding == "same" and stride > 1
        if padding == "symmetric":
            padding = kernel_size // 2
        elif same:
            padding = 0
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, *args, **options)
        self.same = same

    def reset_parameters(self) -> None:
        glorot_(self.weight, self.bias)

    def forward(self, X: Tensor) -> Tensor:
        return super().forward(pad_same(X, self.kernel_size, self.stride) if self.same else X)


class LazyConv2d(nn.LazyConv2d, Conv2d):
    """The same; the input channels are inferred from the first batch."""

    cls_to_become = Conv2d  # type: ignore[assignment]

    def __init__(
        self, out_channels: int, kernel_size: int, stride: int = 1, padding: int | str = 0, **options: Any
    ) -> None:
        # PyTorch's hands the padding on to ours, whatever type it says it takes.
        super().__init__(out_channels, kernel_size, stride, padding, **options)  # type: ignore[arg-type]


class Linear(nn.Linear):
    """Dense layer."""

    def reset_parameters(self) -> None:
        glorot_(self.weight, self.bias)


class LazyLinear(nn.LazyLinear, Linear):
    """The same; the input features are inferred from the first batch."""

    cls_to_become = Linear


class MeanOverWorkers(torch.autograd.Function):
    """The mean of a tensor over the workers, and in the backward pass of its gradient."""

    @staticmethod
    def forward(ctx: Any, X: Tensor) -> Tensor:
        mean = X / distributed.get_world_size()
        distributed.all_reduce(mean)
        return mean

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return MeanOverWorkers.forward(ctx, gradient)


def normalise_over_workers(X: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(N, C, H, W) at mean 0 and variance 1 in every channel over all workers, and the moments before.

    Trap: under `DistributedDataParallel` each worker normalises its share of the batch by itself, and is
    another network. PyTorch's `SyncBatchNorm` refuses the CPU.
    """
    mean = MeanOverWorkers.apply(X.mean((0, 2, 3)))
    centred = X - mean[:, None, None]
    var = MeanOverWorkers.apply(centred.square().mean((0, 2, 3)))
    return centred * (var + eps).rsqrt()[:, None, None], mean, var


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the channels of (N, C, H, W), of all workers where there are several."""

    def forward(self, X: Tensor) -> Tensor:
        mean, var, count = self.running_mean, self.running_var, self.num_batches_tracked
        if not (self.training and self.track_running_stats) or mean is None or var is None or count is None:
            return super().forward(X)
        self._check_input_dim(X)
        count.add_(1)
        new = 1 / float(count) if self.momentum is None else self.momentum  # the batch's share
        if distributed.is_initialized():
            # bfloat16 is too coarse for moments
            Y, batch_mean, batch_var = normalise_over_workers(X.to(mean.dtype), self.eps)
            with torch.no_grad():
                mean.lerp_(batch_mean, new)
                var.lerp_(batch_var, new)
            if self.affine:
                Y = Y * self.weight[:, None, None] + self.bias[:, None, None]
            return Y.to(X.dtype)
        # Trap: PyTorch's running variance takes n/(n - 1) times the batch variance the output uses.
        unbiased = torch.zeros_like(var)
        # The functional form, because the layer refuses one value a channel; the others take it.
        Y = torch.batch_norm(
            X, self.weight, self.bias, mean, unbiased, True, new, self.eps, torch.backends.cudnn.enabled
        )
        n = X.numel() // X.size(1)
        var.mul_(1 - new)
        if n > 1:  # of one value the biased variance is 0, the other is none
            var.add_(unbiased, alpha=(n - 1) / n)
        return Y


class LazyBatchNorm2d(nn.LazyBatchNorm2d, BatchNorm2d):
    """The same; the channels are inferred from the first batch."""

    cls_to_become = BatchNorm2d


def momentum(decay: float) -> float:
    """Trap: what the others keep of the old value is 1 less what PyTorch takes of the new."""
    return round(1 - decay, 15)  # 0.1, and not 0.09999999999999998


class MaxPool2d(nn.MaxPool2d):
    """3×3 max-pool at stride 2 over (N, C, H, W); `padding`, of −∞, is "symmetric" or "same"."""

    def __init__(self, padding: str = "symmetric") -> None:
        super().__init__(kernel_size=3, stride=2, padding=0 if padding == "same" else 1)
        self.same = padding == "same"

    def forward(self, X: Tensor) -> Tensor:
        return super().forward(pad_same(X, (3, 3), (2, 2), -math.inf) if self.same else X)


relu = partial(F.relu, inplace=True)  # nobody else needs what a layer put out; new memory costs time


def use_full_float32(full: bool = True) -> None:
    """Trap: on a GPU, PyTorch rounds float32 convolutions to TF32, ten bits of mantissa, by default.

    With `full` false it may, matrix products too.
    """
    torch.backends.cudnn.allow_tf32 = not full
    torch.backends.cuda.matmul.allow_tf32 = not full

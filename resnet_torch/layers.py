"""Where PyTorch is told to agree with the other three. Every trap is named, with its reason.

What holds for the whole process is set only by who owns it. Under the contract, float32 on a GPU is full
float32; to have that with the classes themselves, write this first:

    from resnet_torch.layers import use_full_float32

    use_full_float32()
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def glorot_(weight: Tensor, bias: Tensor | None) -> None:
    """Trap: PyTorch draws weights from He uniform and their biases at random.

    The others start from Glorot uniform (Glorot and Bengio 2010, equation 16) and biases of 0.
    """
    nn.init.xavier_uniform_(weight)
    if bias is not None:
        nn.init.zeros_(bias)


class Conv2d(nn.Conv2d):
    """Convolution over (N, C, H, W)."""

    def reset_parameters(self) -> None:
        glorot_(self.weight, self.bias)


class LazyConv2d(nn.LazyConv2d, Conv2d):
    """The same; the input channels are inferred from the first batch."""

    cls_to_become = Conv2d


class Linear(nn.Linear):
    """Dense layer."""

    def reset_parameters(self) -> None:
        glorot_(self.weight, self.bias)


class LazyLinear(nn.LazyLinear, Linear):
    """The same; the input features are inferred from the first batch."""

    cls_to_become = Linear


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the channels of (N, C, H, W).

    Epsilon is 1e-5. The running statistics keep 0.9 of the old value, which PyTorch writes as momentum 0.1.
    """

    def forward(self, X: Tensor) -> Tensor:
        mean, var, count = self.running_mean, self.running_var, self.num_batches_tracked
        if not (self.training and self.track_running_stats) or mean is None or var is None or count is None:
            return super().forward(X)
        self._check_input_dim(X)
        count.add_(1)
        new = 1 / float(count) if self.momentum is None else self.momentum  # the batch's share
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


relu = partial(F.relu, inplace=True)  # nobody else needs what a layer put out; new memory costs time


def use_full_float32() -> None:
    """Trap: on a GPU, PyTorch rounds float32 convolutions to TF32, ten bits of mantissa, by default."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False

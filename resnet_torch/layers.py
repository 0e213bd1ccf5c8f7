"""Where PyTorch is told to agree with the other three. Every trap is named, with its reason."""

import torch
from torch import Tensor, nn


class Glorot(nn.Module):
    """Trap: PyTorch draws convolutions from He uniform and their biases at random.

    The others start from Glorot uniform (Glorot and Bengio 2010, equation 16) and biases of 0.
    """

    def reset_parameters(self) -> None:
        if not self.has_uninitialized_params() and self.weight.numel():
            nn.init.xavier_uniform_(self.weight)
            nn.init.zeros_(self.bias)


class LazyConv2d(Glorot, nn.LazyConv2d):
    """Convolution; the input channels are inferred from the first batch."""


class LazyLinear(Glorot, nn.LazyLinear):
    """Dense layer; the input features are inferred from the first batch."""


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the channels of (N, C, H, W).

    Epsilon is 1e-5. The running statistics keep 0.9 of the old value, which PyTorch writes as momentum 0.1.
    """

    def forward(self, X: Tensor) -> Tensor:
        if not self.training:
            return super().forward(X)
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        # The functional form, because the layer refuses one value a channel; the others take it.
        Y = torch.batch_norm(
            X, self.weight, self.bias, mean, var, True, 1.0, self.eps, torch.backends.cudnn.enabled
        )
        # Trap: PyTorch's running variance takes n/(n - 1) times the batch variance the output uses.
        n = X.numel() // X.size(1)
        var = var * (n - 1) / n if n > 1 else torch.zeros_like(var)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        return Y


class LazyBatchNorm2d(nn.LazyBatchNorm2d):
    """The same; the channels are inferred from the first batch."""

    cls_to_become = BatchNorm2d
    forward = BatchNorm2d.forward  # the first batch still runs in this class


def use_full_float32() -> None:
    """Trap: on a GPU, PyTorch rounds float32 convolutions to TF32, ten bits of mantissa, by default."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False

"""Loss, training step and trainer, as PyTorch users write them."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import common.training
from common.summary import layer_line


class Classifier(nn.Module):
    """A network `net` with learning rate `lr`, trained by softmax cross-entropy and SGD."""

    net: nn.Sequential
    lr: float

    def forward(self, X: Tensor) -> Tensor:
        return self.net(X)

    def activations(self, X: Tensor) -> dict[str, Tensor]:
        """Outputs of b1, b2, …, last."""
        outputs = {}
        for name, layer in self.net.named_children():
            outputs[name] = X = layer(X)
        return outputs

    def loss(self, Y_hat: Tensor, Y: Tensor) -> Tensor:
        """Mean softmax cross-entropy of logits (N, classes) and labels (N,)."""
        return F.cross_entropy(Y_hat, Y)

    def configure_optimizers(self, momentum: float = 0.0, weight_decay: float = 0.0) -> torch.optim.SGD:
        """SGD at the network's learning rate."""
        return torch.optim.SGD(self.parameters(), self.lr, momentum, weight_decay=weight_decay)

    @torch.no_grad()
    def layer_summary(self, X_shape: tuple[int, int, int, int]) -> None:
        """Print the output shape of each stage for images of shape (N, C, H, W)."""
        weight = next(self.parameters())
        modes = [(module, module.training) for module in self.modules()]  # some layers may be frozen
        self.eval()
        try:
            outputs = self.activations(torch.zeros(X_shape, device=weight.device, dtype=weight.dtype))
        finally:
            for module, training in modes:
                module.training = training
        for name in outputs:
            print(layer_line(name, outputs[name].shape))


def autocast(X: Tensor, bfloat16: bool) -> AbstractContextManager:
    """Where asked, products in bfloat16; else nothing, so that the caller's own autocast stays."""
    return torch.autocast(X.device.type, torch.bfloat16) if bfloat16 else nullcontext()


def loss_and_gradients(
    model: Classifier, X: Tensor, Y: Tensor, bfloat16: bool = False
) -> tuple[Tensor, Tensor]:
    """Loss and logits with batch statistics; the gradients are left in each parameter's `.grad`.

    With `bfloat16`, products are computed in it; weights, statistics, logits and loss stay as they are.
    """
    model.train()
    model.zero_grad()
    with autocast(X, bfloat16):
        Y_hat = model(X)
    Y_hat = Y_hat.to(X.dtype)
    loss = model.loss(Y_hat, Y)
    loss.backward()
    return loss.detach(), Y_hat.detach()


def train_step(
    model: Classifier, optimizer: torch.optim.SGD, X: Tensor, Y: Tensor, bfloat16: bool = False
) -> tuple[Tensor, Tensor]:
    """One step of the optimizer, in place; returns the loss and logits before it."""
    loss, Y_hat = loss_and_gradients(model, X, Y, bfloat16)
    optimizer.step()
    return loss, Y_hat


def count_correct(Y_hat: Tensor, Y: Tensor) -> Tensor:
    """How many of the largest logits (N, classes) are at the labels (N,), on their device."""
    return (Y_hat.argmax(1) == Y).sum()


class Trainer(common.training.Trainer):
    """Trains a network with `train_step`; the loop around it is the same for all four packages."""

    backend = "torch"

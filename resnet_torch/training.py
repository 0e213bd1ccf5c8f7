"""Loss, training step and trainer, as PyTorch users write them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

import common.training
from common.recipe import PLAIN, Recipe, with_smoothing
from common.summary import layer_line


class Classifier(nn.Module):
    """A network `net` with learning rate `lr`, trained by softmax cross-entropy and SGD."""

    if TYPE_CHECKING:  # TorchScript would take the class itself for the type of an attribute
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

    def loss(self, Y_hat: Tensor, Y: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean softmax cross-entropy of logits (N, classes) and labels (N,)."""
        return F.cross_entropy(Y_hat, Y, label_smoothing=label_smoothing)

    def configure_optimizers(self, recipe: Recipe = PLAIN) -> torch.optim.SGD:
        """SGD at the network's learning rate; each group keeps its share."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            is_last = name.startswith("net.last.")
            share = 1.0 if is_last else recipe.lr_backbone
            decay = 0.0 if recipe.no_decay_norm and parameter.ndim == 1 else recipe.weight_decay
            if is_last or not recipe.freeze:
                groups.setdefault((share, decay), []).append(parameter)
        return torch.optim.SGD(
            [
                {"params": parameters, "lr": self.lr * share, "lr_share": share, "weight_decay": decay}
                for (share, decay), parameters in groups.items()
            ],
            self.lr,
            recipe.momentum,
        )

    @torch.no_grad()
    def layer_summary(self, X_shape: tuple[int, int, int, int]) -> None:
        """Print the output shape of each stage for images of shape (N, C, H, W)."""
        weight = next(self.parameters())
        with modes_kept(self):
            self.eval()
            outputs = self.activations(torch.zeros(X_shape, device=weight.device, dtype=weight.dtype))
        for name in outputs:
            print(layer_line(name, outputs[name].shape))


def autocast(X: Tensor, bfloat16: bool) -> AbstractContextManager:
    """Where asked, products in bfloat16; else nothing, so that the caller's own autocast stays."""
    return torch.autocast(X.device.type, torch.bfloat16) if bfloat16 else nullcontext()


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards each layer trains or evaluates as it did before; some may be frozen."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            vars(module)["training"] = training  # past PyTorch's own way, which takes long


@contextmanager
def gradients_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards each parameter has the gradient it had before."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def frozen_backbone(model: Classifier) -> Iterator[None]:
    """All but `last` in evaluation and without gradients; afterwards what had gradients has them again."""
    layers = [layer for name, layer in model.net.named_children() if name != "last"]
    trained = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    for layer in layers:
        layer.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def loss_and_gradients(
    model: Classifier,
    X: Tensor,
    Y: Tensor,
    label_smoothing: float = 0.0,
    freeze: str = "",
    bfloat16: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss and logits with batch statistics; the gradients are left in each parameter's `.grad`.

    With `bfloat16`, products are computed in it; weights, statistics, logits and loss stay as they are.
    """
    model.train()
    model.zero_grad()
    with frozen_backbone(model) if freeze else nullcontext():
        with autocast(X, bfloat16):
            Y_hat = model(X)
        Y_hat = Y_hat.to(X.dtype)
        loss = with_smoothing(model.loss, label_smoothing)(Y_hat, Y)
        loss.backward()
    return loss.detach(), Y_hat.detach()


def train_step(
    model: Classifier,
    optimizer: torch.optim.SGD,
    X: Tensor,
    Y: Tensor,
    recipe: Recipe = PLAIN,
    bfloat16: bool = False,
) -> tuple[Tensor, Tensor]:
    """One step of the optimizer, in place; returns the loss and logits before it."""
    loss, Y_hat = loss_and_gradients(model, X, Y, recipe.label_smoothing, recipe.freeze, bfloat16)
    optimizer.step()
    return loss, Y_hat


def update_average(average: list[Tensor], weights: list[Tensor], ema: float) -> None:
    """average = ema · average + (1 − ema) · weights, in place."""
    get_ema_multi_avg_fn(ema)(average, weights, 0)


def count_correct(Y_hat: Tensor, Y: Tensor) -> Tensor:
    """How many of the largest logits (N, classes) are at the labels (N,), on their device."""
    return (Y_hat.argmax(1) == Y).sum()


class Trainer(common.training.Trainer):
    """Trains a network with `train_step`; the loop around it is the same for all four packages."""

    backend = "torch"

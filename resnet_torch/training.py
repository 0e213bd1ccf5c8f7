"""Loss, training step and trainer, as PyTorch users write them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import common.training
from common.summary import layer_line


class Classifier(nn.Module):
    """A network `net` with learning rate `lr`, trained by softmax cross-entropy and SGD."""

    net: nn.Sequential
    lr: float
    bfloat16 = False  # compute products in bfloat16; weights, statistics and logits stay as they are

    def forward(self, X: Tensor) -> Tensor:
        with torch.autocast(X.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.net(X).to(X.dtype)

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
        training = self.training
        outputs = self.eval().activations(torch.zeros(X_shape))
        for name in outputs:
            print(layer_line(name, outputs[name].shape))
        self.train(training)


def loss_and_gradients(model: Classifier, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and logits with batch statistics; the gradients are left in each parameter's `.grad`."""
    model.train()
    model.zero_grad()
    Y_hat = model(X)
    loss = model.loss(Y_hat, Y)
    loss.backward()
    return loss.detach(), Y_hat.detach()


def train_step(model: Classifier, optimizer: torch.optim.SGD, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the optimizer, in place; returns the loss and logits before it."""
    loss, Y_hat = loss_and_gradients(model, X, Y)
    optimizer.step()
    return loss, Y_hat


class Trainer(common.training.Trainer):
    """Trains a network with `train_step`; the loop around it is the same for all four packages."""

    backend = "torch"

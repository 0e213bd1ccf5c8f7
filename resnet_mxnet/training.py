"""Loss, training step and trainer, as Gluon users write them."""

from contextlib import nullcontext
from types import ModuleType
from typing import Any

from mxnet import autograd, gluon, np, npx
from mxnet.gluon import nn
from mxnet.symbol.numpy import _Symbol as Symbol

import common.training
from common.errors import BadInput
from common.recipe import PLAIN, Recipe, with_smoothing
from common.summary import layer_line
from resnet_mxnet.layers import SGD, TrainerOverWorkers, exact_decay

cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()
soft_cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)


class Classifier(nn.HybridBlock):
    """A network `net` with learning rate `lr`, trained by softmax cross-entropy and SGD."""

    net: nn.HybridSequential
    lr: float

    def forward(self, X: np.ndarray) -> np.ndarray:
        if not (npx.is_np_array() and isinstance(X, (np.ndarray, Symbol))):
            raise BadInput(
                f"images must be mx.np arrays, with mxnet.npx.set_np() called in this thread, not {type(X)}; "
                "mx.np.array makes them"
            )
        return super().forward(X)

    def hybrid_forward(self, F: ModuleType, X: np.ndarray) -> np.ndarray:
        return self.net(X)

    def load_parameters(self, filename: str, ctx: Any = None, *arguments: Any, **options: Any) -> None:
        """Gluon's; what waits for the first images moves to `ctx`."""
        for parameter in self.collect_params().values():
            if ctx is not None and parameter._deferred_init:
                parameter.reset_ctx(ctx)
        super().load_parameters(filename, ctx, *arguments, **options)

    def summary(self, *inputs: np.ndarray) -> None:
        """Gluon's, which refuses a hybridised network."""
        blocks: list[nn.HybridBlock] = []
        self.apply(blocks.append)
        hybridised = [block for block in blocks if block._active]
        for block in hybridised:
            block._active = False
        try:
            super().summary(*inputs)
        finally:
            for block in hybridised:
                block._active = True

    def activations(self, X: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs of b1, b2, …, last, with running statistics."""
        outputs = {}
        for name, layer in self.net._children.items():
            outputs[name] = X = layer(X)
        return outputs

    def loss(self, Y_hat: np.ndarray, Y: np.ndarray, label_smoothing: float = 0.0) -> np.ndarray:
        """Mean softmax cross-entropy of logits (N, classes) and labels (N,)."""
        if not label_smoothing:
            return cross_entropy(Y_hat, Y).mean()
        classes = Y_hat.shape[1]
        targets = npx.one_hot(Y, classes, dtype=Y_hat.dtype) * (1 - label_smoothing)
        return soft_cross_entropy(Y_hat, targets + label_smoothing / classes).mean()

    def configure_optimizers(self, recipe: Recipe = PLAIN) -> gluon.Trainer:
        """SGD at the network's learning rate; on several contexts gradients add up, as Gluon's do."""
        last = self.net.last.collect_params()
        # In the network's order, so that the trainer of another one loads what this one saves.
        parameters = list((last if recipe.freeze else self.collect_params()).values())
        optimizer = SGD(learning_rate=self.lr, momentum=recipe.momentum, wd=recipe.weight_decay)
        shares = {i: recipe.lr_backbone for i, p in enumerate(parameters) if p.name not in last}
        optimizer.set_lr_mult(shares)
        if recipe.no_decay_norm:
            optimizer.set_wd_mult({i: 0.0 for i, p in enumerate(parameters) if len(p.shape) == 1})
        return TrainerOverWorkers(parameters, optimizer)

    def layer_summary(self, X_shape: tuple[int, int, int, int]) -> None:
        """Print the output shape of each stage for images of shape (N, C, H, W)."""
        weight = next(iter(self.collect_params().values()))
        X = np.zeros(X_shape, dtype=weight.dtype, ctx=weight.list_ctx()[0])
        with autograd.pause():
            outputs = self.activations(X)
        for name in outputs:
            print(layer_line(name, outputs[name].shape))


def loss_and_gradients(
    model: Classifier, X: np.ndarray, Y: np.ndarray, label_smoothing: float = 0.0, freeze: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Loss and logits with batch statistics; the gradients are left in each parameter's `.grad()`.

    With `freeze`, batch norm evaluates, and what is before `last` is not recorded.
    """
    for parameter in model.collect_params().values():
        if parameter.grad_req == "add":
            for gradient in parameter._grad or ():
                gradient[:] = 0
    with nullcontext() if freeze else exact_decay(model):
        *backbone, last = model.net._children.values() if freeze else [model]
        for layer in backbone:
            X = layer(X)
        with autograd.record():
            Y_hat = last(X)
            loss = with_smoothing(model.loss, label_smoothing)(Y_hat, Y)
        loss.backward()
    return loss, Y_hat


def train_step(
    model: Classifier,
    trainer: gluon.Trainer,
    X: np.ndarray,
    Y: np.ndarray,
    recipe: Recipe = PLAIN,
) -> tuple[np.ndarray, np.ndarray]:
    """One step of the optimizer, in place; returns the loss and logits before it."""
    loss, Y_hat = loss_and_gradients(model, X, Y, recipe.label_smoothing, recipe.freeze)
    trainer.step(1)  # the loss is a mean already
    return loss, Y_hat


def update_average(average: list[np.ndarray], weights: list[np.ndarray], share: float) -> None:
    """The average keeps 1 − `share` of what it was, in place."""
    for old, new in zip(average, weights, strict=True):
        old += share * (new - old)


def count_correct(Y_hat: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """How many of the largest logits (N, classes) are at the labels (N,), on their device."""
    return (Y_hat.argmax(1).astype(Y.dtype) == Y).sum()


class Trainer(common.training.Trainer):
    """Trains a network with `train_step`; the loop around it is the same for all four packages."""

    backend = "mxnet"

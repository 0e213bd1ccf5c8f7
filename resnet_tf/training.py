"""Loss, training step and trainer, as TensorFlow users write them."""

import json
from functools import partial
from typing import Any, Self

import keras
import tensorflow as tf
from keras import ops
from tensorflow import Tensor

import common.training
from common.architecture import Architecture
from common.recipe import PLAIN, Recipe, with_smoothing
from common.summary import layer_line
from resnet_tf.layers import SGD, Model, precision, told


class Classifier(Model):
    """A network `net` with learning rate `lr`, trained by softmax cross-entropy and SGD."""

    arch: Architecture
    net: keras.Sequential
    lr: float

    _state = (*Model._state, "lr")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.loss  # None until `compile`, and hides the method below
        # Trap: in `fit`, Keras evaluates what has the chapter's `call(self, X)`.
        self._call_has_training_arg = True

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        architectures = {n: a for n, a in config.items() if isinstance(a, Architecture)}
        return config | {name: json.loads(arch.to_json()) for name, arch in architectures.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        architectures = {n: a for n, a in config.items() if isinstance(a, dict) and "stages" in a}
        return super().from_config(config | {n: Architecture(**a) for n, a in architectures.items()})

    def call(self, X: Tensor, training: bool | None = None) -> Tensor:
        Y_hat = self.net(X, **told(training))
        return ops.cast(Y_hat, self.variable_dtype)  # logits in bfloat16 are coarse

    def activations(self, X: Tensor) -> dict[str, Tensor]:
        """Outputs of b1, b2, …, last, with running statistics."""
        outputs = {}
        for layer in self.net.layers:
            outputs[layer.name] = X = layer(X, training=False)
        return outputs

    def loss(self, Y_hat: Tensor, Y: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean softmax cross-entropy of logits (N, classes) and labels (N,)."""
        if not label_smoothing:
            return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(Y, Y_hat, from_logits=True))
        targets = tf.one_hot(Y, Y_hat.shape[1], dtype=Y_hat.dtype)
        losses = keras.losses.categorical_crossentropy(
            targets, Y_hat, from_logits=True, label_smoothing=label_smoothing
        )
        return tf.reduce_mean(losses)

    def configure_optimizers(self, recipe: Recipe = PLAIN) -> SGD:
        """SGD at the network's learning rate, for the variables that whoever builds it trains."""
        decay, share = recipe.weight_decay, recipe.lr_backbone
        with precision(self.dtype_policy.name):
            return SGD(float(self.lr), recipe.momentum, decay, recipe.no_decay_norm, share)

    def layer_summary(self, X_shape: tuple[int, int, int, int]) -> None:
        """Print the output shape of each stage for images of shape (N, H, W, C)."""
        X = keras.KerasTensor(X_shape, self.compute_dtype)
        self(X)  # a new network is built as a whole, and can be saved
        outputs = self.activations(X)
        for name in outputs:
            print(layer_line(name, outputs[name].shape))


def trained_variables(model: Classifier, freeze: str = "") -> list[keras.Variable]:
    """The variables that are trained: all that can be, or those of `last`."""
    return (model.net.get_layer("last") if freeze else model).trainable_variables


def loss_and_gradients(
    model: Classifier, X: Tensor, Y: Tensor, label_smoothing: float = 0.0, freeze: str = ""
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Loss, logits with batch statistics, and the gradients in the order of the trained variables.

    With `freeze`, batch norm evaluates.
    """
    variables = trained_variables(model, freeze)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([variable.value for variable in variables])
        Y_hat = model(X, training=not freeze)
        # whatever loss the user compiled `model` with
        loss = with_smoothing(partial(type(model).loss, model), label_smoothing)(Y_hat, Y)
    return loss, Y_hat, tape.gradient(loss, variables)


def apply_gradients(model: Classifier, optimizer: SGD, freeze: str, *gradients: Tensor) -> None:
    """One step of the optimizer, in place, with gradients in the order of the trained variables.

    Trap: an optimizer of Keras adds up those of several workers, where the loss is a mean.
    """
    workers = tf.distribute.get_strategy().num_replicas_in_sync
    if workers > 1:
        gradients = tuple(gradient / workers for gradient in gradients)
    scaled = [optimizer.scale_loss(gradient) for gradient in gradients]  # which `apply` undoes
    optimizer.apply(scaled, trained_variables(model, freeze))


def train_step(
    model: Classifier,
    optimizer: SGD,
    X: Tensor,
    Y: Tensor,
    recipe: Recipe = PLAIN,
) -> tuple[Tensor, Tensor]:
    """One step of the optimizer, in place; returns the loss and logits before it."""
    loss, Y_hat, gradients = loss_and_gradients(model, X, Y, recipe.label_smoothing, recipe.freeze)
    apply_gradients(model, optimizer, recipe.freeze, *gradients)
    return loss, Y_hat


def update_average(average: list[tf.Variable], weights: list[tf.Variable], share: Tensor) -> None:
    """The average keeps 1 − `share` of what it was, in place."""
    for old, new in zip(average, weights, strict=True):
        old.assign_add(share * (new - old))


def count_correct(Y_hat: Tensor, Y: Tensor) -> Tensor:
    """How many of the largest logits (N, classes) are at the labels (N,), on their device."""
    return tf.math.count_nonzero(tf.argmax(Y_hat, 1, Y.dtype) == Y)


class Trainer(common.training.Trainer):
    """Trains a network with `train_step`; the loop around it is the same for all four packages."""

    backend = "tf"

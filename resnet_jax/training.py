"""Loss, training step and trainer, as JAX users write them."""

from functools import cache, partial
from typing import Any

import jax
import optax
from flax import linen as nn
from flax.training import train_state
from jax import Array
from jax import numpy as jnp
from jax.typing import ArrayLike

import common.training
from common.summary import layer_line

Variables = dict[str, Any]  # Flax's two trees: "params" and "batch_stats"


class Classifier(nn.Module):
    """A network `net` with learning rate `lr`, trained by softmax cross-entropy and SGD."""

    def __call__(self, X: Array) -> Array:
        Y_hat = self.net(X)
        return Y_hat.astype(jnp.promote_types(Y_hat.dtype, jnp.float32))  # a loss of bfloat16 is coarse

    def activations(self, X: Array) -> dict[str, Array]:
        """Outputs of b1, b2, …, last."""
        outputs = {}
        for name in self.net.order:
            outputs[name] = X = self.net.layers[name](X)
        return outputs

    def loss(self, Y_hat: Array, Y: Array) -> Array:
        """Mean softmax cross-entropy of logits (N, classes) and labels (N,)."""
        return optax.softmax_cross_entropy_with_integer_labels(Y_hat, Y).mean()

    def configure_optimizers(
        self, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> optax.GradientTransformation:
        """SGD at the network's learning rate, which may change between steps."""
        return sgd(self.lr, momentum, weight_decay)

    def layer_summary(self, X_shape: tuple[int, int, int, int]) -> None:
        """Print the output shape of each stage for images of shape (N, H, W, C)."""
        model = self.clone(training=False)
        outputs, _ = jax.eval_shape(
            lambda X: model.init_with_output(jax.random.key(0), X, method="activations"), jnp.zeros(X_shape)
        )
        for name in outputs:
            print(layer_line(name, outputs[name].shape))


@cache  # one made anew would compile the step anew
def sgd(lr: float, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """SGD whose figures may change between steps; weight decay is added to the gradient."""

    @optax.inject_hyperparams
    def optimizer(
        learning_rate: Array, momentum: Array | None, weight_decay: Array | None
    ) -> optax.GradientTransformation:
        step = optax.sgd(learning_rate, momentum)
        return step if weight_decay is None else optax.chain(optax.add_decayed_weights(weight_decay), step)

    return optimizer(lr, momentum or None, weight_decay or None)


class TrainState(train_state.TrainState):
    """Flax's parameters and optimizer, and the running statistics."""

    batch_stats: Any

    @property
    def variables(self) -> Variables:
        return {"params": self.params, "batch_stats": self.batch_stats}


# Compiled once for all networks that are equal; a step shares its pass with whoever looks at the gradients.
@partial(jax.jit, static_argnums=0)
def loss_and_gradients(model: Classifier, variables: Variables, X: Array, Y: Array) -> tuple:
    """Loss, logits with batch statistics, gradients, and the running statistics after this pass."""

    def loss(params: Any) -> tuple[Array, tuple]:
        Y_hat, updates = model.apply({**variables, "params": params}, X, mutable=["batch_stats"])
        return model.loss(Y_hat, Y), (Y_hat, updates["batch_stats"])

    (value, (Y_hat, batch_stats)), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return value, Y_hat, gradients, batch_stats


@partial(jax.jit, donate_argnums=0)
def apply_gradients(state: TrainState, gradients: Any, batch_stats: Any, lr: ArrayLike) -> TrainState:
    """The state after one step of the optimizer at this rate; the old one's memory is given away."""
    opt_state = optax.tree_utils.tree_set(state.opt_state, learning_rate=lr)
    return state.replace(opt_state=opt_state).apply_gradients(grads=gradients, batch_stats=batch_stats)


def train_step(
    model: Classifier, state: TrainState, X: Array, Y: Array, lr: ArrayLike
) -> tuple[TrainState, Array, Array]:
    """The state after one step of the optimizer, and the loss and logits before it."""
    loss, Y_hat, gradients, batch_stats = loss_and_gradients(model, state.variables, X, Y)
    return apply_gradients(state, gradients, batch_stats, lr), loss, Y_hat


@jax.jit
def count_correct(Y_hat: Array, Y: Array) -> Array:
    """How many of the largest logits (N, classes) are at the labels (N,), on their device."""
    return (Y_hat.argmax(1) == Y).sum()


class Trainer(common.training.Trainer):
    """Trains a network with `train_step`; the loop around it is the same for all four packages.

    The network itself holds no parameters: after `fit`, `trainer.model.variables` is what its `apply` takes.
    """

    backend = "jax"

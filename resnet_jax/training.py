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
from common.recipe import PLAIN, Recipe, with_smoothing
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

    def loss(self, Y_hat: Array, Y: Array, label_smoothing: float = 0.0) -> Array:
        """Mean softmax cross-entropy of logits (N, classes) and labels (N,)."""
        if not label_smoothing:
            return optax.softmax_cross_entropy_with_integer_labels(Y_hat, Y).mean()
        targets = optax.smooth_labels(jax.nn.one_hot(Y, Y_hat.shape[1], dtype=Y_hat.dtype), label_smoothing)
        return optax.softmax_cross_entropy(Y_hat, targets).mean()

    def configure_optimizers(self, recipe: Recipe = PLAIN) -> optax.GradientTransformation:
        """SGD at the network's learning rate, which may change; for the parameters that `init` is given."""
        return sgd(self.lr, recipe)

    def layer_summary(self, X_shape: tuple[int, int, int, int]) -> None:
        """Print the output shape of each stage for images of shape (N, H, W, C)."""
        model = self.clone(training=False)
        outputs, _ = jax.eval_shape(
            lambda X: model.init_with_output(jax.random.key(0), X, method="activations"), jnp.zeros(X_shape)
        )
        for name in outputs:
            print(layer_line(name, outputs[name].shape))


@cache  # one made anew would compile the step anew
def sgd(lr: float, recipe: Recipe) -> optax.GradientTransformation:
    """SGD whose figures may change between steps; weight decay is added to the gradient."""

    @optax.inject_hyperparams
    def optimizer(
        learning_rate: Array,
        momentum: Array | None,
        weight_decay: Array | None,
        lr_backbone: Array | None,
    ) -> optax.GradientTransformation:
        steps = [optax.sgd(learning_rate, momentum)]
        if weight_decay is not None:
            decay = optax.add_decayed_weights(weight_decay, has_axes if recipe.no_decay_norm else None)
            steps = [decay, *steps]
        if lr_backbone is not None:
            steps.append(optax.masked(optax.scale(lr_backbone), is_backbone))
        return optax.chain(*steps) if len(steps) > 1 else steps[0]

    share = None if recipe.lr_backbone == 1 else recipe.lr_backbone
    return optimizer(lr, recipe.momentum or None, recipe.weight_decay or None, share)


def has_axes(params: Any) -> Any:
    """Which parameters have more than one axis: none of batch norm, and no bias."""
    return jax.tree.map(lambda parameter: parameter.ndim > 1, params)


def is_backbone(params: Any) -> Any:
    """Which parameters are not those of `last`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[1].key != "layers_last", params)


def trained_part(params: Any, freeze: str) -> Any:
    """The part of a tree of parameters that is trained: all of it, or `last`."""
    return {"net": {"layers_last": params["net"]["layers_last"]}} if freeze else params


def with_trained(params: Any, trained: Any) -> Any:
    """The tree of all parameters with this trained part."""
    return {**params, **trained, "net": {**params["net"], **trained["net"]}}


class TrainState(train_state.TrainState):
    """Flax's parameters and optimizer, and the running statistics."""

    batch_stats: Any

    @property
    def variables(self) -> Variables:
        return {"params": self.params, "batch_stats": self.batch_stats}


# Compiled once for all networks that are equal; a step shares its pass with whoever looks at the gradients.
@partial(jax.jit, static_argnums=(0, 4, 5))
def loss_and_gradients(
    model: Classifier,
    variables: Variables,
    X: Array,
    Y: Array,
    label_smoothing: float = 0.0,
    freeze: str = "",
) -> tuple:
    """Loss, logits with batch statistics, gradients, and the running statistics after this pass.

    With `freeze`, batch norm evaluates; gradients are those of `last`, and statistics there are none.
    """
    model = model.clone(training=False) if freeze else model

    def loss(trained: Any) -> tuple[Array, tuple]:
        params = with_trained(variables["params"], trained)
        mutable = [] if freeze else ["batch_stats"]
        Y_hat, updates = model.apply({**variables, "params": params}, X, mutable=mutable)
        return with_smoothing(model.loss, label_smoothing)(Y_hat, Y), (Y_hat, updates.get("batch_stats"))

    trained = trained_part(variables["params"], freeze)
    (value, (Y_hat, batch_stats)), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
    return value, Y_hat, gradients, batch_stats


@partial(jax.jit, donate_argnums=0, static_argnums=4)
def apply_gradients(
    state: TrainState, gradients: Any, batch_stats: Any, lr: ArrayLike, freeze: str = ""
) -> TrainState:
    """The state after one step of the optimizer at this rate; the old one's memory is given away."""
    opt_state = optax.tree_utils.tree_set(state.opt_state, learning_rate=lr)
    before = state.replace(opt_state=opt_state, params=trained_part(state.params, freeze))
    after = before.apply_gradients(grads=gradients, batch_stats=batch_stats or state.batch_stats)
    return after.replace(params=with_trained(state.params, after.params))


def train_step(
    model: Classifier,
    state: TrainState,
    X: Array,
    Y: Array,
    lr: ArrayLike,
    recipe: Recipe = PLAIN,
) -> tuple[TrainState, Array, Array]:
    """The state after one step of the optimizer, and the loss and logits before it."""
    loss, Y_hat, gradients, batch_stats = loss_and_gradients(
        model, state.variables, X, Y, recipe.label_smoothing, recipe.freeze
    )
    return apply_gradients(state, gradients, batch_stats, lr, recipe.freeze), loss, Y_hat


@partial(jax.jit, donate_argnums=0)
def update_average(average: Variables, variables: Variables, share: ArrayLike) -> Variables:
    """The average that keeps 1 − `share` of the old one, whose memory is given away."""
    return optax.incremental_update(variables, average, share)


@jax.jit
def count_correct(Y_hat: Array, Y: Array) -> Array:
    """How many of the largest logits (N, classes) are at the labels (N,), on their device."""
    return (Y_hat.argmax(1) == Y).sum()


class Trainer(common.training.Trainer):
    """Trains a network with `train_step`; the loop around it is the same for all four packages.

    The network itself holds no parameters: after `fit`, `trainer.model.variables` is what its `apply` takes.
    """

    backend = "jax"

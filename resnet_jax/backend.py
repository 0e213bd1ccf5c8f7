"""The contract under JAX: NumPy in, NumPy out."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import numpy as jnp
from numpy.typing import NDArray

import common.backend as contract
from common.architecture import Architecture
from common.errors import BadInput
from common.layout import from_channels_last, nchw, nhwc, to_channels_last
from common.weights import Weights, is_statistic
from resnet_jax.layers import cast
from resnet_jax.resnet import ResNet
from resnet_jax.training import loss_and_gradients, train_step


class Model(contract.Model):
    """A ResNet in JAX under the contract."""

    dtypes = ("float32", "float64", "bfloat16")

    def __init__(self, arch: Architecture, dtype: str, device: str, net: ResNet | None = None) -> None:
        super().__init__(arch, dtype, device)
        self._device = _find_device(device)
        self._net = (net or ResNet(arch)).clone(training=True)
        self._jit_predict = jax.jit(self._evaluate)
        self._jit_activations = jax.jit(partial(self._evaluate, method="activations"))
        self._jit_gradients = jax.jit(partial(loss_and_gradients, self._net))

    def _load_weights(self, weights: Weights) -> None:
        with self._precision():
            self._variables = self._tree(weights)

    def _weights(self) -> Weights:
        return self._named(self._variables)

    def _evaluate(self, variables: Any, X: jax.Array, **options: Any) -> Any:
        in_type = {**variables, "params": cast(variables["params"], X.dtype)}
        return self._net.clone(training=False).apply(in_type, X, **options)

    def _predict(self, x: NDArray) -> NDArray:
        with self._precision():
            return np.asarray(self._jit_predict(self._variables, self._images_in(x)))

    def _activations(self, x: NDArray) -> dict[str, NDArray]:
        with self._precision():
            outputs = self._jit_activations(self._variables, self._images_in(x))
        return {name: nchw(np.asarray(output)) for name, output in outputs.items()}

    def _loss_and_gradients(self, x: NDArray, y: NDArray) -> contract.Evaluation:
        with self._precision():
            loss, logits, gradients, batch_stats = self._jit_gradients(
                self._variables, self._images_in(x), self._put(y)
            )
        return contract.Evaluation(
            float(loss),
            np.asarray(logits),
            self._named({"params": gradients}),
            self._named({"batch_stats": batch_stats}),
        )

    def _new_optimizer(self, momentum: float, weight_decay: float) -> None:
        optimizer = self._net.configure_optimizers(momentum, weight_decay)
        self._jit_step = jax.jit(partial(train_step, self._net, optimizer), donate_argnums=(0, 1))
        with self._precision():
            opt_state = jax.jit(optimizer.init)(self._variables["params"])
            self._opt_state = jax.device_put(opt_state, self._device)  # or the second step compiles anew

    def _train_step(self, x: NDArray, y: NDArray, lr: float) -> tuple[float, NDArray]:
        with self._precision():
            rate = self._put(np.asarray(lr, self.dtype))
            opt_state = optax.tree_utils.tree_set(self._opt_state, learning_rate=rate)
            self._variables, self._opt_state, loss, logits = self._jit_step(
                self._variables, opt_state, self._images_in(x), self._put(y)
            )
            return float(loss), np.asarray(logits)

    def _optimizer_state(self) -> Weights:
        return self._named({"params": optax.tree_utils.tree_get(self._opt_state, "trace")})

    def _load_optimizer_state(self, state: Weights) -> None:
        with self._precision():
            trace = self._tree(state)["params"]
            self._opt_state = optax.tree_utils.tree_set(self._opt_state, trace=trace)

    def _precision(self) -> Any:
        """JAX knows float64 only where it is switched on; on here, and nowhere else."""
        return jax.enable_x64(self.dtype == "float64")

    def _images_in(self, x: NDArray) -> jax.Array:
        """(N, C, H, W) → (N, H, W, C), on the device, in the type to compute in."""
        return self._put(nhwc(x).astype(jnp.bfloat16 if self.bfloat16 else self.dtype, copy=False))

    def _put(self, array: NDArray) -> jax.Array:
        return jax.device_put(array, self._device)

    def _tree(self, arrays: Mapping[str, NDArray]) -> dict[str, Any]:
        """Arrays by canonical name as a tree of Flax variables, on the device."""
        leaves = {_path(self.arch, name): to_channels_last(array) for name, array in arrays.items()}
        return jax.device_put(unflatten_dict(leaves), self._device)

    def _named(self, tree: Mapping[str, Any]) -> Weights:
        """A tree of Flax variables by canonical name, in canonical order."""
        leaves = flatten_dict(tree)
        paths = {name: _path(self.arch, name) for name in self.arch.parameter_shapes()}
        return {
            name: from_channels_last(np.asarray(leaves[path]))
            for name, path in paths.items()
            if path in leaves
        }


def _find_device(device: str) -> jax.Device:
    try:
        return jax.devices(device)[0]
    except RuntimeError:
        raise BadInput(f"JAX sees no {device.upper()}; use device cpu, or install JAX with CUDA") from None


def _path(arch: Architecture, name: str) -> tuple[str, ...]:
    """Canonical name to Flax's: "b2.0.bn1.weight" → params / net / layers_1 / layers_0 / bn1 / scale.

    `nn.Sequential` numbers all it holds, functions too: the classifier's pool is 0, its dense layer 1.
    """
    *layer, kind = name.split(".")
    stage = f"layers_{arch.stage_names().index(layer[0])}"
    if layer[0] == "b1":
        inner = ["layers_0" if layer[1] == "conv" else "layers_1"]
    elif layer[0] == "last":
        inner = ["layers_1"]
    else:
        inner = [f"layers_{layer[1]}", layer[2]]
    is_norm = "bn" in layer[-1]
    leaf = {
        "weight": "scale" if is_norm else "kernel",
        "bias": "bias",
        "running_mean": "mean",
        "running_var": "var",
    }[kind]
    return ("batch_stats" if is_statistic(name) else "params", "net", stage, *inner, leaf)

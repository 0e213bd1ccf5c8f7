"""The contract under JAX: NumPy in, NumPy out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from numpy.typing import NDArray

import common.backend as contract
from common.architecture import Architecture
from common.errors import BadInput
from common.layout import from_channels_last, nchw, nhwc, to_channels_last
from common.processes.group import ALONE, Group
from common.recipe import PLAIN, Recipe
from common.weights import Weights, is_statistic
from resnet_jax.resnet import ResNet
from resnet_jax.training import (
    TrainState,
    Variables,
    count_correct,
    loss_and_gradients,
    train_step,
    trained_part,
    update_average,
)


class Model(contract.Model):
    """A ResNet in JAX under the contract."""

    dtypes = ("float32", "float64", "bfloat16", "tf32")

    def __init__(
        self,
        arch: Architecture,
        dtype: str,
        device: str,
        net: ResNet | None = None,
        group: Group = ALONE,
    ) -> None:
        super().__init__(arch, dtype, device, group)
        if group.workers > 1:
            self._device, self._whole, self._split = join(group, device)
        else:
            self._device = _find_device(device)
            self._whole = self._split = SingleDeviceSharding(self._device)
        self._net = (net or ResNet(arch)).clone(
            training=True,
            dtype=jnp.bfloat16 if self.bfloat16 else jnp.dtype(self.dtype),
            axis_name=None,  # one program here, whose statistics are of the whole batch by themselves
        )
        self._state: TrainState  # with the first weights
        self._average: Variables = {}

    @property
    def variables(self) -> Variables:
        """Flax's tree of "params" and "batch_stats", as `ResNet(...).apply` takes it: a copy."""
        with self._turn():
            self._need_weights()
            return jax.tree.map(jnp.copy, self._state.variables)  # a step gives its own arrays' memory away

    def _load_weights(self, weights: Weights) -> None:
        variables = self._tree(weights)
        if self._recipe:  # its optimizer may have to go on
            self._state = self._state.replace(**variables)
        else:
            self._state = self._new_state(variables, PLAIN)

    def _new_state(self, variables: Variables, recipe: Recipe) -> TrainState:
        # Compiled once for any figures that do something: what they are lies in the state.
        figures = ("momentum", "weight_decay", "lr_backbone")
        used = {
            name: np.asarray(getattr(recipe, name), self.dtype)
            for name in figures
            if getattr(recipe, name) != getattr(PLAIN, name)
        }
        optimizer = self._net.configure_optimizers(recipe.kind(*figures))
        opt_state = optimizer.init(trained_part(variables["params"], recipe.freeze))
        state = TrainState(
            step=0,
            apply_fn=None,  # type: ignore[arg-type]  # it is each network's own
            tx=optimizer,
            opt_state=optax.tree_utils.tree_set(opt_state, **used),
            **variables,
        )
        return jax.device_put(state, self._whole)  # all of it, or the second step compiles anew

    def _weights(self) -> Weights:
        return self._named(self._state.variables)

    def _predict(self, x: NDArray) -> NDArray:
        return np.asarray(_evaluate(self._net, self._own_variables(), self._images_in(x)))

    def _activations(self, x: NDArray) -> dict[str, NDArray]:
        outputs = _evaluate(self._net, self._own_variables(), self._images_in(x), method="activations")
        return {name: nchw(np.asarray(output)) for name, output in outputs.items()}

    def _loss_and_gradients(self, x: NDArray, y: NDArray) -> contract.Evaluation:
        loss, logits, gradients, batch_stats = loss_and_gradients(
            self._net, self._state.variables, self._images_in(x), self._put(y), 0.0, ""
        )
        return contract.Evaluation(
            float(loss),
            np.asarray(logits),
            self._named({"params": gradients}),
            self._named({"batch_stats": batch_stats}),
        )

    def _keep(self) -> Callable[[], bool]:
        state, average = self._state, self._average

        def undo() -> bool:
            if any(array.is_deleted() for array in jax.tree.leaves((state, average))):
                return False  # the step had got their memory
            self._state, self._average = state, average
            return True

        return undo

    def _new_optimizer(self, recipe: Recipe) -> None:
        self._state = self._new_state(self._state.variables, recipe)
        self._average = jax.tree.map(jnp.copy, self._state.variables) if recipe.ema else {}

    def _begin_step(
        self, x: NDArray, y: NDArray, lr: float, recipe: Recipe
    ) -> Callable[[], tuple[float, int]]:
        X, Y, rate = self._share(nhwc(x)), self._share(y), np.asarray(lr, self.dtype)
        self._state, loss, logits = train_step(self._net, self._state, X, Y, rate, recipe)
        if recipe.ema:
            share = np.asarray(1 - recipe.ema, self.dtype)
            self._average = update_average(self._average, self._state.variables, share)
        correct = count_correct(logits, Y)
        return lambda: (float(loss), int(correct))

    def _sum(self, values: NDArray) -> NDArray:
        with jax.enable_x64(True):
            return np.array(_total(self._share(values[None]), self._whole))

    def _optimizer_state(self) -> Weights:
        return self._named({"params": optax.tree_utils.tree_get(self._state.opt_state, "trace")})

    def _load_optimizer_state(self, state: Weights) -> None:
        velocity = self._tree(state)["params"]
        opt_state = optax.tree_utils.tree_set(self._state.opt_state, trace=velocity)
        self._state = self._state.replace(opt_state=opt_state)

    def _averaged_weights(self) -> Weights:
        return self._named(self._average)

    def _load_averaged_weights(self, weights: Weights) -> None:
        self._average = self._tree(weights)

    def _surroundings(self) -> AbstractContextManager:
        return self._precision()

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """JAX knows float64 only where it is switched on; on here, and nowhere else. So is TF32."""
        rounding = "tensorfloat32" if self.tf32 else None  # None: as the layers say
        with jax.enable_x64(self.dtype == "float64"), jax.default_matmul_precision(rounding):
            yield

    def _images_in(self, x: NDArray) -> jax.Array:
        """(N, C, H, W) → (N, H, W, C), on the device."""
        return self._put(nhwc(x))

    def _put(self, array: NDArray) -> jax.Array:
        return jax.device_put(array, self._device)

    def _share(self, array: NDArray) -> jax.Array:
        """The batch of which this worker has these rows."""
        if self.group.workers == 1:
            return self._put(array)
        return jax.make_array_from_process_local_data(self._split, array)

    def _own_variables(self) -> Variables:
        """The variables on this worker's own device, where it evaluates by itself."""
        if self.group.workers == 1:
            return self._state.variables
        return jax.tree.map(lambda array: array.addressable_data(0), self._state.variables)

    def _tree(self, arrays: Mapping[str, NDArray]) -> dict[str, Any]:
        """Arrays by canonical name as a tree of Flax variables, on the device."""
        leaves = {_path(name): to_channels_last(array) for name, array in arrays.items()}
        return jax.device_put(unflatten_dict(leaves), self._whole)

    def _named(self, tree: Mapping[str, Any]) -> Weights:
        """A tree of Flax variables by canonical name, in canonical order."""
        leaves = flatten_dict(tree)
        paths = {name: _path(name) for name in self.arch.parameter_shapes()}
        found = {name: np.asarray(leaves[path]) for name, path in paths.items() if path in leaves}
        return {name: from_channels_last(array) for name, array in found.items()}


@partial(jax.jit, static_argnames=("net", "method"))
def _evaluate(net: ResNet, variables: Variables, X: jax.Array, method: str = "__call__") -> Any:
    """What a method gives with running statistics; compiled once for all networks that are equal."""
    return net.clone(training=False).apply(variables, X, method=method)


@partial(jax.jit, static_argnums=1)
def _total(rows: jax.Array, whole: Sharding) -> jax.Array:
    """The sum of the workers' rows, the same on every device."""
    return jax.lax.with_sharding_constraint(rows.sum(0), whole)


@cache  # once a process
def join(group: Group, device: str) -> tuple[jax.Device, Sharding, Sharding]:
    """Join the other workers; returns the own device, and how arrays lie that all have, or share by rows.

    Raises:
        ValueError: unless each worker of this host has a GPU of its own.
    """
    own = [group.local_rank] if device == "gpu" else None
    jax.distributed.initialize(group.addresses[0], group.workers, group.rank, own)
    try:
        mine = jax.local_devices(backend=device)[0]
    except RuntimeError:
        raise BadInput(
            f"JAX sees no GPU for worker {group.rank}; give fewer, use device cpu, or install JAX with CUDA"
        ) from None
    mesh = Mesh(np.array(jax.devices(device)), ("batch",))
    return mine, NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))


def _find_device(device: str) -> jax.Device:
    try:
        return jax.devices(device)[0]
    except RuntimeError:
        raise BadInput(f"JAX sees no {device.upper()}; use device cpu, or install JAX with CUDA") from None


def _path(name: str) -> tuple[str, ...]:
    """Canonical name to Flax's: "b2.0.bn1.weight" → params / net / layers_b2 / layers_0 / bn1 / scale."""
    stage, layer, *inner, kind = name.replace("last.", "last.dense.").split(".")
    leaf = {
        "weight": "scale" if "bn" in name else "kernel",
        "bias": "bias",
        "running_mean": "mean",
        "running_var": "var",
    }[kind]
    collection = "batch_stats" if is_statistic(name) else "params"
    return (collection, "net", f"layers_{stage}", f"layers_{layer}", *inner, leaf)

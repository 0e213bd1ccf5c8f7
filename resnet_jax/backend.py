"""The contract under JAX: NumPy in, NumPy out."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Any, ClassVar

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from numpy.typing import NDArray

import common.backend as contract
from common.architecture import Architecture
from common.errors import BadInput, MissingDevice
from common.gate import Figures, Found, check_optimizer, configured, figures_of, taking
from common.layout import from_channels_last, nchw, nhwc, to_channels_last
from common.processes.group import ALONE, Group
from common.recipe import PLAIN, Recipe
from common.weights import Weights, is_statistic
from resnet_jax.resnet import ResNet
from resnet_jax.training import (
    Classifier,
    TrainState,
    Variables,
    count_correct,
    loss_and_gradients,
    sgd,
    train_step,
    trained_part,
    update_average,
)


class Model(contract.Model):
    """A ResNet in JAX under the contract."""

    dtypes = ("float32", "float64", "bfloat16", "tf32")
    served: ClassVar = {"float32": "float32", "float64": "float64", "bfloat16": "bfloat16"}

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
        self._net = (ResNet(arch) if net is None else net).clone(
            training=True,
            dtype=jnp.bfloat16 if self.bfloat16 else jnp.dtype(self.dtype),
            axis_name=None,  # one program here, whose statistics are of the whole batch by themselves
        )
        self._state: TrainState  # with the first weights
        self._average: Variables = {}

    @staticmethod
    def network(net: Any) -> Any:
        if getattr(net, "scope", None):
            raise BadInput("the network is bound to variables; wrap the one that its unbind() gives first")
        return net

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
        # the network's own does the same
        optimizer = Classifier.configure_optimizers(self._net, recipe.kind(*figures))
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

    def _forward(self, x: NDArray, training: bool) -> dict[str, NDArray]:
        net = self._net.clone(training=training)
        passes: dict[str, Callable[..., Any]]
        passes = {"rest": partial(net.apply, method="activations"), "forward": net.apply}
        if training:
            passes = {"rest": partial(net.apply, mutable=["batch_stats"])}
        once = jax.jit(lambda *arrays: {name: each(*arrays) for name, each in passes.items()})
        found = once(self._own_variables(), self._images_in(x))
        if training:
            logits, updates = found["rest"]
            return {"forward": np.asarray(logits), **self._named(updates)}
        outputs = {"forward": found["forward"], **found["rest"]}
        return {name: np.asarray(output) for name, output in outputs.items()}

    def _check_optimizer(self, recipe: Recipe) -> None:
        if type(self._net).configure_optimizers is not Classifier.configure_optimizers:
            found = _figures(configured(self._net.configure_optimizers, recipe), self._net, recipe)
            check_optimizer(self.arch, recipe, self._net.lr, self.frozen(), found)

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
        none = f"JAX sees no {device.upper()}; use device cpu, or install JAX with CUDA"
        raise MissingDevice(none) from None


def find(net: ResNet) -> dict[str, Found]:
    """All variables by Flax's path, as a first image would make them."""
    dtype = jnp.dtype(net.dtype or jnp.float32).name
    images = jnp.zeros((1, 32, 32, net.arch.in_channels))
    with jax.enable_x64(dtype == "float64"), taking((1, net.arch.in_channels, 32, 32)):
        made = jax.eval_shape(net.clone(training=True).init, jax.random.key(0), images)
    return {
        path: Found(
            from_channels_last(np.broadcast_to(0, leaf.shape)).shape,
            dtype if leaf.dtype == jnp.float32 else leaf.dtype.name,
            path,
        )
        for path, leaf in flatten_dict(made, sep="/").items()
    }


def may_differ(net: ResNet) -> bool:
    """Whether its function may be another than its architecture's.

    A Flax module is what its class says; another class may be traced to the same operations.
    """
    if type(net).__module__.split(".")[0] == __name__.split(".")[0]:
        return False
    return _traced(net) != _traced(ResNet(net.arch, dtype=net.dtype))


def _traced(net: ResNet) -> list[str]:
    """The operations of logits and stages in evaluation, and of a training pass."""
    size = net.arch.smallest_input
    images = jnp.zeros((2, size, size, net.arch.in_channels))
    evaluating, training = net.clone(training=False), net.clone(training=True)
    passes: list[Callable[..., Any]] = [
        evaluating.apply,
        partial(evaluating.apply, method="activations"),
        partial(training.apply, mutable=["batch_stats"]),
    ]
    wide = net.dtype is not None and jnp.dtype(net.dtype) == np.float64
    with jax.enable_x64(wide), taking((2, net.arch.in_channels, size, size)):
        variables = jax.eval_shape(training.init, jax.random.key(0), images)
        texts = [str(jax.make_jaxpr(each)(variables, images)) for each in passes]
    return [re.sub(" at 0x[0-9a-f]+", "", text) for text in texts]


def twin(net: ResNet, dtype: str, device: str) -> Model:
    """A model of the same architecture, of ours alone, to compare with."""
    return Model(net.arch, dtype, device)


def _figures(
    optimizer: optax.GradientTransformation, net: ResNet, recipe: Recipe
) -> dict[str, Figures] | str:
    """The recipe's figures, or in words that it is another optimizer: Optax' do not say what they are.

    They show it: by three steps of a few parameters, the last after many more.
    """
    layer = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    params = {"net": {"layers_b1": {"conv": layer}, "layers_last": {"dense": layer}}}
    gradients = jax.tree.map(lambda leaf: 100 * leaf, params)
    steps = []
    for tried in (optimizer, sgd(net.lr, recipe)):
        try:
            state, own = tried.init(params), []
            for later in (0, 0, 10_000):
                state = jax.tree.map(lambda leaf, n=later: leaf + n if _is_count(leaf) else leaf, state)
                updates, state = tried.update(gradients, state, params)
                own += jax.tree.leaves(updates)
        except (AttributeError, TypeError):
            return f"a {type(optimizer).__name__}, no transformation of Optax'"
        steps.append(own)
    if not all(np.allclose(a, b, rtol=1e-5, atol=0) for a, b in zip(*steps, strict=True)):
        return "another optimizer than SGD with the recipe's figures"
    return figures_of(net.arch, recipe, net.lr)


def _is_count(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.integer)


def paths(arch: Architecture) -> dict[str, str]:
    """Canonical name to Flax's path, as `flatten_dict(sep="/")` writes it."""
    return {name: "/".join(_path(name)) for name in arch.parameter_shapes()}


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

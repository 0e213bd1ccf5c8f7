"""The contract: one model interface, NumPy in and NumPy out, whichever framework computes.

A framework joins by adding a package whose `backend.py` has a `Model`, and one line in `BACKENDS`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray
from platformdirs import user_cache_path

from common.architecture import Architecture, Shape, unknown
from common.errors import BadInput, MissingBackend
from common.gate import check_found, check_function
from common.processes.group import ALONE, Group
from common.recipe import PLAIN, Recipe
from common.summary import Row, summary_rows
from common.weights import Weights, check_tensors, check_weights, initial_weights, some

DTYPES = ("float32", "float64", "bfloat16", "tf32")


@dataclass(frozen=True)
class Evaluation:
    """One training pass, before any step: what the loss is and how every parameter moves it.

    Attributes:
        loss: mean softmax cross-entropy.
        logits: (N, classes), computed with batch statistics.
        gradients: canonical name to gradient, running statistics left out.
        running: canonical name to running statistic as this pass would leave it.
    """

    loss: float
    logits: NDArray
    gradients: Weights
    running: Weights


def array_type(dtype: str) -> str:
    """The type of the arrays of a model of one of `DTYPES`: "float32" or "float64"."""
    return "float64" if dtype == "float64" else "float32"


def given(values: ArrayLike, what: str) -> NDArray:
    """What a caller gave, as an array that has no mask; `ValueError` where there is no such array."""
    if np.ma.is_masked(values):
        raise BadInput(f"{what} must have no mask; fill what is masked first, with its filled(0)")
    try:
        return np.asarray(values)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise BadInput(f"{what} must be an array, or what NumPy makes one of: {reason}") from None


def all_given(arrays: Mapping[str, ArrayLike]) -> Weights:
    """`given` of each."""
    return {name: given(array, name) for name, array in arrays.items()}


def owned(array: NDArray, dtype: str) -> NDArray:
    """A copy for the caller: without gaps, the last axis innermost, in the machine's byte order."""
    return np.array(array, dtype, order="C")


def all_owned(arrays: Mapping[str, NDArray], dtype: str) -> Weights:
    """`owned` of each."""
    return {name: owned(array, dtype) for name, array in arrays.items()}


class Model(ABC):
    """A network in one framework. Public methods check and convert; a backend fills in the rest.

    Several threads may call one model: each call has it to itself. A call that raises has changed nothing;
    where a framework cannot take back what was begun, every later call says so, until weights are loaded.
    Arrays that come back are the caller's own, C-contiguous and of the model's dtype.

    Args:
        arch: the network.
        dtype: one of `dtypes`. In "bfloat16" products are computed in bfloat16; weights, running
            statistics, the loss and all arrays in and out stay float32 (Micikevicius et al. 2018). "tf32" is
            float32 whose products a GPU may round to TF32, as it does to be fast.
        device: "cpu" or "gpu".
        group: the workers that train this network together, one in each process; by default this one alone.

    A package's own model takes `net` besides: a network of the package to serve in place of a new one.
    """

    dtypes: tuple[str, ...] = ("float32", "float64")
    served: Mapping[str, str] = {"float32": "float32", "float64": "float64"}  # types of networks to wrap

    def __init__(self, arch: Architecture, dtype: str, device: str, group: Group = ALONE) -> None:
        if dtype not in self.dtypes:
            raise BadInput(f"no {dtype} in this backend; give {' or '.join(self.dtypes)}")
        if dtype == "tf32" and device != "gpu":
            raise BadInput("only a GPU has tf32; give float32, or device gpu")
        self.arch = arch
        self.dtype = array_type(dtype)
        self.bfloat16 = dtype == "bfloat16"
        self.tf32 = dtype == "tf32"
        self.device = device
        self.group = group
        self._is_new = True  # without weights, until some are loaded or needed
        self._missing = list(arch.parameter_shapes())  # what had none when it came
        self._recipe: Recipe | None = None  # of the optimizer; None until there is one
        self._own: Weights = {}  # its own weights, while it shows its averaged ones
        self._averaging = 0  # how many show them
        self._lock = threading.RLock()
        self._cut_short = ""  # what was, and could not be undone

    @staticmethod
    def network(net: Any) -> Any:
        """The package's own network that `net` is, or has been put into.

        Raises:
            ValueError: for what cannot be served under the contract.
        """
        return net

    def compile(self) -> None:  # noqa: B027  (what there is to do, PyTorch overrides)
        """Let the framework's compiler at the network, where it is not always: in PyTorch.

        Raises:
            ValueError: if the compiler cannot work here.
        """

    def __reduce__(self) -> NoReturn:
        raise BadInput(
            "a model cannot be copied or pickled; build another, and give it this one's weights() "
            "and optimizer_state()"
        )

    def load_weights(self, weights: Mapping[str, NDArray]) -> None:
        """Set every parameter and running statistic; the optimizer starts anew.

        Raises:
            ValueError: unless names and shapes are exactly the architecture's and all is finite; within
                `averaged`.
        """
        arrays = self._arrays(check_weights(self.arch, all_given(weights)))
        with self._turn():
            self._check_not_averaged("no weights are loaded", "load them")
            was_new, recipe = self._is_new, self._recipe
            is_whole = not (was_new or self._cut_short)
            before = all_owned(self._weights(), self.dtype) if is_whole else {}

            def undo() -> bool:
                self._recipe, self._is_new = recipe, was_new
                if before:
                    self._load_weights(before)
                return True

            with self._changing("loading weights", undo):
                self._load_weights(arrays)
                self._recipe = None
                self._is_new = False
            self._cut_short = ""

    def weights(self) -> Weights:
        """Canonical name to a copy of the array in the model's dtype, running statistics included."""
        with self._turn():
            self._need_weights()
            return all_owned(self._weights(), self.dtype)

    def summary(self, input_shape: Shape) -> list[Row]:
        """One row a stage for images of this (N, C, H, W) shape, measured on the model itself."""
        with self._turn():
            activations = self.activations(np.zeros(input_shape))
            return summary_rows(self.arch, activations, self._weights())

    def predict(self, x: ArrayLike) -> NDArray:
        """Logits (N, classes) of images (N, C, H, W), with running statistics.

        Raises:
            ValueError: for images that do not fit, and for NaN or infinity in one.
        """
        with self._turn():
            return owned(self._predict(self._images(x)), self.dtype)

    def activations(self, x: ArrayLike) -> dict[str, NDArray]:
        """Outputs of b1, b2, … as (N, C, H, W) and of last as (N, classes), with running statistics.

        Raises:
            ValueError: for images that do not fit, and for NaN or infinity in one.
        """
        with self._turn():
            outputs = self._activations(self._images(x))
            return {name: owned(outputs[name], self.dtype) for name in self.arch.stage_names()}

    def loss_and_gradients(self, x: ArrayLike, y: ArrayLike) -> Evaluation:
        """A training pass with batch statistics that leaves the model unchanged; `y` is int (N,).

        Raises:
            ValueError: for images or labels that do not fit, for NaN or infinity in an image, and with
                several workers.
        """
        if self.group.workers > 1:
            raise BadInput("loss_and_gradients is of one worker; build the model without a group")
        with self._turn():
            self._check_trains(PLAIN)
            images = self._images(x)
            labels = self._labels(y, len(images))
            with self._unchanged("loss_and_gradients"):
                found = self._loss_and_gradients(images, labels)
                return Evaluation(
                    float(found.loss),
                    owned(found.logits, self.dtype),
                    all_owned(found.gradients, self.dtype),
                    all_owned(found.running, self.dtype),
                )

    def train_step(
        self,
        x: ArrayLike,
        y: ArrayLike,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> float:
        """One step of SGD in place; returns the loss before it.

        Of several workers, each gives its share of the batch and gets the loss of all of it.
        With gradient g of the loss, parameter w and velocity v:
        g += weight_decay · w;  v = momentum · v + g;  w −= lr · v.
        `options` are the other fields of `common.recipe.Recipe`, by name. Velocity and averaged weights start
        anew when anything of the recipe changes; lr may change freely.

        Raises:
            ValueError: for images or labels that do not fit, for NaN or infinity in an image, or for a
                hyperparameter out of range.
        """
        return self.begin_step(x, y, lr, Recipe(momentum, weight_decay, **options))()[0]

    def begin_step(
        self, x: ArrayLike, y: ArrayLike, lr: float, recipe: Recipe = PLAIN
    ) -> Callable[[], tuple[float, int]]:
        """`train_step` that does not wait: some devices still compute when it returns.

        What it returns waits, and gives the loss before the step and how many images were told right, by all
        workers.
        Until then `x` and `y` must stay as they are.
        """
        if not 0 < lr < np.inf:
            raise BadInput(f"lr must be above 0, not {lr}")
        with self._turn():
            self._check_not_averaged("no step", "train")
            images = self._images(x)
            labels = self._labels(y, len(images))
            self._check_trains(recipe)
            is_another = self._recipe != recipe
            with self._changing("a training step", self._keep_optimizer() if is_another else lambda: True):
                if is_another:
                    self._set_optimizer(recipe)
                with self._changing("a training step", self._keep()):
                    found = self._begin_step(images, labels, lr, recipe)
            self._late(self._settle)
        return partial(self._late, found)

    def _late(self, wait: Callable[[], Any]) -> Any:
        """Wait for a step that has begun; where a device fails at it, the model is half of each."""
        try:
            with self._surroundings():
                return wait()
        except Exception:
            self._cut_short = "a training step"
            raise

    def sum(self, values: ArrayLike) -> NDArray[np.float64]:
        """The sum of these over the workers, each of which calls this; to the bit the same in all.

        Integers stay exact up to 2⁵³.
        """
        array = owned(given(values, "values"), "float64")
        if self.group.workers == 1:
            return array
        with self._turn():
            return owned(self._sum(array), "float64")

    def averaged_weights(self) -> Weights:
        """Canonical name to a copy of the array averaged over the steps, running statistics included.

        Raises:
            ValueError: unless the last step was one with `ema`.
        """
        with self._turn():
            self._need_weights()
            if not (self._recipe and self._recipe.ema):
                raise BadInput("there are no averaged weights; train a step with ema above 0 first")
            return all_owned(self._averaged_weights(), self.dtype)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the model has its averaged weights; afterwards its own again, to the bit, to train on.

        It has them for every thread, until none is within.

        Raises:
            ValueError: unless the last step was one with `ema`; within, for a step and for other weights.
        """
        is_within = False
        try:
            with self._turn():
                averages = self.averaged_weights()
                if not self._averaging:
                    self._own = self.weights()
                self._averaging, is_within = self._averaging + 1, True
                if self._averaging == 1:
                    self._load_weights(averages)
            yield
        finally:
            if is_within:
                self._end_averaged()

    def _end_averaged(self) -> None:
        with self._turn():
            others = self._averaging - 1

            def end() -> bool:
                if not others:
                    self._load_weights(self._own)
                self._averaging = others
                return True

            with self._changing("the end of averaged()", end):
                end()

    def optimizer_state(self) -> Weights:
        """What the next step needs besides the weights, a copy; of plain SGD, and before a step, nothing.

        With momentum, canonical name to velocity of all that is trained; with ema, "ema.NAME" to average.
        Another model goes on from it, and from `weights`; one of the same backend to the same bit.
        """
        with self._turn():
            self._need_weights()
            recipe = self._recipe or PLAIN
            state = self._optimizer_state() if recipe.momentum else {}
            if recipe.ema:
                state = state | {f"ema.{name}": array for name, array in self._averaged_weights().items()}
            return all_owned(state, self.dtype)

    def load_optimizer_state(self, state: Mapping[str, NDArray], recipe: Recipe = PLAIN) -> None:
        """Go on from what `optimizer_state` gave under this recipe.

        Raises:
            ValueError: unless names and shapes are exactly those of the recipe, velocities of what it trains
                (with momentum) and averages of all weights (with ema), and all is finite.
        """
        shapes = self.arch.parameter_shapes()
        velocities = {n: shape for n, shape in shapes.items() if recipe.momentum and recipe.trains(n)}
        averages = {f"ema.{n}": shape for n, shape in shapes.items() if recipe.ema}
        try:
            arrays = self._arrays(check_tensors(velocities | averages, all_given(state)))
        except BadInput as error:
            raise BadInput(f"the optimizer's state does not fit; {error}") from None
        with self._turn():
            self._need_weights()
            with self._changing("loading the optimizer's state", self._keep_optimizer()):
                self._set_optimizer(recipe, arrays)

    def _set_optimizer(self, recipe: Recipe, state: Mapping[str, NDArray] | None = None) -> None:
        """A new optimizer, at its start or in the state of another of its recipe."""
        self.check_recipe(recipe)
        self._new_optimizer(recipe)
        if state and recipe.momentum:
            velocities = {name: array for name, array in state.items() if not name.startswith("ema.")}
            self._load_optimizer_state(velocities)
        if state and recipe.ema:
            names = self.arch.parameter_shapes()
            self._load_averaged_weights({name: state[f"ema.{name}"] for name in names})
        self._recipe = recipe

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise `ValueError` unless steps of this recipe can be taken, and all they need be kept."""
        self._check_trains(recipe)
        self._check_optimizer(recipe)

    def frozen(self) -> set[str]:
        """Canonical names of the parameters that its network does not train."""
        return set()

    def forward(self, x: NDArray, training: bool) -> dict[str, NDArray]:
        """What `check_function` compares: the logits as the network gives them to its user, uncompiled.

        In evaluation, the stages of its `activations` besides; in training, the running statistics as this
        pass would leave them.
        """
        with self._turn(), self._unchanged("a pass"):
            return all_owned(self._forward(owned(x, self.dtype), training), self.dtype)

    def draw_missing(self) -> None:
        """Give what has no weights those that `build` would give it."""
        if self._missing:
            own = self._weights() if len(self._missing) < len(self.arch.parameter_shapes()) else {}
            drawn = initial_weights(self.arch)
            self.load_weights({**own, **{name: drawn[name] for name in self._missing}})
            self._missing = []

    def _check_trains(self, recipe: Recipe) -> None:
        frozen = self.frozen()
        if frozen and not any(recipe.trains(n) and n not in frozen for n in self.arch.parameter_shapes()):
            raise BadInput("all that would be trained is frozen in the network; unfreeze some of it")

    def _check_optimizer(self, recipe: Recipe) -> None:  # noqa: B027  (a network of its own has the recipe's)
        pass

    def _keep_optimizer(self) -> Callable[[], bool]:
        """What brings back the optimizer of now."""
        recipe, state = self._recipe, self.optimizer_state()

        def undo() -> bool:
            if recipe:
                self._set_optimizer(recipe, state)
            self._recipe = recipe
            return True

        return undo

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One call after another, as its framework wants it."""
        with self._lock, self._surroundings():
            yield

    @contextmanager
    def _changing(self, what: str, undo: Callable[[], bool]) -> Iterator[None]:
        """Around a change. One that is cut short is undone; where that fails, every later call says so."""
        try:
            yield
        except BaseException:
            is_whole, self._cut_short = not self._cut_short, what
            if is_whole and undo():
                self._cut_short = ""
            raise

    @contextmanager
    def _unchanged(self, what: str) -> Iterator[None]:
        """Around a pass that moves running statistics, which are afterwards as before."""
        undo = self._keep()
        with self._changing(what, undo):
            yield
            undo()

    def _check_not_averaged(self, what: str, do: str) -> None:
        if self._averaging:
            raise BadInput(f"{what} within averaged(), whose end would undo it; {do} outside")

    def _need_weights(self) -> None:
        """A model that was given no weights has those of seed 0; they take a while to draw."""
        if self._cut_short:
            raise BadInput(
                f"{self._cut_short} was cut short, and may have left the model half changed; "
                "give it weights again, with load_weights"
            )
        if self._is_new:
            self.load_weights(initial_weights(self.arch))

    def _images(self, x: ArrayLike) -> NDArray:
        self._need_weights()
        images = given(x, "images")
        # Whatever else float64 holds, such as the bfloat16 of JAX and TensorFlow, is a number, too.
        if images.dtype.kind not in "fiub" and not np.can_cast(images.dtype, np.float64):
            raise BadInput(f"images must be numbers, not {images.dtype}")
        self.arch.check_input(images.shape)
        with np.errstate(over="ignore"):
            images = np.ascontiguousarray(images, dtype=self.dtype)
        if not np.isfinite(images).all():
            bad = [i for i, image in enumerate(images) if not np.isfinite(image).all()]
            raise BadInput(
                f"image {bad[0]} of {len(images)}, counted from 0, has NaN or infinity in {self.dtype}; "
                "mend it, or leave it out"
            )
        return images

    def _labels(self, y: ArrayLike, count: int) -> NDArray:
        labels = given(y, "labels")
        if labels.dtype.kind not in "iu" or labels.shape != (count,):
            raise BadInput(
                f"labels must be whole numbers of shape ({count},), not {labels.dtype} {labels.shape}"
            )
        if labels.min() < 0 or labels.max() >= self.arch.num_classes:
            raise BadInput(f"labels must be from 0 to {self.arch.num_classes - 1}, the network's classes")
        return labels.astype(np.int32)

    def _arrays(self, checked: Weights) -> Weights:
        """What is loaded, in the model's dtype; `ValueError` where that cannot hold it."""
        with np.errstate(over="ignore"):
            arrays = all_owned(checked, self.dtype)
        if beyond := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
            raise BadInput(f"beyond {self.dtype}: {some(beyond)}; give smaller numbers, or build in float64")
        return arrays

    def _surroundings(self) -> AbstractContextManager:
        """What the framework needs around each call, whatever the caller's thread is in."""
        return nullcontext()

    def _keep(self) -> Callable[[], bool]:
        """Note what a training pass changes, at once.

        What this returns puts it back, and tells whether all is as it was: the optimizer had not begun.
        """
        return lambda: False

    def _settle(self) -> None:  # noqa: B027
        """Wait for a step that has begun, where it costs less at once."""

    @abstractmethod
    def _load_weights(self, weights: Weights) -> None: ...

    @abstractmethod
    def _weights(self) -> Weights: ...

    @abstractmethod
    def _predict(self, x: NDArray) -> NDArray: ...

    @abstractmethod
    def _activations(self, x: NDArray) -> dict[str, NDArray]: ...

    def _forward(self, x: NDArray, training: bool) -> dict[str, NDArray]:
        raise NotImplementedError

    @abstractmethod
    def _loss_and_gradients(self, x: NDArray, y: NDArray) -> Evaluation: ...

    @abstractmethod
    def _new_optimizer(self, recipe: Recipe) -> None: ...

    @abstractmethod
    def _begin_step(
        self, x: NDArray, y: NDArray, lr: float, recipe: Recipe
    ) -> Callable[[], tuple[float, int]]: ...

    def _sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        raise NotImplementedError

    @abstractmethod
    def _optimizer_state(self) -> Weights: ...

    @abstractmethod
    def _load_optimizer_state(self, state: Weights) -> None: ...

    @abstractmethod
    def _averaged_weights(self) -> Weights: ...

    @abstractmethod
    def _load_averaged_weights(self, weights: Weights) -> None: ...


@dataclass(frozen=True)
class Backend:
    """Where a backend lives and how its framework is installed; nothing is imported until `build`."""

    name: str
    label: str
    module: str
    packages: tuple[str, ...]
    install: str
    suffixes: tuple[str, ...] = ()  # of the files that the package's `files.py` reads
    environment: Mapping[str, str] = field(default_factory=dict)  # what the command tells the framework
    uncached: Mapping[str, str] = field(default_factory=dict)  # what lets it keep no compiled program

    @property
    def installed(self) -> bool:
        """Whether the framework is there, found without importing it."""
        return all(find_spec(package) for package in self.packages)

    def build(
        self,
        arch: Architecture,
        dtype: str = "float32",
        device: str = "cpu",
        compile: bool = False,
        group: Group = ALONE,
    ) -> Any:
        """A `Model` of this architecture, with the weights `initial_weights` draws from seed 0.

        With `compile`, PyTorch compiles its network too, as the others always do. With several workers in
        the group, each calls this, and the first model of a process joins its framework's engine.

        Raises:
            ValueError: for an unknown dtype or device, a GPU that is not there, or a compiler that is not.
        """
        if dtype not in DTYPES:
            raise BadInput(f"unknown dtype {dtype!r}; give {', '.join(DTYPES)}")
        if device not in ("cpu", "gpu"):
            raise BadInput(f"unknown device {device!r}; give cpu or gpu")
        together = {"group": group} if group.workers > 1 else {}
        model = self.load().Model(arch, dtype, device, **together)
        if compile:
            model.compile()
        return model

    def wrap(self, net: Any, device: str = "cpu") -> Any:
        """A `Model` of a network that the package's own classes made; training it trains `net`.

        It is of the network's own type, and on `device`, where the network goes, too. What has weights keeps
        them; what has none yet gets those `build` would give it. All else of the network, its layout, modes
        and gradients, is afterwards as it was, and so it is after each call of the model.

        Raises:
            ValueError: for a GPU that is not there, and unless the network has exactly the parameters of its
                `arch` and computes what that says.
        """
        module = self.load()
        own = module.Model.network(net)
        if not isinstance(own, module.ResNet):
            package = self.module.split(".")[0]
            raise BadInput(f"wrap takes a network of {package}, such as ResNet18(), not {type(net).__name__}")

        def check() -> str:
            return check_found(own.arch, module.paths(own.arch), module.find(own), module.Model.served)

        dtype = check()
        model = module.Model(own.arch, dtype, device, net)
        check()  # what a first image has given its shape, too
        model.draw_missing()
        if module.may_differ(own):
            ours = module.twin(own, dtype, device)
            ours.load_weights(model.weights())
            check_function(model.forward, ours.forward, own.arch, dtype)
        return model

    def read_tensors(self, path: Path) -> tuple[dict[str, NDArray], list[str]]:
        """Name to array of a file its framework wrote, and the names that were bfloat16 and are now float32.

        Nothing that the file may hold besides is run.

        Raises:
            ValueError: if the file is damaged, or holds more than tensors that NumPy can hold.
        """
        return import_module(self.module.replace(".backend", ".files")).read_tensors(path)

    def read_model(self, path: Path) -> Mapping[str, Any] | None:
        """What a file says of its model, as the framework describes models; None where it says nothing.

        Raises:
            ValueError: if the file is damaged, or its model is no ResNet and nothing else.
        """
        files = import_module(self.module.replace(".backend", ".files"))
        return files.read_model(path) if hasattr(files, "read_model") else None

    def write_tensors(self, path: Path, tensors: Mapping[str, NDArray]) -> None:
        """Write a file as the framework's own loaders take it; the suffix says which kind.

        Raises:
            ValueError: if the file cannot be written.
        """
        import_module(self.module.replace(".backend", ".files")).write_tensors(path, tensors)

    def own_network(self, family: str, arch: Architecture, path: Path) -> Callable[[NDArray], NDArray]:
        """Another family's own network, built and loaded by its library: images (N, C, H, W) → logits.

        Raises:
            ImportError: if that library is not installed.
            ValueError: if it builds no such network.
        """
        return import_module(self.module.replace(".backend", ".families")).own_network(family, arch, path)

    def load(self) -> Any:
        """The package's `backend.py`; this imports the framework."""
        return import_module(self.module)

    def speed(self) -> Any:
        """The package's `speed.py`: what its speed is held against."""
        return import_module(self.module.replace(".backend", ".speed"))


ORACLE = Backend("oracle", "oracle", "common.oracle", ("numpy",), "pip install numpy")

BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "mxnet",
            "MXNet",
            "resnet_mxnet.backend",
            ("mxnet",),
            # MXNet's metadata asks for NumPy 1, which no current JAX shares; it runs on NumPy 2.
            'pip install "resnet-tabs[mxnet]" && pip install --no-deps mxnet==1.9.1',
            suffixes=(".params",),
        ),
        Backend(
            "torch",
            "PyTorch",
            "resnet_torch.backend",
            ("torch",),
            'pip install "resnet-tabs[torch]"',
            suffixes=(".pth", ".pt", ".bin"),
            uncached={"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"},
        ),
        Backend(
            "tf",
            "TensorFlow",
            "resnet_tf.backend",
            ("tensorflow",),
            'pip install "resnet-tabs[tf]"',
            suffixes=(".h5", ".keras", ".index"),
            environment={"TF_ENABLE_ONEDNN_OPTS": "1"},  # by itself only on processors with AVX-512
        ),
        Backend(
            "jax",
            "JAX",
            "resnet_jax.backend",
            ("jax", "flax", "optax"),
            'pip install "resnet-tabs[jax]"',
            suffixes=(".msgpack",),
            environment={  # XLA compiles a network for seconds: once is enough
                "JAX_COMPILATION_CACHE_DIR": str(user_cache_path("resnet-tabs") / "jax"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            },
            uncached={"JAX_ENABLE_COMPILATION_CACHE": "false"},
        ),
    )
}


def available_backends() -> list[str]:
    """Names of the frameworks installed here; the oracle always is, and is not listed."""
    return [name for name, backend in BACKENDS.items() if backend.installed]


def find_backend(name: str) -> Backend:
    """The registry's entry, installed or not; `ValueError` with the nearest name if there is none."""
    registry = {**BACKENDS, ORACLE.name: ORACLE}
    if name not in registry:
        raise BadInput(unknown("backend", name, list(registry)))
    return registry[name]


def load_backend(name: str) -> Backend:
    """A backend by name, ready to `build`.

    Raises:
        ValueError: if the name is unknown, or the framework is not installed; the message says how to.
    """
    backend = find_backend(name)
    if not backend.installed:
        raise MissingBackend(f"backend {name!r} is not installed; run: {backend.install}")
    return backend

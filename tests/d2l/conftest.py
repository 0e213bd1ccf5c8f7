"""The published d2l blocks and ours behind one small interface, in float64: arrays in, arrays out.

Images are (N, C, H, W) and weights have the names and shapes of `common`, whatever the framework's own are.
A framework or d2l that cannot be imported fails every test that asks for it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Arrays = dict[str, NDArray]

D2L_NAMES = {"mxnet": "d2l.mxnet", "tf": "d2l.tensorflow"}


def import_ours(framework: str) -> ModuleType:
    """Our package."""
    return import_module(f"resnet_{framework}")


def import_published(framework: str) -> ModuleType:
    """The module of d2l; ours goes first, for MXNet's NumPy names and Keras' choice of backend."""
    import_ours(framework)
    if framework in ("torch", "jax"):  # these import more than their blocks need
        return import_module(f"resnet_{framework}.families").d2l()
    return import_module(D2L_NAMES[framework])


class BlockUnderTest(ABC):
    """A block of either origin; `options` are its constructor's, `x` an image that gives it its shapes."""

    @abstractmethod
    def __init__(self, block: type, options: dict[str, Any], x: NDArray) -> None: ...

    @abstractmethod
    def arrays(self) -> Arrays:
        """Weights and running statistics by "attribute.name": conv1.weight, bn1.running_var, …"""

    @abstractmethod
    def load(self, arrays: Arrays) -> None:
        """Set what `arrays` returns; the names must be exactly those."""

    @abstractmethod
    def run(self, x: NDArray, training: bool) -> NDArray:
        """The output; in training with batch statistics, and the running ones move."""


class TorchBlock(BlockUnderTest):
    def __init__(self, block: type, options: dict[str, Any], x: NDArray) -> None:
        self.block = block(**options).double()
        self.run(x, training=False)

    def arrays(self) -> Arrays:
        state = self.block.state_dict()
        return {name: tensor.numpy().copy() for name, tensor in state.items() if "num_batches" not in name}

    def load(self, arrays: Arrays) -> None:
        import torch

        batches = {name: t for name, t in self.block.state_dict().items() if "num_batches" in name}
        self.block.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()} | batches)

    def run(self, x: NDArray, training: bool) -> NDArray:
        import torch

        with torch.no_grad():
            return self.block.train(training)(torch.from_numpy(x)).numpy()


class MXNetBlock(BlockUnderTest):
    def __init__(self, block: type, options: dict[str, Any], x: NDArray) -> None:
        from mxnet import np as mxnp

        self.block = block(**options)
        self.block.initialize()
        self.block(mxnp.array(x, dtype="float32"))  # Gluon finds shapes in float32 only
        self.block.cast("float64")

    def arrays(self) -> Arrays:
        return {name: parameter.data().asnumpy() for name, parameter in self._parameters().items()}

    def load(self, arrays: Arrays) -> None:
        from mxnet import np as mxnp

        for name, parameter in same_names(self._parameters(), arrays):
            parameter.set_data(mxnp.array(arrays[name], dtype="float64"))

    def run(self, x: NDArray, training: bool) -> NDArray:
        from mxnet import autograd
        from mxnet import np as mxnp

        with autograd.record(training):
            y = self.block(mxnp.array(x, dtype="float64"))
        if training:
            y.backward()  # only now do the running statistics move
        return y.asnumpy()

    def _parameters(self) -> dict[str, Any]:
        found = self.block._collect_params_with_prefix()
        return {common_name(*name.rsplit(".", 1)): parameter for name, parameter in found.items()}


class TensorFlowBlock(BlockUnderTest):
    def __init__(self, block: type, options: dict[str, Any], x: NDArray) -> None:
        import keras

        from resnet_tf.layers import precision

        with precision("float64"):
            self.block = block(**options)
            self.run(x, training=False)
        self.layers = {n: layer for n, layer in vars(self.block).items() if isinstance(layer, keras.Layer)}
        if block.__module__ == "d2l.tensorflow":
            for name in (name for name in self.layers if name.startswith("bn")):
                self.layers[name].epsilon = 1e-5  # d2l leaves it at Keras' 1e-3, unlike its other three

    def arrays(self) -> Arrays:
        return {name: channels_first(v.numpy()) for name, v in self._variables().items()}

    def load(self, arrays: Arrays) -> None:
        for name, variable in same_names(self._variables(), arrays):
            variable.assign(channels_last(arrays[name]))

    def run(self, x: NDArray, training: bool) -> NDArray:
        return self.block(x.transpose(0, 2, 3, 1), training=training).numpy().transpose(0, 3, 1, 2)

    def _variables(self) -> dict[str, Any]:
        return {common_name(n, v.name): v for n, layer in self.layers.items() for v in layer.variables}


class JAXBlock(BlockUnderTest):
    def __init__(self, block: type, options: dict[str, Any], x: NDArray) -> None:
        import jax

        self.evaluation, self.training = (block(**options, training=t) for t in (False, True))
        shapes = jax.eval_shape(self.evaluation.init, jax.random.key(0), x.transpose(0, 2, 3, 1))
        self.variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)

    def arrays(self) -> Arrays:
        return {name: channels_first(np.asarray(leaf)) for name, leaf in self._leaves().items()}

    def load(self, arrays: Arrays) -> None:
        from flax.traverse_util import flatten_dict, unflatten_dict

        same_names(self._leaves(), arrays)
        paths = flatten_dict(self.variables)
        self.variables = unflatten_dict({p: channels_last(arrays[common_name(*p[1:])]) for p in paths})

    def run(self, x: NDArray, training: bool) -> NDArray:
        import jax

        module = self.training if training else self.evaluation
        with jax.enable_x64(True):
            y, moved = module.apply(self.variables, x.transpose(0, 2, 3, 1), mutable=["batch_stats"])
        self.variables = self.variables | moved
        return np.asarray(y).transpose(0, 3, 1, 2)

    def _leaves(self) -> dict[str, Any]:
        from flax.traverse_util import flatten_dict

        return {common_name(*path[1:]): leaf for path, leaf in flatten_dict(self.variables).items()}


def common_name(layer: str, name: str) -> str:
    """("bn1", "gamma") → "bn1.weight"."""
    kinds = {
        "weight": ("kernel", "scale", "gamma"),
        "bias": ("beta",),
        "running_mean": ("mean", "moving_mean"),
        "running_var": ("var", "moving_variance"),
    }
    return f"{layer}." + next((kind for kind, names in kinds.items() if name in names), name)


def same_names(found: dict[str, Any], arrays: Arrays) -> list[tuple[str, Any]]:
    """The items of `found`, once it is sure that `arrays` has the same names."""
    assert sorted(found) == sorted(arrays)
    return list(found.items())


def channels_last(array: NDArray) -> NDArray:
    """OIHW → HWIO."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def channels_first(array: NDArray) -> NDArray:
    """HWIO → OIHW."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.copy()


ADAPTERS = {"mxnet": MXNetBlock, "torch": TorchBlock, "tf": TensorFlowBlock, "jax": JAXBlock}


@dataclass(frozen=True)
class Run:
    """What a block gave for an image, and its weights and running statistics around the training pass."""

    evaluation: NDArray
    training: NDArray
    before: Arrays
    after: Arrays


@pytest.fixture(scope="session")
def block_class() -> Callable[[str, str, str], type]:
    """Framework, origin ("d2l" or "ours") and block ("Residual" or "ResNeXtBlock") → the class."""

    def find(framework: str, origin: str, block: str) -> type:
        module = import_published(framework) if origin == "d2l" else import_ours(framework)
        return getattr(module, block)

    return find


@pytest.fixture(scope="session")
def run(block_class: Callable[[str, str, str], type]) -> Callable[..., Run]:
    """The same, with `use_1x1conv`, `strides` and the image's size → a run on seeded weights and images.

    The numbers depend on names and shapes only: equal in every framework, for d2l and for ours.
    """

    @cache
    def one_run(
        framework: str, origin: str, block: str, use_1x1conv: bool, strides: int, size: tuple[int, int]
    ) -> Run:
        x = np.random.default_rng(0).normal(size=(4, 8, *size))
        options: dict[str, Any] = {
            "num_channels": 16 if use_1x1conv else 8,
            "use_1x1conv": use_1x1conv,
            "strides": (strides, strides) if framework == "jax" else strides,
        }
        if block == "ResNeXtBlock":
            options |= {"groups": 2, "bot_mul": 0.5}
        tested = ADAPTERS[framework](block_class(framework, origin, block), options, x)
        tested.load(seeded(tested.arrays()))
        before = tested.arrays()
        evaluation = tested.run(x, training=False)
        training = tested.run(x, training=True)
        assert evaluation.dtype == training.dtype == before["bn1.running_var"].dtype == np.float64
        return Run(evaluation, training, before, after=tested.arrays())

    return one_run


def seeded(arrays: Arrays) -> Arrays:
    """Random numbers of the same names and shapes: convolutions around 0, all else from 0.5 to 1.5."""
    rng = np.random.default_rng(1)
    return {
        name: rng.normal(0, 0.2, array.shape) if array.ndim == 4 else rng.uniform(0.5, 1.5, array.shape)
        for name, array in sorted(arrays.items())
    }

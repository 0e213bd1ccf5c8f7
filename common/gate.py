"""The gate: what a network must be to be served under the contract, whichever framework it is of.

A backend says what it finds; here it is held against the architecture and the recipe.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture, Shape
from common.errors import BadInput
from common.reading import some
from common.recipe import Recipe, is_last
from common.weights import other_names

# Largest part by which a network may differ from one of ours with its weights: other roundings do no more.
BOUNDS = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Found:
    """A parameter or running statistic, as its network has it.

    Attributes:
        shape: as in the contract; None, or None on an axis, as long as it waits for a first image.
        dtype: as the framework calls it.
        identity: the same for two names of one array.
    """

    shape: tuple[int | None, ...] | None
    dtype: str
    identity: Hashable


class Figures(NamedTuple):
    """How an optimizer moves one parameter: by SGD as `common.recipe` has it, at this rate."""

    lr: float
    momentum: float
    weight_decay: float


def check_found(
    arch: Architecture, paths: Mapping[str, str], found: Mapping[str, Found], served: Mapping[str, str]
) -> str:
    """The contract's type for a network with these arrays, one of the values of `served`.

    Args:
        paths: canonical name to the framework's own.
        found: the framework's own name to what it is: of all parameters and statistics.
        served: of the types as the framework calls them, those that the contract has.

    Raises:
        ValueError: unless they are exactly the architecture's, each an array of its own, and of one type.
    """
    shapes = {paths[name]: shape for name, shape in arch.parameter_shapes().items()}
    problems = other_names(shapes, found)
    own = {name: found[name] for name in shapes if name in found}
    wrong = [
        f"{name} is {array.shape}, expected {shapes[name]}"
        for name, array in own.items()
        if not _may_be(array.shape, shapes[name])
    ]
    if wrong:
        problems.append(f"wrong shape: {some(wrong)}")
    first = {array.identity: name for name, array in reversed(own.items())}
    if tied := [f"{name} is {first[a.identity]}" for name, a in own.items() if first[a.identity] != name]:
        problems.append(f"shared: {some(tied)}")
    if problems:
        raise BadInput(
            f"the network is not what its arch says; {'; '.join(problems)}; undo what was added or replaced, "
            "or build it with an Architecture that says so"
        )
    types = {array.dtype: name for name, array in reversed(own.items())}
    if len(types) > 1:
        each = [f"{name} is {dtype}" for dtype, name in reversed(types.items())]
        raise BadInput(f"the network is of several types ({some(each)}); make it one: float32 or float64")
    (dtype,) = types
    if dtype not in served:
        raise BadInput(f"the network is of {dtype}; the contract serves {', '.join(served)}: convert it")
    return served[dtype]


def _may_be(shape: tuple[int | None, ...] | None, expected: Shape) -> bool:
    if shape is None:
        return True
    return len(shape) == len(expected) and all(a in (None, b) for a, b in zip(shape, expected, strict=True))


@contextmanager
def taking(shape: Shape) -> Iterator[None]:
    """What a network raises at images of this (N, C, H, W) shape becomes one line."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        first, *others = str(error).strip().splitlines() or [""]
        # MXNet and Keras say first what went on, and last what went wrong
        reason = others[-1] if others and first.endswith(":") else first
        raise BadInput(
            f"the network fails at images {tuple(shape)} ({type(error).__name__}: {reason}); "
            "it must compute what its architecture says"
        ) from error


def check_function(
    forward: Callable[[NDArray, bool], Mapping[str, NDArray]],
    ours: Callable[[NDArray, bool], Mapping[str, NDArray]],
    arch: Architecture,
    dtype: str,
) -> None:
    """Raise `ValueError` unless a network computes what one of ours with its weights does.

    Args:
        forward, ours: images (N, C, H, W) and whether to train → logits and what else there is to compare.
    """
    images = np.random.default_rng(0).random((2, arch.in_channels, *[arch.smallest_input] * 2))
    for training, when in ((False, "in evaluation"), (True, "in training")):
        with taking(images.shape):
            found = forward(images, training)
        for name, expected in ours(images, training).items():
            off = _difference(found.get(name), expected)
            if not off <= BOUNDS[dtype]:
                raise BadInput(
                    f"the network does not compute what its architecture says: {name} {when} is off by "
                    f"{off:.2g}; leave its methods and layers as they were, or build it with an Architecture "
                    "that says what differs"
                )


def _difference(found: Any, expected: NDArray) -> float:
    """The largest difference of an entry, as a part of the largest one; infinite of two shapes."""
    if found is None or np.shape(found) != expected.shape:
        return np.inf
    if np.array_equal(found, expected, equal_nan=True):
        return 0.0
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def figures_of(arch: Architecture, recipe: Recipe, lr: float) -> dict[str, Figures]:
    """Canonical name of all that the recipe trains to how it moves it, at a network's learning rate."""
    figures = {}
    for name, shape in arch.parameter_shapes().items():
        if recipe.trains(name):
            decays = not (recipe.no_decay_norm and len(shape) == 1)
            rate = lr * (1.0 if is_last(name) else recipe.lr_backbone)
            figures[name] = Figures(rate, recipe.momentum, recipe.weight_decay if decays else 0.0)
    return figures


def configured(configure_optimizers: Callable[..., Any], recipe: Recipe) -> Any:
    """What a network's own `configure_optimizers` gives; the chapter's knows of no recipe."""
    knows = inspect.signature(configure_optimizers).parameters
    return configure_optimizers(recipe) if knows else configure_optimizers()


def check_optimizer(
    arch: Architecture, recipe: Recipe, lr: float, frozen: set[str], found: Mapping[str, Figures] | str
) -> None:
    """Raise `ValueError` unless an optimizer is the recipe's, of which a checkpoint holds all there is.

    Args:
        lr: the network's.
        frozen: canonical names of what its network does not train.
        found: canonical name to how the optimizer moves it; or what else the optimizer is, in words.
    """
    hint = "what a step is, say to Trainer or train_step (momentum, weight_decay, …), which keep it in a run"
    if isinstance(found, str):
        raise BadInput(f"configure_optimizers gives {found}, whose state no checkpoint would hold; {hint}")
    for name, expected in figures_of(arch, recipe, lr).items():
        if name in frozen:
            continue
        if name not in found:
            raise BadInput(f"configure_optimizers leaves out {name}; freeze in the network what is to stay")
        for figure, own, asked in zip(Figures._fields, found[name], expected, strict=True):
            if not np.isclose(own, asked, rtol=1e-6, atol=0):
                raise BadInput(
                    f"configure_optimizers gives {name} {figure} {own:g}, the recipe {asked:g}; {hint}"
                )

"""What a training step is, besides its learning rate: SGD and what people add to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

from common.errors import BadInput
from common.weights import is_statistic


@dataclass(frozen=True)
class Recipe:
    """How a step of SGD moves the weights; without a word, as plainly as can be.

    With gradient g of the loss, parameter w and velocity v, which starts from zero:
    g += weight_decay · w;  v = momentum · v + g;  w −= lr · v.

    Attributes:
        momentum: share of the velocity that a step keeps.
        weight_decay: share of the weights that is added to the gradient.
        label_smoothing: share e, below 1, of what the loss asks for that is spread over all K classes:
            (1 − e) · one-hot + e / K (Szegedy et al. 2015, section 7).
        no_decay_norm: no weight decay on batch norm and on biases, that is on all parameters of one axis
            (He et al. 2018, "Bag of tricks", section 3.1).
        lr_backbone: share of the learning rate, above 0, for all parameters but those of `last`.
        freeze: "backbone" trains `last` alone; batch norm evaluates, and its statistics stay. "" trains all.
        ema: share, below 1, that averaged weights keep at a step: they start as the weights do, and then
            average = ema · average + (1 − ema) · weights, running statistics included. 0 averages none.

    Raises:
        ValueError: for a value out of range.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    no_decay_norm: bool = False
    lr_backbone: float = 1.0
    freeze: str = ""
    ema: float = 0.0

    def __post_init__(self) -> None:
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < np.inf:
                raise BadInput(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"{name} must be from 0 to below 1, not {getattr(self, name)}")
        if not isinstance(self.no_decay_norm, bool):
            raise BadInput(f"no_decay_norm must be true or false, not {self.no_decay_norm!r}")
        if not 0 < self.lr_backbone < np.inf:
            raise BadInput(f"lr_backbone must be above 0, not {self.lr_backbone}")
        if self.freeze not in ("", "backbone"):
            raise BadInput(f"unknown freeze {self.freeze!r}; give backbone, or nothing to train all")

    def trains(self, name: str) -> bool:
        """Whether the optimizer moves the array of this canonical name."""
        return not is_statistic(name) and (not self.freeze or is_last(name))

    def kind(self, *figures: str) -> Recipe:
        """What all recipes share that one compiled optimizer serves, of which these figures may change.

        It is another with a figure that does something than without; the loss and the average it never sees.
        """
        used: dict[str, Any] = {name: 0.5 for name in figures if getattr(self, name) != getattr(PLAIN, name)}
        return dataclasses.replace(self, label_smoothing=0.0, ema=0.0, **used)


PLAIN = Recipe()


def with_smoothing(loss: Callable[..., Any], label_smoothing: float) -> Callable[..., Any]:
    """A network's `loss` as a function of logits and labels; the chapter's knows of no label smoothing.

    Raises:
        ValueError: for label smoothing that it does not take.
    """
    if not label_smoothing:
        return loss
    parameters = signature(loss).parameters.values()
    if not any(p.name == "label_smoothing" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise BadInput(
            "the network's own loss takes no label_smoothing; give it that parameter, or train without"
        )
    return partial(loss, label_smoothing=label_smoothing)


def is_last(name: str) -> bool:
    """Whether a canonical name is the classifier's, and not the backbone's."""
    return name.startswith("last.")

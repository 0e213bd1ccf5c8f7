"""What decides how a run goes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.data import CLASSES
from common.data.preparation import Preparation
from common.errors import BadInput
from common.reading import check_fields
from common.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """All that decides how a run goes: equal settings are the same run, in every backend.

    Attributes:
        backend: who computes.
        architecture: the network, as `Architecture.to_json` writes it.
        lr: the highest learning rate; `schedule` "constant" keeps it, "cosine" takes it to 0.
        recipe: what a step is, besides its learning rate.
        warmup_epochs: epochs over which the learning rate first rises from 0 to `lr`.
        augment: any of "flip" and "crop".
        precision: "float32", "float64", "bfloat16" or "tf32".
        data: which images, in words; `limit_train` and `limit_val` take the first so many.
        resize: height and width the network sees.
        compile: whether PyTorch compiles its network, as the others always do.
        classes: names of an image folder's classes, which the checkpoints keep; else none.
        fit, normalize, scaled, interpolation: how images are prepared, as `Preparation` has it; an empty fit
            says nothing of them.
        val_share, skip_bad: as `data.ImageFolder` has them.
        weights: SHA-256 of the weights the run starts from; empty where they are drawn from the seed.

    Raises:
        ValueError: for a value out of range.
    """

    backend: str
    architecture: str
    epochs: int
    batch_size: int
    resize: tuple[int, int]
    lr: float
    recipe: Recipe
    schedule: str
    warmup_epochs: int
    augment: tuple[str, ...]
    precision: str
    device: str
    seed: int
    limit_train: int | None
    limit_val: int | None
    data: str
    compile: bool = False
    classes: tuple[str, ...] = ()
    fit: str = ""
    normalize: str = "none"
    scaled: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    val_share: float | None = None
    skip_bad: bool = False
    weights: str = ""

    def __post_init__(self) -> None:
        for name in ("resize", "augment", "classes", "scaled"):  # lists, from JSON
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, least in (("epochs", 1), ("warmup_epochs", 0)):
            if not least <= getattr(self, name) < np.inf:
                raise BadInput(f"{name} must be {least} or more, not {getattr(self, name)}")
        if not 0 < self.lr < np.inf:
            raise BadInput(f"lr must be above 0, not {self.lr}")
        if self.schedule not in ("constant", "cosine"):
            raise BadInput(f"unknown schedule {self.schedule!r}; give constant or cosine")
        if self.schedule == "cosine" and self.warmup_epochs >= self.epochs:
            raise BadInput(
                f"warmup_epochs ({self.warmup_epochs}) leaves the cosine none of {self.epochs} epochs"
            )

    def metadata(self) -> dict[str, str]:
        """What a checkpoint says of its images: their classes, and how they are prepared."""
        said = {}
        if self.fit:
            said["preparation"] = self.preparation(channels=3).to_json()
        if self.fit == "fashion-mnist":
            said["classes"] = json.dumps(CLASSES)
        if self.classes:
            said["classes"] = json.dumps(self.classes)  # in ASCII: a folder's name may be no Unicode
            said |= {"data": self.data, "val_share": json.dumps(self.val_share)}
        return said

    def preparation(self, channels: int) -> Preparation:
        """How images of so many channels are prepared, where `fit` is not empty."""
        return Preparation(self.resize, channels, self.normalize, self.fit, self.scaled, self.interpolation)

    @classmethod
    def names(cls) -> list[str]:
        """Of the values in `to_fields`."""
        own = [field.name for field in dataclasses.fields(cls) if field.name != "recipe"]
        return own + [field.name for field in dataclasses.fields(Recipe)]

    def to_fields(self) -> dict[str, Any]:
        """Name to value, the recipe's fields among the others: what `run.json` says."""
        fields = dataclasses.asdict(self)
        recipe = fields.pop("recipe")
        return fields | recipe

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Settings:
        """The settings that `to_fields` gave; what is not said of the recipe is as in `Recipe()`.

        Raises:
            TypeError: for a name too many, or too few.
            ValueError: for a value out of range, or of another type.
        """
        check_fields(fields, cls)
        check_fields(fields, Recipe)
        of_recipe = {field.name for field in dataclasses.fields(Recipe)}
        recipe = Recipe(**{name: value for name, value in fields.items() if name in of_recipe})
        others = {name: value for name, value in fields.items() if name not in of_recipe}
        return cls(recipe=recipe, **others)

    def differences(self, other: Settings) -> list[str]:
        """One line for each setting that is not the same: "lr is 0.1, not 0.01"."""
        own, others = self.to_fields(), other.to_fields()
        return [
            f"{name} is {own[name]}, not {others[name]}"
            for name in own
            if name != "classes"  # which `data` speaks for
            and own[name] != others[name]
        ]

"""What files of timm and transformers beside a checkpoint say of its model, which tensors do not show."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common.data.preparation import Preparation
from common.errors import BadInput
from common.interop.prepared import of_timm, of_transformers
from common.reading import brief, fits, read_json, shown

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
TRANSFORMERS = ("transformers", "transformers-flax", "transformers-tf")
# Of a config.json, what is served of what the tensors do not show: of transformers', and of timm's.
SERVED: dict[str, tuple[Any, ...]] = {"hidden_act": ("relu",), "downsample_in_first_stage": (False,)}
TIMM: dict[str, tuple[Any, ...]] = {
    "act_layer": ("relu", None),
    "norm_layer": ("batchnorm2d", "batchnorm", None),
    "aa_layer": ("", None),
    "output_stride": (32,),
    "global_pool": ("avg",),
    "stem_type": ("",),
    "replace_stem_pool": (False,),
    "avg_down": (False,),
    "block_args": ({}, None),
}
# Of timm's arguments, what the tensors show, or what is of training alone.
SHOWN = {
    *("num_classes", "in_chans", "layers", "channels", "cardinality", "base_width", "stem_width"),
    *("drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last"),
}
SYNSET = re.compile(r"n\d{8}")  # what ImageNet calls a class


@dataclass(frozen=True)
class Said:
    """What the files beside a checkpoint say of its model.

    Attributes:
        families: for whose networks they speak; empty where nothing is said.
        axes: of the `Architecture`.
        model: what timm builds it from.
        prepare: how images are prepared for a network of so many channels, if that is said; it may raise.
        classes: their names, in the order of the logits.
        lines: which files are not believed, and why.
    """

    families: tuple[str, ...] = ()
    axes: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[int], Preparation] | None = None
    classes: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()

    def of(self, family: str) -> Said:
        """What is said of a network of this family."""
        if family in self.families or not self.families:
            return self
        why = f"it is of {self.families[0]}, and the tensors are of {family}"
        return Said(lines=(_not_believed(Path(CONFIG), why),))


def read_config(path: Path, family: str = "auto") -> Said:
    """What a config.json, and a preprocessor_config.json, say of the model of this folder or file.

    In a folder they are its own. Beside a file they may be of something else: what is not of a ResNet, or not
    of this family, is not believed.

    Raises:
        ValueError: if they are damaged, or name what no network of this project does.
    """
    folder = path.parent if path.is_file() else path
    config = folder / CONFIG
    if not config.is_file():
        alone = folder / PROCESSOR
        return Said(lines=(_not_believed(alone, f"there is no {CONFIG}"),) if alone.is_file() else ())
    try:
        said = read_json(config, dict)
        of = _families(said)
        if not of:
            raise ValueError(f"its model_type is {brief(said.get('model_type'))}, not resnet")
        processor = _processor(folder) if of == TRANSFORMERS else {}
    except (OSError, ValueError) as error:
        if path.is_file():
            return Said(lines=(_not_believed(config, error),))
        raise BadInput(f"{config} is not what a ResNet's is ({error}); mend it or take it away") from None
    if family not in ("auto", *of):
        return Said(lines=(_not_believed(config, f"it is of {of[0]}"),))
    if others := _not_served(said, of):
        raise BadInput(
            f"{config} says {', '.join(dict.fromkeys(others))}, which the blocks of this project do not do"
        )
    if of == ("timm",):
        cfg = said.get("pretrained_cfg")
        model = {"model_name": said["architecture"], **(said.get("model_args") or {})}
        by_timm = partial(of_timm, cfg if isinstance(cfg, dict) else said)
        return Said(of, model=model, prepare=by_timm, classes=_timms_classes(said))
    axes = {"stride_on": "1x1"} if said.get("downsample_in_bottleneck") is True else {}
    prepare = partial(of_transformers, processor) if processor else None
    return Said(of, axes, prepare=prepare, classes=_labels(said.get("id2label")))


def _not_believed(path: Path, why: object) -> str:
    return f"{path.name} beside it is not used: {shown(str(why), 200)}"


def _families(said: Mapping[str, Any]) -> tuple[str, ...]:
    """Whose config.json it is; empty where it is none of a ResNet."""
    name, model_args = said.get("architecture"), said.get("model_args")
    is_timm = isinstance(name, str) and not {"model_args", "num_features", "pretrained_cfg"}.isdisjoint(said)
    if is_timm and re.search("res(net|next)", str(name)) and fits(model_args, dict[str, Any] | None):
        return ("timm",)
    return TRANSFORMERS if said.get("model_type") == "resnet" else ()


def _not_served(said: Mapping[str, Any], of: tuple[str, ...]) -> list[str]:
    """What it says that the blocks of this project do not do."""
    served = SERVED if of == TRANSFORMERS else TIMM
    others = [f"{key} {brief(said[key])}" for key in served if key in said and said[key] not in served[key]]
    if str(said.get("architecture")).startswith(("resnetaa", "resnetblur")):  # timm's anti-aliased ones
        others.append(f"architecture {brief(said['architecture'])}")
    return others + [
        f"{shown(key, 60)} {brief(value)}"
        for key, value in (said.get("model_args") or {}).items()
        if of == ("timm",) and key not in SHOWN and value not in TIMM.get(key, ())
    ]


def _processor(folder: Path) -> Mapping[str, Any]:
    path = folder / PROCESSOR
    try:
        return read_json(path, dict) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{PROCESSOR} is damaged: {error}") from None


def _timms_classes(said: Mapping[str, Any]) -> tuple[str, ...]:
    """The names that timm gives; of ImageNet's numbers what they stand for."""
    names, longer = said.get("label_names"), said.get("label_descriptions")
    if not (isinstance(names, list) and fits(names, list[str])):
        return ()
    if isinstance(longer, dict) and fits(longer, dict[str, str]):
        return tuple(longer.get(name, name) if SYNSET.fullmatch(name) else name for name in names)
    return tuple(names)


def _labels(labels: Any) -> tuple[str, ...]:
    """Of transformers; empty where they are numbers only."""
    if not (isinstance(labels, dict) and fits(labels, dict[str, str])):
        return ()
    found = tuple(labels.get(str(i), "") for i in range(len(labels)))
    is_named = all(found) and any(name != f"LABEL_{i}" for i, name in enumerate(found))
    return found if is_named else ()

"""How other libraries prepare images for their networks: as a folder's files say, or else by default."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.architecture import Architecture
from common.data import CLASSES, imagenet
from common.data.colours import colours, in_figures
from common.data.preparation import INTERPOLATIONS, Preparation
from common.errors import BadInput
from common.reading import brief, fits

PILLOWS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by their numbers
TRANSFORMERS = "preprocessor_config.json"
LARGE = 384  # height and width from which on ConvNext's processor, which ResNets have, cuts nothing

_USUAL = Preparation((224, 224), 3, "imagenet")  # torchvision's first weights, timm's, GluonCV's
_D2L = Preparation((96, 96), 1, fit="fashion-mnist")

# What each family's own weights were evaluated with. Its library's own functions: torchvision's
# `weights.transforms()`, timm's `create_transform`, transformers' `ConvNextImageProcessor` as ResNets' files
# have it, Keras' `preprocess_input` (of colours alone), Gluon's and Flax's published examples.
DEFAULTS = {
    "torchvision": _USUAL,
    "timm": _USUAL,
    "gluon": dataclasses.replace(_USUAL, half="down"),
    "gluoncv": dataclasses.replace(_USUAL, half="down"),
    "keras": dataclasses.replace(_USUAL, normalize="caffe"),
    **{
        name: dataclasses.replace(_USUAL, interpolation="bicubic", half="down")
        for name in ("transformers", "transformers-flax", "transformers-tf", "flax-example")
    },
    **dict.fromkeys(("d2l-torch", "d2l-mxnet", "d2l-tf", "d2l-jax"), _D2L),
}

# What the shorter side of an image is brought to for each file that torchvision publishes, by the first of
# the digits of its SHA-256, which its name has: networks that were trained later see more of the image.
PUBLISHED = {
    **dict.fromkeys(("f37072fd", "b627a593", "0676ba61", "63fe2227", "394f9c45", "7cdf4587"), 256),
    **dict.fromkeys(("8ba56ff5", "95faca4d", "32ee1156"), 256),
    **dict.fromkeys(("11ad3fa6", "cd907fc2", "f82ba261", "1a0047aa", "110c445d", "173b62eb"), 232),
    **dict.fromkeys(("9ba9bcbe", "d733dc28"), 232),
}


def of_published(path: Path) -> Preparation | None:
    """How images are prepared for the very file that torchvision publishes; None of another file."""
    if path.suffix != ".pth" or not path.is_file():
        return None
    with path.open("rb") as file:
        side = PUBLISHED.get(hashlib.file_digest(file, "sha256").hexdigest()[:8])
    return dataclasses.replace(_USUAL, scaled=(side, side)) if side else None


def by_default(family: str, arch: Architecture) -> Preparation | None:
    """How the family prepares images for its own weights of so many channels; None where it does not.

    Greys are left in [0, 1]: the figures are of three channels.
    """
    found = DEFAULTS[family]
    if found == _D2L and (arch.in_channels, arch.num_classes) != (1, len(CLASSES)):
        return None
    if arch.in_channels == found.channels:
        return found
    return dataclasses.replace(found, channels=1, normalize="none") if arch.in_channels == 1 else None


def usual_classes(family: str, arch: Architecture) -> tuple[str, ...]:
    """The names of the classes that a network of so many is taken to have, where nothing names them."""
    if by_default(family, arch) == _D2L:
        return CLASSES
    is_imagenets = (arch.in_channels, arch.num_classes) == (3, imagenet.NUM_CLASSES)
    return imagenet.classes() if is_imagenets else ()


def of_timm(said: Mapping[str, Any], channels: int) -> Preparation:
    """What the `pretrained_cfg` of timm says (timm's data/config.py and data/transforms_factory.py).

    Raises:
        ValueError: if it is damaged, or images are prepared in a way that is none of ours.
    """
    whole = said.get("input_size") or (channels, 224, 224)
    share = said.get("crop_pct") or 0.875
    mode = said.get("crop_mode") or "center"
    mean, std = said.get("mean") or imagenet.MEAN, said.get("std") or imagenet.STD
    if mode not in ("center", "squash"):
        raise BadInput(f"crop_mode is {brief(mode)}")
    if not fits(whole, tuple[int, int, int]):
        raise BadInput(f"input_size is {brief(whole)}")
    if not (fits(share, float) and 1e-3 < share <= 1):
        raise BadInput(f"crop_pct is {brief(share)}")
    size = whole[1], whole[2]
    return Preparation(
        size,
        channels,
        _figures(mean, std, channels),
        "whole" if mode == "squash" else "crop",
        (math.floor(size[0] / share), math.floor(size[1] / share)),
        _known(said.get("interpolation") or "bicubic"),
    )


# Image processors of transformers that are served. ConvNext's, which ResNets have, resizes and cuts by one
# size; some bring images to a height and a width, some their shortest edge to one size, and cut after that.
SQUASHING, COVERING = ("ViT", "DeiT"), ("CLIP", "Bit")


def of_transformers(said: Mapping[str, Any], channels: int) -> Preparation:
    """What a preprocessor_config.json of transformers says.

    Raises:
        ValueError: if it is damaged, or images are prepared in a way that is none of ours.
    """
    for name, served in (("do_resize", True), ("do_rescale", True), ("do_flip_channel_order", False)):
        if said.get(name, served) is not served:
            raise BadInput(f"{name} is {brief(said[name])}")
    factor = said.get("rescale_factor", 1 / 255)
    if not (fits(factor, float) and math.isclose(factor, 1 / 255, rel_tol=1e-6)):
        raise BadInput(f"rescale_factor is {brief(factor)}")
    kind = str(said.get("image_processor_type") or said.get("feature_extractor_type"))
    kind = re.sub("(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", kind)
    if kind == "ConvNext":
        shortest = _side(said, "size", "shortest_edge")
        share = said.get("crop_pct", 0.875)
        if not (fits(share, float) and 1e-3 < share <= 1):
            raise BadInput(f"crop_pct is {brief(share)}")
        size = shortest, shortest
        scaled = (int(shortest / share),) * 2 if shortest < LARGE else size
        fit = "crop" if shortest < LARGE else "whole"
    elif kind in SQUASHING:
        fit, scaled = "whole", (_side(said, "size", "height"), _side(said, "size", "width"))
        size = scaled
    elif kind in COVERING:
        fit, scaled = "crop", (_side(said, "size", "shortest_edge"),) * 2
        if said.get("do_center_crop") is not True:
            raise BadInput(f"do_center_crop is {brief(said.get('do_center_crop'))}")
    else:
        raise BadInput(f"its processor is {brief(kind)}")
    if kind != "ConvNext" and said.get("do_center_crop"):
        size = _side(said, "crop_size", "height"), _side(said, "crop_size", "width")
    normalize = "none"
    if said.get("do_normalize", True):
        normalize = _figures(said.get("image_mean"), said.get("image_std"), channels)
    number = said.get("resample")
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(PILLOWS):
        raise BadInput(f"resample is {brief(number)}")
    return Preparation(size, channels, normalize, fit, scaled, _known(PILLOWS[number]), half="down")


def for_transformers(made: Preparation) -> dict[str, Any] | None:
    """What `of_transformers` reads as this; None where transformers has no processor that does it.

    A folder's images are always cut, as a processor does.
    """
    how, (height, width), (tall, wide) = colours(made.normalize, made.channels), made.size, made.around
    said: dict[str, Any] = {
        "do_normalize": made.normalize != "none",
        "do_rescale": True,
        "do_resize": True,
        "image_mean": how.mean,
        "image_std": how.std,
        "rescale_factor": 1 / 255,
        "resample": PILLOWS.index(made.interpolation),
    }
    if (how.order, how.highest) != ("rgb", 1) or made.fit == "fashion-mnist":
        return None
    if made.fit == "whole" and made.size == made.around:
        return said | {"image_processor_type": "ViTImageProcessor", "size": {"height": tall, "width": wide}}
    if made.fit == "whole" or tall != wide:
        return None
    cut = {"crop_size": {"height": height, "width": width}, "do_center_crop": True}
    return said | cut | {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": tall}}


def _side(said: Mapping[str, Any], name: str, side: str) -> int:
    """One of a size's sides; a single number stands for all."""
    size = said.get(name)
    found = size.get(side) if isinstance(size, dict) else size
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise BadInput(f"{name} is {brief(size)}")
    return found


def _known(interpolation: object) -> str:
    if interpolation not in INTERPOLATIONS:
        raise BadInput(f"interpolation is {brief(interpolation)}")
    return str(interpolation)


def _figures(mean: Any, std: Any, channels: int) -> str:
    """Of each channel; where there are more or fewer, their mean for each, as timm has it."""
    for figures in (mean, std):
        if not (fits(figures, tuple[float, ...]) and figures):
            raise BadInput(f"mean or deviation is {brief(figures)}")
    if len(mean) != channels:
        mean, std = ([sum(figures) / len(figures)] * channels for figures in (mean, std))
    return in_figures(mean, std)

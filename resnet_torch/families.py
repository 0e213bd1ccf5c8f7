"""Other networks in PyTorch, built and loaded by their own libraries, for ours to be held against."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from common.architecture import Architecture
from common.errors import BadInput
from common.interop.configs import read_config
from common.interop.families import hugging_face_config
from common.reading import brief, shown
from resnet_torch.speed import torchvision


def torchvision_resnet(arch: Architecture) -> nn.Module:
    """torchvision's ResNet, which has its own widths."""
    resnet = torchvision().models.resnet
    depths, channels = zip(*arch.stages, strict=True)
    if arch.stem_channels != 64 or channels != tuple(64 * 2**k * _expansion(arch) for k in range(4)):
        raise BadInput("torchvision's class builds its own four stages of 64, 128, 256 and 512 planes only")
    options, first = {}, arch.blocks()[0][0]
    if first.groups:
        options = {"groups": first.bot_channels // first.groups, "width_per_group": first.groups}
    block = resnet.BasicBlock if arch.block == "residual" else resnet.Bottleneck
    net = resnet.ResNet(block, list(depths), num_classes=arch.num_classes, **options)
    if arch.in_channels != 3:
        net.conv1 = nn.Conv2d(arch.in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return net


def timm_resnet(arch: Architecture) -> nn.Module:
    """timm's ResNet."""
    torchvision()  # timm imports it
    from timm.models import resnet

    if arch.stem_channels != 64:
        raise BadInput("timm's class builds a stem of 64 channels only")
    depths, channels = zip(*arch.stages, strict=True)
    planes = [count // _expansion(arch) for count in channels]
    options, first = {}, arch.blocks()[0][0]
    if first.groups:
        groups = first.bot_channels // first.groups
        options = {"cardinality": groups, "base_width": 64 * first.groups // planes[0]}
    return resnet.ResNet(
        resnet.BasicBlock if arch.block == "residual" else resnet.Bottleneck,
        layers=depths,
        channels=planes,
        num_classes=arch.num_classes,
        in_chans=arch.in_channels,
        **options,
    )


def transformers_resnet(arch: Architecture) -> nn.Module:
    """Hugging Face's ResNet."""
    torchvision()  # transformers imports it
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(**hugging_face_config(arch)))


def d2l() -> ModuleType:
    """The book's library for PyTorch; it imports torchvision."""
    torchvision()
    from d2l import torch as d2l

    return d2l


def d2l_resnet(arch: Architecture) -> nn.Module:
    """The chapter's ResNet, of d2l's blocks ("Dive into Deep Learning", sections 8.6.3 and 8.6.5)."""
    kind = d2l().Residual if arch.block == "residual" else d2l().ResNeXtBlock
    net = nn.Sequential(
        nn.Sequential(
            nn.LazyConv2d(arch.stem_channels, kernel_size=7, stride=2, padding=3),
            nn.LazyBatchNorm2d(),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
    )
    for k, blocks in enumerate(arch.blocks(), start=2):
        net.add_module(f"b{k}", nn.Sequential(*[kind(**block.chapter_options) for block in blocks]))
    last = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.LazyLinear(arch.num_classes))
    net.add_module("last", last)
    model = nn.Sequential(OrderedDict(net=net))
    model(torch.zeros(2, arch.in_channels, 64, 64))  # lazy layers find their shapes
    return model


NETWORKS: dict[str, Callable[[Architecture], nn.Module]] = {
    "torchvision": torchvision_resnet,
    "timm": timm_resnet,
    "transformers": transformers_resnet,
    "d2l-torch": d2l_resnet,
}


def timm_model(arch: Architecture, model: Mapping[str, Any]) -> nn.Module:
    """The model of timm that a config.json names."""
    torchvision()  # timm imports it
    from timm.models import create_model

    counts = {"num_classes": arch.num_classes, "in_chans": arch.in_channels}
    try:
        return create_model(**{**model, **counts})
    except (RuntimeError, TypeError) as error:  # no such model, other arguments
        raise BadInput(
            f"timm builds no {brief(model['model_name'])}, which config.json names: {shown(str(error), 200)}"
        ) from None


def own_network(family: str, arch: Architecture, path: Path) -> Callable[[NDArray], NDArray]:
    """The family's own network with the tensors of a file, in float64: images (N, C, H, W) → logits.

    That of timm is the one which a config.json beside the file names, if there is one.

    Raises:
        ImportError: if its library is not installed.
        ValueError: if its library builds no such network.
    """
    named = read_config(path, family).model
    net: Any = timm_model(arch, named) if named else NETWORKS[family](arch)
    net = net.double()  # before it loads: a file in float64 is not to be rounded
    if path.is_dir():
        net = net.from_pretrained(path, dtype=torch.float64)
    else:
        is_pickle = path.suffix != ".safetensors"
        content = torch.load(path, weights_only=True) if is_pickle else load_file(path)
        try:
            net.load_state_dict(content)
        except RuntimeError as error:
            raise BadInput(f"{family} cannot load {path}: {str(error).splitlines()[-1].strip()}") from None
    net.eval()

    @torch.no_grad()
    def logits(x: NDArray) -> NDArray:
        y = net(torch.from_numpy(x))
        return getattr(y, "logits", y).numpy()

    return logits


def _expansion(arch: Architecture) -> int:
    """A block's channels over its planes."""
    return 1 if arch.block == "residual" else 4

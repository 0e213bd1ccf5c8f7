"""Models of torchvision, timm and transformers to convert, in float64, with nothing left trivial."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from common.interop.convert import Converted
from common.interop.families import FAMILIES
from common.weights import Weights
from resnet_torch.speed import torchvision


def timm() -> ModuleType:
    """The module; it imports torchvision."""
    torchvision()
    import timm

    return timm


def transformers(**options: Any) -> Any:
    """A ResNet for image classification with these settings of its configuration."""
    torchvision()
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(**options))


def randomised(model: nn.Module, seed: int = 0) -> Any:
    """The model in float64 and evaluation, with random weights, scales, shifts and running statistics.

    The statistics lie around those of random images: far from them, biases would drown what an image shows.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator, dtype=torch.float64) * (high - low) + low

    model = model.double()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    products = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for product in products:
            product.weight.copy_(uniform(product.weight, -1, 1) * (3 / product.weight[0].numel()) ** 0.5)
            if product.bias is not None:
                product.bias.copy_(uniform(product.bias, -0.5, 0.5))
        for norm in norms:
            norm.weight.copy_(uniform(norm.weight, 0.5, 1.5))
            norm.bias.copy_(uniform(norm.bias, -0.5, 0.5))
            norm.momentum = 1.0  # the running statistics become the batch's
        channels = products[0].weight.shape[1]
        model.train()(torch.rand((2, channels, 64, 64), generator=generator, dtype=torch.float64))
        for norm in norms:
            norm.momentum = 0.1
            norm.running_mean += uniform(norm.running_mean, -0.3, 0.3) * norm.running_var.sqrt()
            norm.running_var *= uniform(norm.running_var, 0.6, 1.6)
    return model.eval()


def logits(model: nn.Module, x: NDArray) -> NDArray:
    """(N, C, H, W) → (N, classes), as the model is, in evaluation."""
    with torch.no_grad():
        y = model.eval()(torch.from_numpy(x))
    return getattr(y, "logits", y).numpy()


def state(model: nn.Module) -> dict[str, NDArray]:
    """Name to a copy of every tensor of the model."""
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


@dataclass(frozen=True)
class Training:
    """A training pass of a source model; gradients by its own names, in the order of its layers."""

    loss: float
    logits: NDArray
    gradients: Weights


def training(model: nn.Module, x: NDArray, y: NDArray) -> Training:
    """Loss, logits and gradients with batch statistics; the running ones move."""
    model.train()
    model.zero_grad()
    output = model(torch.from_numpy(x))
    output = getattr(output, "logits", output)
    loss = nn.functional.cross_entropy(output, torch.from_numpy(y))
    loss.backward()
    found = {name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()}
    return Training(loss.item(), output.detach().numpy(), found)


def named_as_theirs(converted: Converted, gradients: Weights) -> Weights:
    """Our gradients under the names of the family and as it lays them out."""
    family = FAMILIES[converted.family]
    names = family.names(converted.arch).items()
    return {theirs: family.to_theirs(gradients[ours]) for ours, theirs in names if ours in gradients}

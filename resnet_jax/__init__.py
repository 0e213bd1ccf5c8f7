"""ResNet and ResNeXt in JAX, with Flax linen."""

from common.data import FashionMNIST, ImageFolder
from resnet_jax.blocks import Residual, ResNeXtBlock
from resnet_jax.resnet import (
    ResNet,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    ResNeXt50_32x4d,
    ResNeXt101_32x8d,
    ResNeXt101_64x4d,
    Wide_ResNet50_2,
    Wide_ResNet101_2,
)
from resnet_jax.training import Classifier, Trainer

__all__ = [
    "Classifier",
    "FashionMNIST",
    "ImageFolder",
    "ResNeXt50_32x4d",
    "ResNeXt101_32x8d",
    "ResNeXt101_64x4d",
    "ResNeXtBlock",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "Residual",
    "Trainer",
    "Wide_ResNet50_2",
    "Wide_ResNet101_2",
]

"""ResNet and ResNeXt in JAX, with Flax linen."""

from common.data import FashionMNIST
from resnet_jax.blocks import Residual, ResNeXtBlock
from resnet_jax.resnet import ResNet, ResNet18
from resnet_jax.training import Classifier, Trainer

__all__ = ["Classifier", "FashionMNIST", "ResNeXtBlock", "ResNet", "ResNet18", "Residual", "Trainer"]

"""ResNet and ResNeXt in JAX, with Flax linen."""

from resnet_jax.blocks import Residual, ResNeXtBlock
from resnet_jax.resnet import ResNet, ResNet18
from resnet_jax.training import Classifier

__all__ = ["Classifier", "ResNeXtBlock", "ResNet", "ResNet18", "Residual"]

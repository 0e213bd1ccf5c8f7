"""ResNet and ResNeXt in TensorFlow, with Keras 3."""

import resnet_tf.compat  # noqa: F401  (before TensorFlow or Keras is imported)
from common.data import FashionMNIST
from resnet_tf.blocks import Residual, ResNeXtBlock
from resnet_tf.resnet import ResNet, ResNet18
from resnet_tf.training import Classifier, Trainer

__all__ = ["Classifier", "FashionMNIST", "ResNeXtBlock", "ResNet", "ResNet18", "Residual", "Trainer"]

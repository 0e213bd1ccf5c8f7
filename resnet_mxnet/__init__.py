"""ResNet and ResNeXt in MXNet, with Gluon."""

import resnet_mxnet.compat  # noqa: F401  (before MXNet is imported anywhere)
from common.data import FashionMNIST
from resnet_mxnet.blocks import Residual, ResNeXtBlock
from resnet_mxnet.resnet import ResNet, ResNet18
from resnet_mxnet.training import Classifier, Trainer

__all__ = ["Classifier", "FashionMNIST", "ResNeXtBlock", "ResNet", "ResNet18", "Residual", "Trainer"]

"""ResNet and ResNeXt in MXNet, with Gluon."""

import resnet_mxnet.compat  # noqa: F401  (before MXNet is imported anywhere)
from resnet_mxnet.blocks import Residual, ResNeXtBlock
from resnet_mxnet.resnet import ResNet, ResNet18
from resnet_mxnet.training import Classifier

__all__ = ["Classifier", "ResNeXtBlock", "ResNet", "ResNet18", "Residual"]

"""ResNet and ResNeXt in PyTorch."""

from common.data import FashionMNIST
from resnet_torch.blocks import Residual, ResNeXtBlock
from resnet_torch.resnet import ResNet, ResNet18
from resnet_torch.training import Classifier, Trainer

__all__ = ["Classifier", "FashionMNIST", "ResNeXtBlock", "ResNet", "ResNet18", "Residual", "Trainer"]

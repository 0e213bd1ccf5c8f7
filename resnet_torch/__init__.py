"""ResNet and ResNeXt in PyTorch."""

from resnet_torch.blocks import Residual, ResNeXtBlock
from resnet_torch.resnet import ResNet, ResNet18
from resnet_torch.training import Classifier

__all__ = ["Classifier", "ResNeXtBlock", "ResNet", "ResNet18", "Residual"]

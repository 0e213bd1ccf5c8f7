"""The two blocks: residual (He et al. 2015, figure 2) and ResNeXt (Xie et al. 2016, figure 3c)."""

from __future__ import annotations

from functools import partial

from common.architecture import Block
from resnet_fifth.layers import BatchNorm, Conv2d, Module, identity
from resnet_fifth.tensor import Tensor


class Residual(Module):
    """Two 3×3 convolutions and a shortcut around them."""

    def __init__(self, block: Block) -> None:
        norm = partial(BatchNorm, block.epsilon, block.decay)
        self.conv1, self.bn1 = Conv2d(block.strides, block.padding), norm()
        self.conv2, self.bn2 = Conv2d(1, block.padding), norm()
        self.conv3 = Conv2d(block.strides) if block.use_1x1conv else identity
        self.bn3 = norm() if block.use_1x1conv and block.shortcut_norm else identity

    def __call__(self, X: Tensor, training: bool = False) -> Tensor:
        Y = self.bn1(self.conv1(X), training).relu()
        Y = self.bn2(self.conv2(Y), training)
        return (Y + self.bn3(self.conv3(X), training)).relu()


class ResNeXtBlock(Module):
    """A bottleneck whose 3×3 convolution works in groups, and a shortcut around it."""

    def __init__(self, block: Block) -> None:
        norm = partial(BatchNorm, block.epsilon, block.decay)
        first, middle, _ = block.chain  # Trap: the stride is on the 3×3 convolution, or on the first 1×1
        self.conv1, self.bn1 = Conv2d(first), norm()
        self.conv2, self.bn2 = Conv2d(middle, block.padding), norm()
        self.conv3, self.bn3 = Conv2d(), norm()
        self.conv4 = Conv2d(block.strides) if block.use_1x1conv else identity
        self.bn4 = norm() if block.use_1x1conv else identity

    def __call__(self, X: Tensor, training: bool = False) -> Tensor:
        Y = self.bn1(self.conv1(X), training).relu()
        Y = self.bn2(self.conv2(Y), training).relu()
        Y = self.bn3(self.conv3(Y), training)
        return (Y + self.bn4(self.conv4(X), training)).relu()

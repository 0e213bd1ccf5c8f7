"""ResNet: a stem, stages of blocks, and a classifier (He et al. 2015, table 1)."""

from collections.abc import Sequence

from mxnet.gluon import nn

from common.architecture import Architecture, Block, architecture
from resnet_mxnet.blocks import Residual, ResNeXtBlock
from resnet_mxnet.layers import BatchNorm, Conv2D, Dense
from resnet_mxnet.training import Classifier


class ResNet(Classifier):
    """A network of residual blocks: (N, C, H, W) → (N, num_classes).

    Args:
        arch: a tuple of `(num_residuals, num_channels)`, one per stage; or an `Architecture`,
            which says all there is to say and brings its own number of classes.
        lr: learning rate of the optimizer.
        num_classes: number of logits.
    """

    def __init__(
        self, arch: Sequence[tuple[int, int]] | Architecture, lr: float = 0.1, num_classes: int = 10
    ) -> None:
        super().__init__()
        self.arch = Architecture.of(arch, num_classes)
        self.lr = lr
        self.net = nn.HybridSequential()
        self.net.add(self.b1())
        for blocks in self.arch.blocks():
            self.net.add(self.stage(blocks))
        self.net.add(self.last())
        self.initialize()

    def b1(self) -> nn.HybridSequential:
        """The stem: (N, C, H, W) → (N, stem_channels, ⌈H/4⌉, ⌈W/4⌉)."""
        net = nn.HybridSequential()
        net.add(
            Conv2D(self.arch.stem_channels, kernel_size=7, strides=2, padding=3),
            BatchNorm(),
            nn.Activation("relu"),
            nn.MaxPool2D(pool_size=3, strides=2, padding=1),
        )
        return net

    def stage(self, blocks: list[Block]) -> nn.HybridSequential:
        """b2, b3, …: blocks in a row; all stages but the first halve height and width."""
        kind = {"residual": Residual, "resnext": ResNeXtBlock}[self.arch.block]
        net = nn.HybridSequential()
        net.add(*[kind(**block.options) for block in blocks])
        return net

    def last(self) -> nn.HybridSequential:
        """The classifier: (N, C, H, W) → (N, C) → (N, num_classes)."""
        net = nn.HybridSequential()
        net.add(nn.GlobalAvgPool2D(), Dense(self.arch.num_classes))  # Dense flattens
        return net


class ResNet18(ResNet):
    """ResNet-18 (He et al. 2015, table 1)."""

    def __init__(self, lr: float = 0.1, num_classes: int = 10) -> None:
        super().__init__(architecture("resnet18", num_classes=num_classes), lr)

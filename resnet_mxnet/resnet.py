"""ResNet: a stem, stages of blocks, and a classifier (He et al. 2015, table 1)."""

from collections.abc import Sequence
from typing import Any

from mxnet.gluon import nn

from common.architecture import Architecture, Block, published
from resnet_mxnet.blocks import Residual, ResNeXtBlock
from resnet_mxnet.layers import BatchNorm, Conv2D, Dense, MaxPool2D, draw_with_first_images
from resnet_mxnet.training import Classifier


class ResNet(Classifier):
    """A network of residual blocks: (N, C, H, W) → (N, num_classes).

    Args:
        arch: a tuple of `(num_residuals, num_channels)`, one per stage; or an `Architecture`,
            which says all there is to say and brings its own number of classes.
        lr: learning rate of the optimizer.
        num_classes: number of logits.
        options: of any Gluon block, `prefix` and `params`.
    """

    def __init__(
        self,
        arch: Sequence[tuple[int, int]] | Architecture,
        lr: float = 0.1,
        num_classes: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.arch = Architecture.of(arch, num_classes)
        self.lr = lr
        with self.name_scope():
            self.net = nn.HybridSequential()
            self.net.b1 = self.b1()
            for k, blocks in enumerate(self.arch.blocks(), start=2):
                setattr(self.net, f"b{k}", self.stage(blocks))
            self.net.last = self.last()
        draw_with_first_images(self)

    def b1(self) -> nn.HybridSequential:
        """The stem: (N, C, H, W) → (N, stem_channels, ⌈H/4⌉, ⌈W/4⌉)."""
        arch, net = self.arch, nn.HybridSequential()
        net.conv = Conv2D(arch.stem_channels, kernel_size=7, strides=2, padding=arch.stem_padding)
        net.bn = BatchNorm(epsilon=arch.epsilon, momentum=arch.decay)
        net.relu = nn.Activation("relu")
        net.pool = MaxPool2D(arch.padding)
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
        net.pool = nn.GlobalAvgPool2D()
        net.dense = Dense(self.arch.num_classes)  # it flattens, too
        return net


class Published(ResNet):
    """A network of a paper: that of the zoo which its class is named after."""

    def __init__(self, lr: float = 0.1, num_classes: int = 10, **options: Any) -> None:
        super().__init__(published(type(self), num_classes), lr, **options)


class ResNet18(Published):
    """ResNet-18 (He et al. 2015, table 1)."""


class ResNet34(Published):
    """ResNet-34 (He et al. 2015, table 1)."""


class ResNet50(Published):
    """ResNet-50 (He et al. 2015, table 1)."""


class ResNet101(Published):
    """ResNet-101 (He et al. 2015, table 1)."""


class ResNet152(Published):
    """ResNet-152 (He et al. 2015, table 1)."""


class ResNeXt50_32x4d(Published):
    """ResNeXt-50 32×4d (Xie et al. 2016, table 1)."""


class ResNeXt101_32x8d(Published):
    """ResNeXt-101 32×8d (Mahajan et al. 2018, section 2)."""


class ResNeXt101_64x4d(Published):
    """ResNeXt-101 64×4d (Xie et al. 2016, section 5.1)."""


class Wide_ResNet50_2(Published):
    """ResNet-50 with bottlenecks twice as wide (Zagoruyko and Komodakis 2016, section 3)."""


class Wide_ResNet101_2(Published):
    """ResNet-101 with bottlenecks twice as wide (Zagoruyko and Komodakis 2016, section 3)."""

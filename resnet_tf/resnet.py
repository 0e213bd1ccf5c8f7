"""ResNet: a stem, stages of blocks, and a classifier (He et al. 2015, table 1)."""

from collections.abc import Sequence
from typing import Any

from keras import Sequential, layers

from common.architecture import Architecture, Block, published
from resnet_tf.blocks import Residual, ResNeXtBlock
from resnet_tf.layers import BatchNormalization, Conv2D, MaxPool2D, policy
from resnet_tf.training import Classifier


class ResNet(Classifier):
    """A network of residual blocks: (N, H, W, C) → (N, num_classes).

    Args:
        arch: a tuple of `(num_residuals, num_channels)`, one per stage; or an `Architecture`,
            which says all there is to say and brings its own number of classes.
        lr: learning rate of the optimizer.
        num_classes: number of logits.
        options: `name`, `trainable` and `dtype`, as any model of Keras takes them.
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
        with policy(self.dtype_policy):
            self.net = Sequential([self.b1()])
            for k, blocks in enumerate(self.arch.blocks(), start=2):
                self.net.add(self.stage(f"b{k}", blocks))
            self.net.add(self.last())

    def b1(self) -> Sequential:
        """The stem: (N, H, W, C) → (N, ⌈H/4⌉, ⌈W/4⌉, stem_channels)."""
        arch = self.arch
        return Sequential(
            [
                Conv2D(arch.stem_channels, kernel_size=7, strides=2, padding=arch.stem_padding, name="conv"),
                BatchNormalization(epsilon=arch.epsilon, momentum=arch.decay, name="bn"),
                layers.ReLU(),
                MaxPool2D(arch.padding),
            ],
            name="b1",
        )

    def stage(self, name: str, blocks: list[Block]) -> Sequential:
        """b2, b3, …: blocks in a row; all stages but the first halve height and width."""
        kind = {"residual": Residual, "resnext": ResNeXtBlock}[self.arch.block]
        return Sequential([kind(**block.options) for block in blocks], name=name)

    def last(self) -> Sequential:
        """The classifier: (N, H, W, C) → (N, C) → (N, num_classes)."""
        return Sequential(
            [
                layers.GlobalAveragePooling2D(data_format="channels_last"),
                layers.Dense(self.arch.num_classes, name="dense"),
            ],
            name="last",
        )


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

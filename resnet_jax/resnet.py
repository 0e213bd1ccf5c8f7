"""ResNet: a stem, stages of blocks, and a classifier (He et al. 2015, table 1)."""

from dataclasses import field
from functools import partial

from flax import linen as nn
from jax.typing import DTypeLike

from common.architecture import Architecture, Block, published
from resnet_jax.blocks import Residual, ResNeXtBlock
from resnet_jax.layers import (
    BatchNorm,
    Conv,
    Dense,
    Sequential,
    Unsaid,
    agreed,
    global_average_pool,
    max_pool,
)
from resnet_jax.training import Classifier


class ResNet(Classifier):
    """A network of residual blocks: (N, H, W, C) → (N, num_classes).

    Args:
        arch: a tuple of `(num_residuals, num_channels)`, one per stage; or an `Architecture`,
            which says all there is to say and brings its own number of classes.
        lr: learning rate of the optimizer.
        num_classes: number of logits.
        training: normalise with batch statistics and update the running ones.
        dtype: to compute products in, such as jnp.bfloat16, from parameters of float32 to logits of
            float32; by default the widest of images and parameters.
        axis_name: normalise over this axis of `jax.pmap` or `jax.shard_map`, too, as `flax.linen.BatchNorm`.
    """

    arch: Architecture  # a tuple given in its place becomes one
    lr: float = 0.1
    num_classes: int = Unsaid(10)
    training: bool = True
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    def __post_init__(self) -> None:
        self.arch = agreed(self.arch, self.num_classes)
        self.num_classes = self.arch.num_classes
        super().__post_init__()

    def setup(self) -> None:
        stages = {f"b{k}": self.stage(blocks) for k, blocks in enumerate(self.arch.blocks(), start=2)}
        self.net = Sequential({"b1": self.b1(), **stages, "last": self.last()})

    def b1(self) -> Sequential:
        """The stem: (N, H, W, C) → (N, ⌈H/4⌉, ⌈W/4⌉, stem_channels)."""
        arch = self.arch
        return Sequential(
            {
                "conv": Conv(
                    arch.stem_channels,
                    kernel_size=(7, 7),
                    strides=2,
                    padding=arch.stem_padding,
                    dtype=self.dtype,
                ),
                "bn": BatchNorm(
                    epsilon=arch.epsilon,
                    momentum=arch.decay,
                    use_running_average=not self.training,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                ),
                "relu": nn.relu,
                "pool": partial(max_pool, padding=arch.padding),
            }
        )

    def stage(self, blocks: list[Block]) -> Sequential:
        """b2, b3, …: blocks in a row; all stages but the first halve height and width."""
        kind = {"residual": Residual, "resnext": ResNeXtBlock}[self.arch.block]
        new = partial(kind, training=self.training, dtype=self.dtype, axis_name=self.axis_name)
        return Sequential({str(j): new(**block.options) for j, block in enumerate(blocks)})

    def last(self) -> Sequential:
        """The classifier: (N, H, W, C) → (N, C) → (N, num_classes)."""
        return Sequential(
            {"pool": global_average_pool, "dense": Dense(self.arch.num_classes, dtype=self.dtype)}
        )


class Published(ResNet):
    """A network of a paper: that of the zoo which its class is named after."""

    arch: Architecture = field(init=False)

    def __post_init__(self) -> None:
        self.arch = published(type(self), self.num_classes)
        super().__post_init__()


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

"""The two blocks: residual (He et al. 2015, figure 2) and ResNeXt (Xie et al. 2016, figure 3c)."""

from functools import partial

from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from common.architecture import bottleneck_strides, check_bottleneck
from resnet_jax.layers import BatchNorm, Conv


class Residual(nn.Module):
    """Two 3×3 convolutions and a shortcut around them: (N, H, W, C) → (N, H', W', num_channels).

    Args:
        num_channels: output channels.
        use_1x1conv: give the shortcut a 1×1 convolution, where the shape changes.
        strides: stride of the first convolution and of the shortcut's, a number or a pair.
        shortcut_norm: give the shortcut's convolution a batch norm, too.
        epsilon, padding, decay: as in `Architecture`; the defaults are the chapter's.
        training: normalise with batch statistics and update the running ones.
        dtype: of the products and the output; by default the widest of images and parameters.
        axis_name: normalise over this axis of `jax.pmap` or `jax.shard_map`, too, as `flax.linen.BatchNorm`.
    """

    num_channels: int
    use_1x1conv: bool = False
    strides: int | tuple[int, int] = 1
    shortcut_norm: bool = False
    epsilon: float = 1e-5
    padding: str = "symmetric"
    decay: float = 0.9
    training: bool = True
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    def setup(self) -> None:
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(
            BatchNorm,
            epsilon=self.epsilon,
            momentum=self.decay,
            use_running_average=not self.training,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        self.conv1 = conv(self.num_channels, kernel_size=(3, 3), padding=self.padding, strides=self.strides)
        self.conv2 = conv(self.num_channels, kernel_size=(3, 3), padding=self.padding)
        self.conv3 = None
        self.bn3 = None
        if self.use_1x1conv:
            self.conv3 = conv(self.num_channels, kernel_size=(1, 1), strides=self.strides)
            self.bn3 = norm() if self.shortcut_norm else None
        self.bn1 = norm()
        self.bn2 = norm()

    def __call__(self, X: Array) -> Array:
        Y = nn.relu(self.bn1(self.conv1(X)))
        Y = self.bn2(self.conv2(Y))
        if self.conv3 is not None:
            X = self.conv3(X)
        if self.bn3 is not None:
            X = self.bn3(X)
        return nn.relu(Y + X)


class ResNeXtBlock(nn.Module):
    """A bottleneck whose 3×3 convolution works in groups: (N, H, W, C) → (N, H', W', num_channels).

    Args:
        num_channels: output channels.
        groups: the *width of a group*, not their number: the 3×3 convolution has
            `bot_channels // groups` groups. The name is the d2l chapter's.
        bot_mul: bottleneck channels over output channels.
        use_1x1conv: give the shortcut a 1×1 convolution, where the shape changes.
        strides: stride of the 3×3 convolution and of the shortcut's, a number or a pair.
        stride_on: the convolution that has the stride in place of the 3×3 one: "1x1" is the first.
        epsilon, padding, decay: as in `Architecture`; the defaults are the chapter's.
        training: normalise with batch statistics and update the running ones.
        dtype: of the products and the output; by default the widest of images and parameters.
        axis_name: normalise over this axis of `jax.pmap` or `jax.shard_map`, too, as `flax.linen.BatchNorm`.

    Raises:
        ValueError: if the bottleneck channels do not divide into groups of this width.
    """

    num_channels: int
    groups: int
    bot_mul: float
    use_1x1conv: bool = False
    strides: int | tuple[int, int] = 1
    stride_on: str = "3x3"
    epsilon: float = 1e-5
    padding: str = "symmetric"
    decay: float = 0.9
    training: bool = True
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    def __post_init__(self) -> None:
        check_bottleneck(self.num_channels, self.groups, self.bot_mul)
        super().__post_init__()

    def setup(self) -> None:
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(
            BatchNorm,
            epsilon=self.epsilon,
            momentum=self.decay,
            use_running_average=not self.training,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        bot_channels = int(round(self.num_channels * self.bot_mul))
        first, middle = bottleneck_strides(self.strides, self.stride_on)
        self.conv1 = conv(bot_channels, kernel_size=(1, 1), strides=first)
        self.conv2 = conv(
            bot_channels,
            kernel_size=(3, 3),
            padding=self.padding,
            strides=middle,
            feature_group_count=bot_channels // self.groups,
        )
        self.conv3 = conv(self.num_channels, kernel_size=(1, 1))
        self.conv4 = None
        if self.use_1x1conv:
            self.conv4 = conv(self.num_channels, kernel_size=(1, 1), strides=self.strides)
            self.bn4 = norm()
        self.bn1 = norm()
        self.bn2 = norm()
        self.bn3 = norm()

    def __call__(self, X: Array) -> Array:
        Y = nn.relu(self.bn1(self.conv1(X)))
        Y = nn.relu(self.bn2(self.conv2(Y)))
        Y = self.bn3(self.conv3(Y))
        if self.conv4 is not None:
            X = self.bn4(self.conv4(X))
        return nn.relu(Y + X)

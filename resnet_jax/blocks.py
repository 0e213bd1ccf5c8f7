"""The two blocks: residual (He et al. 2015, figure 2) and ResNeXt (Xie et al. 2016, figure 3c)."""

from flax import linen as nn
from jax import Array

from common.architecture import check_bottleneck
from resnet_jax.layers import BatchNorm, Conv


class Residual(nn.Module):
    """Two 3×3 convolutions and a shortcut around them: (N, H, W, C) → (N, H', W', num_channels).

    Args:
        num_channels: output channels.
        use_1x1conv: give the shortcut a 1×1 convolution, where the shape changes.
        strides: stride of the first convolution and of the shortcut's, a number or a pair.
        training: normalise with batch statistics and update the running ones.
    """

    num_channels: int
    use_1x1conv: bool = False
    strides: int | tuple[int, int] = 1
    training: bool = True

    def setup(self) -> None:
        self.conv1 = Conv(self.num_channels, kernel_size=(3, 3), padding=1, strides=self.strides)
        self.conv2 = Conv(self.num_channels, kernel_size=(3, 3), padding=1)
        self.conv3 = None
        if self.use_1x1conv:
            self.conv3 = Conv(self.num_channels, kernel_size=(1, 1), strides=self.strides)
        self.bn1 = BatchNorm(not self.training)
        self.bn2 = BatchNorm(not self.training)

    def __call__(self, X: Array) -> Array:
        Y = nn.relu(self.bn1(self.conv1(X)))
        Y = self.bn2(self.conv2(Y))
        if self.conv3 is not None:
            X = self.conv3(X)
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
        training: normalise with batch statistics and update the running ones.

    Raises:
        ValueError: if the bottleneck channels do not divide into groups of this width.
    """

    num_channels: int
    groups: int
    bot_mul: float
    use_1x1conv: bool = False
    strides: int | tuple[int, int] = 1
    training: bool = True

    def __post_init__(self) -> None:
        check_bottleneck(self.num_channels, self.groups, self.bot_mul)
        super().__post_init__()

    def setup(self) -> None:
        bot_channels = int(round(self.num_channels * self.bot_mul))
        self.conv1 = Conv(bot_channels, kernel_size=(1, 1))
        self.conv2 = Conv(
            bot_channels,
            kernel_size=(3, 3),
            padding=1,
            strides=self.strides,
            feature_group_count=bot_channels // self.groups,
        )
        self.conv3 = Conv(self.num_channels, kernel_size=(1, 1))
        self.conv4 = None
        if self.use_1x1conv:
            self.conv4 = Conv(self.num_channels, kernel_size=(1, 1), strides=self.strides)
            self.bn4 = BatchNorm(not self.training)
        self.bn1 = BatchNorm(not self.training)
        self.bn2 = BatchNorm(not self.training)
        self.bn3 = BatchNorm(not self.training)

    def __call__(self, X: Array) -> Array:
        Y = nn.relu(self.bn1(self.conv1(X)))
        Y = nn.relu(self.bn2(self.conv2(Y)))
        Y = self.bn3(self.conv3(Y))
        if self.conv4 is not None:
            X = self.bn4(self.conv4(X))
        return nn.relu(Y + X)

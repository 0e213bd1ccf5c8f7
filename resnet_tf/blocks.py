"""The two blocks: residual (He et al. 2015, figure 2) and ResNeXt (Xie et al. 2016, figure 3c)."""

from functools import partial
from typing import Any

from keras.activations import relu
from tensorflow import Tensor

from common.architecture import bottleneck_strides, check_bottleneck
from resnet_tf.layers import BatchNormalization, Conv2D, Model


class Residual(Model):
    """Two 3×3 convolutions and a shortcut around them: (N, H, W, C) → (N, H', W', num_channels).

    Args:
        num_channels: output channels.
        use_1x1conv: give the shortcut a 1×1 convolution, where the shape changes.
        strides: stride of the first convolution and of the shortcut's.
        shortcut_norm: give the shortcut's convolution a batch norm, too.
        epsilon, padding, decay: as in `Architecture`; the defaults are the chapter's.
        options: `name`, `trainable` and `dtype`, as any layer of Keras takes them.
    """

    def __init__(
        self,
        num_channels: int,
        use_1x1conv: bool = False,
        strides: int = 1,
        shortcut_norm: bool = False,
        epsilon: float = 1e-5,
        padding: str = "symmetric",
        decay: float = 0.9,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        conv = partial(Conv2D, dtype=self.dtype_policy)
        norm = partial(BatchNormalization, epsilon=epsilon, momentum=decay, dtype=self.dtype_policy)
        self.conv1 = conv(num_channels, kernel_size=3, padding=padding, strides=strides)
        self.conv2 = conv(num_channels, kernel_size=3, padding=padding)
        self.conv3 = None
        self.bn3 = None
        if use_1x1conv:
            self.conv3 = conv(num_channels, kernel_size=1, strides=strides)
            self.bn3 = norm() if shortcut_norm else None
        self.bn1 = norm()
        self.bn2 = norm()

    def call(self, X: Tensor, training: bool | None = None) -> Tensor:
        Y = relu(self.bn1(self.conv1(X), training=training))
        Y = self.bn2(self.conv2(Y), training=training)
        if self.conv3 is not None:
            X = self.conv3(X)
        if self.bn3 is not None:
            X = self.bn3(X, training=training)
        return relu(Y + X)


class ResNeXtBlock(Model):
    """A bottleneck whose 3×3 convolution works in groups: (N, H, W, C) → (N, H', W', num_channels).

    Args:
        num_channels: output channels.
        groups: the *width of a group*, not their number: the 3×3 convolution has
            `bot_channels // groups` groups. The name is the d2l chapter's.
        bot_mul: bottleneck channels over output channels.
        use_1x1conv: give the shortcut a 1×1 convolution, where the shape changes.
        strides: stride of the 3×3 convolution and of the shortcut's.
        stride_on: the convolution that has the stride in place of the 3×3 one: "1x1" is the first.
        epsilon, padding, decay: as in `Architecture`; the defaults are the chapter's.
        options: `name`, `trainable` and `dtype`, as any layer of Keras takes them.

    Raises:
        ValueError: if the bottleneck channels do not divide into groups of this width.
    """

    def __init__(
        self,
        num_channels: int,
        groups: int,
        bot_mul: float,
        use_1x1conv: bool = False,
        strides: int = 1,
        stride_on: str = "3x3",
        epsilon: float = 1e-5,
        padding: str = "symmetric",
        decay: float = 0.9,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_bottleneck(num_channels, groups, bot_mul)
        bot_channels = int(round(num_channels * bot_mul))
        first, middle = bottleneck_strides(strides, stride_on)
        conv = partial(Conv2D, dtype=self.dtype_policy)
        norm = partial(BatchNormalization, epsilon=epsilon, momentum=decay, dtype=self.dtype_policy)
        self.conv1 = conv(bot_channels, kernel_size=1, strides=first)
        self.conv2 = conv(
            bot_channels, kernel_size=3, padding=padding, strides=middle, groups=bot_channels // groups
        )
        self.conv3 = conv(num_channels, kernel_size=1)
        self.conv4 = None
        if use_1x1conv:
            self.conv4 = conv(num_channels, kernel_size=1, strides=strides)
            self.bn4 = norm()
        self.bn1 = norm()
        self.bn2 = norm()
        self.bn3 = norm()

    def call(self, X: Tensor, training: bool | None = None) -> Tensor:
        Y = relu(self.bn1(self.conv1(X), training=training))
        Y = relu(self.bn2(self.conv2(Y), training=training))
        Y = self.bn3(self.conv3(Y), training=training)
        if self.conv4 is not None:
            X = self.bn4(self.conv4(X), training=training)
        return relu(Y + X)

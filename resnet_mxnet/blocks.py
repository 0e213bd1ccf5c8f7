"""The two blocks: residual (He et al. 2015, figure 2) and ResNeXt (Xie et al. 2016, figure 3c)."""

from functools import partial
from types import ModuleType
from typing import Any

from mxnet import np
from mxnet.gluon import nn

from common.architecture import bottleneck_strides, check_bottleneck
from resnet_mxnet.layers import BatchNorm, Conv2D, add, relu


class Residual(nn.HybridBlock):
    """Two 3×3 convolutions and a shortcut around them: (N, C, H, W) → (N, num_channels, H', W').

    Args:
        num_channels: output channels.
        use_1x1conv: give the shortcut a 1×1 convolution, where the shape changes.
        strides: stride of the first convolution and of the shortcut's.
        shortcut_norm: give the shortcut's convolution a batch norm, too.
        epsilon, padding, decay: as in `Architecture`; the defaults are the chapter's.
        options: of any Gluon block, `prefix` and `params`.
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
        norm = partial(BatchNorm, epsilon=epsilon, momentum=decay)
        with self.name_scope():
            self.conv1 = Conv2D(num_channels, kernel_size=3, padding=padding, strides=strides)
            self.conv2 = Conv2D(num_channels, kernel_size=3, padding=padding)
            self.conv3 = None
            self.bn3 = None
            if use_1x1conv:
                self.conv3 = Conv2D(num_channels, kernel_size=1, strides=strides)
                self.bn3 = norm() if shortcut_norm else None
            self.bn1 = norm()
            self.bn2 = norm()

    def hybrid_forward(self, F: ModuleType, X: np.ndarray) -> np.ndarray:
        Y = relu(F, self.bn1(self.conv1(X)))
        Y = self.bn2(self.conv2(Y))
        if self.conv3 is not None:
            X = self.conv3(X)
        if self.bn3 is not None:
            X = self.bn3(X)
        return relu(F, add(F, Y, X))


class ResNeXtBlock(nn.HybridBlock):
    """A bottleneck whose 3×3 convolution works in groups: (N, C, H, W) → (N, num_channels, H', W').

    Args:
        num_channels: output channels.
        groups: the *width of a group*, not their number: the 3×3 convolution has
            `bot_channels // groups` groups. The name is the d2l chapter's.
        bot_mul: bottleneck channels over output channels.
        use_1x1conv: give the shortcut a 1×1 convolution, where the shape changes.
        strides: stride of the 3×3 convolution and of the shortcut's.
        stride_on: the convolution that has the stride in place of the 3×3 one: "1x1" is the first.
        epsilon, padding, decay: as in `Architecture`; the defaults are the chapter's.
        options: of any Gluon block, `prefix` and `params`.

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
        norm = partial(BatchNorm, epsilon=epsilon, momentum=decay)
        with self.name_scope():
            self.conv1 = Conv2D(bot_channels, kernel_size=1, strides=first)
            self.conv2 = Conv2D(
                bot_channels, kernel_size=3, padding=padding, strides=middle, groups=bot_channels // groups
            )
            self.conv3 = Conv2D(num_channels, kernel_size=1)
            self.conv4 = None
            if use_1x1conv:
                self.conv4 = Conv2D(num_channels, kernel_size=1, strides=strides)
                self.bn4 = norm()
            self.bn1 = norm()
            self.bn2 = norm()
            self.bn3 = norm()

    def hybrid_forward(self, F: ModuleType, X: np.ndarray) -> np.ndarray:
        Y = relu(F, self.bn1(self.conv1(X)))
        Y = relu(F, self.bn2(self.conv2(Y)))
        Y = self.bn3(self.conv3(Y))
        if self.conv4 is not None:
            X = self.bn4(self.conv4(X))
        return relu(F, add(F, Y, X))

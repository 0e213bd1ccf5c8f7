"""The block of ResNet v2: batch norm, ReLU, then convolution (He et al. 2016, figure 4e)."""

from torch import Tensor, nn

from resnet_torch.layers import LazyBatchNorm2d, LazyConv2d, relu


class PreActivation(nn.Module):
    """(N, C, H, W) → (N, num_channels, H', W'). Nothing stands on the shortcut, or after the sum."""

    def __init__(self, num_channels: int, use_1x1conv: bool = False, strides: int = 1) -> None:
        super().__init__()
        self.bn1 = LazyBatchNorm2d()
        self.conv1 = LazyConv2d(num_channels, kernel_size=3, padding=1, stride=strides)
        self.bn2 = LazyBatchNorm2d()
        self.conv2 = LazyConv2d(num_channels, kernel_size=3, padding=1)
        self.conv3 = LazyConv2d(num_channels, kernel_size=1, stride=strides) if use_1x1conv else None

    def forward(self, X: Tensor) -> Tensor:
        Y = relu(self.bn1(X))
        shortcut = self.conv3(Y) if self.conv3 is not None else X
        Y = self.conv1(Y)
        return self.conv2(relu(self.bn2(Y))) + shortcut

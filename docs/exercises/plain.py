"""A block without its shortcut, to see what the shortcut is worth."""

from torch import Tensor, nn

from resnet_torch import Residual
from resnet_torch.layers import LazyBatchNorm2d, LazyConv2d, LazyLinear, relu


class Plain(Residual):
    """The layers of a residual block, and nothing around them."""

    def forward(self, X: Tensor) -> Tensor:
        Y = relu(self.bn1(self.conv1(X)))
        return relu(self.bn2(self.conv2(Y)))


def network(block: type[nn.Module], num_blocks: int, num_channels: int = 16) -> nn.Sequential:
    """Three stages of so many blocks for images (N, 1, H, W): 6 · num_blocks + 2 layers with weights."""
    stem = [LazyConv2d(num_channels, kernel_size=3, padding=1), LazyBatchNorm2d(), nn.ReLU()]
    blocks = []
    for stage in range(3):
        for j in range(num_blocks):
            halves = stage > 0 and j == 0
            use_1x1conv = halves and block is not Plain
            blocks.append(block(num_channels * 2**stage, use_1x1conv, strides=2 if halves else 1))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), LazyLinear(10))

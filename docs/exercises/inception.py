"""The Inception block (Szegedy et al. 2014, figure 2b): four ways next to each other, concatenated."""

import torch
from torch import Tensor, nn

from resnet_torch.layers import LazyConv2d, relu


class Inception(nn.Module):
    """(N, C, H, W) → (N, c1 + c2[1] + c3[1] + c4, H, W).

    Args:
        c1: channels of the 1×1 way.
        c2, c3: channels before and in the 3×3 and the 5×5 way.
        c4: channels of the way through a max-pool.
    """

    def __init__(self, c1: int, c2: tuple[int, int], c3: tuple[int, int], c4: int) -> None:
        super().__init__()
        self.b1_1 = LazyConv2d(c1, kernel_size=1)
        self.b2_1 = LazyConv2d(c2[0], kernel_size=1)
        self.b2_2 = LazyConv2d(c2[1], kernel_size=3, padding=1)
        self.b3_1 = LazyConv2d(c3[0], kernel_size=1)
        self.b3_2 = LazyConv2d(c3[1], kernel_size=5, padding=2)
        self.b4_1 = nn.MaxPool2d(kernel_size=3, stride=1, padding=1)
        self.b4_2 = LazyConv2d(c4, kernel_size=1)

    def forward(self, X: Tensor) -> Tensor:
        Y1 = relu(self.b1_1(X))
        Y2 = relu(self.b2_2(relu(self.b2_1(X))))
        Y3 = relu(self.b3_2(relu(self.b3_1(X))))
        Y4 = relu(self.b4_2(self.b4_1(X)))
        return torch.cat([Y1, Y2, Y3, Y4], dim=1)

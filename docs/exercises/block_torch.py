import torch

from resnet_torch import Residual

X = torch.randn(4, 3, 6, 6)  # images, channels, height, width
print(tuple(Residual(3)(X).shape))
print(tuple(Residual(6, use_1x1conv=True, strides=2)(X).shape))

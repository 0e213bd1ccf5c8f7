"""ResNet and ResNeXt in a framework of its own: NumPy, and gradients by `tensor.py`."""

from common.backend import BACKENDS, Backend

FIFTH = Backend(
    name="fifth",
    label="Fifth",
    module="resnet_fifth.backend",
    packages=("numpy",),
    install="pip install numpy",
)
BACKENDS[FIFTH.name] = FIFTH

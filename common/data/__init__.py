"""Images: Fashion-MNIST, a person's own, and the batches they are dealt out in."""

from common.data.fashion_mnist import CLASSES, Dataset, FashionMNIST, download, eight, full, sample
from common.data.pipeline import Batch, batches, crop, flip, prefetch, resize

__all__ = [
    "CLASSES",
    "Batch",
    "Dataset",
    "FashionMNIST",
    "batches",
    "crop",
    "download",
    "eight",
    "flip",
    "full",
    "prefetch",
    "resize",
    "sample",
]

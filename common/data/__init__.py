"""Images: Fashion-MNIST, a person's own, and the batches they are dealt out in."""

from common.data.fashion_mnist import (
    CLASSES,
    Dataset,
    FashionMNIST,
    download,
    eight,
    full,
    sample,
    write_images,
)
from common.data.folder import ImageFolder, is_image_folder
from common.data.module import DataModule
from common.data.pipeline import Batch, batches, crop, flip, read_ahead, resize

__all__ = [
    "CLASSES",
    "Batch",
    "DataModule",
    "Dataset",
    "FashionMNIST",
    "ImageFolder",
    "batches",
    "crop",
    "download",
    "eight",
    "flip",
    "full",
    "is_image_folder",
    "read_ahead",
    "resize",
    "sample",
    "write_images",
]

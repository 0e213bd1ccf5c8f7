"""What a training run needs of its images, whichever they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.data.pipeline import Batch, check_augment, check_size, check_whole, count_batches
from common.errors import BadInput
from common.processes.group import ALONE, Group


class DataModule(ABC):
    """Training and validation images in batches. Another data set is a class with these methods.

    A batch is x, float (N, channels, *resize), and y, int32 (N,). Which images a training batch has, and how
    they are augmented, depends only on seed, epoch and the batch's number: a run goes on from a number.

    Attributes:
        classes: their names, in the order of the logits.
        fit, normalize, scaled, interpolation: how an image file becomes such an image, as `Preparation` has
            it, for checkpoints to say; an empty fit says nothing.
        source: where the images are from, in words.
        size: how many images there are, in words.
        num_train, num_val: how many of them are used.
    """

    classes: tuple[str, ...]
    fit = ""
    normalize = "none"
    scaled: tuple[int, int] | None = None
    interpolation = "bilinear"
    source: str
    size: str
    num_train: int
    num_val: int

    def __init__(
        self,
        batch_size: int,
        resize: tuple[int, int],
        augment: Sequence[str],
        limit_train: int | None,
        limit_val: int | None,
        seed: int,
    ) -> None:
        check_whole("batch_size", batch_size, 1)
        check_whole("seed", seed, 0)
        for name, limit in (("limit_train", limit_train), ("limit_val", limit_val)):
            if limit is not None:
                check_whole(name, limit, 1)
        check_size("resize", resize)
        check_augment(augment)
        self.batch_size, self.resize, self.augment, self.seed = batch_size, resize, tuple(augment), seed
        self.limit_train, self.limit_val = limit_train, limit_val

    def _count(self, num_train: int, num_val: int) -> None:
        """Take so many images.

        Raises:
            ValueError: if they make no batch.
        """
        if self.batch_size > num_train:
            raise BadInput(
                f"batch_size {self.batch_size} is larger than the {num_train} training images; "
                f"give {num_train} or less, or more images"
            )
        self.num_train, self.num_val = num_train, num_val
        self.num_train_batches = count_batches(num_train, self.batch_size)
        self.num_val_batches = count_batches(num_val, self.batch_size)

    @abstractmethod
    def train_dataloader(
        self,
        epoch: int = 0,
        start: int = 0,
        dtype: str = "float32",
        channels: int = 1,
        group: Group = ALONE,
    ) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on, the same whether or not those before were made.

        Of each, the share of this worker of the group.

        Raises:
            ValueError: at once, for bad arguments.
        """

    @abstractmethod
    def val_dataloader(
        self, dtype: str = "float32", channels: int = 1, group: Group = ALONE
    ) -> Iterator[Batch]:
        """The validation batches, in the order of the files.

        Workers take turns: each has whole batches, so that what a batch gives is the same to the bit.

        Raises:
            ValueError: at once, for bad arguments.
        """

    def check_channels(self, channels: int) -> None:  # noqa: B027  (Fashion-MNIST's grey fits all)
        """Raise `ValueError` unless images can be had in so many channels."""

    def check_apart(self, folder: Path) -> None:  # noqa: B027  (only image folders take in what lies there)
        """Raise `ValueError` if what is written to a folder would lie among the images."""

    def check(self) -> None:  # noqa: B027  (what there is to do, image folders override)
        """Look at every image before training begins.

        Raises:
            ValueError: if some cannot be read, with their names.
        """

    def settings(self) -> dict[str, Any]:
        """All that decides what the batches are, wherever the files lie."""
        dealt = ("batch_size", "resize", "augment", "seed", "limit_train", "limit_val")
        prepared = ("fit", "normalize", "scaled", "interpolation")
        return {name: getattr(self, name) for name in dealt + prepared} | {"data": self.size}

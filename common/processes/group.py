"""Processes that train one network together, and what is whose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from common.errors import BadInput


class Sliceable(Protocol):
    """What has a length and can be cut: an array, a list."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> Any: ...


R = TypeVar("R", bound=Sliceable)


@dataclass(frozen=True)
class Group:
    """The workers of a run, as one of them sees them.

    Attributes:
        rank: which of them this is, from 0 up; the first writes.
        workers: how many there are.
        addresses: "HOST:PORT" of each, for its framework's own engine; none where there is one worker.
    """

    rank: int = 0
    workers: int = 1
    addresses: tuple[str, ...] = ()

    @property
    def local_rank(self) -> int:
        """Which it is of the workers on its own host."""
        hosts = [address.rpartition(":")[0] for address in self.addresses]
        return hosts[: self.rank].count(hosts[self.rank]) if hosts else 0

    def check_gpus(self, gpus: int) -> None:
        """Raise `ValueError` unless each worker of this host has one of its so many GPUs."""
        if self.local_rank >= gpus:
            raise BadInput(f"there are more workers than this host's {gpus} GPUs; give --workers {gpus}")

    def share(self, batch: R) -> R:
        """This worker's rows of a batch.

        All of it where the batch does not divide: then every worker computes the same, means stay what they
        are, and nothing is dropped or weighted.
        """
        if len(batch) % self.workers:
            return batch
        rows = len(batch) // self.workers
        return batch[self.rank * rows : (self.rank + 1) * rows]

    def copies(self, images: int) -> int:
        """How many workers have the same image of a batch of so many."""
        return self.workers if images % self.workers else 1


ALONE = Group()

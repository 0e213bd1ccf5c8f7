"""What a tired disk does to a file."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path


def flips(path: Path, count: int, end: int | None = None) -> Iterator[str]:
    """Flip one random bit of a file, before byte `end`, at a time; gives its place, then puts it right."""
    places = random.Random(path.name)
    for _ in range(count):
        byte, bit = places.randrange(end or path.stat().st_size), places.randrange(8)
        _flip(path, byte, bit)
        try:
            yield f"bit {bit} of byte {byte} of {path.name}"
        finally:
            _flip(path, byte, bit)


def _flip(path: Path, byte: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(byte)
        (value,) = file.read(1)
        file.seek(byte)
        file.write(bytes([value ^ 1 << bit]))

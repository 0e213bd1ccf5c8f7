"""Standard output and standard error that end nothing: what cannot be written or encoded stops no work."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any, TextIO


class Output(io.FileIO):
    """A descriptor that drops what it cannot write; `lost` is why it first did."""

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:  # a full pipe that does not block
                select.select([], [self], [])
            return written
        except OSError as error:
            self.lost = self.lost or error
            return memoryview(data).nbytes


def open_output(descriptor: int, encoding: str, line_buffering: bool) -> TextIO:
    """Text for a descriptor, which stays open; a character that has no place in the encoding is escaped."""
    raw = Output(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=line_buffering
    )


def unfailing(stream: TextIO | None) -> TextIO:
    """A stream in the place of `sys.stdout` or `sys.stderr`; what is no file stays as it is."""
    if stream is None:  # closed by who started this process
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        descriptor = stream.fileno()
    except OSError:  # it is in memory
        return stream
    if sys.platform == "win32" and stream.isatty():  # whose bytes have another encoding than its text
        stream.reconfigure(errors="backslashreplace")
        return stream
    stream.flush()
    return open_output(descriptor, stream.encoding, stream.line_buffering)


def occupy_standard_descriptors() -> None:
    """Open the null device for each that is closed, or the next file that is opened would be written to."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def lost(stream: TextIO) -> OSError | None:
    """Why not all could be written to an `unfailing` stream, once it is flushed."""
    stream.flush()
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, Output) else None

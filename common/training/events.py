"""Event files for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.files import cannot_write


def check_tensorboard() -> None:
    """Raise `ValueError` unless event files for TensorBoard can be written."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        install = 'pip install "resnet-tabs[tensorboard]"'
        raise BadInput(f"TensorBoard files need tensorboardX; run: {install}") from None


class Events:
    """An event file that is written at once.

    Trap: tensorboardX's SummaryWriter leaves that to a thread. A full disk ends the thread, and then the next
    call waits for it for good.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """A new file in the folder; of those before it, TensorBoard hides what is from this step on.

        Raises:
            ValueError: if it cannot be written.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self.folder = folder
        try:
            folder.mkdir(exist_ok=True)
            self._file = EventsWriter(str(folder / "events"), f".{step}")
        except OSError as error:
            raise cannot_write(folder, error) from None
        self._write(step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of a step by their names.

        Raises:
            ValueError: if they cannot be written.
        """
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step, summary=scalar(name, value))

    def _write(self, step: int, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        try:
            self._file.write_event(Event(wall_time=time.time(), step=step, **what))
            self._file.flush()
        except OSError as error:
            raise cannot_write(self.folder, error) from None

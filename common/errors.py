"""What can go wrong, as exceptions whose text is the one line a person reads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from common.reading import shown


class BadInput(ValueError):
    """Bad input: the message says what is wrong and what to do, in one line whatever names are in it.

    Attributes:
        exit_code: of the command; 1 where the question was right and the machine, or the answer, is not.
        resumable: whether it cut a training run short that can be resumed.
    """

    exit_code = 2
    resumable = False

    def __str__(self) -> str:
        return shown(" ".join(map(str, self.args)))


class MissingFile(BadInput, FileNotFoundError):
    """A file that should be there is not."""


class MissingBackend(BadInput):
    """A framework that is not installed."""


class MissingDevice(BadInput):
    """A GPU that is not there."""


class Stopped(RuntimeError):
    """A training run that ended early; the message says where and why.

    Attributes:
        exit_code: of the command.
        resumable: whether the run can be resumed.
    """

    def __init__(self, message: str, exit_code: int = 1, resumable: bool = False) -> None:
        super().__init__(message)
        self.exit_code, self.resumable = exit_code, resumable

    def __str__(self) -> str:
        return shown(super().__str__())


@contextmanager
def telling_how_to_resume(how: str) -> Iterator[None]:
    """Add to the message of what cuts a run short how to resume it, where it can be resumed."""
    try:
        yield
    except (BadInput, Stopped) as error:
        if error.resumable:
            error.args = (f"{error}; go on with: {how}",)
        raise


def end_process(why: str) -> NoReturn:
    """End this process with a line, exit code 1, though its other threads wait where no exception reaches."""
    with suppress(OSError):  # nobody may be there to read it
        os.write(2, f"{shown(why)}\n".encode())
    os._exit(1)

"""What can go wrong, as exceptions whose text is the one line a person reads."""

import os
from typing import NoReturn


class BadInput(ValueError):
    """Bad input: the message says what is wrong and what to do."""


class MissingFile(BadInput, FileNotFoundError):
    """A file that should be there is not."""

    def __str__(self) -> str:
        return str(self.args[0])


class MissingBackend(BadInput):
    """A framework that is not installed."""


class Stopped(RuntimeError):
    """A training run that ended early; the message says where, why, and how to go on."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple:  # of another process
        return type(self), (str(self), self.exit_code)


def end_process(why: str) -> NoReturn:
    """End this process with a line, exit code 1, though its other threads wait where no exception reaches."""
    os.write(2, f"{why}\n".encode())
    os._exit(1)

"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from common.errors import BadInput


def write_atomically(path: str | os.PathLike[str], content: bytes | str | Iterable[memoryview]) -> None:
    """Write to a temporary name beside `path`, then rename: no reader ever sees half a file.

    Args:
        path: the file.
        content: what is to be in it, in one piece or in many.

    Raises:
        ValueError: if the folder is missing or cannot be written, or the disk is full.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # as a file opened by name would have
        os.replace(temporary, path)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}; choose another place") from None
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def output_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder and try to write in it, so that no long run ends with nowhere to put its result.

    Raises:
        ValueError: if it cannot be made or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise BadInput(f"cannot write to the folder {path}: {error.strerror}; choose another one") from None
    return path

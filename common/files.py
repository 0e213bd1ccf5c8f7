"""Files that are whole or not there, after a power cut too."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from common.errors import BadInput


def write_atomically(
    path: str | os.PathLike[str], content: bytes | str | Iterable[bytes | memoryview]
) -> None:
    """Write to a temporary name beside `path`, then rename: no reader ever sees half a file.

    Once this returns, the file outlasts a power cut.

    Args:
        path: the file.
        content: what is to be in it, in one piece or in many.

    Raises:
        ValueError: if the folder is missing or cannot be written, or the disk is full.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def give_second_name(path: Path, second: Path) -> None:
    """Let `second` be the same file as `path`; a name that is taken changes hands in one step.

    Where the file system has no hard links it is a copy. As lasting as `write_atomically`.

    Raises:
        ValueError: if the folder cannot be written.
    """
    temporary = second.with_name(f".{second.name}.{secrets.token_hex(4)}")
    try:
        os.link(path, temporary)
        os.replace(temporary, second)
        sync_folder(second.parent)
    except OSError:
        try:
            with path.open("rb") as file:
                write_atomically(second, iter(partial(file.read, 1 << 20), b""))
        except OSError as error:
            raise cannot_write(second, error) from None
    finally:
        with suppress(OSError):  # a rename onto another name of the same file leaves both
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Let the names in a folder outlast a power cut, where the system can do that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # so say some network file systems
            raise
    finally:
        os.close(descriptor)


def output_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder and try to write in it, so that no long run ends with nowhere to put its result.

    Raises:
        ValueError: if it cannot be made or written.
    """
    path = Path(path)
    try:
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in new:
            sync_folder(folder.parent)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise BadInput(f"cannot write to the folder {path}: {error.strerror}; choose another one") from None
    return path


def cannot_write(path: Path, error: OSError) -> BadInput:
    """The line for a file that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room" if full else "make it writable or choose another place"
    return BadInput(f"cannot write {path}: {error.strerror or error}; {remedy}")

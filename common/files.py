"""Files that are whole or not there, after a power cut too."""

from __future__ import annotations

import errno
import os
import platform
import re
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

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
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")  # a file's name may be no Unicode
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
        raise cannot_write(path, error, "to the folder ") from None
    return path


def cannot_write(path: Path, error: OSError, what: str = "") -> BadInput:
    """The line for a file that cannot be written; where the disk is full or broken, the exit code is 1."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room" if full else "make it writable or choose another place"
    line = BadInput(f"cannot write {what}{path}: {error.strerror or error}; {remedy}")
    if full or error.errno == errno.EIO:
        line.exit_code = 1
    return line


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove what writes of these files left that were killed; nobody may be writing them now."""
    left = re.compile(rf"\.({'|'.join(map(re.escape, names))})\.[0-9a-f]{{8}}")
    for path in folder.iterdir():
        if left.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


@contextmanager
def locked(path: Path) -> Iterator[str]:
    """Hold a lock, if nobody has it; gives who does, "" where it is this process.

    The file is there only while the lock is held. A lock ends with its process, however that ends; the file
    that may be left then is in nobody's way. On a file system without locks everybody gets it.

    Raises:
        ValueError: if the folder cannot be written.
    """
    own = f"process {os.getpid()} on {platform.node()}"
    while True:
        with ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("a+b", buffering=0))
                is_own = _lock(file.fileno())
            except OSError as error:
                raise cannot_write(path, error) from None
            if not is_own:
                file.seek(0)
                said = file.read(300).decode(errors="replace")
                yield said if re.fullmatch(r"process \d+ on [\w.-]+", said) else "another process"
                return
            if not _is_at(file, path):  # who had it has removed it
                continue
            with suppress(OSError):  # on a full disk nobody learns who has it
                file.truncate(0)
                file.write(own.encode())
            try:
                yield ""
            finally:
                with suppress(OSError):
                    path.unlink()
        break
    if sys.platform == "win32":  # which removes no open file
        with suppress(OSError):
            path.unlink()


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; returns whether nobody else has."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # past the text, for a byte that is locked cannot be read
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):  # some network file systems
            raise
    return True

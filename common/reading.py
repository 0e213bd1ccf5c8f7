"""Strangers' JSON, files and text: bounded where they are read, printable where they are shown."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import reprlib
import stat
import struct
import types
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

LARGEST = 4 << 20  # bytes of JSON; a ResNet-152's header in safetensors has 100 KiB
DEEPEST = 64  # lists and objects within each other
MOST_NAMES = 1 << 20  # bytes of an archive's list of members; a ResNet-152 in training has 300 KiB
LONGEST = 4000  # characters of a line that is shown
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


def parse_json(text: str | bytes, kind: Any = Any, finite: bool = True) -> Any:
    """The value of JSON that a stranger may have written.

    Args:
        kind: what it must be, as an annotation: `dict`, `list[str]`, `float | None`.
        finite: whether NaN and Infinity are refused.

    Raises:
        ValueError: in one line, if it is no JSON in UTF-8, is larger than 4 MiB or deeper than 64, has a
            name twice in one object, a number beyond 64 bits or half a character, or is of another kind.
    """

    def real(digits: str) -> float:
        number = float(digits)
        if finite and not math.isfinite(number):
            raise ValueError(f"the number {digits[:20]} is not finite")
        return number

    if len(text) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    try:
        value = json.loads(
            text, object_pairs_hook=_once, parse_int=_whole, parse_float=real, parse_constant=real
        )
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from None
    _check_depth(value)
    if re.search(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]", text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it has half a character (a lone surrogate)") from None
    if not fits(value, kind):
        raise ValueError(f"it is {brief(value)}, not {_described(kind)}")
    return value


def read_json(path: Path, kind: Any = dict) -> Any:
    """`parse_json` of a file; raises what it does and `read_file` does."""
    return parse_json(read_file(path), kind)


def read_file(path: Path, most: int = LARGEST) -> bytes:
    """The content of a file that is small.

    Raises:
        OSError: if it is not there or cannot be read, or is no file.
        ValueError: if it is larger than `most`.
    """
    check_regular(path)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most >> 20} MiB")
    return content


def check_regular(path: Path) -> None:
    """Raise `OSError` unless this is a file or a link to one: a pipe or a device may have no end."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(errno.ENOENT, "a link to nothing") from None
        raise
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a folder")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe or a device")


@contextmanager
def open_zip(path: Path, ratio: int) -> Iterator[zipfile.ZipFile]:
    """A zip archive that is not too large for its file.

    Args:
        ratio: the most that it may unpack to, as a multiple of the file, beyond 64 MiB.

    Raises:
        ValueError: if it is none, has a name twice or too many, or unpacks to more.
    """
    size = path.stat().st_size
    if _directory_bytes(path, size) > MOST_NAMES:  # which `zipfile` reads whole
        raise ValueError("it has too many members")
    try:
        opened = zipfile.ZipFile(path)
    except Exception as error:  # in a damaged archive anything can go wrong
        raise ValueError(f"it is no complete zip archive ({shown(str(error), 100)})") from None
    with opened as archive:
        members = archive.infolist()
        _once([(member.filename, member) for member in members])
        if sum(member.file_size for member in members) > ratio * size + (64 << 20):
            raise ValueError("it is packed too tightly")
        yield archive


def _directory_bytes(path: Path, size: int) -> int:
    """Of the list of members at the end of a zip archive."""
    with path.open("rb") as file:
        file.seek(-min(size, 1 << 17), os.SEEK_END)
        end = file.read()
    record = end.rfind(b"PK\x05\x06")
    if record < 0 or len(end) < record + 22:
        raise ValueError("it is no complete zip archive")
    (count,) = struct.unpack_from("<I", end, record + 12)
    if record >= 76 and end.startswith(b"PK\x06\x07", record - 20):  # of more than 4 GiB, there before
        (count,) = struct.unpack_from("<Q", end, record - 76 + 40)
    return int(count)


def check_fields(fields: Mapping[str, Any], of: type) -> None:
    """Raise `ValueError` unless the values are of the types that a dataclass says of its fields."""
    hints = get_type_hints(of)
    for name, value in fields.items():
        if name in hints and not fits(value, hints[name]):
            raise ValueError(f"{shown(name)} is {brief(value)}, not {_described(hints[name])}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of an annotation's kind; a list may stand for a tuple, 1 for 1.0."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is dict:
        return isinstance(value, dict) and all(fits(each, inner[1]) for each in value.values())
    if origin is list or (origin is tuple and inner[1:] == (...,)):
        return isinstance(value, list | tuple) and all(fits(each, inner[0]) for each in value)
    if origin is tuple:
        return isinstance(value, list | tuple) and len(value) == len(inner) and all(map(fits, value, inner))
    if kind is float:
        kind = int | float
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def shown(text: str, most: int = LONGEST) -> str:
    """A stranger's text in one line that does nothing to a terminal, and is not too long.

    What has no shape of its own is written as an escape: control characters, line breaks, what turns the
    direction of writing or has no width, bytes that are no UTF-8. The middle of a long text is left out.
    """
    if len(text) > most:
        text = f"{text[: most // 2]} … {text[-most // 2 :]}"
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def brief(value: Any) -> str:
    """A stranger's value in a few characters."""
    try:
        return shown(_REPR.repr(value), 120)
    except ValueError:  # more digits than Python writes
        return f"a very large {type(value).__name__}"


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of many names."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name, 200) for name in names[:most]) + rest


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # as Python keeps a byte of a file's name that is no UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are all different."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{brief(name)} is there twice")
        found[name] = value
    return found


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (number := int(digits)) < 2**63:
        raise ValueError(f"the number {digits[:20]}… has more than 64 bits")
    return number


def _check_depth(value: Any) -> None:
    """Raise `ValueError` if lists and objects are within each other too often for what walks them."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            child
            for node in level
            if isinstance(node, list | dict)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST} deep")


def _described(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)

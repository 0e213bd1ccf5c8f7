"""What strangers write: JSON is read within bounds, and text is shown in one line that does nothing."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput, MissingFile, Stopped
from common.reading import (
    LARGEST,
    brief,
    check_fields,
    open_zip,
    parse_json,
    read_file,
    read_json,
    shown,
    some,
)
from common.training.settings import Settings
from tests.helpers import one_line

DEEP = "[" * 100_000

BAD_JSON: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "Expecting value"),
    "deep lists": (DEEP, "nested"),
    "deep and whole": ("[" * 200 + "]" * 200, "nested more than 64 deep"),
    "deep objects": ('{"a":' * 100_000, "nested"),
    "too large": (b'"' + b"a" * LARGEST + b'"', "larger than 4 MiB"),
    "NaN": ("[NaN]", "not finite"),
    "minus infinity": ("-Infinity", "not finite"),
    "beyond a float": ('{"a": 1e999}', "1e999 is not finite"),
    "thousands of digits": ("9" * 5000, "more than 64 bits"),
    "65 bits": (str(2**64), "more than 64 bits"),
    "a name twice": ('{"a": {"b": 1, "b": 2}}', "'b' is there twice"),
    "not UTF-8": (b'"\xff"', "utf-8"),
    "UTF-16": ('"text"'.encode("utf-16"), "utf-8"),
    "half a character": ('["\\ud800"]', "half a character"),
    "half a character as a name": ('{"\\udfff": 1}', "half a character"),
    "a line break in a name that is there twice": ('{"a\\nb": 1, "a\\nb": 2}', r"'a\nb' is there twice"),
    "more than JSON": ("{} {}", "Extra data"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_json_that_is_none_or_too_much_is_one_line(case: str) -> None:
    text, words = BAD_JSON[case]
    with pytest.raises(ValueError) as error:
        parse_json(text)
    one_line(error, words)
    assert len(str(error.value)) < 300


def test_json_is_what_it_says() -> None:
    value = {"a": [1, 2.5, None, True, "é\U0001f600"], "b": {"c": -(2**63)}}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False).encode()):
        assert parse_json(text) == value
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]  # as editors on Windows begin a file
    assert parse_json("[NaN, 1e999]", finite=False)[1] == float("inf")


@pytest.mark.parametrize(
    ("text", "kind", "is_such"),
    [
        ("{}", dict, True),
        ("[]", dict, False),
        ("null", dict, False),
        ('["a"]', list[str], True),
        ('["a", 1]', list[str], False),
        ('"ab"', list[str], False),
        ("[1, 2]", tuple[int, int], True),
        ("[1, 2, 3]", tuple[int, int], False),
        ("[1, true]", tuple[int, int], False),
        ("[1.0, 2]", tuple[int, int], False),
        ("1", float | None, True),
        ("null", float | None, True),
        ('"xx"', float | None, False),
        ("true", float, False),
        ("1", bool, False),
        ('{"a": "b"}', dict[str, str], True),
        ('{"a": ["b"]}', dict[str, str], False),
    ],
)
def test_json_is_of_the_kind_that_is_asked_for(text: str, kind: Any, is_such: bool) -> None:
    if is_such:
        parse_json(text, kind)
        return
    with pytest.raises(ValueError) as error:
        parse_json(text, kind)
    one_line(error, "it is ")


@pytest.mark.parametrize("value", [{}, [], "3", None, 1.5, True])
def test_a_field_of_another_type_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"epochs is .*, not int"):
        check_fields({"epochs": value}, Settings)


def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place in (tmp_path, tmp_path / "pipe", tmp_path / "link", tmp_path / "loop", Path("/dev/zero")):
        with pytest.raises(OSError):
            read_json(place)
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(ValueError, match="larger"):
        read_file(tmp_path / "large", 10)


def packed(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_is_as_large_as_it_looks(tmp_path: Path) -> None:
    with open_zip(packed(tmp_path / "good.zip", ("a", b"1"), ("b", bytes(1 << 20))), 2) as archive:
        assert archive.namelist() == ["a", "b"]
    bad = {
        "'a' is there twice": packed(tmp_path / "twice.zip", ("a", b"1"), ("a", b"2")),
        "packed too tightly": packed(tmp_path / "bomb.zip", ("a", bytes(70 << 20))),
        "too many members": packed(tmp_path / "many.zip", *((f"{n:060}", b"") for n in range(10_000))),
        "no complete zip archive": tmp_path / "cut.zip",
        "no complete zip archive (zip file version 25.5)": tmp_path / "version.zip",
    }
    content = bytearray((tmp_path / "good.zip").read_bytes())
    (tmp_path / "cut.zip").write_bytes(content[:-30])
    content[content.index(b"PK\x01\x02") + 6] = 255
    (tmp_path / "version.zip").write_bytes(content)
    for words, path in bad.items():
        with pytest.raises(ValueError) as error, open_zip(path, 2):
            pass
        one_line(error, words)


UNSEEN = {
    "a title of the terminal": ("\x1b]0;mine\x07", r"\x1b]0;mine\x07"),
    "lines": ("a\nb\r\x0b\u2028\u2029\x85", r"a\nb\r\x0b\u2028\u2029\x85"),
    "control characters of eight bits": ("\x9b31m", r"\x9b31m"),
    "text turned around": ("\u202egnp.exe\u2066\u200f", r"\u202egnp.exe\u2066\u200f"),
    "no width": ("a\u200bb\u200d\ufeff\u2060\u00ad", r"a\u200bb\u200d\ufeff\u2060\xad"),
    "halves": ("\ud800", r"\ud800"),
    "a byte of a name": (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
    "tags": ("\U000e0041", r"\U000e0041"),
}


@pytest.mark.parametrize("case", UNSEEN)
def test_what_has_no_shape_is_shown_as_an_escape(case: str) -> None:
    text, expected = UNSEEN[case]
    assert shown(text) == expected
    for error in (BadInput(text), MissingFile(text), Stopped(text)):
        assert str(error) == expected


@pytest.mark.parametrize("text", ["Ankle boot", "café", "猫", "Ελλάδα", "🐈", "a − b · ⌈x⌉ 28×28"])
def test_what_has_a_shape_is_shown_as_it_is(text: str) -> None:
    assert shown(text) == text


def test_what_is_shown_is_not_long() -> None:
    assert len(shown("a" * 10**6)) < 5000 and len(brief(["a" * 10**6] * 10)) < 200
    assert len(some(["a" * 10**6] * 10)) < 1000
    assert brief(10**5000) == "a very large int"

"""Files that are whole or not there, whatever fails and whoever looks meanwhile."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from common import files
from common.errors import BadInput
from common.files import give_second_name, locked, output_folder, write_atomically
from tests.helpers import one_line


def no_links(*arguments: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_reader_during_the_write_sees_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    seen = []
    replace = os.replace

    def look(source: Path, target: Path) -> None:
        assert source.parent == target.parent  # a rename stays on one disk
        seen.append(path.read_text())
        replace(source, target)

    write_atomically(path, "old")
    monkeypatch.setattr(os, "replace", look)
    write_atomically(path, "new")
    assert seen == ["old"] and path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    by_name = tmp_path / "by name"
    by_name.touch()
    write_atomically(tmp_path / "atomically", "x")
    assert (tmp_path / "atomically").stat().st_mode == by_name.stat().st_mode


def test_a_write_leaves_the_umask_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(mask: int) -> int:
        pytest.fail("the umask is the process's: another thread may be making a file")

    monkeypatch.setattr(os, "umask", fail)
    write_atomically(tmp_path / "file", "x")


def test_many_threads_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    threads = [threading.Thread(target=write_atomically, args=(path, str(i) * 10_000)) for i in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(path.read_text()) == 10_000 and len(set(path.read_text())) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("taken", [True, False])
def test_a_second_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, taken: bool) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(bytes(range(256)) * 10_000)
    if taken:
        second.write_text("something else")
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for _ in range(2):  # and once more, when it has the name already
        give_second_name(first, second)
        assert second.read_bytes() == first.read_bytes()
        assert second.samefile(first) == links
        assert sorted(tmp_path.iterdir()) == [first, second]
    write_atomically(first, "new")
    assert second.read_bytes() == bytes(range(256)) * 10_000


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_that_cannot_be_given_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("first")
    second.write_text("second")
    monkeypatch.setattr(os, "replace", full)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(BadInput) as error:
        give_second_name(first, second)
    one_line(error, f"cannot write {second}: No space left on device; make room")
    assert second.read_text() == "second"
    assert sorted(tmp_path.iterdir()) == [first, second]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "; make room"),
        (errno.EDQUOT, "; make room"),
        (errno.EROFS, "; make it writable or choose another place"),
        (errno.EACCES, "; make it writable or choose another place"),
    ],
)
def test_the_remedy_fits_the_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BadInput) as error:
        write_atomically(tmp_path / "file", "x")
    assert str(error.value) == f"cannot write {tmp_path / 'file'}: {os.strerror(number)}{remedy}"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_syncs_no_folder_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    write_atomically(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == "x"


def test_new_folders_outlast_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    folder = output_folder(tmp_path / "runs" / "first")
    assert {tmp_path.stat().st_ino, folder.parent.stat().st_ino} <= set(synced)


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked(path) as other:
        assert other == ""
        with locked(path) as holder:
            assert holder.startswith(f"process {os.getpid()} on ")
        assert path.exists()
    assert not path.exists()
    with locked(path) as other:
        assert other == ""


def test_a_lock_that_was_removed_as_it_was_opened_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had it unlinks the file: what another has open then holds nobody off."""
    path = tmp_path / ".lock"
    lock, tries = files._lock, []

    def late(descriptor: int) -> bool:
        tries.append(descriptor)
        if len(tries) == 1:
            path.unlink()
        return lock(descriptor)

    monkeypatch.setattr(files, "_lock", late)
    with locked(path) as first, locked(path) as second:
        assert first == "" and second.startswith("process")
    assert len(tries) == 3


def test_what_else_stands_in_a_lock_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked(path):
        path.write_bytes(b"\x1b]0;process 1 on host\n")
        with locked(path) as other:
            assert other == "another process"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_where_there_are_no_locks_all_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with locked(tmp_path / ".lock") as first, locked(tmp_path / ".lock") as second:
        assert first == second == ""
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_unicode_is_written_with_escapes(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "caf\udce9\n")
    assert (tmp_path / "file").read_text() == "caf\\udce9\n"

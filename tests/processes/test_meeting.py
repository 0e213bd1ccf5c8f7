"""Where workers meet: what each learns, and that what does not fit is one line for all, soon."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from common.errors import BadInput
from common.processes.group import ALONE, Group
from common.processes.meeting import PATIENCE, Seat, free_address, meeting
from tests.cli.commands import SHORT, run_here
from tests.helpers import one_line

SAME = {"resnet-tabs": "0.1.0", "lr": "0.1"}


def meet(seats: list[Seat], *abouts: dict[str, str], patience: float = 5) -> list[Any]:
    """What each gets: its group, or its error."""

    def come(seat: Seat, about: dict[str, str]) -> Group | BadInput:
        try:
            with meeting(seat, about, patience) as group:
                return group
        except BadInput as error:
            return error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(come, seats, abouts or [SAME] * len(seats)))


def seats(workers: int, *ranks: int) -> list[Seat]:
    address = free_address("127.0.0.1")
    return [Seat(address, rank, workers) for rank in ranks]


def test_each_learns_its_rank_and_all_addresses() -> None:
    groups = meet(seats(3, 2, 0, 1))
    assert [group.rank for group in groups] == [2, 0, 1]
    assert len({group.addresses for group in groups}) == 1
    assert len(set(groups[0].addresses)) == 3
    assert [group.local_rank for group in groups] == [2, 0, 1]


def test_one_worker_meets_nobody() -> None:
    assert meet([Seat("nowhere:1", 0, 1)]) == [ALONE]


def test_a_batch_is_shared_out_and_a_remainder_goes_to_all() -> None:
    groups = [Group(rank, 2) for rank in range(2)]
    assert [group.share([1, 2, 3, 4]) for group in groups] == [[1, 2], [3, 4]]
    assert [group.share([1, 2, 3]) for group in groups] == [[1, 2, 3]] * 2
    assert [groups[0].copies(count) for count in (4, 3)] == [1, 2]
    assert Group(1, 3, ("a:1", "b:1", "a:2")).local_rank == 0
    assert Group(2, 3, ("a:1", "b:1", "a:2")).local_rank == 1


def errors(found: list[Any]) -> list[str]:
    assert all(isinstance(error, BadInput) for error in found)
    assert all("\n" not in str(error) for error in found)
    return [str(error) for error in found]


def test_what_is_not_the_same_is_named_to_all() -> None:
    found = errors(meet(seats(2, 0, 1), SAME, SAME | {"lr": "0.2"}))
    assert found == ["worker 1 has lr 0.2, worker 0 has 0.1; they must be the same"] * 2


def test_another_version_is_named() -> None:
    found = errors(meet(seats(2, 0, 1), SAME, {"resnet-tabs": "0.2.0", "momentum": "0"}))
    assert found == ["worker 1 has resnet-tabs 0.2.0, worker 0 has 0.1.0; they must be the same"] * 2


def test_a_rank_that_comes_twice_is_refused() -> None:
    assert errors(meet(seats(3, 0, 1, 1))) == ["two workers came as --rank 1; each must have its own"] * 3


def test_a_second_worker_0_is_refused() -> None:
    address = free_address("127.0.0.1")
    found = meet([Seat(address, 0, 2), Seat(address, 0, 2)], patience=2)
    assert any("another worker 0 listens there" in line for line in errors(found))


def test_another_number_of_workers_is_refused() -> None:
    address = free_address("127.0.0.1")
    found = errors(meet([Seat(address, 0, 2), Seat(address, 1, 3)]))
    assert found == ["worker 1 was told --workers 3, worker 0 2"] * 2


def test_who_does_not_come_is_named_in_time() -> None:
    began = time.monotonic()
    found = errors(meet(seats(3, 0, 2), patience=3))
    assert all("worker 1 has not come" in line for line in found)
    assert time.monotonic() - began < PATIENCE  # which it would be otherwise


def test_a_coordinator_that_is_not_there_is_named_in_time() -> None:
    (said,) = errors(meet(seats(2, 1), patience=1))
    assert "worker 0 is not at 127.0.0.1:" in said and "refused" in said


def test_a_host_that_nobody_knows_is_named() -> None:
    found = errors(meet([Seat("no-such-host.invalid:29500", rank, 2) for rank in (0, 1)], patience=1))
    assert all("no-such-host.invalid:29500" in line for line in found)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (said,) = errors(meet([Seat(f"127.0.0.1:{port}", 0, 2)]))
    assert f"cannot listen at 127.0.0.1:{port}" in said and "choose a free port" in said


def test_another_program_at_the_port_is_no_worker_0() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with ThreadPoolExecutor() as pool:
            found = pool.submit(meet, [Seat(f"127.0.0.1:{port}", 1, 2)])
            connection, _ = other.accept()
            connection.sendall(b"220 mail ready\r\n")
            connection.close()
            (said,) = errors(found.result())
    assert "is no worker 0 of this run" in said


REPORT = b'{"rank": %s, "workers": 2, "address": "host:1", "about": {"resnet-tabs": "0.1.0", "lr": "0.1"}}\n'

STRANGERS = {
    "a browser": b"GET / HTTP/1.1\r\n\r\n",
    "JSON, very deep": b"[" * 50_000 + b"\n",
    "an object, very deep": b'{"rank":' * 5000 + b"\n",
    "JSON without end": b'{"rank": "' + b"a" * 200_000,
    "other JSON": b'{"jsonrpc": "2.0", "id": 1}\n',
    "a rank in words": REPORT % b'"one"',
    "a rank that is none": REPORT % b"7",
    "a negative rank": REPORT % b"-1",
    "a rank of many digits": REPORT % (b"9" * 5000),
    "a rank that is no number": REPORT % b"NaN",
    "a rank twice": REPORT % b'1, "rank": 1',
    "no UTF-8": REPORT % b'"\xff"',
    "half a character": REPORT % b'"\\ud800"',
    "a list of versions": b'{"rank": 1, "workers": 2, "address": "host:1", "about": [["lr", "0.1"]]}\n',
    "nothing": b"",
}


def connect(address: tuple[str, int]) -> socket.socket:
    for _ in range(200):
        try:
            return socket.create_connection(address)
        except OSError:
            time.sleep(0.02)
    raise AssertionError("worker 0 does not listen")


@pytest.mark.parametrize("stranger", STRANGERS)
def test_another_program_that_calls_is_not_minded(stranger: str) -> None:
    both = seats(2, 0, 1)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(meet, both[:1])
        with connect(both[0].address) as caller, suppress(OSError):
            caller.sendall(STRANGERS[stranger])
        (group,) = meet(both[1:])
        assert first.result()[0].addresses == group.addresses


def test_nobody_waits_for_those_who_call_and_say_nothing() -> None:
    both = seats(2, 0, 1)
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        first = pool.submit(meet, both[:1])
        for _ in range(20):
            stack.enter_context(connect(both[0].address))
        began = time.monotonic()
        (group,) = meet(both[1:])
        assert first.result()[0].addresses == group.addresses
        assert time.monotonic() - began < 3


def test_an_answer_that_is_not_worker_0s_is_one_line() -> None:
    for answer in (b"[" * 50_000, b'{"addresses": 5}', b'{"addresses": ["a:1"]}', b'{"addresses": [1, 2]}'):
        with socket.create_server(("127.0.0.1", 0)) as other, ThreadPoolExecutor() as pool:
            found = pool.submit(meet, [Seat(f"127.0.0.1:{other.getsockname()[1]}", 1, 2)])
            connection, _ = other.accept()
            with connection:
                connection.sendall(answer + b"\n")
                (said,) = errors(found.result())
        assert "is no worker 0 of this run" in said


LOST = """
import os, sys, time
from common.processes.meeting import Seat, meeting
with meeting(Seat(sys.argv[1], int(sys.argv[2]), 3), {}):
    if sys.argv[2] == sys.argv[3]:
        os.kill(os.getpid(), 9)
    time.sleep(600)
"""


@pytest.mark.parametrize("lost", [0, 1])
def test_all_end_when_one_is_lost(lost: int) -> None:
    address = free_address("127.0.0.1")
    processes = [
        subprocess.Popen([sys.executable, "-c", LOST, address, str(rank), str(lost)], stderr=subprocess.PIPE)
        for rank in range(3)
    ]
    for rank, process in enumerate(processes):
        _, said = process.communicate(timeout=120)
        if rank != lost:
            assert process.returncode == 1
            assert said.decode() == f"worker {lost} is lost\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "0"], "--workers must be 1 or more, not 0"),
        (["--workers", "2", "--backend", "oracle"], "the oracle trains with one worker"),
        (["--rank", "1"], "all three"),
        (["--workers", "2", "--coordinator", "host:1"], "all three"),
        (["--workers", "2", "--rank", "2", "--coordinator", "host:1", "--out", "run"], "from 0 to 1, not 2"),
        (["--workers", "2", "--rank", "1", "--coordinator", "host", "--out", "run"], "must be HOST:PORT"),
        (["--workers", "2", "--rank", "1", "--coordinator", "host:1"], "need --out RUN"),
        (
            ["--workers", "2", "--rank", "1", "--coordinator", "h:1", "--out", "run", "--backend", "all"],
            "in one backend",
        ),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(options: list[str], words: str) -> None:
    done = run_here("train", "resnet18", *SHORT, *options)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and words in done.stderr


def test_an_environment_that_is_not_torchruns_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"MASTER_ADDR": "host", "MASTER_PORT": "many", "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    done = run_here("train", "resnet18", *SHORT)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "not torchrun's" in done.stderr


def test_a_seat_says_what_it_needs() -> None:
    with pytest.raises(ValueError) as error:
        Seat("host:99999", 0, 2)
    one_line(error, "HOST:PORT")

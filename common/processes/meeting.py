"""Where the workers of a run find each other, and notice when one is lost.

Before any framework starts, the worker of rank 0 listens at the coordinator's address, and all others report
there: who they are, what they are about to run, and an address that is free for the framework's own engine.
Weights and gradients never come this way. The connections stay open, for that of a worker that dies closes.
"""

from __future__ import annotations

import json
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from common.errors import BadInput, Stopped, end_process
from common.processes.group import ALONE, Group
from common.reading import fits, parse_json

PATIENCE = 45.0  # seconds until all workers must have come
GRACE = 3.0  # seconds a worker has to stop for the same reason as another
LONGEST = 1 << 16  # bytes of a message
_ending = threading.Lock()  # of the watcher that ends this process


@dataclass(frozen=True)
class Seat:
    """Where a worker meets the others: the coordinator's "HOST:PORT", its rank, and how many they are.

    With `launched`, a launcher minds whether another is lost.
    """

    coordinator: str
    rank: int
    workers: int
    launched: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise BadInput(f"--workers must be 1 or more, not {self.workers}")
        if not 0 <= self.rank < self.workers:
            raise BadInput(f"--rank must be from 0 to {self.workers - 1}, not {self.rank}")
        self.check_address()

    def check_address(self) -> None:
        """Raise `ValueError` unless the coordinator is a host and a port."""
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise BadInput(f"--coordinator must be HOST:PORT, such as host0:29500, not {self.coordinator!r}")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.coordinator.rpartition(":")
        return host, int(port)


@contextmanager
def meeting(seat: Seat, about: Mapping[str, str], patience: float = PATIENCE) -> Iterator[Group]:
    """Meet the other workers. Within, this process ends, exit code 1, if another is lost or fails.

    Args:
        about: what must be the same everywhere: versions, settings.
        patience: seconds until all must have come.

    Raises:
        ValueError: if they do not all come, or are not about to do the same.
    """
    if seat.workers == 1:
        yield ALONE
        return
    gather = _report if seat.rank else _listen
    with ExitStack() as stack:
        group, lines = gather(seat, dict(about), time.monotonic() + patience, stack)
        over = threading.Event()
        watched = [] if seat.launched else list(lines)
        watchers = [threading.Thread(target=_watch, args=(r, lines, over), daemon=True) for r in watched]
        for watcher in watchers:
            watcher.start()
        reason = ""
        try:
            yield group
        except BaseException as error:
            reason = str(error) or type(error).__name__
            if not isinstance(error, BadInput | Stopped):  # an engine may be the first to notice a loss
                over.wait(GRACE)
            raise
        finally:
            over.set()
            _tell(lines.values(), end=reason)
            for watcher in watchers if seat.rank == 0 else ():
                watcher.join(GRACE)  # the others may still need what runs here


class _Line:
    """JSON, a line a message, to and from another worker."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.settimeout(seconds)
        self.socket, self._heard = connection, b""

    def send(self, message: Mapping[str, Any]) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> bool:
        """Take what has come; returns whether `receive` need not wait for more."""
        try:
            more = self.socket.recv(LONGEST)
        except OSError:
            more = b""
        self._heard += more
        return not more or b"\n" in self._heard or len(self._heard) > LONGEST

    def receive(self) -> dict[str, Any]:
        """The next message; {} once the other end is closed or silent, or if it is no worker's."""
        while b"\n" not in self._heard and not self.hear():
            pass
        said, _, self._heard = self._heard.partition(b"\n")
        try:
            return parse_json(said or "{}", dict)
        except ValueError:
            return {}


def _listen(
    seat: Seat, about: dict[str, str], deadline: float, stack: ExitStack
) -> tuple[Group, dict[int, _Line]]:
    """As worker 0: hear the others, and tell each all addresses, or what is wrong."""
    host, port = seat.address
    try:
        server = stack.enter_context(socket.create_server((host, port)))
    except OSError as error:
        reason = "another program or another worker 0 listens there" if error.errno == 98 else error.strerror
        raise BadInput(
            f"worker 0 cannot listen at {seat.coordinator} ({reason}); choose a free port of its own host"
        ) from None
    lines: dict[int, _Line] = {}
    addresses = {0: free_address(host)}
    refused: list[_Line] = []
    wrong = ""
    for line, said in _reports(server, deadline, stack):
        if wrong := _what_is_wrong(said, seat, about, addresses):
            refused.append(line)
            break
        lines[said["rank"]], addresses[said["rank"]] = line, said["address"]
        if len(addresses) == seat.workers:
            break
    else:
        missing = ", ".join(str(rank) for rank in range(seat.workers) if rank not in addresses)
        wrong = f"worker {missing} has not come to {seat.coordinator} in time; start every rank"
    if wrong:
        _tell([*lines.values(), *refused], wrong=wrong)
        raise BadInput(wrong)
    ordered = tuple(addresses[rank] for rank in range(seat.workers))
    _tell(lines.values(), addresses=ordered)
    return Group(0, seat.workers, ordered), lines


def _reports(
    server: socket.socket, deadline: float, stack: ExitStack
) -> Iterator[tuple[_Line, dict[str, Any]]]:
    """What each worker says that comes in time. Nobody waits for one who says nothing, or something else."""
    server.setblocking(False)
    with selectors.DefaultSelector() as coming:
        coming.register(server, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in coming.select(left):
                if key.fileobj is server:
                    with suppress(OSError):  # who came is gone
                        connection = stack.enter_context(server.accept()[0])
                        coming.register(connection, selectors.EVENT_READ, _Line(connection, seconds=5))
                elif key.data.hear():
                    coming.unregister(key.fileobj)
                    said = key.data.receive()
                    if _is_report(said):
                        yield key.data, said


def _is_report(said: Mapping[str, Any]) -> bool:
    """Whether this is what `_report` sends."""
    kinds = {"rank": int, "workers": int, "address": str, "about": dict[str, str]}
    return (
        all(fits(said.get(name), kind) for name, kind in kinds.items()) and 0 < said["rank"] < said["workers"]
    )


def _what_is_wrong(
    said: Mapping[str, Any], seat: Seat, about: Mapping[str, str], addresses: Mapping[int, str]
) -> str:
    """Why the worker that says this cannot join; "" if it can."""
    rank, theirs = said["rank"], said["about"]
    for name in dict.fromkeys([*about, *theirs]):
        if about.get(name) != theirs.get(name):
            return (
                f"worker {rank} has {name} {theirs.get(name, 'unknown')}, worker 0 has "
                f"{about.get(name, 'unknown')}; they must be the same"
            )
    if said["workers"] != seat.workers:
        return f"worker {rank} was told --workers {said['workers']}, worker 0 {seat.workers}"
    if rank in addresses:
        return f"two workers came as --rank {rank}; each must have its own"
    return ""


def _report(
    seat: Seat, about: dict[str, str], deadline: float, stack: ExitStack
) -> tuple[Group, dict[int, _Line]]:
    """As another worker: go to worker 0, and hear all addresses, or what is wrong."""
    while True:
        left = deadline - time.monotonic()
        try:
            connection = stack.enter_context(socket.create_connection(seat.address, max(left, 0.01)))
            break
        except OSError as error:
            if left < 0:
                raise BadInput(
                    f"worker 0 is not at {seat.coordinator} ({error.strerror or error}); "
                    "start it there, or give the --coordinator it was given"
                ) from None
            time.sleep(0.1)
    line = _Line(connection, max(deadline - time.monotonic(), 5))
    mine = free_address(connection.getsockname()[0])
    answer = {}
    with suppress(OSError):
        line.send({"rank": seat.rank, "workers": seat.workers, "address": mine, "about": about})
        answer = line.receive()
    if "wrong" in answer:
        raise BadInput(str(answer["wrong"]))
    addresses: Any = answer.get("addresses")
    if not fits(addresses, list[str]) or len(addresses) != seat.workers:
        raise BadInput(f"what listens at {seat.coordinator} is no worker 0 of this run; choose another port")
    return Group(seat.rank, seat.workers, tuple(addresses)), {0: line}


def _watch(rank: int, lines: Mapping[int, _Line], over: threading.Event) -> None:
    """Wait for the last word of a worker; without one it is lost, and this process ends."""
    with suppress(OSError):  # all may be over already
        lines[rank].socket.settimeout(None)
    said = lines[rank].receive()
    if over.is_set() or said.get("end") == "":
        return
    if "end" in said:
        why = f"worker {rank} stopped: {said['end']}"
        if over.wait(GRACE):  # this one, too, perhaps for the same reason
            return
    else:
        why = str(said.get("lost") or f"worker {rank} is lost")
    with _ending:  # what it tells comes back from those who heard it: one speaks
        _tell(lines.values(), lost=why)
        end_process(why)


def _tell(lines: Any, **message: Any) -> None:
    for line in lines:
        with suppress(OSError):  # it may be gone
            line.send(message)


def free_address(host: str) -> str:
    """ "HOST:PORT" that nobody listens at."""
    with socket.create_server((host, 0)) as server:
        return f"{host}:{server.getsockname()[1]}"

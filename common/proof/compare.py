"""The main job: give several backends the same network and the same images, and decide if they agree.

The oracle is the reference. Every backend computes in a process of its own and sends back evidence: what
it put out, what its gradients were, and where some steps of training took it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from threading import Lock
from typing import Any

from common.deviation import deviation, distance
from common.errors import BadInput
from common.processes.workers import Process, Shares
from common.proof.candidate import Candidate, Reference
from common.proof.judge import AT_ONCE, Comparison, Evidence, Job, Look, Timing, judge
from common.timing import ROUNDS, Elsewhere, Spread

_candidate: Candidate | Reference  # of this process


def enter(name: str, job: Job, dtype: str) -> None:
    """Build a backend in this process."""
    global _candidate
    _candidate = Reference(job) if name == "oracle" else Candidate.of(name, job, dtype)


def ask(method: str, *args: Any) -> Any:
    """What a method of this process' candidate returns."""
    return getattr(_candidate, method)(*args)


def compare(
    job: Job,
    names: list[str],
    dtypes: list[str],
    progress: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Run the job in the oracle and in every named backend, each in a process of its own, and decide.

    Args:
        job: the network, its weights and the images.
        names: backends to compare; the oracle is always run.
        dtypes: "float64", "float32" or both.
        progress: is told, in a line, whenever something has been done.
    """
    found = Comparison(job)
    names = [name for name in names if name != "oracle"]
    looks: dict[tuple[str, str], Look] = {}
    shares = Shares(AT_ONCE)
    one_by_one = Lock()
    asleep: Future[bool] = Future()

    def note(name: str, dtype: str, look: Look) -> None:
        with one_by_one:
            looks[name, dtype] = look
            reference = looks.get(("oracle", "float64"))
            for key in looks if name == "oracle" else [(name, dtype)]:
                if reference and key[0] != "oracle":
                    progress(f"{' in '.join(key)}: {first_figures(looks[key], reference)}")

    def begin(name: str, dtype: str, process: Process) -> None:
        process.run(enter, name, job, dtype)
        if dtype in dtypes:
            note(name, dtype, process.run(ask, "look"))
        process.run(ask, "start", asleep.result())

    def finish(name: str, dtype: str, process: Process) -> Any:
        finished = process.run(ask, "finish")
        if job.steps and dtype == "float64":  # of a deep network that takes minutes
            with one_by_one:
                progress(f"{name} in float64: {job.steps} steps taken")
        return finished

    def conclude(name: str, dtype: str, process: Process) -> None:
        found.evidence[name, dtype] = Evidence.of(looks[name, dtype], *finish(name, dtype, process))

    def refer(name: str) -> None:
        try:
            with shares.process() as process:
                process.run(enter, name, job, "float64")
                look, moved = process.run(ask, "look")
                note(name, "float64", look)
                asleep.set_result(process.run(ask, "choose_start"))
                found.asleep = asleep.result()
                plain, other = finish(name, "float64", process)
        finally:
            if not asleep.done():  # the oracle's failure is no one else's
                asleep.set_result(False)
        found.evidence[name, "float64"] = Evidence.of(look, *plain)
        found.moved = Evidence.of(moved, *other)

    def gather(name: str) -> None:
        with shares.process() as process:
            begin(name, "float64", process)
            conclude(name, "float64", process)

    def prepare(name: str) -> None:
        begin(name, "float32", processes[name])
        processes[name].run(ask, "warm_up")

    with ExitStack() as stack:
        # Those that time have all cores, and wait until nothing else computes.
        processes = {name: stack.enter_context(closing(Process())) for name in names}
        tasks: list[tuple[str, Callable[[str], None]]] = [("oracle", refer)]
        tasks += [(name, gather) for name in names if "float64" in dtypes]
        tasks += [(name, prepare) for name in names]
        found.failures |= each(tasks, at_once=shares.count)
        found.timings, found.elsewhere, failures = time_in_turns(
            {name: processes[name] for name in names if name not in found.failures}
        )
        found.failures |= failures
        if found.timings:
            progress(f"timed in {ROUNDS} rounds")
        if "float32" in dtypes:
            rest = [(name, lambda name: conclude(name, "float32", processes[name])) for name in found.timings]
            found.failures |= each(rest, at_once=shares.count)
    judge(found, names, dtypes)
    return found


def first_figures(look: Look, reference: Look) -> str:
    """What can be told of a backend while it is still at work."""
    logits = deviation(look.logits, reference.logits)
    gradients = distance(look.training.gradients, reference.training.gradients)
    return f"logits {logits:.1e}, gradients {gradients:.1e} from the oracle's"


def time_in_turns(
    processes: Mapping[str, Process],
) -> tuple[dict[str, Timing], float | None, dict[str, str]]:
    """Time the backends in turns, so that what disturbs the machine for a while disturbs all.

    Returns the timings, the share of the cores' time that went elsewhere, and what failed.
    """
    rounds: dict[str, list[tuple[list[float], list[float]]]] = {name: [] for name in processes}
    failures: dict[str, str] = {}
    with Elsewhere(processes.values()) as elsewhere:
        for _ in range(ROUNDS):
            turn: list[tuple[str, Callable[[str], None]]] = [
                (name, lambda name: rounds[name].append(processes[name].run(ask, "time_round")))
                for name in processes
                if name not in failures
            ]
            failures |= each(turn, at_once=1)
    timings = {}
    for name in processes:
        if name not in failures:
            forward, step = zip(*rounds[name], strict=True)
            timings[name] = Timing(Spread.of(forward), Spread.of(step))
    return timings, elsewhere.share, failures


def each(tasks: list[tuple[str, Callable[[str], None]]], at_once: int) -> dict[str, str]:
    """Do the tasks, each for a backend. What a framework raises is a finding about it, and returned."""
    failures = {}
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(task, name): name for name, task in tasks}
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, BadInput):
                pool.shutdown(cancel_futures=True)
                raise error
            if error:
                failures[futures[future]] = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    return failures

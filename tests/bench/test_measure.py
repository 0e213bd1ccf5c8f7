"""The measurement: turns, what fails, and what the operating system tells. Fakes stand in for frameworks."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import pytest
from numpy.typing import NDArray

from common.backend import BACKENDS, Backend
from common.bench import measure as measuring
from common.bench.measure import (
    FEWEST,
    MOST,
    ROUNDS,
    SECONDS,
    Bench,
    Cell,
    Contender,
    Runner,
    Workload,
    forget_peak,
    measure,
    peak_memory,
    said_of,
)
from common.errors import BadInput
from common.processes.workers import Process
from tests.bench.helpers import ARCH, DIES, DIES_LATER, LACKS_MEMORY, OURS, RAISES, THEIRS, enter


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contenders compute nothing, and wait for nothing."""
    monkeypatch.setattr(measuring, "enter", enter)
    monkeypatch.setattr(measuring, "PAUSE", 0)


def measured(contenders: Sequence[Contender], *batch_sizes: int) -> Bench:
    return measure(Workload("small", ARCH, (1, 32, 32), batch_sizes), contenders)


def cells_of(bench: Bench, contender: Contender) -> list[tuple[str, int]]:
    return [(cell.mode, cell.batch_size) for cell in bench.cells if cell.contender == contender]


@pytest.mark.usefixtures("fakes")
def test_every_cell_is_measured_in_every_round() -> None:
    told: list[str] = []
    contenders = [OURS["torch"], THEIRS["torch"], OURS["tf"]]
    bench = measure(Workload("small", ARCH, (1, 32, 32), (1, 8)), contenders, told.append)
    assert bench.failures == {}
    for contender in contenders:
        assert cells_of(bench, contender) == [("infer", 1), ("infer", 8), ("train", 1), ("train", 8)]
    assert bench.cells[Cell(OURS["torch"], "train", 8)].rounds == [[8.0, 8.0]] * ROUNDS
    assert bench.cells[Cell(THEIRS["torch"], "train", 8)].rounds == [[16.0, 16.0]] * ROUNDS
    assert bench.products == {("torch", "float32"): 20.0, ("tf", "float32"): 10.0}
    assert len({cell.memory for cell in bench.cells.values()}) == 3  # a fake tells its process' number
    assert told[0] == (
        "torch float32: imported in 1.50 s, built in 0.50 s, first infer 0.50 s, first train 0.50 s"
    )
    assert told[-1] == f"round {ROUNDS} of {ROUNDS} done"


def test_a_network_and_its_reference_take_turns_at_being_first() -> None:
    contenders = [OURS["torch"], THEIRS["torch"], OURS["mxnet"], OURS["jax"], THEIRS["jax"]]
    assert measuring._order(contenders, 0) == contenders
    swapped = [THEIRS["torch"], OURS["torch"], OURS["mxnet"], THEIRS["jax"], OURS["jax"]]
    assert measuring._order(contenders, 1) == swapped


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("batch_size", "words"),
    [
        (RAISES, "RuntimeError: no such kernel"),
        (LACKS_MEMORY, "out of memory (Unable to allocate 9 TiB); give a smaller batch"),
        (DIES, "its process died: terminate called; if memory ran out, give a smaller batch"),
        (DIES_LATER, "its process died: terminate called; if memory ran out, give a smaller batch"),
    ],
)
def test_a_cell_that_fails_is_one_line_and_the_rest_is_measured(batch_size: int, words: str) -> None:
    ours = OURS["torch"]
    bench = measured([ours, OURS["tf"]], 1, batch_size, 200)
    assert cells_of(bench, ours) == [("infer", 1), ("infer", 200), ("train", 1), ("train", 200)]
    names = [
        f"{contender} {mode}, batch {batch_size}"
        for contender in (ours, OURS["tf"])
        for mode in measuring.MODES
    ]
    assert bench.failures == dict.fromkeys(names, words)
    assert {len(cell.rounds) for cell in bench.cells.values()} == {ROUNDS}


def test_what_no_memory_holds_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a fake: the oracle, which has no matrix product to show for itself."""
    monkeypatch.setattr(measuring, "ROUNDS", 1)
    oracle = Contender("oracle", "float64")
    bench = measured([oracle], 2, 10**9)
    assert cells_of(bench, oracle) == [("infer", 2), ("train", 2)]
    product = bench.failures.pop("oracle float64, matrix product")
    assert "matrix_product" in product
    assert list(bench.failures) == [f"oracle float64 {mode}, batch 1000000000" for mode in measuring.MODES]
    for line in bench.failures.values():
        assert line.startswith("out of memory (Unable to allocate") and line.endswith("give a smaller batch")


@pytest.mark.usefixtures("fakes")
def test_a_contender_that_cannot_be_is_one_line_and_the_rest_is_measured() -> None:
    bench = measured([Contender("mxnet", "bfloat16"), OURS["torch"]], 1)
    assert bench.failures == {"mxnet bfloat16": "no bfloat16 in this backend; give float32 or float64"}
    assert cells_of(bench, OURS["torch"]) == [("infer", 1), ("train", 1)]


@pytest.mark.usefixtures("fakes")
def test_where_nothing_can_be_measured_nothing_is() -> None:
    bench = measured([Contender("mxnet", "bfloat16")], 1)
    assert (bench.cells, bench.products) == ({}, {})


@pytest.mark.usefixtures("fakes")
def test_a_matrix_product_that_fails_is_one_line() -> None:
    bench = measured([OURS["jax"]], 1)
    assert bench.failures == {"jax float32, matrix product": "RuntimeError: no product"}
    assert cells_of(bench, OURS["jax"]) == [("infer", 1), ("train", 1)]


@pytest.mark.usefixtures("fakes")
def test_a_contender_that_does_not_come_back_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process dies in a round, and no other starts."""
    run, starts = Process.run, []

    def once(process: Process, function: object, *args: object) -> object:
        if function is enter:
            starts.append(args)
            if len(starts) > 1:
                raise RuntimeError("no process to be had")
        return run(process, function, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Process, "run", once)
    bench = measured([OURS["torch"]], 1, DIES_LATER)
    assert bench.cells == {}
    assert bench.failures["torch float32"] == "RuntimeError: no process to be had"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BadInput("no GPU; use device cpu"), "no GPU; use device cpu"),
        (ValueError(""), "ValueError: no message"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\nlong\nlist"),
            "out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes); give a smaller batch",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory (DefaultCPUAllocator: can't allocate memory: you tried); give a smaller batch",
        ),
        (RuntimeError("a" * 1000), f"RuntimeError: {'a' * 200}…"),
    ],
)
def test_what_a_framework_says_becomes_one_line(error: Exception, line: str) -> None:
    assert said_of(error) == line


def hold(count: int) -> tuple[int | None, int | None]:
    """The peak while so many bytes were held, and the peak after."""
    forget_peak()
    held = bytearray(count)
    most = peak_memory()
    del held
    forget_peak()
    return most, peak_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_the_peak_is_that_since_it_was_forgotten() -> None:
    with closing(Process()) as process:
        most, after = process.run(hold, 300 * 2**20)
    assert most is not None and after is not None
    assert most > 300 * 2**20
    assert after < most - 250 * 2**20


@pytest.fixture(scope="module")
def oracle() -> Runner:
    return Runner(Contender("oracle", "float64"), Workload("small", ARCH, (1, 32, 32), (1, 2)))


@pytest.mark.parametrize("mode", measuring.MODES)
def test_a_round_is_long_enough_and_no_longer(oracle: Runner, mode: str) -> None:
    passes = oracle.time_round(mode, 2)
    assert FEWEST <= len(passes) <= MOST
    assert len(passes) == MOST or sum(passes) >= 1000 * SECONDS
    assert len(passes) == FEWEST or sum(passes[:-1]) < 1000 * SECONDS


def test_a_slow_pass_is_counted_twice(oracle: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "milliseconds", lambda run: 5000.0)
    assert oracle.time_round("infer", 1) == [5000.0] * FEWEST


def test_training_trains_and_inference_does_not(oracle: Runner) -> None:
    def weight() -> NDArray:
        return oracle.model.weights()["last.weight"]

    before = weight()
    oracle.warm_up("infer", 2)
    assert np.array_equal(weight(), before)
    oracle.warm_up("train", 2)
    assert not np.array_equal(weight(), before)  # their sum stays: softmax's gradients add up to 0


def test_no_program_is_taken_from_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling is part of the time to the first result."""
    entry = Backend("torch", "fake", "common.oracle", ("numpy",), "", uncached={"SUCH_A_CACHE": "off"})
    monkeypatch.setitem(BACKENDS, "torch", entry)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    Runner(Contender("torch", "float64"), Workload("small", ARCH, (1, 32, 32), (1,)))
    assert os.environ["SUCH_A_CACHE"] == "off"

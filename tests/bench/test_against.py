"""Which cells became slower since an earlier bench.json, beyond the spread, and what is no bench.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.backend import BACKENDS
from common.bench.against import Record, compare, read, show
from common.bench.figures import Figures
from common.bench.measure import Bench, Cell, Contender
from common.bench.report import results
from common.errors import BadInput
from tests.bench.helpers import OURS, THEIRS, bench_of
from tests.helpers import one_line

CELL = Cell(OURS["torch"], "train", 64)


def written(bench: Bench) -> dict[str, Any]:
    """What bench.json would hold, once read again."""
    chosen = [replace(backend, packages=("numpy",)) for backend in BACKENDS.values()]
    return json.loads(json.dumps(results(Figures(bench, chosen)), allow_nan=False))


def record(bench: Bench) -> Record:
    return Record.of(written(bench))


@pytest.mark.parametrize(
    ("times", "slower", "faster"),
    [
        (1.0, 0, 0),
        (1.2, 0, 0),  # a round then was 1.1 times as slow as the median, one now is a tenth quicker
        (1.25, 12, 0),
        (0.8, 0, 12),
        (0.83, 0, 0),
    ],
)
def test_slower_is_what_no_round_then_was_as_slow_as(times: float, slower: int, faster: int) -> None:
    change = compare(record(bench_of("torch")), record(bench_of("torch", slower=times)))
    assert (len(change.slower), len(change.faster), change.common) == (slower, faster, 12)
    assert change.good == (slower == 0)
    assert change.notes == []


def test_one_slow_cell_is_found_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    now = bench_of("torch")
    now.cells[CELL].rounds = [[1000.0]] * 5
    change = compare(record(bench_of("torch")), record(now))
    assert list(change.slower) == [CELL]
    show(change, "old.json")
    shown = " ".join(capsys.readouterr().out.split())
    assert "What became slower than in old.json" in shown
    assert "torch float32 train, batch 64 125 (114–139) 64.0 (64.0–64.0) 0.51" in shown
    assert shown.endswith("SLOWER than in old.json: 1 of 12, in images/s")


def test_nothing_slower_is_said_too(capsys: pytest.CaptureFixture[str]) -> None:
    show(compare(record(bench_of("torch")), record(bench_of("torch", slower=0.5))), "old.json")
    shown = capsys.readouterr().out
    assert "What became faster" in shown
    assert "What became slower" not in shown
    assert shown.splitlines()[-1] == "NOT SLOWER than in old.json: none of 12, in images/s"


def test_what_worked_then_and_fails_now_is_worse_than_slow(capsys: pytest.CaptureFixture[str]) -> None:
    now = bench_of("torch")
    del now.cells[CELL]
    now.failures = {str(CELL): "no such kernel", "mxnet float32 train, batch 64": "of nobody's interest"}
    change = compare(record(bench_of("torch")), record(now))
    assert not change.good
    show(change, "old.json")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "BROKEN since old.json: torch float32 train, batch 64: no such kernel"


def test_what_changed_besides_is_said() -> None:
    old, new = written(bench_of("torch", "mxnet")), written(bench_of("torch"))
    old["versions"] |= {"torch": "2.12.0", "jax": None}
    new["versions"] |= {"torch": "2.13.0", "jax": "0.10"}
    old["threads"] = new["threads"] + 1
    new["cells"].append({**new["cells"][0], "batch_size": 512})
    old["busy_elsewhere"] = 0.5
    change = compare(Record.of(old), Record.of(new))
    processor, threads = new["processor"], new["threads"]
    assert change.notes == [
        "PyTorch 2.12.0 → 2.13.0",
        f"Another machine: {processor}, {threads + 1} threads then, {processor}, {threads} threads now",
        "Not compared: 12 measured only then, 1 measured only now",
        "The machine was busy then: this comparison is worth little",
    ]
    assert change.good


def test_nothing_in_common_is_no_pass(capsys: pytest.CaptureFixture[str]) -> None:
    change = compare(record(bench_of("mxnet")), record(bench_of("torch")))
    assert not change.good
    show(change, "old.json")
    assert "NOT COMPARED: nothing in old.json was measured again" in capsys.readouterr().out


def test_a_reference_and_a_precision_are_cells_of_their_own() -> None:
    found = record(bench_of("torch"))
    assert found.speeds[CELL] != found.speeds[replace(CELL, contender=THEIRS["torch"])]
    assert replace(CELL, contender=Contender("torch", "bfloat16")) not in found.speeds


def saved(folder: Path, content: Any) -> Path:
    path = folder / "old.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_an_earlier_measurement_is_read(tmp_path: Path) -> None:
    bench = bench_of("torch")
    found = read(saved(tmp_path, written(bench)), bench.workload)
    assert found.speeds == record(bench).speeds


def change(*path: Any, value: Any) -> Callable[[dict[str, Any]], Any]:
    def apply(content: dict[str, Any]) -> Any:
        target: Any = content
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = value
        return content

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: "no JSON",
        lambda content: "",
        lambda content: [content],
        lambda content: {},
        lambda content: None,
        change("kind", value="another program's"),
        change("cells", value=None),
        change("cells", 0, "images_per_second", value=None),
        change("cells", 0, "images_per_second", value=0),
        change("cells", 0, "slowest_round", value=float("nan")),
        change("cells", 0, "slowest_round", value=[1]),
        change("cells", 0, value=[]),
        change("cells", 0, "backend", value=["torch"]),
        change("versions", value=["2.13"]),
        change("busy_elsewhere", value="often"),
        lambda content: json.dumps(content)[:-200],
    ],
)
def test_what_is_no_bench_json_is_one_line(tmp_path: Path, damage: Any) -> None:
    bench = bench_of("torch")
    path = saved(tmp_path, damage(written(bench)))
    with pytest.raises(BadInput) as error:
        read(path, bench.workload)
    one_line(error, "old.json is not a bench.json; give one that")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("input_shape", [1, 96, 96], "another input shape ([1, 96, 96])"),
        ("device", "gpu", 'another device ("gpu")'),
        ("architecture", {"stages": []}, "another architecture"),
        ("compile", True, "another compile (true)"),
    ],
)
def test_another_question_is_one_line(tmp_path: Path, name: str, value: Any, words: str) -> None:
    bench = bench_of("torch")
    path = saved(tmp_path, written(bench) | {name: value})
    with pytest.raises(BadInput) as error:
        read(path, bench.workload)
    one_line(error, words, "ask for the same as then")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        read(tmp_path / "old.json", bench_of("torch").workload)
    one_line(missing, "old.json not found; give a bench.json")
    with pytest.raises(BadInput) as folder:
        read(tmp_path, bench_of("torch").workload)
    one_line(folder, "cannot read")

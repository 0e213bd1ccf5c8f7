"""What the tests of training share: short runs of small networks, and how to stop them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common import initial_weights, training
from common.architecture import Architecture
from common.data import FashionMNIST
from common.errors import telling_how_to_resume
from common.training.runs import Run
from common.training.settings import Settings
from common.weights import Weights
from tests.helpers import build

SMALL = Architecture(stages=((1, 8), (1, 16)), stem_channels=8)
TINY = Architecture(stages=((1, 4),), stem_channels=4)


def settings(backend: str, data: FashionMNIST, arch: Architecture = TINY, **options: Any) -> Settings:
    defaults: dict[str, Any] = {
        "backend": backend,
        "architecture": arch.to_json(),
        "epochs": 2,
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "warmup_epochs": 0,
        "precision": "float32",
        "device": "cpu",
    }
    return Settings.from_fields({**defaults, **data.settings(), **options})


def tiny_data(**options: Any) -> FashionMNIST:
    """Five batches, the last one smaller."""
    return FashionMNIST(
        **{"batch_size": 8, "augment": ["flip", "crop"], "limit_train": 36, "limit_val": 20, **options}
    )


def train(
    run: Settings, data: FashionMNIST, folder: Path, resume: bool = False, tensorboard: bool = False
) -> tuple[Any, Run]:
    arch = Architecture.from_json(run.architecture)

    def new_model(name: str) -> Any:
        model = build(name, arch, run.precision, run.device)
        model.load_weights(initial_weights(arch, run.seed))
        return model

    with telling_how_to_resume("the command"):
        return training.train(new_model, data, run, folder, resume, tensorboard)


def losses(history: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in history if record["event"] == "step"]


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "images_per_second")}
        for record in history
    ]


def assert_identical(a: Weights, b: Weights) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name


class Once:
    """Do something when a run has logged so many lines, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lines: int, act: Callable[[Run], None]) -> None:
        log = Run.log

        def logging(run: Run, record: dict[str, Any]) -> None:
            log(run, record)
            if len(run.history) == lines and not self.done:
                self.done = True
                act(run)

        self.done = False
        monkeypatch.setattr(Run, "log", logging)

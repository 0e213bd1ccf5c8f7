"""A run by several workers: on this machine, or as one of those that meet at a coordinator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.architecture import Architecture
from common.backend import Model, load_backend
from common.data import DataModule
from common.errors import BadInput, Stopped
from common.pages import installed_version, own_version
from common.processes.group import ALONE, Group
from common.processes.launcher import WorkerLost, launch
from common.processes.meeting import Seat, meeting
from common.training.loop import train
from common.training.runs import Record, Run, is_run, kept
from common.training.settings import Settings
from common.training.starting import check_begun
from common.weights import Weights, initial_weights


@dataclass(frozen=True)
class Plan:
    """A run to train, as any process can be given it. The fields are arguments of `train`.

    Attributes:
        weights: that a new run starts from; None draws them from the seed.
    """

    data: DataModule
    settings: Settings
    folder: Path
    resume: bool
    tensorboard: bool = False
    weights: Weights | None = None

    def train(self, group: Group = ALONE) -> tuple[Model, Run]:
        """Train it here, as one of a group."""
        return train(
            lambda name: self.build(name, group),
            self.data,
            self.settings,
            self.folder,
            self.resume,
            self.tensorboard,
            group,
        )

    def build(self, name: str, group: Group) -> Model:
        """The model as the run begins."""
        run = self.settings
        if run.weights and self.weights is None:
            check_begun(self.folder)
        network = Architecture.from_json(run.architecture)
        model = load_backend(name).build(network, run.precision, run.device, run.compile, group)
        model.load_weights(self.weights or initial_weights(network, run.seed))
        return model


def train_together(workers: int, plan: Plan) -> tuple[Weights, list[Record]]:
    """Train it in so many processes on this machine; returns its weights and history.

    Raises:
        Stopped: as `train`, and if a worker is lost.
        ValueError: as `train`.
    """
    try:
        return launch(workers, train_seated, plan)
    except WorkerLost as error:
        raise Stopped(f"{error}; {kept(plan.folder)}", resumable=is_run(plan.folder)) from None


def train_seated(seat: Seat, plan: Plan) -> tuple[Weights, list[Record]]:
    """Train it as one of the workers that meet at the seat's coordinator.

    Raises:
        Stopped, ValueError: as `train`; if the workers do not meet, or are not about to do the same.
    """
    fields = plan.settings.to_fields() | {"classes": ""}  # for which `data` speaks
    about = {name: str(value) for name, value in fields.items()}
    backend = load_backend(plan.settings.backend)
    versions = {"resnet-tabs": own_version(), backend.label: installed_version(backend)}
    with meeting(seat, versions | about) as group:
        model, run = plan.train(group)
        weights = {} if seat.rank else model.weights()
        return weights, run.history


def check_joins(backend: str) -> None:
    """Raise `ValueError` unless this backend can train on several workers."""
    if backend == "oracle":
        raise BadInput("the oracle trains with one worker; choose a framework, or leave --workers out")

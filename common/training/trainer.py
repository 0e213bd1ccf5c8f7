"""The trainer of the chapter's last lines, the same for all four packages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from common.backend import Model, load_backend
from common.data import DataModule
from common.data.pipeline import check_whole
from common.errors import BadInput, MissingDevice, telling_how_to_resume
from common.pages import Console
from common.recipe import Recipe, with_smoothing
from common.training.loop import train
from common.training.runs import Record, new_folder, read_settings
from common.training.settings import Settings
from common.training.starting import check_begun, pretrained
from common.training.together import Plan, train_together


class Trainer:
    """Trains one of a package's networks on Fashion-MNIST or a folder of images, in the network's own type.

    Every step is the package's `train_step`. A network without weights starts from those of seed 0, so
    that the four packages train the same run; one that has weights goes on from them.

    Args:
        max_epochs: passes over the training images.
        num_gpus: so many train, a process for each; where there is none, the CPU does, and it is said. From 2
            on, a script needs `if __name__ == "__main__":` around its lines, as for any process it starts.
        momentum, weight_decay, schedule, warmup_epochs: as in `resnet-tabs train`.
        label_smoothing, no_decay_norm, lr_backbone, freeze, ema: as in `common.recipe.Recipe`.
        weights: a checkpoint, converted or ours, to start from; where it has another number of classes, all
            but its last layer. A run that goes on needs none.
        out: folder for checkpoints, history and curves; by default the next free runs/NAME-N.
        resume: go on with the run in `out`.
        tensorboard: write event files there, too.

    Attributes:
        model: after `fit`, the network under the contract of `common.backend.Model`.
        history: after `fit`, one record a step and one an epoch.
    """

    backend: str

    def __init__(
        self,
        max_epochs: int,
        num_gpus: int = 0,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        schedule: str = "constant",
        warmup_epochs: int = 0,
        label_smoothing: float = 0.0,
        no_decay_norm: bool = False,
        lr_backbone: float = 1.0,
        freeze: str = "",
        ema: float = 0.0,
        weights: str | os.PathLike[str] | None = None,
        out: str | os.PathLike[str] | None = None,
        resume: bool = False,
        tensorboard: bool = False,
    ) -> None:
        check_whole("num_gpus", num_gpus, 0)
        if resume and out is None:
            raise BadInput("resume=True needs out, the folder of the run to go on with")
        self.max_epochs, self.num_gpus = max_epochs, num_gpus
        self.recipe = Recipe(momentum, weight_decay, label_smoothing, no_decay_norm, lr_backbone, freeze, ema)
        self.schedule, self.warmup_epochs = schedule, warmup_epochs
        self.weights = weights
        self.out, self.resume, self.tensorboard = out, resume, tensorboard

    def fit(self, model: Any, data: DataModule) -> None:
        """Train `model`, a network of this package, on `data`, at the network's own learning rate.

        Raises:
            Stopped: on Ctrl-C, and when the loss or a weight is not finite.
            ValueError: if network, settings, data and folder do not fit together.
        """
        wrapped = self._wrap(model)
        network = type(wrapped.network(model))
        wrapped.check_recipe(self.recipe)
        with_smoothing(network.loss, self.recipe.label_smoothing)
        workers = self._workers(wrapped)
        if workers > 1:
            self._check_can_be_built(model, wrapped)
        began = ""
        if self.weights:
            start, began, said = pretrained(Path(self.weights), wrapped.arch, data.seed, data.classes)
            wrapped.load_weights(start)
            Console().say(said)
        elif self.resume and self.out:
            began = read_settings(self.out).weights
            if began:
                check_begun(Path(self.out))
        name = network.__name__.lower()
        folder = Path(self.out) if self.out else new_folder(f"{name}-{self.backend}")
        settings = Settings(
            backend=self.backend,
            architecture=wrapped.arch.to_json(),
            epochs=self.max_epochs,
            lr=model.lr,
            recipe=self.recipe,
            schedule=self.schedule,
            warmup_epochs=self.warmup_epochs,
            precision="bfloat16" if wrapped.bfloat16 else wrapped.dtype,
            device=wrapped.device,
            weights=began,
            **data.settings(),
        )
        again = f"Trainer(..., out={str(folder)!r}, resume=True).fit(model, data)"
        self.history: list[Record]
        if workers > 1:
            start = wrapped.weights()
            plan = Plan(data, settings, folder, self.resume, self.tensorboard, start)
            with telling_how_to_resume(again):
                weights, self.history = train_together(workers, plan)
            wrapped.load_weights(weights)
        else:
            with telling_how_to_resume(again):
                _, run = train(lambda _: wrapped, data, settings, folder, self.resume, self.tensorboard)
            self.history = run.history
        self.model = wrapped

    def _workers(self, model: Model) -> int:
        return self.num_gpus if model.device == "gpu" else 1

    def _check_can_be_built(self, model: Any, wrapped: Model) -> None:
        """Raise `ValueError` unless a network built from the architecture is this one, its weights aside."""
        package = load_backend(self.backend).module.split(".")[0]
        if type(model).__module__.split(".")[0] != package or wrapped.frozen():
            raise BadInput(
                f"on several GPUs each process builds a network of {package}, where nothing is frozen or "
                "overridden; train this one with num_gpus=1"
            )

    def _wrap(self, model: Any) -> Model:
        backend = load_backend(self.backend)
        if self.num_gpus:
            try:
                return backend.wrap(model, "gpu")
            except MissingDevice as error:
                reason = str(error).split(";")[0]
                Console().say(f"{reason}: training on the CPU")
        return backend.wrap(model, "cpu")

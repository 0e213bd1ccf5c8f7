"""What a training step is besides its learning rate: each option in every backend as in the oracle."""

from __future__ import annotations

import importlib
import itertools
import json
import signal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common import load_checkpoint
from common.architecture import Architecture
from common.errors import BadInput, Stopped
from common.oracle import softmax, softmax_cross_entropy
from common.recipe import Recipe
from common.training import loop
from common.training.runs import read_settings
from common.weights import Weights, is_statistic
from tests.cli.commands import SHORT, run_here
from tests.helpers import (
    ROUNDING,
    build,
    built,
    deviation,
    largest,
    one_line,
    random_batch,
    random_weights,
    worst,
)
from tests.training import running
from tests.training.running import TINY, assert_identical, tiny_data

RESIDUAL = Architecture(stages=((1, 8), (1, 16)), in_channels=2, num_classes=5, stem_channels=8)
RESNEXT = Architecture(
    stages=((1, 8), (1, 16)), block="resnext", groups=4, bot_mul=1.0, num_classes=5, stem_channels=8
)
NETWORKS = {"residual": RESIDUAL, "resnext": RESNEXT}

STEPS = 50
LR = 0.02
TRAINED = 1e-9  # float64: weights, statistics and averages after so many steps

PLAIN = {"momentum": 0.9, "weight_decay": 0.01}
OPTIONS: dict[str, dict[str, Any]] = {
    "label_smoothing": {"label_smoothing": 0.1},
    "no_decay_norm": {"no_decay_norm": True},
    "lr_backbone": {"lr_backbone": 0.1},
    "freeze": {"freeze": "backbone"},
    "ema": {"ema": 0.9},
}
ALL_BUT_FREEZE = {k: v for o in OPTIONS.values() for k, v in o.items() if k != "freeze"}
ALL = ALL_BUT_FREEZE | {"freeze": "backbone"}
CASES = {**OPTIONS, "all but freeze": ALL_BUT_FREEZE, "all": ALL}


def new_model(backend: str, device: str = "cpu", arch: Architecture = RESIDUAL) -> Any:
    """A small float64 model with random weights, compiled once a session."""
    model = built(backend, arch, "float64", device)
    model.load_weights(random_weights(arch))
    return model


@pytest.fixture
def model(backend: str, device: str) -> Any:
    return new_model(backend, device)


@pytest.fixture
def batch() -> tuple[NDArray, NDArray]:
    return batches(RESIDUAL)[0]


@cache
def batches(arch: Architecture) -> list[tuple[NDArray, NDArray]]:
    return [random_batch(arch, 8, 16, 16, seed) for seed in range(5)]


def train(model: Any, steps: int, arch: Architecture = RESIDUAL, **options: Any) -> list[float]:
    """Losses of so many steps, at a rate that changes."""
    data = batches(arch)
    return [
        model.train_step(*data[i % len(data)], LR / (1 + i % 3), **PLAIN, **options) for i in range(steps)
    ]


Trained = tuple[list[float], Weights, Weights]


def trained(backend: str, device: str, case: str, network: str) -> Trained:
    """Losses, weights and averages after all steps."""
    arch = NETWORKS[network]
    model = new_model(backend, device, arch)
    options = CASES.get(case, {})
    losses = train(model, STEPS, arch, **options)
    return losses, model.weights(), model.averaged_weights() if "ema" in options else {}


@cache
def expected(case: str, network: str) -> Trained:
    return trained("oracle", "cpu", case, network)


def is_backbone(name: str) -> bool:
    return not name.startswith("last.")


# Against the oracle


# The ResNeXt takes what its groups may tell apart, all at once; frameworks compile each for seconds.
# There, the core has the options together: one that is forgotten shows in all.
in_torch = pytest.mark.core_in("torch")
RUNS = [pytest.param(case, "residual", marks=in_torch) for case in OPTIONS]
RUNS += [pytest.param("all", "residual", marks=in_torch)]
RUNS += [pytest.param("all but freeze", network) for network in NETWORKS]


@pytest.mark.parametrize(("case", "network"), RUNS)
def test_fifty_steps_are_the_oracles(backend: str, device: str, case: str, network: str) -> None:
    """Weights, running statistics, averages, losses."""
    (losses, weights, averages), reference = (
        trained(backend, device, case, network),
        expected(case, network),
    )
    figures = {"losses": deviation(losses, reference[0])}
    for kind, found, exact in (("weights", weights, reference[1]), ("averages", averages, reference[2])):
        for is_kind, what in ((is_statistic, "statistics"), (lambda n: not is_statistic(n), "parameters")):
            a, b = ({n: array for n, array in w.items() if is_kind(n)} for w in (found, exact))
            if b:
                figures[f"{kind}: {what}"] = deviation(a, b)
    print(backend, network, case, {name: f"{value:.1e}" for name, value in figures.items()})
    assert {name: value for name, value in figures.items() if not value <= TRAINED} == {}


@pytest.mark.parametrize("case", CASES)
def test_every_option_changes_something(case: str) -> None:
    """Or a backend that forgets it would agree as well. An average is beside the training."""
    _, plain, _ = expected("", "residual")
    _, weights, averages = expected(case, "residual")
    if case == "ema":
        assert deviation(weights, plain) == 0
    else:
        assert deviation(weights, plain) > 1e-3
    assert ("ema" in CASES[case]) == bool(averages)
    if averages:
        assert deviation(averages, weights) > 1e-3
        moved = [name for name in averages if is_statistic(name) and "freeze" not in CASES[case]]
        assert not moved or largest(deviation(averages[name], weights[name]) for name in moved) > 1e-3


def test_what_has_no_decay_is_all_of_one_axis() -> None:
    """A step from a state without gradient to speak of: what decays shrinks, the rest stays."""
    model = new_model("oracle")
    before = model.weights()
    lr, huge = 1e-12, 1e9
    model.train_step(*batches(RESIDUAL)[0], lr, weight_decay=huge, no_decay_norm=True)
    after = model.weights()
    for name, array in before.items():
        if array.ndim > 1:
            assert deviation(after[name], array * (1 - lr * huge)) < 1e-8, name
        elif not is_statistic(name):
            assert deviation(after[name], array) < 1e-8, name


# Label smoothing


def test_a_smoothed_loss_is_the_formula(backend: str, device: str, batch: tuple) -> None:
    """−Σ q log p of q = (1 − e) · one-hot + e / K."""
    e, (x, y) = 0.1, batch
    model = new_model(backend, device)
    logits = model.loss_and_gradients(x, y).logits
    q = (1 - e) * np.eye(5)[y] + e / 5
    by_hand = -(q * np.log(softmax(logits))).sum(1).mean()
    assert deviation(softmax_cross_entropy(logits, y, e)[0], by_hand) <= ROUNDING
    assert abs(softmax_cross_entropy(logits, y)[0] - by_hand) > 1e-3
    assert deviation(model.train_step(x, y, LR, label_smoothing=e), by_hand) <= ROUNDING


def test_the_oracles_smoothed_gradient_is_that_of_its_loss(batch: tuple) -> None:
    generator, y = np.random.default_rng(0), batch[1]
    logits, direction = generator.normal(size=(2, 8, 5))
    step = 1e-6
    _, gradient = softmax_cross_entropy(logits, y, 0.2)
    ahead, behind = (softmax_cross_entropy(logits + s * direction, y, 0.2)[0] for s in (step, -step))
    assert abs((ahead - behind) / (2 * step) - (gradient * direction).sum()) < 1e-9


# A frozen backbone


def test_a_frozen_backbone_stays_to_the_bit(model: Any) -> None:
    before = model.weights()
    train(model, 3, freeze="backbone", label_smoothing=0.1)
    after = model.weights()
    for name in before:
        assert np.array_equal(before[name], after[name]) == is_backbone(name), name


def test_a_frozen_step_sees_running_statistics(model: Any, batch: tuple) -> None:
    x, y = batch
    loss, _ = softmax_cross_entropy(model.predict(x), y)
    batch_loss = model.loss_and_gradients(x, y).loss
    assert abs(loss - batch_loss) > 1e-3
    assert deviation(model.train_step(x, y, LR, freeze="backbone"), loss) <= ROUNDING


def test_a_model_that_was_trained_frozen_still_gives_all_gradients(model: Any, batch: tuple) -> None:
    first = model.loss_and_gradients(*batch)
    model.train_step(*batch, 1e-14, freeze="backbone", label_smoothing=0.1)
    second = model.loss_and_gradients(*batch)
    assert deviation(second.loss, first.loss) <= ROUNDING
    assert worst(second.running, first.running) <= ROUNDING
    assert deviation(second.gradients, first.gradients) <= ROUNDING


def test_a_frozen_model_thaws(backend: str, device: str) -> None:
    """Training goes on where the recipe says so, in the one model as in the other."""
    model, oracle = new_model(backend, device), new_model("oracle")
    for m in (model, oracle):
        for options in ({"freeze": "backbone"}, {}, ALL, {"lr_backbone": 0.5}, {}):
            train(m, 2, **options)
    assert deviation(model.weights(), oracle.weights()) <= TRAINED


# Averaged weights


def test_the_average_starts_as_the_weights_do(model: Any) -> None:
    own = [model.weights()]
    for _ in range(2):
        train(model, 1, ema=0.75)
        own.append(model.weights())
    averages = model.averaged_weights()
    assert list(averages) == list(own[0])
    by_hand = {n: 0.5625 * own[0][n] + 0.1875 * own[1][n] + 0.25 * own[2][n] for n in own[0]}
    assert worst(averages, by_hand) <= ROUNDING


def test_another_recipe_or_other_weights_average_anew(model: Any) -> None:
    train(model, 3, ema=0.9)
    own = model.weights()
    train(model, 1, ema=0.5)
    halfway = {name: (own[name] + array) / 2 for name, array in model.weights().items()}
    assert worst(model.averaged_weights(), halfway) <= ROUNDING
    model.load_weights(own)
    with pytest.raises(BadInput):
        model.averaged_weights()
    train(model, 1, ema=0.5)
    halfway = {name: (own[name] + array) / 2 for name, array in model.weights().items()}
    assert worst(model.averaged_weights(), halfway) <= ROUNDING


def test_a_model_shows_its_average_and_trains_on_as_if_it_had_not(
    backend: str, device: str, batch: tuple
) -> None:
    x, y = batch
    ends = []
    for look in (False, True):
        model = new_model(backend, device)
        train(model, 2, **ALL_BUT_FREEZE)
        if look:
            own, averages, state = model.weights(), model.averaged_weights(), model.optimizer_state()
            logits = model.predict(x)
            with model.averaged():
                assert_identical(model.weights(), averages)
                within = model.predict(x)
                with pytest.raises(BadInput) as error:
                    model.train_step(x, y, LR)
                one_line(error, "averaged()", "train outside")
            with pytest.raises(ZeroDivisionError), model.averaged():
                raise ZeroDivisionError
            assert_identical(model.weights(), own)
            assert_identical(model.averaged_weights(), averages)
            assert_identical(model.optimizer_state(), state)
            np.testing.assert_array_equal(model.predict(x), logits)
            oracle = new_model("oracle")
            oracle.load_weights(averages)
            assert deviation(within, oracle.predict(x)) <= ROUNDING
            assert deviation(within, logits) > 1e-3
        train(model, 2, **ALL_BUT_FREEZE)
        ends.append((model.weights(), model.optimizer_state()))
    for kinds in zip(*ends, strict=True):
        assert_identical(*kinds)


def test_without_an_average_that_is_said(model: Any) -> None:
    train(model, 1)
    for look in (model.averaged_weights, model.averaged().__enter__):
        with pytest.raises(BadInput) as error:
            look()
        one_line(error, "no averaged weights", "train a step with ema")


def test_averages_given_are_copies(model: Any) -> None:
    train(model, 1, ema=0.9)
    kept = model.averaged_weights()
    taken, state = model.averaged_weights(), model.optimizer_state()
    for name in taken:
        taken[name] += 1
        state[f"ema.{name}"] += 1
    assert_identical(model.averaged_weights(), kept)


# Going on


@pytest.mark.parametrize("case", ["all but freeze", "all", "ema without momentum"])
def test_the_optimizers_state_goes_there_and_back(backend: str, device: str, case: str) -> None:
    options = CASES.get(case, {"ema": 0.9})
    recipe = {**PLAIN, "momentum": 0.0} if "without" in case else PLAIN
    data = batches(RESIDUAL)
    model = new_model(backend, device)

    def steps(numbers: range) -> tuple[Weights, Weights]:
        for i in numbers:
            model.train_step(*data[i], LR, **recipe, **options)
        return model.weights(), model.optimizer_state()

    weights, state = steps(range(2))
    trained_names = [n for n in weights if Recipe(**recipe, **options).trains(n) and recipe["momentum"]]
    assert list(state) == [*trained_names, *(f"ema.{name}" for name in weights)]
    unbroken = steps(range(2, 4))
    model.load_weights(random_weights(RESIDUAL, seed=1))
    model.train_step(*data[0], LR, momentum=0.5)
    model.load_weights(weights)
    model.load_optimizer_state(state, Recipe(**recipe, **options))
    assert_identical(model.optimizer_state(), state)
    for found, exact in zip(steps(range(2, 4)), unbroken, strict=True):
        assert_identical(found, exact)


BAD_STATES: dict[str, tuple[dict[str, Any], Any, str]] = {
    "no average": (ALL, lambda s: {n: a for n, a in s.items() if n[:4] != "ema."}, "missing: ema.b1.conv"),
    "average unasked for": ({}, lambda s: s, "extra: ema.b1.conv"),
    "velocities of what is frozen": (
        {"freeze": "backbone"},
        lambda s: {n: a for n, a in s.items() if n[:4] != "ema."},
        "extra: b1.conv",
    ),
    "wrong shape": (
        {"ema": 0.9},
        lambda s: s | {"ema.last.bias": np.zeros(3)},
        "wrong shape: ema.last.bias is (3,)",
    ),
    "NaN": ({"ema": 0.9}, lambda s: s | {"ema.last.bias": np.full(5, np.nan)}, "NaN or infinite: ema.last"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_state_of_another_recipe_is_refused(model: Any, case: str) -> None:
    options, spoil, words = BAD_STATES[case]
    train(model, 1, ema=0.9)
    state, weights = model.optimizer_state(), model.weights()
    with pytest.raises(BadInput) as error:
        model.load_optimizer_state(spoil(dict(state)), Recipe(**PLAIN, **options))
    one_line(error, "the optimizer's state does not fit", words)
    assert_identical(model.optimizer_state(), state)
    assert_identical(model.weights(), weights)


# Bad values


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing must be from 0 to below 1, not 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing must be from 0 to below 1, not -0.1"),
        ({"ema": 1}, "ema must be from 0 to below 1, not 1"),
        ({"ema": float("nan")}, "ema must be from 0 to below 1, not nan"),
        ({"lr_backbone": 0.0}, "lr_backbone must be above 0, not 0.0"),
        ({"lr_backbone": float("inf")}, "lr_backbone must be above 0, not inf"),
        ({"freeze": "head"}, "unknown freeze 'head'; give backbone"),
        ({"no_decay_norm": "yes"}, "no_decay_norm must be true or false, not 'yes'"),
        ({"momentum": -1}, "momentum must be 0 or more, not -1"),
        ({"weight_decay": float("inf")}, "weight_decay must be 0 or more, not inf"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], words: str, batch: tuple) -> None:
    model = new_model("oracle")
    for use in (
        lambda: Recipe(**options),
        lambda: model.train_step(*batch, LR, **options),
    ):
        with pytest.raises(ValueError) as error:
            use()
        one_line(error, words)
    assert_identical(model.weights(), random_weights(RESIDUAL))


def test_one_compiled_optimizer_serves_all_recipes_of_a_kind() -> None:
    kind = Recipe(**PLAIN, lr_backbone=0.1).kind("momentum", "weight_decay")
    for options in ({"momentum": 0.3}, {"weight_decay": 1.0}, {"label_smoothing": 0.1}, {"ema": 0.9}):
        assert Recipe(**PLAIN | {"lr_backbone": 0.1} | options).kind("momentum", "weight_decay") == kind
    for options in ({"momentum": 0.0}, {"lr_backbone": 0.2}, {"no_decay_norm": True}, {"freeze": "backbone"}):
        assert Recipe(**PLAIN | {"lr_backbone": 0.1} | options).kind("momentum", "weight_decay") != kind


def test_an_option_there_is_not_is_no_option(model: Any, batch: tuple) -> None:
    with pytest.raises(TypeError, match="nesterov"):
        model.train_step(*batch, LR, nesterov=True)


# Each in its own idiom


def noted_gradients(model: Any) -> set[str]:
    """Where PyTorch's names of what has got a gradient are noted; after a step none is left."""
    found: set[str] = set()
    for name, p in model._parameters.items():
        p.register_post_accumulate_grad_hook(lambda _, name=name: found.add(name))
    return found


def frozen_gradients(backend: str, model: Any, x: NDArray, y: NDArray) -> set[str]:
    """Names of what a frozen step has gradients of, as each framework keeps them."""
    if backend == "torch":
        found = noted_gradients(model)
        model.train_step(x, y, LR, freeze="backbone")
        return found
    if backend == "mxnet":
        model.loss_and_gradients(x, y)
        parameters = {name: p for name, p in model._parameters.items() if not is_statistic(name)}
        for p in parameters.values():
            p.grad()[:] = 0
        model.train_step(x, y, LR, freeze="backbone")
        return {name for name, p in parameters.items() if p.grad().asnumpy().any()}
    if backend == "tf":
        _, _, gradients = model._run(model._gradients_graph, x.transpose(0, 2, 3, 1), y, freeze="backbone")
        assert len(gradients) == len(model._order("backbone"))
        return set(model._order("backbone"))
    from resnet_jax.training import loss_and_gradients

    variables, X = model.variables, x.transpose(0, 2, 3, 1)
    with model._precision():
        _, _, gradients, _ = loss_and_gradients(model._net, variables, X, y, 0.0, "backbone")
    return set(model._named({"params": gradients}))


def test_no_gradient_is_computed_of_what_is_frozen(backend: str, model: Any, batch: tuple) -> None:
    assert frozen_gradients(backend, model, *batch) == {"last.weight", "last.bias"}


@pytest.mark.deep
def test_pytorchs_compiler_knows_what_is_frozen(backends: list[str]) -> None:
    """As one graph, and that of the step: what was frozen is trained again, and the other way round."""
    if "torch" not in backends:
        pytest.skip("PyTorch is not under test")
    x, y = random_batch(TINY, 2, 32, 32)
    oracle, model = new_model("oracle", arch=TINY), build("torch", TINY)
    model.load_weights(random_weights(TINY))
    model._net.compile(fullgraph=True, dynamic=False, backend="aot_eager")  # no C++ to wait for
    noted = noted_gradients(model)
    for options in ({"freeze": "backbone"}, {}, {"freeze": "backbone"}, {}):
        found, exact = (m.train_step(x, y, LR, 0.9, **options) for m in (model, oracle))
        assert deviation(found, exact) <= ROUNDING
        assert noted == {name for name in model._parameters if not (options and is_backbone(name))}
        noted.clear()
        assert all(p.requires_grad for p in model._parameters.values())
    assert deviation(model.weights(), oracle.weights()) <= ROUNDING


# A run


@pytest.mark.core_in("torch")
@pytest.mark.usefixtures("sample_only")
def test_a_run_stopped_and_gone_on_with_is_the_unbroken_one(
    backend: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within an epoch; then stopped while the averaged weights are those of the model."""
    if device == "gpu":
        pytest.skip("a GPU adds in an order of its own")
    monkeypatch.setattr(running, "build", built)  # one model, which is given weights and state each time
    data = tiny_data()
    settings = running.settings(backend, data, device=device, **ALL_BUT_FREEZE)
    model, whole = running.train(settings, data, tmp_path / "whole")
    expected_weights, expected_averages = model.weights(), model.averaged_weights()
    folder = tmp_path / "stopped"

    def kill(run: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("common.training.loop.SAVE_SECONDS", 0)
        running.Once(patch, 3, kill)
        running.train(settings, data, folder)
    evaluate, count = loop.evaluate, itertools.count()

    def evaluate_and_stop(*arguments: Any) -> Any:
        if next(count) == 1:
            signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop, "evaluate", evaluate_and_stop)
        running.train(settings, data, folder, resume=True)
    assert next(count) == 2
    found, resumed = running.train(settings, data, folder, resume=True)
    assert_identical(found.weights(), expected_weights)
    assert_identical(found.averaged_weights(), expected_averages)
    assert running.without_times(resumed.history) == running.without_times(whole.history)
    for name in ("best", "ema", "last"):
        a, b = (load_checkpoint(path / f"{name}.safetensors")[1] for path in (tmp_path / "whole", folder))
        assert_identical(a, b)
    _, averaged = load_checkpoint(folder / "ema.safetensors")
    assert_identical(averaged, found.averaged_weights())


@pytest.mark.usefixtures("sample_only")
def test_a_run_validates_its_averaged_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_data()
    _, run = running.train(running.settings("oracle", data, ema=0.9), data, tmp_path / "run")
    arch, averaged = load_checkpoint(tmp_path / "run" / "ema.safetensors")
    model = build("oracle", arch)
    model.load_weights(averaged)
    found = loop.evaluate(model, data.val_dataloader("float64"))
    epochs = [record for record in run.history if record["event"] == "epoch"]
    assert deviation(epochs[-1]["ema_val_loss"], found.loss) <= ROUNDING
    assert epochs[-1]["ema_val_accuracy"] == found.accuracy
    assert abs(found.loss - epochs[-1]["val_loss"]) > 1e-3
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    for line, record in zip(lines, epochs, strict=True):
        loss, accuracy = record["ema_val_loss"], record["ema_val_accuracy"]
        assert f"ema val loss {loss:.4f}  ema val accuracy {accuracy:.4f}" in line


@pytest.mark.usefixtures("sample_only")
def test_without_ema_a_run_is_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_data()
    _, run = running.train(running.settings("oracle", data, epochs=1), data, tmp_path / "run")
    assert "ema_val_loss" not in run.history[-1]
    assert "ema val" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "ema.safetensors").exists()


BEFORE = """{
  "backend": "oracle", "architecture": "", "epochs": 2, "batch_size": 8, "resize": [28, 28], "lr": 0.05,
  "momentum": 0.9, "weight_decay": 0.01, "schedule": "cosine", "warmup_epochs": 0, "augment": ["flip"],
  "precision": "float32", "device": "cpu", "seed": 0, "limit_train": 36, "limit_val": null,
  "data": "36 images", "compile": false, "classes": [], "normalize": "none", "val_share": null,
  "skip_bad": false, "weights": "", "label_smoothing": 0.1, "no_decay_norm": true, "lr_backbone": 0.1,
  "freeze": "backbone", "ema": 0.9,
  "sha256": "9ed818bf031eb32a437818ec9ff1acea963225cd6d674caa1f8a53c802496612"
}"""


def test_run_json_is_the_same_as_when_each_of_the_recipe_was_a_setting(tmp_path: Path) -> None:
    """Its SHA-256, too."""
    (tmp_path / "run.json").write_text(BEFORE)
    settings = read_settings(tmp_path)
    assert settings.recipe == Recipe(**PLAIN, **ALL)
    since = {"fit": "fashion-mnist", "scaled": None, "interpolation": "bilinear"}
    assert json.loads(json.dumps(settings.to_fields())) == since | {
        name: value for name, value in json.loads(BEFORE).items() if name != "sha256"
    }


def test_what_differs_of_the_recipe_is_named() -> None:
    run, other = (running.settings("oracle", tiny_data(), **options) for options in ({}, PLAIN | ALL))
    assert other.differences(run) == [
        "weight_decay is 0.01, not 0.0001",
        "label_smoothing is 0.1, not 0.0",
        "no_decay_norm is True, not False",
        "lr_backbone is 0.1, not 1.0",
        "freeze is backbone, not ",
        "ema is 0.9, not 0.0",
    ]


@pytest.mark.usefixtures("sample_only")
def test_a_trainer_hands_the_recipe_on(backends: list[str], tmp_path: Path) -> None:
    package = importlib.import_module(f"resnet_{backends[0]}")
    trainer = package.Trainer(max_epochs=1, out=tmp_path / "run", **PLAIN, **ALL)
    trainer.fit(package.ResNet(TINY), tiny_data())
    assert read_settings(tmp_path / "run").recipe == Recipe(**PLAIN, **ALL)
    assert "ema_val_accuracy" in trainer.history[-1]
    trainer.model.averaged_weights()


@pytest.mark.usefixtures("no_full_set")
def test_the_command_takes_the_recipe_and_goes_on_with_it(backends: list[str], tmp_path: Path) -> None:
    out, arguments = tmp_path / "run", []
    for name, value in (PLAIN | ALL).items():
        arguments += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    train = ["train", "resnet18", "--backend", backends[0], *SHORT, *arguments, "--out", out]
    done = run_here(*train, "--label-smoothing", "1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "label_smoothing must be from 0 to below 1" in done.stderr and not out.exists()
    assert "ema val accuracy" in run_here(*train).stdout
    assert read_settings(out).recipe == Recipe(**PLAIN, **ALL)
    assert (out / "ema.safetensors").is_file()
    done = run_here("train", "resnet18", "--out", out, "--resume", "--ema", "0.5")
    assert "ema is 0.5, not 0.9" in done.stderr

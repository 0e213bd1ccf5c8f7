"""Every backend is the same network as the oracle: outputs, gradients, statistics, training."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common import architecture, data, load_backend
from common.architecture import PADDINGS, Architecture
from common.errors import BadInput
from common.recipe import PLAIN, Recipe
from common.weights import is_statistic
from tests.helpers import (
    ROUNDING,
    SINGLE,
    TRAINED,
    build,
    built,
    default_dtype,
    deviation,
    disagreements,
    largest,
    one_line,
    optimised,
    random_batch,
    random_weights,
    run,
    worst,
)

# Random networks a backend, in the core and in the deep tier: JAX and TensorFlow compile each for seconds.
FEW, SOME, MANY = 2, 10, 40
SLOW_TO_COMPILE = ("jax", "tf")
of_the_quick = pytest.mark.core_in("torch", "mxnet")

FEW_STEPS, SGD_STEPS = 3, 20
MOMENTUM = Recipe(momentum=0.9)

SMALL = Architecture(stages=((1, 4), (1, 6)), in_channels=2, num_classes=5, stem_channels=4)

# Random networks


@st.composite
def networks(draw: st.DrawFn) -> Architecture:
    """Both blocks, every option, few channels."""
    stages, widths = [], []
    block = draw(st.sampled_from(["residual", "resnext"]))
    bot_mul = draw(st.sampled_from([0.5, 1.0, 2.0])) if block == "resnext" else 1.0
    for _ in range(draw(st.integers(1, 4))):
        widths.append(draw(st.integers(1, 3)))
        channels = widths[-1] * draw(st.integers(1, 3)) * (2 if bot_mul == 0.5 else 1)
        stages.append((draw(st.integers(1, 2)), channels))
    own: dict[str, Any] = {"shortcut_norm": draw(st.booleans())}
    if block == "resnext":
        own = {
            "groups": tuple(widths),
            "bot_mul": bot_mul,
            "stride_on": draw(st.sampled_from(["3x3", "1x1"])),
        }
    return Architecture(
        stages=tuple(stages),
        block=block,
        **own,
        epsilon=draw(st.sampled_from([1e-5, 1.001e-5, 1e-3])),
        padding=draw(st.sampled_from(PADDINGS)),
        stem_padding=draw(st.sampled_from(PADDINGS)),
        decay=draw(st.sampled_from([0.9, 0.99, 0.0])),
        in_channels=draw(st.integers(1, 4)),
        num_classes=draw(st.integers(2, 11)),
        stem_channels=draw(st.integers(1, 6)),
    )


def check_against_oracle(
    backend: str, device: str, arch: Architecture, count: int, height: int, width: int, seed: int = 0
) -> None:
    x, y = random_batch(arch, count, height, width, seed)
    results = []
    for model in (build(backend, arch, device=device), build("oracle", arch)):
        model.load_weights(random_weights(arch, seed))
        results.append(run(model, x, y))
    assert disagreements(*results) == {}


def sensitivity(arch: Architecture, count: int, height: int, width: int, seed: int) -> float:
    """How far the oracle's gradients move with the last digit of the images.

    Where a batch statistic is of few values, batch norm's gradient is a difference of equals, and a small
    variance enlarges what is left of it. Such a network tells one rounding from another, not right from
    wrong.
    """
    x, y = random_batch(arch, count, height, width, seed)
    model = build("oracle", arch)
    model.load_weights(random_weights(arch, seed))
    last_digit = np.random.default_rng(0).choice([-1, 1], x.shape) * np.finfo(np.float64).eps
    moved, still = (model.loss_and_gradients(images, y).gradients for images in (x * (1 + last_digit), x))
    return deviation(moved, still)


def check_random_networks(backend: str, device: str, count: int, which: int) -> None:
    """The same networks every time, unless others are asked for: `pytest --networks 7`."""

    @seed(f"{backend} {which}")
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(
        arch=networks(),
        count=st.integers(1, 4),
        height=st.integers(32, 70),
        width=st.integers(32, 70),
        seed=st.integers(0, 2**16),
    )
    def agree(arch: Architecture, count: int, height: int, width: int, seed: int) -> None:
        assume(sensitivity(arch, count, height, width, seed) <= ROUNDING / 10)
        check_against_oracle(backend, device, arch, count, height, width, seed)

    agree()


def test_random_networks_agree_with_the_oracle(
    backend: str, device: str, pytestconfig: pytest.Config
) -> None:
    count = FEW if backend in SLOW_TO_COMPILE else SOME
    check_random_networks(backend, device, count, pytestconfig.getoption("--networks"))


@pytest.mark.deep
def test_more_random_networks_agree_with_the_oracle(
    backend: str, device: str, pytestconfig: pytest.Config
) -> None:
    """With all that a compiler does to them for a user."""
    count = SOME if backend in SLOW_TO_COMPILE else MANY
    with optimised(backend):
        check_random_networks(backend, device, count, pytestconfig.getoption("--networks"))


FOUR_STAGES = ((1, 3), (1, 4), (1, 5), (1, 6))

AWKWARD: dict[str, tuple[Architecture, tuple[int, int, int]]] = {
    "one value a channel": (Architecture(FOUR_STAGES, stem_channels=3), (1, 32, 32)),
    "two values a channel": (
        Architecture(FOUR_STAGES, block="resnext", groups=(3, 2, 5, 3), stem_channels=4),
        (2, 32, 32),
    ),
    "odd and not square": (Architecture(((2, 4), (1, 6)), stem_channels=4), (2, 33, 47)),
    "even and odd": (
        Architecture(((1, 4), (2, 8)), block="resnext", groups=2, bot_mul=0.5, stem_channels=3),
        (3, 50, 35),
    ),
    "the smallest images": (Architecture(FOUR_STAGES, stem_channels=3), (2, 17, 18)),
    "five channels": (Architecture(((1, 2), (1, 3)), in_channels=5, stem_channels=2), (2, 38, 34)),
    "as in d2l's TensorFlow": (
        Architecture(
            ((1, 4), (2, 6)),
            stem_channels=4,
            epsilon=1e-3,
            padding="same",
            stem_padding="same",
            decay=0.99,
        ),
        (2, 34, 36),
    ),
    "as in Flax's example": (
        Architecture(((1, 4), (2, 6)), stem_channels=4, shortcut_norm=True, padding="same"),
        (2, 38, 35),
    ),
    "as in keras.applications": (
        Architecture(
            ((1, 8), (2, 12)),
            block="resnext",
            groups=(2, 3),
            bot_mul=0.25,
            stride_on="1x1",
            epsilon=1.001e-5,
            decay=0.99,
            stem_channels=4,
        ),
        (2, 34, 36),
    ),
    "SAME, where the images end": (
        Architecture(FOUR_STAGES, stem_channels=3, padding="same", stem_padding="same", decay=0.0),
        (2, 17, 34),
    ),
}


# Those that tell most where each is compiled for seconds: odd, even and "SAME"; every option is in one.
TELLING = {
    "two values a channel",
    "as in Flax's example",
    "as in keras.applications",
    "SAME, where the images end",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in TELLING else of_the_quick) for case in AWKWARD]
)
def test_awkward_networks_agree_with_the_oracle(backend: str, device: str, case: str) -> None:
    arch, size = AWKWARD[case]
    check_against_oracle(backend, device, arch, *size)


# ResNet-18 on real images


together = pytest.mark.xdist_group("resnet18")  # what each backend computes is computed once


@cache
def real_batch() -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Four Fashion-MNIST images at 1×96×96."""
    images = data.sample()
    return next(data.batches(images.train_images, images.train_labels, 4, seed=0, dtype="float64"))


@cache
def resnet18(backend: str, device: str, steps: int) -> tuple[Any, dict[str, NDArray], list[float]]:
    """What `run` gives, then weights and losses of so many SGD steps; once a session for each backend."""
    x, y = real_batch()
    with optimised(backend):
        model = build(backend, architecture("resnet18"), device=device)
        before = run(model, x, y)
        losses = [model.train_step(x, y, lr=0.01) for _ in range(steps)]
        return before, model.weights(), losses


# In the core a few, of which the first moves every weight.
few_or_all = pytest.mark.parametrize("steps", [FEW_STEPS, pytest.param(SGD_STEPS, marks=pytest.mark.deep)])


@together
@few_or_all
def test_resnet18_agrees_with_the_oracle_on_real_images(backend: str, device: str, steps: int) -> None:
    found, _, _ = resnet18(backend, device, steps)
    expected, _, _ = resnet18("oracle", "cpu", steps)
    assert disagreements(found, expected) == {}


@together
@few_or_all
def test_resnet18_trains_as_the_oracle_does(backend: str, device: str, steps: int) -> None:
    _, weights, losses = resnet18(backend, device, steps)
    _, expected_weights, expected_losses = resnet18("oracle", "cpu", steps)
    assert deviation(weights, expected_weights) <= TRAINED
    assert deviation(losses, expected_losses) <= TRAINED
    assert losses[-1] < losses[0] / (2 if steps == SGD_STEPS else 1)  # it learns


@together
@few_or_all
def test_resnet18_agrees_between_every_two_backends(
    two_backends: tuple[str, str], device: str, steps: int
) -> None:
    both = [resnet18(name, device, steps) for name in two_backends]
    (found, weights, _), (expected, expected_weights, _) = both
    assert disagreements(found, expected) == {}
    assert deviation(weights, expected_weights) <= TRAINED


@together
def test_resnet18_in_float32_evaluates_as_the_oracle_does(backend: str, device: str) -> None:
    x, _ = real_batch()
    with optimised(backend):
        found = build(backend, architecture("resnet18"), "float32", device).predict(x)
    (activations, _), _, _ = resnet18("oracle", "cpu", FEW_STEPS)
    assert found.dtype == np.float32
    assert deviation(found, activations["last"]) <= SINGLE


# The contract, on one small network


@pytest.fixture
def model(backend: str, device: str) -> Any:
    """A small float64 model with random weights, compiled once a session."""
    model = built(backend, SMALL, "float64", device)
    model.load_weights(random_weights(SMALL))
    return model


@pytest.fixture
def oracle() -> Any:
    model = build("oracle", SMALL)
    model.load_weights(random_weights(SMALL))
    return model


@pytest.fixture
def batch() -> tuple[NDArray, NDArray]:
    return random_batch(SMALL, 3, 33, 46)


def assert_same_weights(found: dict[str, NDArray], expected: dict[str, NDArray]) -> None:
    assert list(found) == list(expected)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_momentum_weight_decay_and_changing_rates_train_as_the_oracle_does(
    model: Any, oracle: Any, batch: tuple
) -> None:
    steps = [(lr, 0.9, 0.01) for lr in (0.1, 0.1, 0.05, 0.2, 0.01, 0.1)]
    steps += [(0.1, 0.5, 0.0), (0.2, 0.5, 0.0), (0.1, 0.0, 0.02)]  # the velocity starts anew
    for lr, momentum, weight_decay in steps:
        losses = [m.train_step(*batch, lr, momentum, weight_decay) for m in (model, oracle)]
        assert deviation(*losses) <= TRAINED
        assert deviation(model.weights(), oracle.weights()) <= TRAINED


def test_loading_weights_starts_the_velocity_anew(model: Any, batch: tuple) -> None:
    states = []
    for _ in range(2):
        model.load_weights(random_weights(SMALL))
        model.train_step(*batch, lr=0.1, momentum=0.9)
        states.append(model.weights())
    assert deviation(*states) <= ROUNDING


def test_the_optimizers_state_is_the_oracles_and_copied(
    model: Any, oracle: Any, batch: tuple, backend: str, device: str
) -> None:
    for m in (model, oracle):
        for _ in range(2):
            m.train_step(*batch, lr=0.1, momentum=0.9)
    weights, state = model.weights(), model.optimizer_state()
    assert deviation(state, oracle.optimizer_state()) <= TRAINED
    kept = {name: array.copy() for name, array in state.items()}
    ends = []
    for m in (
        model,
        build(backend, SMALL, device=device),
    ):  # two from one state
        m.load_weights(weights)
        m.load_optimizer_state(state, MOMENTUM)
        m.train_step(*batch, lr=0.1, momentum=0.9)
        ends.append(m.weights())
        assert_same_weights(state, kept)
    assert_same_weights(*ends)


def test_without_momentum_there_is_no_state(model: Any, batch: tuple) -> None:
    model.train_step(*batch, lr=0.1)
    assert model.optimizer_state() == {}
    model.load_optimizer_state({})
    model.train_step(*batch, lr=0.1)


def test_a_state_of_another_type_is_cast(backend: str, device: str, batch: tuple) -> None:
    model = built(backend, SMALL, "float32", device)
    model.load_weights(random_weights(SMALL))
    state = {name: array for name, array in random_weights(SMALL).items() if not is_statistic(name)}
    model.load_optimizer_state(state, MOMENTUM)
    found = model.optimizer_state()
    assert_same_weights(found, {name: array.astype("float32") for name, array in state.items()})
    assert {array.dtype for array in found.values()} == {np.dtype("float32")}
    model.train_step(*batch, lr=0.1, momentum=0.9)


def test_train_step_returns_the_loss_before_it(model: Any, batch: tuple) -> None:
    before = model.loss_and_gradients(*batch).loss
    assert deviation(model.train_step(*batch, lr=0.1), before) <= ROUNDING
    assert abs(model.loss_and_gradients(*batch).loss - before) > 1e-3


def test_steps_that_have_begun_tell_of_themselves_when_asked(model: Any, batch: tuple) -> None:
    """Another may begin before the first is asked; each tells of its own images."""
    x, _ = batch
    y = model.loss_and_gradients(*batch).logits.argmax(1)
    y[0] = (y[0] + 1) % SMALL.num_classes  # the only one told wrong
    parts = (slice(None), slice(2))
    expected = [model.loss_and_gradients(x[part], y[part]) for part in parts]
    begun = [model.begin_step(x[part], y[part], lr=1e-15) for part in parts]
    for found, alone, part in zip(begun, expected, parts, strict=True):
        loss, correct = found()
        assert deviation(loss, alone.loss) <= ROUNDING
        assert correct == (alone.logits.argmax(1) == y[part]).sum()
    assert begun[0]()[1] == len(y) - 1


def test_a_new_model_has_the_weights_of_seed_0(backend: str, device: str) -> None:
    expected = load_backend("oracle").build(SMALL).weights()
    assert_same_weights(build(backend, SMALL, device=device).weights(), expected)


def test_weights_come_back_as_they_went_in(model: Any) -> None:
    assert_same_weights(model.weights(), random_weights(SMALL))
    assert {array.dtype for array in model.weights().values()} == {np.dtype("float64")}


def test_weights_in_float32_come_back_rounded(backend: str, device: str) -> None:
    model = built(backend, SMALL, "float32", device)
    model.load_weights(random_weights(SMALL))
    rounded = {name: array.astype("float32") for name, array in random_weights(SMALL).items()}
    assert_same_weights(model.weights(), rounded)
    assert {array.dtype for array in model.weights().values()} == {np.dtype("float32")}


def test_weights_given_and_taken_are_copies(model: Any) -> None:
    given_weights = random_weights(SMALL)
    model.load_weights(given_weights)
    taken = model.weights()
    for name in taken:
        given_weights[name] += 1
        taken[name] += 1
    assert_same_weights(model.weights(), random_weights(SMALL))


def test_looking_at_a_model_leaves_it_unchanged(model: Any, batch: tuple) -> None:
    x, _ = batch
    first = model.loss_and_gradients(*batch)
    model.predict(x)
    model.activations(x)
    model.summary(x.shape)
    second = model.loss_and_gradients(*batch)
    assert_same_weights(model.weights(), random_weights(SMALL))
    assert deviation(second.loss, first.loss) <= ROUNDING
    assert deviation(second.gradients, first.gradients) <= ROUNDING


def test_results_are_not_overwritten_by_the_next(model: Any, batch: tuple) -> None:
    x, y = batch
    first, weights = run(model, x, y), model.weights()
    kept = [{**first[0]}, {**first[1].gradients}, {**first[1].running}, {"": first[1].logits}, {**weights}]
    kept = [{name: array.copy() for name, array in arrays.items()} for arrays in kept]
    run(model, 1 - x, y)
    model.train_step(x, y, lr=0.1)
    for arrays, expected in zip(
        [first[0], first[1].gradients, first[1].running, {"": first[1].logits}, weights], kept, strict=True
    ):
        assert_same_weights(arrays, expected)


def test_looking_between_steps_leaves_the_training_unchanged(model: Any, oracle: Any, batch: tuple) -> None:
    for _ in range(3):
        run(model, *batch)
        model.train_step(*batch, lr=0.1, momentum=0.9)
        oracle.train_step(*batch, lr=0.1, momentum=0.9)
    assert deviation(model.weights(), oracle.weights()) <= TRAINED


def test_predict_is_the_last_activation(model: Any, oracle: Any, batch: tuple) -> None:
    x, _ = batch
    activations = model.activations(x)
    assert list(activations) == ["b1", "b2", "b3", "last"]
    assert deviation(model.predict(x), activations["last"]) <= ROUNDING
    assert deviation(model.predict(x), oracle.predict(x)) <= ROUNDING


def test_one_model_takes_images_of_other_sizes(model: Any, oracle: Any) -> None:
    for size in [(1, 32, 32), (4, 35, 64), (2, 32, 32)]:
        x, _ = random_batch(SMALL, *size)
        assert deviation(model.predict(x), oracle.predict(x)) <= ROUNDING


def test_images_may_be_float32_or_whole_numbers(model: Any, oracle: Any) -> None:
    x = random_batch(SMALL, 2, 32, 32)[0]
    for images in (x.astype("float32"), (x * 255).astype("uint8"), x[:, ::-1, ::-1]):
        assert deviation(model.predict(images), oracle.predict(images)) <= ROUNDING


def test_results_have_the_dtype_of_the_model(backend: str, device: str, batch: tuple) -> None:
    for dtype in ("float32", "float64"):
        activations, evaluation = run(built(backend, SMALL, dtype, device), *batch)
        arrays = [evaluation.logits, *activations.values(), *evaluation.gradients.values()]
        assert {array.dtype for array in [*arrays, *evaluation.running.values()]} == {np.dtype(dtype)}
        assert type(evaluation.loss) is float


def test_results_are_the_callers_to_write_in(model: Any, batch: tuple) -> None:
    activations, evaluation = run(model, *batch)
    model.train_step(*batch, lr=0.1, momentum=0.9)
    results = [model.predict(batch[0]), evaluation.logits, *activations.values()]
    for arrays in (evaluation.gradients, evaluation.running, model.weights(), model.optimizer_state()):
        results.extend(arrays.values())
    assert all(array.flags.writeable for array in results)


def test_bfloat16_leaves_batch_norm_its_float32(backend: str, device: str, batch: tuple) -> None:
    if backend == "mxnet":
        pytest.skip("MXNet has no bfloat16")
    model, stems = built(backend, SMALL, "bfloat16", device), []
    for scale in (1.0, 1 + 2**-9):  # in bfloat16 both are 1
        model.load_weights(random_weights(SMALL) | {"b1.bn.weight": np.full(4, scale)})
        stems.append(model.activations(batch[0])["b1"])
    assert deviation(*stems) > 2**-11


# bfloat16 rounds to 3.9e-3, and tips over ReLUs and maxima, which moves gradients. Measured on torch,
# TensorFlow and JAX, six networks each: at most 3.8e-3, 6.0e-3, 1.6e-3, 0.23 and 1.6e-3 with AVX-512.
# Without, up to 1.2e-2 in a layer: there TensorFlow rounds a convolution, and its sum with the bias again,
# which oneDNN elsewhere does in one; with biases of 0 all three agree there.
HALF = {"layers": 1.5e-2, "training logits": 1.5e-2, "loss": 5e-3, "gradients": 0.4, "running": 4e-3}


@pytest.mark.parametrize("seed", [0, 1])
def test_bfloat16_is_the_oracles_network_but_for_its_rounding(backend: str, device: str, seed: int) -> None:
    if backend == "mxnet":
        pytest.skip("MXNet has no bfloat16")
    x, y = random_batch(SMALL, 3, 33, 46, seed)
    results = []
    for model in (built(backend, SMALL, "bfloat16", device), built("oracle", SMALL)):
        model.load_weights(random_weights(SMALL, seed))
        results.append(run(model, x, y))
    (layers, found), (exact, expected) = results
    deviations = {
        "layers": largest(deviation(layers[name], exact[name]) for name in exact),
        "training logits": deviation(found.logits, expected.logits),
        "loss": deviation(found.loss, expected.loss),
        "gradients": deviation(found.gradients, expected.gradients),
        "running": worst(found.running, expected.running),
    }
    assert {name: value for name, value in deviations.items() if not value <= HALF[name]} == {}
    assert deviations["layers"] > 1e-4  # it is another precision


def test_summary_is_the_oracles(model: Any, oracle: Any) -> None:
    rows = model.summary((2, 2, 40, 65))
    assert rows == oracle.summary((2, 2, 40, 65))
    assert [row.output_shape for row in rows] == [(2, 4, 10, 17), (2, 4, 10, 17), (2, 6, 5, 9), (2, 5)]
    assert [row.parameters for row in rows] == [404, 312, 606, 35]
    assert [row.kind for row in rows] == ["stem", "1 × Residual", "1 × Residual", "classifier"]


# Bad input


def without(weights: dict[str, NDArray]) -> dict[str, NDArray]:
    del weights["b2.0.conv1.weight"]
    return weights


BAD_WEIGHTS: dict[str, Callable[[dict[str, NDArray]], dict[str, NDArray]]] = {
    "missing": without,
    "extra": lambda w: w | {"b4.0.conv1.weight": np.zeros((6, 6, 3, 3))},
    "wrong shape": lambda w: w | {"last.weight": w["last.weight"].T},
    "NaN": lambda w: w | {"b1.bn.running_var": w["b1.bn.running_var"] * np.nan},
    "of whole numbers": lambda w: w | {"last.bias": np.zeros(5, int)},
    "of another network": lambda w: random_weights(Architecture(((1, 4),), stem_channels=4)),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_that_do_not_fit_are_refused_in_the_words_of_the_oracle(
    model: Any, oracle: Any, case: str
) -> None:
    weights = {name: array + 1 for name, array in random_weights(SMALL).items()}
    messages = []
    for m in (model, oracle):
        with pytest.raises(ValueError) as error:
            m.load_weights(BAD_WEIGHTS[case](dict(weights)))
        one_line(error, "the weights do not fit this architecture")
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert_same_weights(model.weights(), random_weights(SMALL))  # nothing half-loaded


BAD_STATES: dict[str, tuple[Callable[[dict[str, NDArray]], dict[str, NDArray]], Recipe, str]] = {
    "missing": (without, MOMENTUM, "missing: b2.0.conv1.weight"),
    "extra": (lambda s: s | {"learning_rate": np.ones(())}, MOMENTUM, "extra: learning_rate"),
    "wrong shape": (lambda s: s | {"last.weight": s["last.weight"].T}, MOMENTUM, "wrong shape: last.weight"),
    "NaN": (lambda s: s | {"last.bias": s["last.bias"] * np.nan}, MOMENTUM, "NaN or infinite: last.bias"),
    "none": (lambda s: {}, MOMENTUM, "missing: b1.conv.weight"),
    "without momentum": (lambda s: s, PLAIN, "extra: b1.conv.weight"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_an_optimizers_state_that_does_not_fit_is_refused(model: Any, case: str) -> None:
    spoil, recipe, words = BAD_STATES[case]
    state = {name: array for name, array in random_weights(SMALL).items() if not is_statistic(name)}
    with pytest.raises(BadInput) as error:
        model.load_optimizer_state(spoil(state), recipe)
    one_line(error, "the optimizer's state does not fit", words)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((2, 32, 32)), "(N, C, H, W)"),
        (np.zeros((0, 2, 32, 32)), "N from 1 up"),
        (np.zeros((1, 32, 32, 2)), "32 channels but the network takes 2"),
        (np.zeros((1, 2, 4, 32)), "too small for this network; give 5×5 or more"),
        (np.full((1, 2, 32, 32), "a"), "images must be numbers"),
        (np.zeros((1, 2, 32, 32), complex), "images must be numbers"),
    ],
)
def test_images_that_do_not_fit_are_refused(model: Any, x: NDArray, words: str) -> None:
    for method in (model.predict, model.activations, lambda x: model.loss_and_gradients(x, [0] * len(x))):
        with pytest.raises(ValueError) as error:
            method(x)
        one_line(error, words)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([0, 1], "whole numbers of shape (3,)"),
        ([[0, 1, 2]], "whole numbers of shape (3,)"),
        ([0.0, 1.0, 2.0], "whole numbers of shape (3,), not float64"),
        ([0, 1, 5], "labels must be from 0 to 4"),
        ([0, -1, 2], "labels must be from 0 to 4"),
    ],
)
def test_labels_that_do_not_fit_are_refused(model: Any, batch: tuple, y: list, words: str) -> None:
    for method in (model.loss_and_gradients, lambda x, y: model.train_step(x, y, lr=0.1)):
        with pytest.raises(ValueError) as error:
            method(batch[0], y)
        one_line(error, words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"lr": 0.1, "momentum": -1}, "momentum must be 0 or more"),
        ({"lr": 0.1, "weight_decay": float("inf")}, "weight_decay must be 0 or more"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(
    model: Any, batch: tuple, options: dict[str, float], words: str
) -> None:
    with pytest.raises(ValueError) as error:
        model.train_step(*batch, **options)
    one_line(error, words)
    assert_same_weights(model.weights(), random_weights(SMALL))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float16"}, "unknown dtype 'float16'; give float32, float64, bfloat16, tf32"),
        ({"device": "tpu"}, "unknown device 'tpu'; give cpu or gpu"),
    ],
)
def test_an_unknown_dtype_or_device_is_refused(backend: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError) as error:
        load_backend(backend).build(SMALL, **options)
    one_line(error, words)


def test_tf32_is_of_a_gpu(backend: str) -> None:
    with pytest.raises(BadInput) as error:
        load_backend(backend).build(SMALL, "tf32")
    has = "tf32" in load_backend(backend).load().Model.dtypes
    one_line(error, "only a GPU has tf32" if has else "no tf32 in this backend")


def test_a_gpu_that_is_not_there_is_one_line(backend: str) -> None:
    try:
        load_backend(backend).build(SMALL, device="gpu")
    except BadInput as error:
        message = str(error)
        assert "sees no GPU" in message and "device cpu" in message and "\n" not in message
    else:
        pytest.skip("there is a GPU")


# The rest of the program


def test_a_float64_model_leaves_the_framework_in_float32(
    model: Any, backend: str, device: str, batch: tuple
) -> None:
    build(backend, SMALL, "float64", device)
    assert default_dtype(backend) == "float32"
    run(model, *batch)
    model.train_step(*batch, lr=0.1, momentum=0.9)
    model.predict(batch[0])
    assert default_dtype(backend) == "float32"


def test_models_of_both_dtypes_work_side_by_side(backend: str, device: str, batch: tuple) -> None:
    double, single = (built(backend, SMALL, dtype, device) for dtype in ("float64", "float32"))
    for model in (double, single):
        model.load_weights(random_weights(SMALL))
    for _ in range(2):
        assert deviation(single.train_step(*batch, lr=0.1), double.train_step(*batch, lr=0.1)) <= SINGLE


def test_the_names_lent_to_numpy_are_taken_back(backend: str) -> None:
    load_backend(backend).build(SMALL)
    assert vars(np).keys().isdisjoint({"int", "float", "object", "Inf", "product", "mirr"})

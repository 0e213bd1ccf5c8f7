"""The border of the contract: what comes in is checked, what goes out is whole, nothing is left half done."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from common import load_backend
from common.architecture import Architecture
from common.errors import BadInput
from common.recipe import PLAIN, Recipe
from common.weights import Weights, initial_weights, is_statistic
from tests.helpers import build, built, default_dtype, one_line, random_batch, random_weights

pytestmark = pytest.mark.core_in("torch", "oracle")  # the others take long

ROOT = Path(__file__).parents[1]
SMALL = Architecture(stages=((1, 4), (1, 6)), in_channels=2, num_classes=5, stem_channels=4)
AVERAGED = Recipe(momentum=0.9, ema=0.9)


@pytest.fixture
def model(contract: str, device: str) -> Any:
    """A small float64 model with random weights, compiled once a session."""
    model = built(contract, SMALL, "float64", "cpu" if contract == "oracle" else device)
    model.load_weights(random_weights(SMALL))
    return model


@pytest.fixture
def batch() -> tuple[NDArray, NDArray]:
    return random_batch(SMALL, 3, 33, 46)


def all_that_leaves(model: Any, x: NDArray, y: NDArray) -> Weights:
    """Every array that a model gives, by a name."""
    model.begin_step(x, y, 0.1, AVERAGED)()
    found = model.loss_and_gradients(x, y)
    kinds = {
        "predict": {"": model.predict(x)},
        "logits": {"": found.logits},
        "activations": model.activations(x),
        "gradients": found.gradients,
        "running": found.running,
        "weights": model.weights(),
        "averaged": model.averaged_weights(),
        "state": model.optimizer_state(),
        "sum": {"": model.sum(np.arange(6.0).reshape(2, 3).T)},
    }
    with model.averaged():
        kinds["shown"] = model.weights()
    return {f"{kind}.{name}": array for kind, arrays in kinds.items() for name, array in arrays.items()}


def same(found: Weights, expected: Weights) -> bool:
    """To the bit."""
    return list(found) == list(expected) and all(map(np.array_equal, found.values(), expected.values()))


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(BadInput) as error:
        call()
    one_line(error, *words)


# What goes out


def test_what_leaves_lies_in_memory_as_its_shape_says(model: Any, batch: tuple, tmp_path: Path) -> None:
    """safetensors writes the memory of an array, whatever its strides are."""
    found = all_that_leaves(model, *batch)
    for name, array in found.items():
        assert type(array) is np.ndarray and array.flags.c_contiguous and array.flags.writeable, name
        assert array.dtype == np.dtype("float64") and array.dtype.isnative, name
    save_file(found, tmp_path / "all.safetensors")
    assert same(dict(sorted(load_file(tmp_path / "all.safetensors").items())), dict(sorted(found.items())))


def test_what_leaves_is_the_callers(model: Any, batch: tuple) -> None:
    found = all_that_leaves(model, *batch)
    kept = {name: array.copy() for name, array in found.items()}
    looks = model.predict(batch[0]), model.weights(), model.optimizer_state()
    all_that_leaves(model, *batch)  # what is computed later does not change them
    assert same(found, kept)
    model.load_weights(looks[1])
    model.load_optimizer_state(looks[2], AVERAGED)
    found = all_that_leaves(model, *batch)
    looks = model.predict(batch[0]), model.weights(), model.optimizer_state()
    for array in found.values():
        array[...] = 7
    assert np.array_equal(model.predict(batch[0]), looks[0])
    assert same(model.weights(), looks[1]) and same(model.optimizer_state(), looks[2])


# What comes in


def methods(model: Any, y: NDArray) -> list[Callable[[Any], object]]:
    """All that take images."""
    return [
        model.predict,
        model.activations,
        lambda x: model.loss_and_gradients(x, y),
        lambda x: model.train_step(x, y, 0.1),
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_is_refused_and_named(model: Any, batch: tuple, value: float) -> None:
    x, y = batch
    x[1, 0, 3, 4] = value
    for method in methods(model, y):
        refused(lambda method=method: method(x), "image 1 of 3", "NaN or infinity")
    assert same(model.weights(), random_weights(SMALL))


def test_numbers_beyond_float32_are_refused(contract: str, device: str, batch: tuple) -> None:
    if contract == "oracle":
        pytest.skip("it knows float64 only")
    model, (x, y) = built(contract, SMALL, "float32", device), batch
    x[2, 0, 0, 0] = 1e300
    for method in methods(model, y):
        refused(lambda method=method: method(x), "image 2 of 3", "float32")
    weights = random_weights(SMALL)
    weights["last.bias"][0] = 1e300
    refused(lambda: model.load_weights(weights), "beyond float32: last.bias")


FORMS: dict[str, Callable[[NDArray], Any]] = {
    "big-endian": lambda x: x.astype(">f8"),
    "read-only": lambda x: np.frombuffer(x.tobytes()).reshape(x.shape),
    "Fortran order": np.asfortranarray,
    "every other": lambda x: np.repeat(x, 2, 3)[..., ::2],
    "broadcast": lambda x: np.broadcast_to(x, x.shape),
    "a list": lambda x: x.tolist(),
    "float16": lambda x: x.astype("float16"),
    "bfloat16": lambda x: x.astype(ml_dtypes.bfloat16),
    "a mask of nothing": np.ma.masked_array,
}


@pytest.mark.parametrize("form", FORMS)
def test_images_of_any_form_are_the_numbers_they_are(model: Any, batch: tuple, form: str) -> None:
    images = FORMS[form](batch[0])
    plain = np.array(images, "float64", order="C")
    assert np.array_equal(model.predict(images), model.predict(plain))


NO_IMAGES: dict[str, tuple[Callable[[NDArray], Any], str]] = {
    "none": (lambda x: x[:0], "N from 1 up"),
    "objects": (lambda x: x.astype(object), "must be numbers, not object"),
    "complex": (lambda x: x.astype(complex), "must be numbers, not complex128"),
    "dates": (lambda x: x.astype("datetime64[s]"), "must be numbers, not datetime64[s]"),
    "masked": (lambda x: np.ma.masked_less(x, 0.5), "images must have no mask"),
    "ragged": (lambda x: [x[0], x[1, :1]], "images must be an array"),
    "nothing": (lambda x: None, "must be numbers, not object"),
}


@pytest.mark.parametrize("case", NO_IMAGES)
def test_what_is_no_batch_of_images_is_refused(model: Any, batch: tuple, case: str) -> None:
    spoil, words = NO_IMAGES[case]
    for method in methods(model, batch[1]):
        refused(lambda method=method: method(spoil(batch[0])), words)


NO_LABELS: dict[str, tuple[Any, str]] = {
    "beyond int32": (np.array([0, 1, 2**32]), "from 0 to 4"),
    "beyond int64": (np.array([0, 1, 2**64 - 1], "uint64"), "from 0 to 4"),
    "beyond all": ([0, 1, 2**70], "whole numbers"),
    "objects": (np.array([0, 1, 2], object), "whole numbers"),
    "true and false": (np.array([True, False, True]), "whole numbers"),
    "masked": (np.ma.masked_equal([0, 1, 2], 1), "labels must have no mask"),
    "ragged": ([[0], [1, 2]], "labels must be an array"),
}


@pytest.mark.parametrize("case", NO_LABELS)
def test_what_are_no_labels_is_refused(model: Any, batch: tuple, case: str) -> None:
    y, words = NO_LABELS[case]
    refused(lambda: model.loss_and_gradients(batch[0], y), words)
    refused(lambda: model.train_step(batch[0], y, 0.1), words)
    assert same(model.weights(), random_weights(SMALL))


def test_weights_with_a_mask_are_refused(model: Any) -> None:
    weights = random_weights(SMALL)
    weights["last.bias"] = np.ma.masked_less(weights["last.bias"], 0.1)
    refused(lambda: model.load_weights(weights), "last.bias must have no mask")
    assert same(model.weights(), random_weights(SMALL))


# What is cut short


@contextmanager
def interrupted(at: int) -> Iterator[list[int]]:
    """Ctrl-C at this line of ours that runs, from 0; gives how many have run."""
    ran = [0]

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "line":
            ran[0] += 1
            if ran[0] == at + 1:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield ran
    finally:
        sys.settrace(before)


OURS = (str(ROOT / "common"), *[str(ROOT / f"resnet_{name}") for name in ("mxnet", "torch", "tf", "jax")])
PLACES = 10


def interruptions(start: Callable[[], object], call: Callable[[], object]) -> Iterator[int]:
    """Interrupt a call at places all over it, each time from the start; yields how many ran before."""
    start()
    with interrupted(-1) as lines:
        call()
    for at in np.unique(np.linspace(0, lines[0] - 1, PLACES).astype(int)):
        start()
        with pytest.raises(KeyboardInterrupt), interrupted(int(at)):
            call()
        yield int(at)


def state_of(model: Any) -> Weights | None:
    """Weights and optimizer; nothing of a model that says it is half changed."""
    try:
        return {**model.weights(), **{f"state of {n}": a for n, a in model.optimizer_state().items()}}
    except BadInput as error:
        assert "was cut short" in str(error) and "load_weights" in str(error) and "\n" not in str(error)
        return None


def begin_at(model: Any, batch: tuple, recipe: Recipe = AVERAGED) -> Callable[[], None]:
    """What takes a model to after its first step under a recipe."""
    model.load_weights(random_weights(SMALL))
    model.begin_step(*batch, 0.1, recipe)()
    weights, state = model.weights(), model.optimizer_state()

    def begin() -> None:
        model.load_weights(weights)
        model.load_optimizer_state(state, recipe)

    return begin


def test_a_look_that_is_cut_short_leaves_the_model_unchanged(model: Any, batch: tuple) -> None:
    begin_at(model, batch)
    expected, loss = state_of(model), model.loss_and_gradients(*batch).loss
    looks: list[Callable[[], object]] = [
        lambda: model.predict(batch[0]),
        lambda: model.activations(batch[0]),
        lambda: model.loss_and_gradients(*batch),
        model.weights,
        model.optimizer_state,
    ]
    for number, look in enumerate(looks):
        for at in interruptions(lambda: None, look):
            assert same(state_of(model) or {}, expected or {}), (number, at)
    assert model.loss_and_gradients(*batch).loss == loss


class Mine(Exception):
    """A user's own error."""


@pytest.mark.core_in("torch", "mxnet", "jax")
def test_a_loss_of_ones_own_that_raises_has_changed_nothing(backend: str, device: str, batch: tuple) -> None:
    """After the pass through the network, and before the optimizer."""
    fails = []

    def loss(self: Any, *arguments: Any) -> Any:
        if fails:
            raise Mine
        return base.loss(self, *arguments)

    base = import_module(f"resnet_{backend}").ResNet
    model = load_backend(backend).wrap(type("Own", (base,), {"loss": loss})(SMALL), device)
    plain = build(backend, SMALL, "float32", device)
    for m in (model, plain):
        m.load_weights(random_weights(SMALL))
    fails.append(True)
    for call in (model.loss_and_gradients, lambda x, y: model.train_step(x, y, 0.1, 0.9)):
        with pytest.raises(Mine):
            call(*batch)
        assert same(model.weights(), plain.weights())
    fails.clear()
    for m in (model, plain):
        m.train_step(*batch, 0.1, 0.9)
    assert same(model.weights(), plain.weights())


def load_others(model: Any) -> None:
    model.load_weights(random_weights(SMALL, seed=1))


def load_other_state(model: Any) -> None:
    trained = {name: array for name, array in random_weights(SMALL, 1).items() if not is_statistic(name)}
    model.load_optimizer_state(trained, Recipe(momentum=0.5))


CHANGES: dict[str, Callable[[Any, NDArray, NDArray], object]] = {
    "a step": lambda model, x, y: model.begin_step(x, y, 0.1, AVERAGED)(),
    "a step of another recipe": lambda model, x, y: model.begin_step(x, y, 0.1, PLAIN)(),
    "load_weights": lambda model, x, y: load_others(model),
    "load_optimizer_state": lambda model, x, y: load_other_state(model),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_is_cut_short_is_done_or_not_done_or_said(
    model: Any, batch: tuple, change: str
) -> None:
    begin = begin_at(model, batch)
    before = state_of(model)
    CHANGES[change](model, *batch)
    after = state_of(model)
    assert not same(before or {}, after or {})
    said, places = 0, 0
    for at in interruptions(begin, lambda: CHANGES[change](model, *batch)):
        found = state_of(model)
        assert found is None or same(found, before or {}) or same(found, after or {}), at
        said, places = said + (found is None), places + 1
    assert said < places
    begin()  # weights that are loaded mend it
    assert same(state_of(model) or {}, before or {})
    CHANGES[change](model, *batch)
    assert same(state_of(model) or {}, after or {})


def test_averaged_weights_are_not_left_behind(model: Any, batch: tuple) -> None:
    begin = begin_at(model, batch)
    expected = state_of(model)

    def show() -> None:
        with model.averaged():
            model.weights()

    for at in interruptions(begin, show):
        if model._averaging:  # between the lines of the end itself: no step goes on from there
            refused(lambda: model.train_step(*batch, 0.1), "averaged()")
            model._end_averaged()
        assert same(state_of(model) or {}, expected or {}), at


def test_several_may_be_within_averaged(model: Any, batch: tuple) -> None:
    """In whatever order they leave."""
    begin_at(model, batch)
    own, averages = model.weights(), model.averaged_weights()
    first, second = model.averaged(), model.averaged()
    first.__enter__()
    second.__enter__()
    refused(lambda: model.load_weights(own), "within averaged()", "load them outside")
    first.__exit__(None, None, None)
    assert same(model.weights(), averages)
    refused(lambda: model.train_step(*batch, 0.1), "within averaged()")
    second.__exit__(None, None, None)
    assert same(model.weights(), own)
    model.train_step(*batch, 0.1)


# Threads

MANY = 8


def in_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    """What each gives, each in a thread of its own that is new, all at once."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def look_at(model: Any, x: NDArray, y: NDArray) -> Weights:
    found = model.loss_and_gradients(x, y)
    return {"": model.predict(x), "logits": found.logits, **model.activations(x), **found.gradients}


def test_looks_from_several_threads_are_those_of_one(model: Any, batch: tuple) -> None:
    x, y = batch
    parts = [(x[i % 3 :], y[i % 3 :]) for i in range(MANY)]
    expected = [look_at(model, *part) for part in parts]
    found = in_threads([lambda part=part: look_at(model, *part) for part in parts])
    assert all(map(same, found, expected))
    assert all(map(same, [look_at(model, *part) for part in parts], expected))  # here, too, afterwards
    assert same(model.weights(), random_weights(SMALL))


def test_steps_from_several_threads_are_steps_in_turn(model: Any, batch: tuple) -> None:
    """Other threads look at the model at the same time."""

    def step() -> float:
        return model.begin_step(*batch, 0.1, AVERAGED)()[0]

    losses = [step() for _ in range(MANY)]
    expected = state_of(model)
    model.load_weights(random_weights(SMALL))
    looks = [lambda: model.predict(batch[0]), lambda: model.loss_and_gradients(*batch), model.weights] * 2
    found = in_threads([step] * MANY + looks)
    assert sorted(found[:MANY]) == sorted(losses)
    assert same(state_of(model) or {}, expected or {})
    model.load_weights(random_weights(SMALL))
    assert [step() for _ in range(MANY)] == losses  # and here again


def test_models_are_built_and_used_in_threads_of_their_own(contract: str, device: str, batch: tuple) -> None:
    if contract == "oracle":
        pytest.skip("it knows float64 only")
    dtypes = ["float32", "float64"]

    def use(model: Any) -> Weights:
        model.load_weights(random_weights(SMALL))
        model.train_step(*batch, 0.1, 0.9)
        return {**model.weights(), "": model.predict(batch[0])}

    expected = [use(built(contract, SMALL, dtype, device)) for dtype in dtypes]
    found = in_threads([lambda dtype=dtype: use(build(contract, SMALL, dtype, device)) for dtype in dtypes])
    assert all(map(same, found, expected))
    assert [arrays[""].dtype for arrays in found] == dtypes
    assert default_dtype(contract) == "float32"


# The user's own network


def own_network(backend: str, device: str) -> tuple[Any, Any]:
    """A network of the package, and its model after it has computed all there is."""
    net = import_module(f"resnet_{backend}").ResNet(SMALL)
    model = load_backend(backend).wrap(net, device)
    model.load_weights(random_weights(SMALL))
    return net, model


def test_a_model_is_not_copied(model: Any) -> None:
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        refused(lambda way=way: way(model), "cannot be copied or pickled", "weights()")


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
}


@pytest.mark.core_in("torch", "mxnet")
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_a_wrapped_network_is_another(backend: str, device: str, batch: tuple, way: str) -> None:
    net, model = own_network(backend, device)
    look_at(model, *batch)
    own = {"": model.predict(batch[0]), **model.activations(batch[0])}
    other = load_backend(backend).wrap(COPIES[way](net), device)
    if backend != "jax":  # its network holds no weights
        assert same({"": other.predict(batch[0]), **other.activations(batch[0])}, own)
    other.load_weights(random_weights(SMALL, seed=1))
    look_at(other, *batch)
    other.train_step(*batch, 0.1)
    assert same({"": model.predict(batch[0]), **model.activations(batch[0])}, own)
    assert not np.array_equal(other.activations(batch[0])["b1"], own["b1"])


def test_a_copy_of_a_compiled_network_is_another(
    backends: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's compiler is told to leave the network as it is; what it compiles, it calls."""
    if "torch" not in backends:
        pytest.skip("PyTorch is not under test")
    import torch

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(torch, "compile", lambda call, **options: lambda *images: call(*images))
    net, model = own_network("torch", "cpu")
    model.compile()
    x, _ = random_batch(SMALL, 2, 32, 32)
    for way in COPIES.values():
        other = load_backend("torch").wrap(way(net))
        other.load_weights(random_weights(SMALL, seed=1))
        found, own = other.activations(x), model.activations(x)
        assert not any(np.array_equal(found[name], own[name]) for name in own)
        assert np.array_equal(found["last"], other.predict(x))


def test_gradients_the_user_adds_up_are_not_in_ours_nor_ours_in_them(
    backend: str, device: str, batch: tuple
) -> None:
    if backend not in ("torch", "mxnet"):
        pytest.skip("its networks keep no gradients")
    net, model = own_network(backend, device)
    expected = model.loss_and_gradients(*batch)
    if backend == "torch":
        kept = {parameter: parameter.data.new_full(parameter.shape, 3.0) for parameter in net.parameters()}
        for parameter, gradient in kept.items():
            parameter.grad = gradient
        grads = {parameter: lambda p=parameter: p.grad for parameter in kept}
    else:
        grads = {p: p.grad for p in net.collect_params().values() if p.grad_req != "null"}
        for parameter in grads:
            parameter.grad_req = "add"
            parameter.grad()[:] = 3
    for _ in range(3):
        assert same(model.loss_and_gradients(*batch).gradients, expected.gradients)
        assert all((grad() == 3).all() for grad in grads.values())
    plain = own_network(backend, device)[1]
    for m in (model, plain):
        for _ in range(2):
            m.train_step(*batch, 0.1)
    assert same(model.weights(), plain.weights())


def test_evaluating_leaves_each_layer_in_its_mode(backends: list[str], batch: tuple) -> None:
    if "torch" not in backends:
        pytest.skip("PyTorch is not under test")
    net, model = own_network("torch", "cpu")
    net.train().net.b2.eval()
    modes = [module.training for module in net.modules()]
    look_at(model, *batch)
    net.net.b3.register_forward_hook(fail)
    for call in (model.predict, model.activations, lambda x: model.loss_and_gradients(x, batch[1])):
        with pytest.raises(Mine):
            call(batch[0])
    assert [module.training for module in net.modules()] == modes
    assert all(parameter.grad is None for parameter in net.parameters())


def fail(*_: object) -> None:
    raise Mine


# What a caller's thread is in


def test_a_caller_who_wants_no_gradients_gets_them_from_the_contract(
    backends: list[str], batch: tuple
) -> None:
    if "torch" not in backends:
        pytest.skip("PyTorch is not under test")
    import torch

    model = build("torch", SMALL)
    expected = look_at(model, *batch)
    for scope in (torch.no_grad(), torch.inference_mode(), torch.device("meta")):
        with scope:
            assert same(look_at(model, *batch), expected)
            built_within = build("torch", SMALL) if not isinstance(scope, torch.device) else model
        assert same(look_at(built_within, *batch), expected)
        built_within.train_step(*batch, 0.1)
        model.load_weights(initial_weights(SMALL))


def test_a_caller_who_records_has_the_contract_evaluate(backends: list[str], batch: tuple) -> None:
    if "mxnet" not in backends:
        pytest.skip("MXNet is not under test")
    from mxnet import autograd

    model = built("mxnet", SMALL, "float64", "cpu")
    model.load_weights(random_weights(SMALL))
    expected = look_at(model, *batch)
    with autograd.record():
        assert same(look_at(model, *batch), expected)
        assert autograd.is_recording() and autograd.is_training()
    assert same(model.weights(), random_weights(SMALL))

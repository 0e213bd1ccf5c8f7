"""The gate: what comes under the contract is what its architecture says, and comes back as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from common import load_backend, load_checkpoint
from common.architecture import Architecture
from common.backend import BACKENDS
from common.errors import BadInput
from common.recipe import Recipe
from tests.helpers import ROUNDING, SINGLE, deviation, one_line, random_batch, random_weights

pytestmark = pytest.mark.core_in("torch", "mxnet")  # the others take long

SMALL = Architecture(stages=((1, 4), (1, 6)), num_classes=5, stem_channels=4)
X, Y = random_batch(SMALL, 3, 32, 32)
HOLDING = ["torch", "mxnet", "tf"]  # networks that hold their weights; Flax's do not


def package(backend: str) -> ModuleType:
    return import_module(BACKENDS[backend].module.split(".")[0])


def mxnet() -> Any:
    package("mxnet")  # first: it lends NumPy what MXNet needs
    return import_module("mxnet")


def images(backend: str, x: Any = X, dtype: str = "float32") -> Any:
    """As a network of this backend takes them."""
    x = np.asarray(x, dtype)
    if backend in ("tf", "jax"):
        return x.transpose(0, 2, 3, 1)
    if backend == "torch":
        return import_module("torch").tensor(x)
    return mxnet().np.array(x, dtype=dtype)


def made(backend: str, kind: Any = None, channels: int = 1) -> Any:
    """A network that has its weights, unless it is Flax's."""
    net = (kind or package(backend).ResNet)(SMALL)
    if backend != "jax":
        net(images(backend, np.zeros((1, channels, 32, 32))))
    return net


def derived(backend: str, **methods: Any) -> Any:
    return type("Mine", (package(backend).ResNet,), {"__module__": __name__, **methods})


def wrap(backend: str, net: Any) -> Any:
    return load_backend(backend).wrap(net)


def refused(backend: str, net: Any, *words: str) -> None:
    with pytest.raises(BadInput) as error:
        wrap(backend, net)
    one_line(error, *words)


# Names, shapes, types


def with_parameter(backend: str) -> Any:
    """A class with a scale of its own behind the logits."""
    if backend == "torch":
        torch = import_module("torch")

        def create(self: Any, *arguments: Any) -> None:
            package("torch").ResNet.__init__(self, *arguments)
            self.scale = torch.nn.Parameter(torch.ones(1))

        return derived("torch", __init__=create)
    if backend == "mxnet":
        gluon = mxnet().gluon

        def create(self: Any, *arguments: Any) -> None:
            package("mxnet").ResNet.__init__(self, *arguments)
            self.scale = gluon.Parameter("scale", shape=(1,))
            self.scale.initialize()

        return derived("mxnet", __init__=create, hybrid_forward=lambda self, F, X, scale: self.net(X) * scale)
    if backend == "tf":

        def create(self: Any, *arguments: Any) -> None:
            package("tf").ResNet.__init__(self, *arguments)
            self.scale = self.add_weight(shape=(1,), name="scale")

        return derived("tf", __init__=create)

    def setup(self: Any) -> None:
        package("jax").ResNet.setup(self)
        self.scale = self.param("scale", lambda key: np.ones(1))

    return derived("jax", setup=setup)


def test_a_parameter_more_is_refused(backend: str) -> None:
    refused(backend, made(backend, with_parameter(backend)), "extra: ", "scale", "undo what was added")


def test_images_of_other_channels_than_arch_says_are_refused(backend: str) -> None:
    if backend == "jax":
        pytest.skip("a Flax module has no weights")
    refused(backend, made(backend, channels=3), "b1.conv.", "(4, 3, 7, 7), expected (4, 1, 7, 7)")


evaluation = ("in evaluation is off",)  # at the logits, or where they come from


def changes(backend: str) -> dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]]:
    """What people do to a network, and the words that say it does not fit."""
    if backend == "torch":
        torch = import_module("torch")
        nn, prune = torch.nn, import_module("torch.nn.utils.prune")
        dense = ("missing: net.last.dense.weight", "extra: net.last.dense.")

        def tie(net: Any) -> None:
            net.net.b2[0].conv2.weight = net.net.b2[0].conv1.weight

        return {
            "head": (
                lambda net: setattr(net.net.last, "dense", nn.Linear(6, 3)),
                ("(3, 6), expected (5, 6)",),
            ),
            "layers": (lambda net: net.net.add_module("more", nn.Linear(5, 5)), ("extra: net.more.weight",)),
            "weight_norm": (lambda net: nn.utils.parametrizations.weight_norm(net.net.last.dense), dense),
            "spectral_norm": (lambda net: nn.utils.parametrizations.spectral_norm(net.net.last.dense), dense),
            "pruned": (lambda net: prune.random_unstructured(net.net.last.dense, "weight", 0.5), dense),
            "tied": (tie, ("shared: net.b2.0.conv2.weight is net.b2.0.conv1.weight",)),
            "half": (lambda net: net.half(), ("is of float16", "float32, float64")),
            "mixed": (
                lambda net: net.net.last.double(),
                ("net.last.dense.weight is float64",),
            ),
            "meta": (lambda net: net.to("meta"), ("is of float32 (meta)",)),
            "activation": (lambda net: setattr(net.net.b1, "relu", nn.GELU()), evaluation),
            "epsilon": (lambda net: setattr(net.net.b1.bn, "eps", 1e-3), evaluation),
            "decay": (
                lambda net: setattr(net.net.b1.bn, "momentum", 0.01),
                ("running_mean in training",),
            ),
        }
    if backend == "mxnet":
        nn = mxnet().gluon.nn

        def head(net: Any) -> None:
            net.net.last.dense = nn.Dense(3)

        return {
            "head": (head, ("net.last.dense.bias is (3,), expected (5,)",)),
            "half": (lambda net: net.cast("float16"), ("of several types",)),
            "mixed": (lambda net: net.net.last.cast("float64"), ("net.last.dense.weight is float64",)),
            "epsilon": (lambda net: net.net.b1.bn._kwargs.update(eps=1e-3), evaluation),
            "decay": (lambda net: net.net.b1.bn._kwargs.update(momentum=0.99), ("running_mean in training",)),
            "statistics": (
                lambda net: net.net.b1.bn._kwargs.update(use_global_stats=True),
                ("forward in training is off",),
            ),
        }
    if backend == "tf":
        layers = import_module("keras").layers

        def head(net: Any, **options: Any) -> None:
            last = net.net.get_layer("last")
            last.pop()
            last.add(layers.Dense(**{"units": 5, "name": "dense", **options}))
            net(images("tf"))

        return {
            "head": (lambda net: head(net, units=3), ("last.dense.bias is (3,), expected (5,)",)),
            "lora": (
                lambda net: net.net.get_layer("last").get_layer("dense").enable_lora(2),
                ("missing: last.dense.kernel", "lora_kernel_a"),
            ),
            "mixed": (
                lambda net: head(net, dtype="mixed_bfloat16"),
                ("kernel is mixed_bfloat16",),
            ),
            "regularizer": (lambda net: head(net, kernel_regularizer="l2"), ("losses of its own",)),
            "epsilon": (
                lambda net: setattr(net.net.get_layer("b1").get_layer("bn"), "epsilon", 1e-3),
                evaluation,
            ),
        }
    return {}


CHANGES = {
    "torch": "head layers weight_norm spectral_norm pruned tied half mixed meta activation epsilon decay",
    "mxnet": "head half mixed epsilon decay statistics",
    "tf": "head lora mixed regularizer epsilon",
}


@pytest.mark.parametrize(
    ("changed", "case"), [(name, case) for name, cases in CHANGES.items() for case in cases.split()]
)
def test_what_was_changed_in_a_network_is_said(backends: list[str], changed: str, case: str) -> None:
    if changed not in backends:
        pytest.skip(f"{changed} is not under test")
    net = made(changed)
    change, words = changes(changed)[case]
    change(net)
    refused(changed, net, *words)


def test_what_is_no_network_of_the_package_is_said(backend: str) -> None:
    refused(backend, object(), f"wrap takes a network of {package(backend).__name__}", "not object")


def test_weights_of_another_architecture_in_an_unbuilt_network_are_refused(backends: list[str]) -> None:
    if "torch" not in backends:
        pytest.skip("elsewhere the framework refuses them")
    wider = Architecture(stages=((1, 4), (1, 6)), num_classes=7, stem_channels=4)
    donor = package("torch").ResNet(wider)
    donor(images("torch"))
    net = package("torch").ResNet(SMALL)
    net.load_state_dict(donor.state_dict())
    refused("torch", net, "net.last.dense.weight is (7, 6), expected (5, 6)")


# Function


def with_forward(backend: str, change: Callable[[Any], Any]) -> Any:
    """A class whose forward pass changes the logits."""
    if backend == "mxnet":
        return derived("mxnet", hybrid_forward=lambda self, F, X: change(self.net(X)))
    name = {"torch": "forward", "tf": "call", "jax": "__call__"}[backend]
    return derived(backend, **{name: lambda self, X: change(self.net(X))})


def test_an_own_forward_is_served_where_it_computes_the_same(backend: str) -> None:
    model, ours = (
        wrap(backend, made(backend, with_forward(backend, lambda logits: logits))),
        load_backend(backend).build(SMALL),
    )
    ours.load_weights(model.weights())
    assert deviation(model.predict(X), ours.predict(X)) <= SINGLE
    assert deviation(model.predict(X), model.activations(X)["last"]) <= SINGLE


def test_an_own_forward_is_refused_where_it_computes_another_function(backend: str) -> None:
    refused(
        backend,
        made(backend, with_forward(backend, lambda logits: logits * 1.01)),
        "forward in evaluation is off by 0.01",
    )


def test_an_own_forward_that_is_random_in_training_is_refused(backends: list[str]) -> None:
    if "torch" not in backends:
        pytest.skip("PyTorch is not under test")
    functional = import_module("torch").nn.functional
    kind = derived("torch", forward=lambda self, X: self.net(functional.dropout(X, 0.1, self.training)))
    refused("torch", made("torch", kind), "forward in training is off")


def test_an_own_forward_that_raises_is_one_line(backend: str) -> None:
    def fail(logits: Any) -> Any:
        raise TypeError("no such images")

    refused(backend, with_forward(backend, fail)(SMALL), "TypeError: ", "no such images")


def test_a_network_that_fails_in_training_is_left_as_it_was(backend: str) -> None:
    if backend == "jax":
        pytest.skip("a Flax module holds no weights")
    passes = []

    def fail_later(logits: Any) -> Any:
        passes.append(logits)
        if len(passes) > failing:
            raise TypeError("no more")
        return logits

    failing = 99
    net = made(backend, with_forward(backend, fail_later))
    before = wrap(backend, net).weights()
    passes, failing = [], 1  # of the two that `wrap` tries, the one in training
    refused(backend, net, "the network fails at images", "TypeError: ")
    failing = 99
    np.testing.assert_equal(wrap(backend, net).weights(), before)


# Types


@pytest.mark.parametrize("kind", ["string", "NumPy's", "dtype"])
def test_a_float64_network_is_served_in_float64(backend: str, kind: str) -> None:
    if backend != "mxnet" and kind != "string":
        pytest.skip("said in one way here")
    if backend == "torch":
        net = made(backend).double()
    elif backend == "mxnet":
        net = made(backend)
        net.cast({"string": "float64", "NumPy's": np.float64, "dtype": np.dtype("float64")}[kind])
    elif backend == "tf":
        with import_module("resnet_tf.layers").precision("float64"):
            net = made(backend)
    else:
        net = package("jax").ResNet(SMALL, dtype="float64")
    model, oracle = wrap(backend, net), load_backend("oracle").build(SMALL)
    for each in (model, oracle):
        each.load_weights(random_weights(SMALL))
    found, expected = (each.loss_and_gradients(X, Y) for each in (model, oracle))
    assert model.dtype == "float64"
    assert deviation(found.running, expected.running) <= ROUNDING


def test_a_type_that_the_contract_has_not_is_said(backends: list[str]) -> None:
    if "jax" in backends:
        refused("jax", package("jax").ResNet(SMALL, dtype="float16"), "is of float16")
    if "tf" in backends:
        with import_module("resnet_tf.layers").precision("mixed_float16"):
            net = made("tf")
        refused("tf", net, "is of mixed_float16")


# Weights


def native_step(backend: str, net: Any) -> None:
    """A step as the framework's own users take it."""
    if backend == "torch":
        torch = import_module("torch")
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        net.loss(net(images(backend)), torch.tensor(Y)).backward()
        optimizer.step()
    elif backend == "mxnet":
        mx = mxnet()
        trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1})
        with mx.autograd.record():
            loss = net.loss(net(images(backend)), mx.np.array(Y))
        loss.backward()
        trainer.step(1)
    else:
        net.compile("sgd", import_module("keras").losses.SparseCategoricalCrossentropy(from_logits=True))
        net.fit(images(backend), Y, verbose=0)


def test_what_is_trained_natively_after_wrap_is_what_the_contract_shows(backend: str) -> None:
    if backend not in HOLDING:
        pytest.skip("a Flax module holds no weights")
    net = package(backend).ResNet(SMALL)
    model = wrap(backend, net)
    before = load_backend(backend).build(SMALL).weights()
    native_step(backend, net)
    if backend == "torch":
        logits = net.eval()(images(backend)).detach().numpy()
    else:
        logits = net(images(backend)).numpy() if backend == "tf" else net(images(backend)).asnumpy()
    assert deviation(model.predict(X), logits) <= SINGLE
    assert deviation(model.weights(), before) > 1e-3


def test_what_has_weights_keeps_them_and_the_rest_is_drawn(backend: str) -> None:
    if backend not in HOLDING:
        pytest.skip("a Flax module holds no weights")
    net = package(backend).ResNet(SMALL)
    stem = net.net.get_layer("b1") if backend == "tf" else net.net.b1
    stem(images(backend))
    kernel = stem.get_layer("conv").kernel if backend == "tf" else stem.conv.weight
    if backend == "torch":
        expected = kernel.detach().numpy()
    else:
        expected = kernel.numpy().transpose(3, 2, 0, 1) if backend == "tf" else kernel.data().asnumpy()
    weights, drawn = wrap(backend, net).weights(), load_backend(backend).build(SMALL).weights()
    np.testing.assert_array_equal(weights["b1.conv.weight"], expected)
    np.testing.assert_array_equal(weights["last.weight"], drawn["last.weight"])


# Optimizers


def optimizers(backend: str) -> dict[str, Callable[[Any], Any]]:
    """A network's own `configure_optimizers`, as the chapter has it and otherwise."""
    if backend == "torch":
        optim = import_module("torch").optim

        def scheduled(net: Any) -> Any:
            optimizer = optim.SGD(net.parameters(), lr=net.lr)
            net.schedule = optim.lr_scheduler.StepLR(optimizer, 1)
            return optimizer

        return {
            "chapter": lambda net: optim.SGD(net.parameters(), lr=net.lr),
            "momentum": lambda net: optim.SGD(net.parameters(), lr=net.lr, momentum=0.9),
            "adam": lambda net: optim.AdamW(net.parameters(), lr=net.lr),
            "schedule": scheduled,
            "part": lambda net: optim.SGD(net.net.last.parameters(), lr=net.lr),
        }
    if backend == "mxnet":
        mx = mxnet()

        def trainer(kind: str, **options: Any) -> Callable[[Any], Any]:
            return lambda net: mx.gluon.Trainer(
                net.collect_params(), kind, {"learning_rate": net.lr, **options}
            )

        return {
            "chapter": trainer("sgd"),
            "momentum": trainer("sgd", momentum=0.9),
            "adam": trainer("adam"),
            "schedule": trainer("sgd", lr_scheduler=mx.lr_scheduler.FactorScheduler(10, base_lr=0.1)),
            "part": lambda net: mx.gluon.Trainer(
                net.net.last.collect_params(), "sgd", {"learning_rate": net.lr}
            ),
        }
    if backend == "tf":
        kinds = import_module("keras").optimizers
        return {
            "chapter": lambda net: kinds.SGD(net.lr),
            "momentum": lambda net: import_module("resnet_tf.layers").SGD(net.lr, 0.9),
            "adam": lambda net: kinds.AdamW(net.lr),
            "schedule": lambda net: kinds.SGD(kinds.schedules.ExponentialDecay(0.1, 10, 0.5)),
            "part": lambda net: kinds.SGD(net.lr, clipnorm=1.0),
        }
    optax = import_module("optax")
    return {
        "chapter": lambda net: optax.sgd(net.lr),
        "momentum": lambda net: optax.sgd(net.lr, 0.9),
        "adam": lambda net: optax.adamw(net.lr),
        "schedule": lambda net: optax.sgd(optax.cosine_decay_schedule(net.lr, 1000)),
        "part": lambda net: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(net.lr)),
    }


CASES = ["chapter", "momentum", "adam", "schedule", "part"]


@pytest.mark.parametrize("case", CASES)
def test_an_own_optimizer_is_the_recipes_or_it_is_refused(backend: str, case: str) -> None:
    net = made(backend, derived(backend, configure_optimizers=optimizers(backend)[case]))
    model = wrap(backend, net)
    if case == "chapter":
        model.check_recipe(Recipe())
        return
    with pytest.raises(BadInput) as error:
        model.train_step(X, Y, 0.1)
    one_line(error, "configure_optimizers ")


def test_the_chapters_own_optimizer_takes_the_steps_of_ours(backend: str) -> None:
    net = made(backend, derived(backend, configure_optimizers=optimizers(backend)["chapter"]))
    mine, ours = wrap(backend, net), load_backend(backend).build(SMALL)
    for model in (mine, ours):
        model.load_weights(random_weights(SMALL))
        model.train_step(X, Y, 0.01)
    assert deviation(mine.weights(), ours.weights()) <= SINGLE


# Frozen parts


def freeze(backend: str, net: Any, whole: bool = False) -> None:
    if backend == "torch":
        (net if whole else net.net.b1).requires_grad_(False)
    elif backend == "mxnet":
        (net if whole else net.net.b1).collect_params().setattr("grad_req", "null")
    else:
        (net if whole else net.net.get_layer("b1")).trainable = False


def test_a_frozen_part_stays_and_the_run_goes_on_to_the_same_bit(backend: str) -> None:
    if backend not in HOLDING:
        pytest.skip("Flax freezes nothing in a module")
    recipe, start = Recipe(0.9, 0.01), random_weights(SMALL)
    models = []
    for _ in range(2):
        net = made(backend)
        freeze(backend, net)
        models.append(wrap(backend, net))
    whole, again = models
    whole.load_weights(start)
    for step in range(4):
        if step == 2:
            again.load_weights(whole.weights())
            again.load_optimizer_state(whole.optimizer_state(), recipe)
        for model in models[: 2 if step >= 2 else 1]:
            model.train_step(X, Y, 0.1, 0.9, 0.01)
    assert deviation(whole.weights(), again.weights()) == 0
    np.testing.assert_array_equal(
        whole.weights()["b1.conv.weight"], start["b1.conv.weight"].astype("float32")
    )
    assert not np.array_equal(whole.weights()["last.weight"], start["last.weight"].astype("float32"))
    assert "b1.conv.weight" not in whole.loss_and_gradients(X, Y).gradients


def test_freezing_between_steps_is_followed(backend: str) -> None:
    if backend not in HOLDING:
        pytest.skip("Flax freezes nothing in a module")
    net = made(backend)
    model = wrap(backend, net)
    model.train_step(X, Y, 0.1, 0.9)
    before = model.weights()
    freeze(backend, net)
    model.train_step(X, Y, 0.1, 0.9)
    after = model.weights()
    np.testing.assert_array_equal(after["b1.conv.weight"], before["b1.conv.weight"])
    assert not np.array_equal(after["last.weight"], before["last.weight"])


def test_where_all_is_frozen_that_is_said_once_it_is_to_train(backend: str) -> None:
    if backend not in HOLDING:
        pytest.skip("Flax freezes nothing in a module")
    net = made(backend)
    freeze(backend, net, whole=True)
    model = wrap(backend, net)
    model.predict(X)
    for train in (lambda: model.train_step(X, Y, 0.1), lambda: model.loss_and_gradients(X, Y)):
        with pytest.raises(BadInput) as error:
            train()
        one_line(error, "frozen in the network")


# What belongs to the caller


def test_a_pytorch_network_comes_back_as_it_was(backends: list[str], tmp_path: Path) -> None:
    if "torch" not in backends:
        pytest.skip("PyTorch is not under test")
    torch, save_file = import_module("torch"), import_module("safetensors.torch").save_file
    net = made("torch")
    net.eval().net.b2.train()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)

    def state() -> list[Any]:
        parameters = [
            (p.stride(), p.requires_grad, p.dtype, id(p.grad), p.grad.sum().item()) for p in net.parameters()
        ]
        return [*parameters, *(module.training for module in net.modules())]

    before = state()
    model = wrap("torch", net)
    assert state() == before
    for freeze in ("", "backbone"):
        model.train_step(X, Y, 0.1, freeze=freeze)
        assert state() == before
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    torch.nn.utils.parameters_to_vector(net.parameters())


def test_a_pytorch_network_may_move_after_wrap(backends: list[str]) -> None:
    if "torch" not in backends:
        pytest.skip("PyTorch is not under test")
    torch, net = import_module("torch"), made("torch")
    model = wrap("torch", net)
    net.to(memory_format=torch.channels_last)
    before = model.weights()
    model.train_step(X, Y, 0.1)
    assert deviation(model.weights(), before) > 1e-3
    model.load_weights(before)
    assert deviation(net.state_dict()["net.b1.conv.weight"].numpy(), before["b1.conv.weight"]) == 0


def test_a_gluon_network_comes_back_as_it_was(
    backends: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if "mxnet" not in backends:
        pytest.skip("MXNet is not under test")
    net, flags = made("mxnet"), []
    net.apply(lambda block: flags.append((block, block._active, list(block._flags))))
    model = wrap("mxnet", net)
    model.predict(X)
    model.activations(X)
    model.loss_and_gradients(X, Y)
    model.train_step(X, Y, 0.1)
    assert all((block._active, block._flags) == (active, old) for block, active, old in flags)
    net.summary(images("mxnet"))
    assert "Total params" in capsys.readouterr().out


def test_wrap_leaves_gluons_and_keras_names_and_seeds(backend: str) -> None:
    if backend not in ("mxnet", "tf"):
        pytest.skip("only Gluon and Keras number their layers")
    net, seeds = package(backend).ResNet(SMALL), random.getstate()
    wrap(backend, net)
    assert random.getstate() == seeds
    first, second = ((net.name, package(backend).ResNet(SMALL).name) for _ in range(2))
    number = [int(name.rpartition("net")[2].strip("_") or 0) for name in (first[0], first[1], second[1])]
    assert np.diff(number).tolist() == [1, 1]


# Trainer


@pytest.fixture
def data(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)
    yield package(backend).FashionMNIST(batch_size=8, limit_train=16, limit_val=8)


TEN = Architecture(stages=((1, 4), (1, 6)), stem_channels=4)


def test_fit_refuses_an_optimizer_before_a_run_is_made(backend: str, data: Any, tmp_path: Path) -> None:
    net = derived(backend, configure_optimizers=optimizers(backend)["adam"])(TEN)
    with pytest.raises(BadInput) as error:
        package(backend).Trainer(max_epochs=1).fit(net, data)
    one_line(error, "configure_optimizers gives")
    assert not list(tmp_path.iterdir())


def test_fit_trains_in_the_networks_type_and_gives_it_back(backends: list[str], tmp_path: Path) -> None:
    if "torch" not in backends:
        pytest.skip("PyTorch is not under test")
    net = package("torch").ResNet(TEN).double().eval()
    data = package("torch").FashionMNIST(batch_size=8, limit_train=16, limit_val=8)
    trainer = package("torch").Trainer(max_epochs=1, momentum=0.9, out=tmp_path / "run")
    trainer.fit(net, data)
    _, weights = load_checkpoint(tmp_path / "run" / "last.safetensors")
    np.testing.assert_array_equal(weights["last.weight"], net.net.last.dense.weight.detach().numpy())
    assert {array.dtype for array in weights.values()} == {np.dtype("float64")}
    assert not any(module.training for module in net.modules())
    assert all(parameter.grad is None and parameter.is_contiguous() for parameter in net.parameters())


def test_several_gpus_take_no_network_that_a_process_cannot_build(
    backends: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "torch" not in backends:
        pytest.skip("PyTorch is not under test")
    trainer = package("torch").Trainer(max_epochs=1, out=tmp_path / "run")
    monkeypatch.setattr(trainer, "_workers", lambda model: 2)
    frozen = package("torch").ResNet(TEN)
    frozen(images("torch"))
    frozen.net.b1.requires_grad_(False)
    for net in (frozen, derived("torch", loss=lambda self, Y_hat, Y: Y_hat.mean())(TEN)):
        with pytest.raises(BadInput) as error:
            trainer.fit(net, package("torch").FashionMNIST(batch_size=8, limit_train=16, limit_val=8))
        one_line(error, "nothing is frozen or overridden", "num_gpus=1")

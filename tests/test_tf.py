"""What only Keras has: `compile`, `fit`, `save` and `load_model`, on our networks and blocks."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common import Architecture, load_backend
from common.errors import BadInput
from common.recipe import Recipe
from tests.helpers import ROUNDING, SINGLE, deviation, one_line, random_batch, random_weights

ARCH = Architecture(((1, 4),), "resnext", stem_channels=4, groups=2, num_classes=5)
SMALL = ((1, 8), (1, 16))


@pytest.fixture(autouse=True)
def keras(backends: list[str]) -> Any:
    if "tf" not in backends:
        pytest.skip("TensorFlow is not under test")
    import resnet_tf  # noqa: F401  (which says on what Keras runs)

    return importlib.import_module("keras")


@pytest.fixture(scope="module")
def batch() -> tuple[NDArray, NDArray]:
    """Images (N, H, W, C) and labels; the last of two batches of `fit` is smaller."""
    x, y = random_batch(ARCH, 35, 33, 40)
    return x.transpose(0, 2, 3, 1).astype("float32"), y


def package() -> Any:
    return importlib.import_module("resnet_tf")


def save_and_load(keras: Any, net: Any, folder: Path) -> Any:
    net.save(folder / "net.keras")
    return keras.models.load_model(folder / "net.keras")


def same(net: Any, again: Any) -> None:
    """Both are the same network with the same variables."""
    assert type(again) is type(net)
    assert (again.arch, again.lr, again.dtype_policy) == (net.arch, net.lr, net.dtype_policy)
    assert len(again.variables) == len(net.variables)
    for variable, expected in zip(again.variables, net.variables, strict=True):
        assert variable.dtype == expected.dtype
        np.testing.assert_array_equal(variable.numpy(), expected.numpy(), err_msg=expected.path)


# Save and load


NETWORKS: dict[str, tuple[str, tuple, dict[str, Any]]] = {
    "tuple": ("ResNet", (SMALL,), {"num_classes": 5}),
    "architecture": ("ResNet", (ARCH, 0.3), {}),
    "ResNet18": ("ResNet18", (), {"lr": 0.2, "num_classes": 5}),
}
LARGE = ["ResNet18"]


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.deep if case in LARGE else []) for case in NETWORKS]
)
def test_a_network_is_saved_and_loaded(keras: Any, batch: tuple, tmp_path: Path, case: str) -> None:
    name, arguments, options = NETWORKS[case]
    net = getattr(package(), name)(*arguments, **options)
    x = batch[0][:2]
    net(x)
    again = save_and_load(keras, net, tmp_path)
    same(net, again)
    np.testing.assert_array_equal(again(x), net(x))


@pytest.mark.parametrize("policy", [pytest.param("float64", marks=pytest.mark.deep), "mixed_bfloat16"])
def test_a_network_is_loaded_in_its_precision(
    keras: Any, batch: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str
) -> None:
    from resnet_tf.layers import precision

    with precision(policy):
        net = package().ResNet(ARCH)
    x = batch[0][:2]
    net(x)
    again = save_and_load(keras, net, tmp_path)
    same(net, again)
    np.testing.assert_array_equal(again(x), net(x))
    again.layer_summary(x.shape)
    assert capsys.readouterr().out.endswith("(2, 5)\n")
    same(net, again)  # its running statistics are left as they are
    assert keras.config.floatx() == keras.config.dtype_policy().name == "float32"


def test_a_learning_rate_set_later_is_saved(keras: Any) -> None:
    net = package().ResNet(SMALL)
    net.lr = 0.5
    assert keras.models.clone_model(net).lr == 0.5


def test_layer_summary_builds_the_network_as_a_whole(keras: Any, tmp_path: Path) -> None:
    net = package().ResNet(ARCH)
    net.layer_summary((1, 32, 32, 1))
    again = save_and_load(keras, net, tmp_path)
    same(net, again)
    assert net.predict(np.zeros((35, 33, 40, 1)), verbose=0).shape == (35, 5)  # images of any size
    kernel = net.trainable_variables[0].numpy()
    load_backend("tf").wrap(net).predict(np.zeros((1, 1, 32, 32)))
    np.testing.assert_array_equal(net.trainable_variables[0].numpy(), kernel)


@pytest.mark.deep
def test_blocks_and_layers_are_saved_in_a_users_own_network(keras: Any, tmp_path: Path) -> None:
    from resnet_tf.layers import BatchNormalization, Conv2D, MaxPool2D

    tab = package()
    net = keras.Sequential(
        [
            keras.Input((40, 33, 2)),
            Conv2D(4, kernel_size=3, padding=1, strides=2),
            BatchNormalization(),
            MaxPool2D(),
            tab.Residual(4),
            tab.Residual(6, True, strides=2),
            tab.ResNeXtBlock(8, 2, 0.5, use_1x1conv=True),
        ]
    )
    again = save_and_load(keras, net, tmp_path)
    x = np.random.default_rng(0).random((2, 40, 33, 2))
    np.testing.assert_array_equal(again(x), net(x))
    registered = [keras.saving.get_registered_name(type(layer)) for layer in net.layers]
    names = [name for name in registered if ">" in name]
    assert names[0] == "resnet_tf>Conv2D" and names[-1] == "resnet_tf>ResNeXtBlock"


@pytest.mark.parametrize(("size", "padding", "strides"), [(3, 1, 1), (1, 0, 1), (3, 1, 2), (3, 2, 1)])
def test_a_convolution_keeps_its_own_precision_however_it_pads(size: int, padding: int, strides: int) -> None:
    import tensorflow as tf

    from resnet_tf.layers import Conv2D

    x = np.random.default_rng(0).random((2, 9, 9, 3))
    layer = Conv2D(4, size, padding, strides=strides, dtype="float64")
    found = layer(x)
    padded = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    expected = tf.nn.conv2d(padded, layer.kernel, strides, "VALID")
    assert deviation(found, expected) <= ROUNDING
    assert found.shape == layer.compute_output_shape(x.shape)


# Compile and fit


def test_compile_fit_save_load_and_fit_again(keras: Any, batch: tuple, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)  # the images and labels are random: some steps from some weights lead up
    net = package().ResNet(ARCH)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(optimizer="sgd", loss=loss, metrics=["accuracy"])
    first, second = net.fit(*batch, batch_size=35, epochs=2, verbose=0).history["loss"]
    assert second < first
    again = save_and_load(keras, net, tmp_path)
    same(net, again)
    assert again.optimizer.iterations == net.optimizer.iterations
    assert again.predict(batch[0], verbose=0).shape == (35, 5)
    assert deviation(again.evaluate(*batch, verbose=0), net.evaluate(*batch, verbose=0)) <= SINGLE
    assert again.fit(*batch, verbose=0).history["loss"][0] < second

    net.save_weights(tmp_path / "net.weights.h5")
    again.load_weights(tmp_path / "net.weights.h5")
    same(net, again)


@pytest.mark.deep
def test_compile_takes_our_optimizer_and_xla(keras: Any, batch: tuple, tmp_path: Path) -> None:
    net = package().ResNet(ARCH, lr=0.05)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = net.configure_optimizers(Recipe(momentum=0.9, weight_decay=0.01))
    net.compile(optimizer, loss, jit_compile=True)  # Keras' default on a GPU
    net.fit(*batch, verbose=0)
    again = save_and_load(keras, net, tmp_path)
    config = again.optimizer.get_config()
    assert config == net.optimizer.get_config()
    assert (config["momentum"], config["weight_decay"]) == (0.9, 0.01)
    assert any(velocity.numpy().any() for velocity in again.optimizer.velocities)
    for variable, expected in zip(again.optimizer.variables, net.optimizer.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), expected.numpy())


def test_the_contract_trains_by_its_own_loss_whatever_the_network_was_compiled_with(batch: tuple) -> None:
    net = package().ResNet(ARCH)
    x, y = batch[0][:3], batch[1][:3]
    expected = net.loss(net(x), y)
    net.compile("sgd", loss="mse")
    assert deviation(net.compute_loss(y=np.eye(5)[y], y_pred=net(x)), expected) > 0.1
    oracle, model = load_backend("oracle").build(ARCH), load_backend("tf").wrap(net)
    oracle.load_weights(model.weights())
    images = x.transpose(0, 3, 1, 2)
    losses = [m.train_step(images, y, lr=0.1) for m in (model, oracle)]
    assert deviation(*losses) <= SINGLE


# As any layer and model of Keras


@cache
def subclasses() -> dict[str, Callable[[], Any]]:
    """Networks as users derive them from ours."""

    class Fixed(package().ResNet):
        """Takes no arguments, and has the chapter's `call`."""

        def __init__(self) -> None:
            super().__init__(SMALL, num_classes=5)

        def call(self, X: Any) -> Any:
            return super().call(X)

    class Widths(package().ResNet):
        def __init__(self, first: int, *others: int, **options: Any) -> None:
            super().__init__(tuple((1, width) for width in (first, *others)), **options)

    class Called(package().ResNet):
        """What is called `arch` is none, and what is one is called otherwise."""

        def __init__(self, arch: str, architecture: Architecture) -> None:
            super().__init__({"small": architecture}[arch])

    return {
        "ours": lambda: package().ResNet(ARCH, 0.05),
        "no arguments": Fixed,
        "*args": lambda: Widths(4, 8, lr=0.3, name="widths"),
        "other names": lambda: Called("small", architecture=ARCH),
    }


def moved(net: Any, act: Any) -> bool:
    """Whether the running statistics of the stem move."""
    before = net.non_trainable_variables[0].numpy()
    act()
    return bool((net.non_trainable_variables[0].numpy() != before).any())


@pytest.mark.deep
@pytest.mark.parametrize("case", ["no arguments", "*args", "other names"])
def test_a_users_subclass_is_saved_and_loaded(keras: Any, batch: tuple, tmp_path: Path, case: str) -> None:
    net = subclasses()[case]()
    x = batch[0][:2]
    net(x)
    net.lr = 0.7
    again = save_and_load(keras, net, tmp_path)
    same(net, again)
    assert again.name == net.name
    np.testing.assert_array_equal(again(x), net(x))


@pytest.mark.parametrize("case", ["ours", "no arguments"])
def test_fit_is_the_step_of_all_packages(keras: Any, batch: tuple, case: str) -> None:
    """Batch norm trains; momentum, weight decay and the rate are ours."""
    net = subclasses()[case]()
    x, y = batch[0][:4], batch[1][:4]
    net(x)
    recipe = Recipe(momentum=0.9, weight_decay=0.01)
    oracle = load_backend("oracle").build(net.arch)
    oracle.load_weights(load_backend("tf").wrap(net).weights())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(net.configure_optimizers(recipe), loss, run_eagerly=True)
    net.fit(x, y, batch_size=4, epochs=2, verbose=0)
    for _ in range(2):
        oracle.train_step(x.transpose(0, 3, 1, 2), y, net.lr, 0.9, 0.01)
    assert deviation(load_backend("tf").wrap(net).weights(), oracle.weights()) <= SINGLE


@pytest.mark.deep
@pytest.mark.parametrize("is_built", [False, True])
def test_what_is_frozen_stays_frozen(keras: Any, batch: tuple, tmp_path: Path, is_built: bool) -> None:
    net = package().ResNet(SMALL, num_classes=5)
    if is_built:
        net(batch[0][:1])
    net.net.get_layer("b1").get_layer("conv").trainable = False
    net.net.get_layer("b2").trainable = False
    net(batch[0][:1])
    again = save_and_load(keras, net, tmp_path)
    assert [v.path for v in again.trainable_variables] == [v.path for v in net.trainable_variables]
    assert 0 < len(again.trainable_variables) < len(again.non_trainable_variables)
    block = package().Residual(4, True, trainable=False, name="mine")
    user = keras.Sequential([keras.Input((8, 8, 1)), block])
    [block] = save_and_load(keras, user, tmp_path).layers
    assert (block.name, block.trainable_variables) == ("mine", [])


@pytest.mark.deep
def test_layers_and_variables_keep_their_names(keras: Any, batch: tuple, tmp_path: Path) -> None:
    net = package().ResNet(SMALL, num_classes=5, name="mine")
    net(batch[0][:1])
    again = save_and_load(keras, net, tmp_path)
    assert [v.path for v in again.variables] == [v.path for v in net.variables]
    assert keras.models.clone_model(net).name == "mine"


@pytest.mark.deep
@pytest.mark.parametrize("policy", ["float64", "mixed_bfloat16"])
def test_dtype_is_that_of_all_layers(keras: Any, batch: tuple, tmp_path: Path, policy: str) -> None:
    from resnet_tf.layers import sublayers

    net = package().ResNet(ARCH, dtype=policy)
    net(batch[0][:1])
    for model in (net, package().Residual(4, dtype=policy), save_and_load(keras, net, tmp_path)):
        assert {layer.dtype_policy.name for layer in sublayers(model)} == {policy}


@pytest.mark.deep
def test_the_precision_of_one_layer_is_saved(keras: Any, batch: tuple, tmp_path: Path) -> None:
    net = package().ResNet(SMALL, num_classes=5)
    x = batch[0][:2]
    net(x)
    net.net.get_layer("b1").get_layer("conv").dtype_policy = "mixed_bfloat16"
    with pytest.warns(UserWarning, match="quantize"):  # of what Keras does not quantize
        net.quantize("int8")
    again = save_and_load(keras, net, tmp_path)
    np.testing.assert_array_equal(again(x), net(x))
    assert again.net.get_layer("last").get_layer("dense").dtype_policy.name == "int8_from_float32"


def test_a_network_is_built_from_a_shape(keras: Any) -> None:
    net, block = package().ResNet(SMALL, num_classes=5), package().Residual(4, True, strides=2)
    net.build((None, 32, 32, 1))
    kernel = net.trainable_variables[0].numpy()
    load_backend("tf").wrap(net).predict(np.zeros((1, 1, 32, 32)))
    np.testing.assert_array_equal(net.trainable_variables[0].numpy(), kernel)
    assert net.compute_output_shape((None, 32, 32, 1)) == (None, 5)
    assert block.compute_output_shape((2, 9, 8, 3)) == (2, 5, 4, 4)


def test_a_network_is_one_layer_of_anothers(keras: Any, batch: tuple) -> None:
    x = np.stack([batch[0][:2]] * 3, axis=1)
    net = package().ResNet(ARCH)
    images = keras.Input(x.shape[2:])
    functional = keras.Model(images, net(images))
    np.testing.assert_array_equal(functional(x[:, 0]), net(x[:, 0]))
    assert moved(net, lambda: functional(x[:, 0], training=True))
    each = keras.layers.TimeDistributed(net)
    assert each(x).shape == each.compute_output_shape(x.shape) == (2, 3, 5)
    assert moved(net, lambda: each(x, training=True))


@pytest.mark.parametrize("training", [False, True])
def test_a_stateless_call_trains_where_it_is_told(keras: Any, batch: tuple, training: bool) -> None:
    net = package().ResNet(ARCH)
    x = batch[0][:2]
    net(x)
    variables = [[v.value for v in v_s] for v_s in (net.trainable_variables, net.non_trainable_variables)]
    logits, statistics = net.stateless_call(*variables, x, training=training)
    assert bool((statistics[0] != variables[1][0]).numpy().any()) == training
    assert deviation(logits, net(x, training=training)) <= SINGLE


# (N, H, W, C), whatever Keras is set to


@pytest.fixture
def channels_first(keras: Any) -> Any:
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


def test_the_machines_data_format_changes_nothing(channels_first: None) -> None:
    x, y = random_batch(ARCH, 2, 33, 40)
    model, oracle = (load_backend(name).build(ARCH) for name in ("tf", "oracle"))
    assert deviation(model.predict(x), oracle.predict(x)) <= SINGLE
    assert deviation(model.train_step(x, y, 0.1), oracle.train_step(x, y, 0.1)) <= SINGLE


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(("size", "padding"), [(3, 1), ((3, 1), "symmetric"), (3, "same"), (3, (0, 2))])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_of_the_format_it_is_given(
    strides: int, size: Any, padding: Any, groups: int
) -> None:
    from resnet_tf.layers import Conv2D

    options = {"padding": padding, "strides": strides, "groups": groups}
    last, first = Conv2D(4, size, **options), Conv2D(4, size, **options, data_format="channels_first")
    x = np.random.default_rng(0).random((2, 8, 9, 4)).astype("float32")
    expected = last(x).numpy()
    first.build((2, 4, 8, 9))
    first.set_weights(last.get_weights())
    found = first(x.transpose(0, 3, 1, 2)).numpy()
    assert deviation(found.transpose(0, 2, 3, 1), expected) <= SINGLE
    assert first.compute_output_shape((2, 4, 8, 9)) == found.shape
    assert last.compute_output_shape((2, 8, 9, 4)) == expected.shape


# Keras' options of an optimizer


def test_what_is_excluded_from_weight_decay_does_not_decay(keras: Any) -> None:
    from resnet_tf.layers import SGD

    kernel, bias, other = (keras.Variable([1.0], name=name) for name in ("kernel", "bias", "other"))
    optimizer = SGD(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay([other], ["bias"])
    optimizer.apply([np.zeros(1, "float32")] * 3, [kernel, bias, other])
    assert [v.numpy()[0] for v in (kernel, bias, other)] == [np.float32(0.95), 1, 1]


def test_a_figure_of_an_optimizer_is_set_or_refused(keras: Any) -> None:
    from resnet_tf.layers import SGD

    weight, optimizer = keras.Variable([1.0]), SGD(0.1, weight_decay=0.5)
    optimizer.weight_decay = 0.25
    optimizer.apply([np.zeros(1, "float32")], [weight])
    assert weight.numpy() == np.float32(1 - 0.1 * 0.25)
    assert optimizer.get_config()["weight_decay"] == 0.25
    with pytest.raises(BadInput) as error:
        optimizer.momentum = 0.9
    one_line(error, "momentum 0.0", "make another")


def test_the_packages_own_step_scales_the_loss_of_an_optimizer_that_unscales_it(batch: tuple) -> None:
    import tensorflow as tf

    from resnet_tf.layers import SGD
    from resnet_tf.training import train_step

    net, x, y = package().ResNet(ARCH), tf.constant(batch[0][:2]), tf.constant(batch[1][:2])
    net(x)
    before, after = net.get_weights(), []
    for options in ({}, {"loss_scale_factor": 1024.0}):
        net.set_weights(before)
        train_step(net, SGD(0.1, **options), x, y)
        after.append(net.get_weights())
    for plain, scaled in zip(*after, strict=True):
        np.testing.assert_array_equal(scaled, plain)


# Several workers


TOGETHER = """
import numpy as np
import tensorflow as tf

[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

import keras
import resnet_tf
from common.errors import BadInput
from common.recipe import Recipe
from resnet_tf.layers import SGD
from resnet_tf.training import train_step

x, y = np.random.default_rng(0).random((8, 32, 32, 1)).astype("float32"), np.arange(8)
workers, alone = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), tf.distribute.get_strategy()

def fitted(strategy, file):
    with strategy.scope():
        net = keras.models.load_model(file)
        optimizer = net.configure_optimizers(Recipe(0.9, 0.01))
        net.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.fit(x, y, batch_size=8, verbose=0)
    return net

def stepped(net):
    with workers.scope():
        optimizer = net.configure_optimizers(Recipe(0.9, 0.01))
        optimizer.build(net.trainable_variables)
    def share(array):
        part = lambda worker: np.split(array, 2)[worker.replica_id_in_sync_group]
        return workers.experimental_distribute_values_from_function(part)
    step = tf.function(lambda X, Y: workers.run(lambda X, Y: train_step(net, optimizer, X, Y)[0], (X, Y)))
    step(share(x), share(y))

def apart(a, b):
    return max(np.abs(v.numpy() - w.numpy()).max() for v, w in zip(a.variables, b.variables, strict=True))

with workers.scope():
    net = resnet_tf.ResNet(((1, 4),))
    net(x[:1])
net.save("net.keras")
one, two = fitted(alone, "net.keras"), fitted(workers, "net.keras")
assert apart(net, two) > 1e-3 and apart(one, two) < 1e-6, apart(one, two)
stepped(net)
assert apart(one, net) < 1e-6, apart(one, net)
two.save("two.keras")
assert apart(keras.models.load_model("two.keras"), two) == 0
one.save("one.keras")
with workers.scope():
    assert apart(keras.models.load_model("one.keras"), one) == 0
with workers.scope():
    optimizer, weight = SGD(0.1, clipnorm=1.0), keras.Variable([1.0])
    optimizer.build([weight])
try:
    workers.run(lambda: optimizer.apply([weight.value], [weight]))
except BadInput as error:
    print(error)
"""


@pytest.mark.deep
def test_several_workers_train_as_one_and_share_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "SGD with clipnorm is for one worker; leave it out, or train on one device\n"


@pytest.mark.deep
@pytest.mark.parametrize("ending", ["", "_over_workers"])
def test_a_file_of_an_earlier_version_is_loaded(
    keras: Any, batch: tuple, tmp_path: Path, ending: str
) -> None:
    """It says only the constructor's arguments; one written by several workers has another batch norm."""
    net = package().ResNet(ARCH)
    x = batch[0][:2]
    net(x)
    net.save(tmp_path / "new.keras")
    with zipfile.ZipFile(tmp_path / "new.keras") as new, zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            content = new.read(name)
            if name == "config.json":
                model = json.loads(content)
                arguments = {name: model["config"][name] for name in ("arch", "lr")}
                content = json.dumps(model | {"config": arguments | {"dtype": "float32"}}).encode()
            if name == "model.weights.h5":
                file = io.BytesIO(content)
                with importlib.import_module("h5py").File(file, "a") as weights:
                    if ending:
                        layers = weights["layers/sequential/layers/sequential/layers"]
                        layers.move("batch_normalization", f"batch_normalization{ending}")
                content = file.getvalue()
            old.writestr(name, content)
    again = keras.models.load_model(tmp_path / "old.keras")
    same(net, again)
    np.testing.assert_array_equal(again(x), net(x))


# The contract


def test_a_new_learning_rate_compiles_nothing_anew() -> None:
    model = load_backend("tf").build(ARCH, "float64")
    batch = random_batch(ARCH, 2, 32, 32)
    for lr in (0.1, 0.01, 1 / 3):
        model.train_step(*batch, lr, momentum=0.9)
    for graph in (model._gradients_graph, model._update_graph):
        assert graph.experimental_get_tracing_count() == 1
    assert float(model._optimizer.learning_rate.numpy()) == 1 / 3


def test_the_step_is_traced_once(device: str) -> None:
    """New weights and other figures trace nothing; a smaller last batch traces its pass once."""
    x, y = random_batch(ARCH, 3, 32, 32)
    model = load_backend("tf").build(ARCH, device=device)
    for momentum, weight_decay in ((0.9, 1e-4), (0.5, 1e-3)):
        model.load_weights(random_weights(ARCH))
        model.loss_and_gradients(x, y)
        for _ in range(2):
            model.train_step(x, y, 0.1, momentum, weight_decay)
            model.train_step(x[:2], y[:2], 0.1, momentum, weight_decay)
    assert model._gradients_graph.experimental_get_tracing_count() == 2
    assert model._update_graph.experimental_get_tracing_count() == 1


def test_new_sizes_trace_little() -> None:
    """Once as it is, and once each where the batch, one side, and both sides are found to vary."""
    model = load_backend("tf").build(ARCH)
    sizes = [(4, 32, 32), (3, 32, 32), (2, 40, 32), (4, 33, 47), (1, 17, 19), (5, 64, 32), (2, 20, 50)]
    for size in sizes:
        model.predict(random_batch(ARCH, *size)[0])
    assert model._predict_graph.experimental_get_tracing_count() <= 4


def test_a_float64_network_has_its_optimizer_in_float64(keras: Any) -> None:
    from resnet_tf.layers import precision

    with precision("float64"):
        net = package().ResNet(ARCH)
    assert net.configure_optimizers().learning_rate.numpy() == 0.1


# Where TensorFlow has started already


DEVICES = """
import os
import numpy as np
import tensorflow as tf

[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
tf.ones(1)
def started(*_): raise RuntimeError("Physical devices cannot be modified after being initialized")
tf.config.list_physical_devices = lambda kind: [cpu]
tf.config.experimental.set_memory_growth = started

import resnet_tf
from common import Architecture, load_backend
import keras

assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
arch = Architecture(((1, 4), (1, 6)), num_classes=5, stem_channels=4)
net = resnet_tf.ResNet(arch)
with tf.device("/CPU:1"):
    net(np.zeros((1, 32, 32, 1)))
model, oracle = load_backend("tf").wrap(net), load_backend("oracle").build(arch)
oracle.load_weights(model.weights())
x, y = np.random.default_rng(0).random((2, 1, 32, 32)), [0, 1]
for _ in range(2):
    loss = model.train_step(x, y, 0.1, 0.9)
    assert abs(loss - oracle.train_step(x, y, 0.1, 0.9)) < 1e-4
assert model._run(model._predict_graph, np.zeros((1, 32, 32, 1), "float32")).device.endswith("CPU:0")

net.save("net.keras")
with tf.device("/CPU:0"):
    again = keras.models.load_model("net.keras")
print({v.value.device[-5:] for v in net.variables}, {v.value.device[-5:] for v in again.variables})
"""


@pytest.mark.deep
def test_a_network_computes_where_it_is_wrapped_and_is_moved_by_loading_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DEVICES],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{'CPU:1'} {'CPU:0'}\n"


# On what Keras runs


def test_keras_on_another_framework_is_one_line(keras: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from resnet_tf import compat

    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(BadInput) as error:
        importlib.reload(compat)
    one_line(error, "is on jax", "KERAS_BACKEND=tensorflow")


def test_a_choice_in_the_environment_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    from resnet_tf import compat

    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(BadInput) as error:
        importlib.reload(compat)
    one_line(error, "is on jax", "KERAS_BACKEND=tensorflow")
    assert compat.os.environ["KERAS_BACKEND"] == "jax"


@pytest.mark.parametrize(
    ("content", "words"),
    [('{"backend": "jax"}', ["keras.json", "is on jax", "KERAS_BACKEND=tensorflow"]), ("{", []), ("[]", [])],
)
def test_a_choice_in_keras_json_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, words: list[str]
) -> None:
    """What Keras cannot read is no choice."""
    from resnet_tf import compat

    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "keras.json").write_text(content)
    if not words:
        importlib.reload(compat)
        assert compat.os.environ["KERAS_BACKEND"] == "tensorflow"
        return
    with pytest.raises(BadInput) as error:
        importlib.reload(compat)
    one_line(error, *words)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    importlib.reload(compat)


@pytest.mark.parametrize("unset", [None, "", "tensorflow"])
def test_without_a_choice_keras_runs_on_tensorflow(
    monkeypatch: pytest.MonkeyPatch, unset: str | None
) -> None:
    from resnet_tf import compat

    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_BACKEND", unset or "")
    if unset is None:
        monkeypatch.delenv("KERAS_BACKEND")
    importlib.reload(compat)
    assert compat.os.environ["KERAS_BACKEND"] == "tensorflow"


@pytest.mark.parametrize("padding", [pytest.param("same", marks=pytest.mark.deep), "symmetric"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(
    ("groups", "width"),
    [*((8, 4), (3, 5), (40, 1)), *(pytest.param(*p, marks=pytest.mark.deep) for p in ((4, 24), (2, 64)))],
)
def test_groups_put_together_are_keras_grouped_convolution(
    groups: int, width: int, strides: int, padding: str
) -> None:
    """In output and gradients; two filters to each channel. At odd sizes "same" is symmetric."""
    import keras
    import tensorflow as tf

    from resnet_tf.layers import Conv2D

    rng, channels = np.random.default_rng(0), groups * width
    options = {"strides": strides, "groups": groups, "dtype": "float64"}
    ours = Conv2D(2 * channels, 3, padding=padding, **options)
    own = keras.layers.Conv2D(2 * channels, 3, padding="same", **options)
    x = tf.constant(rng.random((2, 7, 5, channels)))
    results = []
    for layer in (ours, own):
        layer.build(x.shape)
        layer.set_weights(
            [rng.random(w.shape) for w in layer.weights] if layer is ours else ours.get_weights()
        )

        def run(layer: Any = layer) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                output = layer(x)
                loss = tf.reduce_sum(output**2)
            return output, *tape.gradient(loss, [x, *(w.value for w in layer.weights)])

        results.append(tf.function(run)())
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape and deviation(found.numpy(), expected.numpy()) <= 1e-14


def test_a_grouped_convolution_is_left_to_a_gpu() -> None:
    import tensorflow as tf

    from resnet_tf.layers import Conv2D

    layer = Conv2D(8, 3, groups=4)

    def operations(device: str | None) -> list[str]:
        def convolve(X: Any) -> Any:
            with tf.device(device):
                return layer(X)

        graph = tf.function(convolve).get_concrete_function(tf.TensorSpec((1, 5, 5, 8))).graph
        return [operation.type for operation in graph.get_operations()]

    assert "Einsum" in operations(None) and "Einsum" in operations("/CPU:0")
    assert "Einsum" not in operations("/GPU:0")

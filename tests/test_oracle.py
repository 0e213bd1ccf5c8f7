"""The oracle on its own: each operation against loops and finite differences, then the whole network."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common import oracle
from common.architecture import Architecture
from common.errors import BadInput
from common.oracle import (
    batch_norm,
    batch_norm_training,
    convolution,
    dense,
    global_average_pool,
    max_pool,
    relu,
    softmax_cross_entropy,
)
from common.weights import is_statistic
from tests.helpers import build, deviation, random_batch, random_weights

EXACT = 1e-13  # two orders of summation in float64
STEP = 1e-5  # of a central difference: its own error is about STEP², its rounding about 1e-16 / STEP
DIFFERENCES = 1e-8
EPSILON = 0.02

RESIDUAL = Architecture(stages=((1, 4), (2, 6)), in_channels=2, num_classes=5, stem_channels=4)
RESNEXT = Architecture(
    stages=((2, 4), (1, 6)), block="resnext", groups=(2, 3), bot_mul=0.5, in_channels=2, stem_channels=3
)
NETWORKS = pytest.mark.parametrize(
    "arch",
    [
        RESIDUAL,
        RESNEXT,
        replace(RESIDUAL, shortcut_norm=True, epsilon=0.02, padding="same", stem_padding="same"),
        replace(RESNEXT, stride_on="1x1", epsilon=0.02, padding="same", decay=0.99),
    ],
    ids=["residual", "resnext", "residual axes", "resnext axes"],
)


def draw(*shape: int, seed: int = 0) -> NDArray:
    return np.random.default_rng(seed).normal(size=shape)


def spaced(*shape: int) -> NDArray:
    """Values in random order, no two nearer than STEP can move them, none near 0."""
    size = math.prod(shape)
    return (np.random.default_rng(0).permutation(size).reshape(shape) + 0.5 - size // 2) / size


def check_backward(operation: Callable, *inputs: NDArray) -> None:
    """The gradients of a random weighting of all outputs, against central differences in each input."""
    y, backward = operation(*inputs)
    dy = draw(*y.shape, seed=1)
    gradients = backward(dy)
    for gradient, x in zip(gradients if isinstance(gradients, tuple) else (gradients,), inputs, strict=True):
        expected = np.empty(x.shape)
        for index in np.ndindex(x.shape):
            value = x[index]
            x[index] = value + STEP
            above = (operation(*inputs)[0] * dy).sum()
            x[index] = value - STEP
            below = (operation(*inputs)[0] * dy).sum()
            x[index] = value
            expected[index] = (above - below) / (2 * STEP)
        assert deviation(gradient, expected) <= DIFFERENCES


# The operations


def before(pixels: int, size: int, stride: int, padding: str) -> int:
    """Zeros above, or on the left: of "same", half of what makes every ⌈pixels / stride⌉-th window whole."""
    last = (math.ceil(pixels / stride) - 1) * stride + size  # where the last window ends
    return size // 2 if padding == "symmetric" else max(last - pixels, 0) // 2


def slow_convolution(x: NDArray, weight: NDArray, bias: NDArray, stride: int, padding: str) -> NDArray:
    """From the definition, one multiplication at a time; outside the image is zero."""
    (n, c, height, width), (o, c_group, k, _) = x.shape, weight.shape
    o_group = o // (c // c_group)
    top, left = (before(pixels, k, stride, padding) for pixels in (height, width))
    y = np.zeros((n, o, math.ceil(height / stride), math.ceil(width / stride)))
    for image, channel, row, column in np.ndindex(y.shape):
        y[image, channel, row, column] = bias[channel]
        for inner, i, j in np.ndindex(c_group, k, k):
            source_row, source_column = row * stride + i - top, column * stride + j - left
            if 0 <= source_row < height and 0 <= source_column < width:
                pixel = x[image, channel // o_group * c_group + inner, source_row, source_column]
                y[image, channel, row, column] += pixel * weight[channel, inner, i, j]
    return y


@pytest.mark.parametrize("size", [(7, 7), (8, 5)])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_convolution(size: tuple[int, int], groups: int, kernel: int, stride: int, padding: str) -> None:
    x, bias = draw(2, 4, *size), draw(8)
    weight = draw(8, 4 // groups, kernel, kernel)
    y, _ = convolution(x, weight, bias, stride, padding)
    assert deviation(y, slow_convolution(x, weight, bias, stride, padding)) <= EXACT
    check_backward(
        lambda x, weight, bias: convolution(x, weight, bias, stride, padding),
        x[:, :, :5],
        weight,
        bias,
    )


def test_a_convolution_keeps_no_unrolled_windows_for_the_way_back() -> None:
    x, weight = np.zeros((2, 16, 32, 32)), np.zeros((16, 16, 3, 3))
    tracemalloc.start()
    kept = convolution(x, weight, np.zeros(16))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept
    assert size < 3 * x.nbytes  # the output and the padded images


def test_batch_norm_with_batch_statistics() -> None:
    x, weight, bias = 3 + 2 * draw(2, 3, 4, 5), draw(3), draw(3)
    y, mean, var, _ = batch_norm_training(x, weight, bias, EPSILON)
    for channel in range(3):
        values = x[:, channel].ravel().tolist()
        average = sum(values) / 40
        spread = sum((value - average) ** 2 for value in values) / 40  # biased
        assert mean[channel] == pytest.approx(average, rel=EXACT)
        assert var[channel] == pytest.approx(spread, rel=EXACT)
        expected = (x[:, channel] - average) / math.sqrt(spread + EPSILON) * weight[channel] + bias[channel]
        assert deviation(y[:, channel], expected) <= EXACT

    def operation(*inputs: NDArray) -> tuple[NDArray, Callable]:
        y, _, _, backward = batch_norm_training(*inputs, EPSILON)
        return y, backward

    check_backward(operation, x, weight, bias)


def test_batch_norm_of_one_value_a_channel_is_its_bias() -> None:
    x, weight, bias = draw(1, 3, 1, 1), draw(3), draw(3)
    y, mean, var, backward = batch_norm_training(x, weight, bias, EPSILON)
    dx, dweight, dbias = backward(np.ones((1, 3, 1, 1)))
    np.testing.assert_array_equal(y[0, :, 0, 0], bias)
    np.testing.assert_array_equal(mean, x[0, :, 0, 0])
    assert not var.any() and not dx.any() and not dweight.any()
    np.testing.assert_array_equal(dbias, np.ones(3))


def test_batch_norm_with_given_statistics() -> None:
    x, weight, bias, mean, var = draw(2, 3, 4, 5), draw(3), draw(3), draw(3), draw(3) ** 2
    y = batch_norm(x, weight, bias, mean, var, EPSILON)
    for index in np.ndindex(x.shape):
        c = index[1]
        expected = (x[index] - mean[c]) / math.sqrt(var[c] + EPSILON) * weight[c] + bias[c]
        assert y[index] == pytest.approx(expected, rel=EXACT, abs=EXACT)


def test_relu() -> None:
    y, backward = relu(np.array([-2.0, -0.0, 0.0, 3.0]))
    np.testing.assert_array_equal(y, [0, 0, 0, 3])
    np.testing.assert_array_equal(backward(np.ones(4)), [0, 0, 0, 1])
    check_backward(relu, spaced(2, 3, 4, 5))


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("size", [(6, 6), (7, 4), (1, 1)])
def test_max_pool(size: tuple[int, int], padding: str) -> None:
    x = spaced(2, 3, *size) - 1  # all negative: padding with zeros would win
    y, _ = max_pool(x, padding)
    assert y.shape == (2, 3, (size[0] + 1) // 2, (size[1] + 1) // 2)
    firsts = [before(pixels, 3, 2, padding) for pixels in size]
    for n, c, *place in np.ndindex(y.shape):
        starts = [2 * i - first for i, first in zip(place, firsts, strict=True)]
        rows, columns = (slice(max(start, 0), start + 3) for start in starts)
        assert y[n, c, *place] == x[n, c, rows, columns].max()
    check_backward(lambda x: max_pool(x, padding), x)


def test_max_pool_gives_the_gradient_of_equals_to_the_first() -> None:
    _, backward = max_pool(np.ones((1, 1, 2, 2)), "symmetric")
    np.testing.assert_array_equal(backward(np.full((1, 1, 1, 1), 5.0)), [[[[5, 0], [0, 0]]]])


def test_global_average_pool() -> None:
    x = draw(2, 3, 4, 5)
    y, _ = global_average_pool(x)
    for n, c in np.ndindex(2, 3):
        assert y[n, c] == pytest.approx(sum(x[n, c].ravel().tolist()) / 20, rel=EXACT, abs=EXACT)
    check_backward(global_average_pool, x)


def test_dense() -> None:
    x, weight, bias = draw(3, 4), draw(5, 4), draw(5)
    y, _ = dense(x, weight, bias)
    for n, o in np.ndindex(3, 5):
        expected = bias[o] + sum(x[n, i] * weight[o, i] for i in range(4))
        assert y[n, o] == pytest.approx(expected, rel=EXACT, abs=EXACT)
    check_backward(dense, x, weight, bias)


def test_softmax_cross_entropy() -> None:
    logits, labels = 3 * draw(4, 3), np.array([0, 2, 1, 2])
    loss, gradient = softmax_cross_entropy(logits, labels)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert loss == pytest.approx(sum(-math.log(probabilities[n, labels[n]]) for n in range(4)) / 4, rel=EXACT)
    expected = np.empty((4, 3))
    for index in np.ndindex(4, 3):
        step = np.zeros((4, 3))
        step[index] = STEP
        above, below = (softmax_cross_entropy(logits + sign * step, labels)[0] for sign in (1, -1))
        expected[index] = (above - below) / (2 * STEP)
    assert deviation(gradient, expected) <= DIFFERENCES


def test_softmax_cross_entropy_does_not_overflow() -> None:
    loss, gradient = softmax_cross_entropy(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0]))
    assert loss == 5e3
    np.testing.assert_array_equal(gradient, [[0, 0], [-0.5, 0.5]])


# The network


class Written:
    """The layers of a network with given weights in evaluation, to write networks out in full."""

    def __init__(self, arch: Architecture) -> None:
        self.arch, self.weights = arch, random_weights(arch)

    def conv(self, name: str, x: NDArray, stride: int) -> NDArray:
        w, padding = self.weights, self.arch.stem_padding if name == "b1.conv" else self.arch.padding
        return convolution(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding)[0]

    def bn(self, name: str, x: NDArray) -> NDArray:
        kinds = ("weight", "bias", "running_mean", "running_var")
        return batch_norm(x, *(self.weights[f"{name}.{kind}"] for kind in kinds), self.arch.epsilon)

    def stem(self, x: NDArray) -> NDArray:
        y = np.maximum(self.bn("b1.bn", self.conv("b1.conv", x, 2)), 0)
        return max_pool(y, self.arch.padding)[0]

    def last(self, x: NDArray) -> NDArray:
        return x.mean((2, 3)) @ self.weights["last.weight"].T + self.weights["last.bias"]

    def residual(self, name: str, x: NDArray, stride: int, shortcut: bool) -> NDArray:
        """He et al. figure 2; the shortcut's convolution is normalised where the network says so."""
        y = np.maximum(self.bn(f"{name}.bn1", self.conv(f"{name}.conv1", x, stride)), 0)
        y = self.bn(f"{name}.bn2", self.conv(f"{name}.conv2", y, 1))
        if shortcut:
            x = self.conv(f"{name}.conv3", x, stride)
            x = self.bn(f"{name}.bn3", x) if self.arch.shortcut_norm else x
        return np.maximum(y + x, 0)

    def resnext(self, name: str, x: NDArray, stride: int, shortcut: bool) -> NDArray:
        """Xie et al. figure 3c; the stride is the middle convolution's or the first's."""
        first, middle = (stride, 1) if self.arch.stride_on == "1x1" else (1, stride)
        y = np.maximum(self.bn(f"{name}.bn1", self.conv(f"{name}.conv1", x, first)), 0)
        y = np.maximum(self.bn(f"{name}.bn2", self.conv(f"{name}.conv2", y, middle)), 0)
        y = self.bn(f"{name}.bn3", self.conv(f"{name}.conv3", y, 1))
        if shortcut:
            x = self.bn(f"{name}.bn4", self.conv(f"{name}.conv4", x, stride))
        return np.maximum(y + x, 0)


AXES = {"epsilon": EPSILON, "padding": "same", "stem_padding": "same"}


@pytest.mark.parametrize("axes", [{}, {"shortcut_norm": True, **AXES}], ids=["the chapter's", "axes"])
def test_a_residual_network_written_out(axes: dict[str, Any]) -> None:
    arch = replace(RESIDUAL, **axes)
    x, _ = random_batch(arch, 2, 37, 44)
    net = Written(arch)
    expected = {"b1": net.stem(x)}
    expected["b2"] = net.residual("b2.0", expected["b1"], stride=1, shortcut=False)
    inner = net.residual("b3.0", expected["b2"], stride=2, shortcut=True)
    expected["b3"] = net.residual("b3.1", inner, stride=1, shortcut=False)
    expected["last"] = net.last(expected["b3"])
    check_activations(arch, x, expected)


@pytest.mark.parametrize("axes", [{}, {"stride_on": "1x1", **AXES}], ids=["the chapter's", "axes"])
def test_a_resnext_network_written_out(axes: dict[str, Any]) -> None:
    arch = replace(RESNEXT, **axes)
    x, _ = random_batch(arch, 2, 37, 44)
    net = Written(arch)
    expected = {"b1": net.stem(x)}
    inner = net.resnext("b2.0", expected["b1"], stride=1, shortcut=True)
    expected["b2"] = net.resnext("b2.1", inner, stride=1, shortcut=False)
    expected["b3"] = net.resnext("b3.0", expected["b2"], stride=2, shortcut=True)
    expected["last"] = net.last(expected["b3"])
    check_activations(arch, x, expected)


def check_activations(arch: Architecture, x: NDArray, expected: dict[str, NDArray]) -> None:
    model = build("oracle", arch)
    model.load_weights(random_weights(arch))
    found = model.activations(x)
    assert deviation(found, expected) <= EXACT
    np.testing.assert_array_equal(model.predict(x), found["last"])


@NETWORKS
def test_the_gradient_of_every_parameter_is_the_slope_of_the_loss(arch: Architecture) -> None:
    weights = random_weights(arch)
    x, y = random_batch(arch, 3, 33, 40)
    model = build("oracle", arch)
    model.load_weights(weights)
    gradients = model.loss_and_gradients(x, y).gradients
    assert list(gradients) == [name for name in weights if not is_statistic(name)]

    def slope(direction: dict[str, NDArray]) -> float:
        losses = []
        for sign in (1, -1):
            steps = {name: sign * STEP * step for name, step in direction.items()}
            model.load_weights({name: w + steps.get(name, 0) for name, w in weights.items()})
            losses.append(model.loss_and_gradients(x, y).loss)
        return (losses[0] - losses[1]) / (2 * STEP)

    directions = {name: draw(*gradient.shape) for name, gradient in gradients.items()}
    expected = {name: (gradients[name] * directions[name]).sum() for name in gradients}
    found = {name: slope({name: directions[name]}) for name in gradients}
    largest = max(abs(value) for value in expected.values())
    assert {n: (found[n], expected[n]) for n in found if abs(found[n] - expected[n]) > 1e-6 * largest} == {}
    assert slope(directions) == pytest.approx(sum(expected.values()), abs=1e-6 * largest)


@NETWORKS
def test_evaluation_normalises_with_the_running_statistics_and_training_with_the_batch(
    arch: Architecture,
) -> None:
    """Told that the running statistics are the batch's, evaluation gives the logits of training."""
    x, y = random_batch(arch, 3, 33, 40)
    weights = random_weights(arch)
    zero = {name: 0 * array if is_statistic(name) else array for name, array in weights.items()}
    model = build("oracle", arch)
    model.load_weights(zero)
    training = model.loss_and_gradients(x, y)
    model.load_weights(zero | {name: array / (1 - arch.decay) for name, array in training.running.items()})
    assert deviation(model.predict(x), training.logits) <= EXACT
    np.testing.assert_array_equal(model.loss_and_gradients(x, y).logits, training.logits)


@NETWORKS
def test_running_statistics_keep_the_decay_of_the_old_value(arch: Architecture) -> None:
    x, y = random_batch(arch, 3, 33, 40)
    weights = random_weights(arch)
    model = build("oracle", arch)
    model.load_weights(weights)
    running = model.loss_and_gradients(x, y).running
    assert list(running) == [name for name in weights if is_statistic(name)]
    stem = convolution(x, weights["b1.conv.weight"], weights["b1.conv.bias"], 2, arch.stem_padding)[0]
    for statistic, batch in (("running_mean", stem.mean((0, 2, 3))), ("running_var", stem.var((0, 2, 3)))):
        name = f"b1.bn.{statistic}"
        kept = arch.decay * weights[name]
        assert deviation(running[name], kept + (1 - arch.decay) * batch) <= EXACT


@NETWORKS
def test_loss_and_gradients_leaves_the_model_unchanged(arch: Architecture) -> None:
    weights = random_weights(arch)
    model = build("oracle", arch)
    model.load_weights(weights)
    first, second = (model.loss_and_gradients(*random_batch(arch, 3, 33, 40)) for _ in range(2))
    for name, array in model.weights().items():
        np.testing.assert_array_equal(array, weights[name])
    assert first.loss == second.loss


def test_train_step_is_sgd_with_momentum_and_weight_decay() -> None:
    x, y = random_batch(RESIDUAL, 3, 33, 40)
    weights = random_weights(RESIDUAL)
    model = build("oracle", RESIDUAL)
    model.load_weights(weights)
    velocity = {name: np.zeros(w.shape) for name, w in weights.items() if not is_statistic(name)}
    for lr, momentum, decay in [(0.1, 0.9, 0.01), (0.2, 0.9, 0.01), (0.05, 0.9, 0.01), (0.1, 0.5, 0.0)]:
        if momentum == 0.5:  # other settings: the velocity starts from zero again
            velocity = {name: 0 * v for name, v in velocity.items()}
        e = model.loss_and_gradients(x, y)
        for name, gradient in e.gradients.items():
            velocity[name] = momentum * velocity[name] + gradient + decay * weights[name]
            weights[name] = weights[name] - lr * velocity[name]
        weights |= e.running
        assert model.train_step(x, y, lr, momentum, decay) == e.loss
        assert deviation(model.weights(), weights) <= EXACT


def test_loading_weights_starts_the_velocity_anew() -> None:
    x, y = random_batch(RESIDUAL, 3, 33, 40)
    model = build("oracle", RESIDUAL)
    states = []
    for _ in range(2):
        model.load_weights(random_weights(RESIDUAL))
        model.train_step(x, y, lr=0.1, momentum=0.9)
        states.append(model.weights())
    assert deviation(*states) == 0


def test_the_oracle_computes_in_float64_on_the_cpu_only() -> None:
    model = build("oracle", RESIDUAL, "float32")
    assert {array.dtype for array in model.weights().values()} == {np.dtype("float64")}
    with pytest.raises(BadInput, match="the oracle has no GPU"):
        oracle.Model(RESIDUAL, device="gpu")

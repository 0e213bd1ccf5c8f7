"""The specification, executable: the network in float64 NumPy, forward and backward.

Each operation returns its output and a function from the gradient of the loss with respect to that
output to the gradients with respect to its inputs. A network is operations in a row, and its
gradient is the same row walked backwards: that is all of backpropagation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

import common.backend as contract
from common.architecture import Architecture, Block
from common.errors import BadInput
from common.recipe import PLAIN, Recipe, is_last
from common.weights import Weights

Array = NDArray[np.floating]
Pads = list[tuple[int, int]]  # pixels above and below, left and right


def pads(x: Array, size: int, stride: int, padding: str) -> Pads:
    """What goes around images (N, C, H, W) before windows of this size and stride are cut out of them.

    "symmetric" is size // 2 on every side. "same" is as little as makes ⌈H / stride⌉ rows of windows and
    ⌈W / stride⌉ columns; where it is odd, the one pixel more is below, or on the right.
    """
    if padding == "symmetric":
        return [(size // 2, size // 2)] * 2
    totals = [max((-(-pixels // stride) - 1) * stride + size - pixels, 0) for pixels in x.shape[2:]]
    return [(total // 2, total - total // 2) for total in totals]


def pad(x: Array, around: Pads, value: float = 0.0) -> Array:
    """(N, C, H, W) → (N, C, top + H + bottom, left + W + right)."""
    return np.pad(x, ((0, 0), (0, 0), *around), constant_values=value)


def unpad(x: Array, around: Pads) -> Array:
    """The images that `pad` was given."""
    (top, bottom), (left, right) = around
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


def windows(x: Array, size: int, stride: int) -> Array:
    """(N, C, H, W) → (N, C, H', W', size, size): every window, as a view."""
    return sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]


def scatter_windows(dwindows: Array, shape: tuple[int, ...], stride: int) -> Array:
    """The gradient of `windows`: each pixel collects from every window it was in."""
    dx = np.zeros(shape)
    height, width, size = dwindows.shape[2], dwindows.shape[3], dwindows.shape[-1]
    for i in range(size):
        for j in range(size):
            dx[:, :, i : i + stride * height : stride, j : j + stride * width : stride] += dwindows[..., i, j]
    return dx


def convolution(
    x: Array, weight: Array, bias: Array, stride: int = 1, padding: str = "symmetric"
) -> tuple[Array, Callable]:
    """Cross-correlation in groups, as a matrix product over unrolled windows (im2col).

    `weight` is (O, C / groups, k, k): its second axis says how many groups there are.
    """
    (n, c), (o, c_group, k, _) = x.shape[:2], weight.shape
    groups = c // c_group
    around = pads(x, k, stride, padding)
    padded = pad(x, around)
    height, width = windows(padded, k, stride).shape[2:4]

    def columns() -> Array:  # k·k times as large as x, so not kept for the way back
        patches = windows(padded, k, stride).reshape(n, groups, c_group, height, width, k, k)
        return patches.transpose(1, 2, 5, 6, 0, 3, 4).reshape(groups, c_group * k * k, n * height * width)

    # (groups, O/groups, C/groups·k·k) times (groups, C/groups·k·k, N·H'·W')
    matrix = weight.reshape(groups, o // groups, c_group * k * k)
    y = (matrix @ columns()).reshape(o, n, height, width).transpose(1, 0, 2, 3) + bias[:, None, None]

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dproduct = dy.transpose(1, 0, 2, 3).reshape(groups, o // groups, n * height * width)
        dweight = (dproduct @ columns().transpose(0, 2, 1)).reshape(weight.shape)
        dcolumns = matrix.transpose(0, 2, 1) @ dproduct
        dpatches = dcolumns.reshape(c, k, k, n, height, width).transpose(3, 0, 4, 5, 1, 2)
        dx = unpad(scatter_windows(dpatches, padded.shape, stride), around)
        return dx, dweight, dy.sum((0, 2, 3))

    return y, backward


def channel_mean(x: Array) -> Array:
    """(N, C, H, W) → (C,).

    Pixels first, which NumPy adds in pairs: added one by one, the equal pixels of an image's background
    pile up their rounding errors.
    """
    return x.mean((2, 3)).mean(0)


def batch_norm(x: Array, weight: Array, bias: Array, mean: Array, var: Array, epsilon: float) -> Array:
    """Normalise each channel with given statistics. Ioffe and Szegedy (2015), algorithm 2."""
    scale = weight / np.sqrt(var + epsilon)
    return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]


def batch_norm_training(
    x: Array, weight: Array, bias: Array, epsilon: float
) -> tuple[Array, Array, Array, Callable]:
    """Normalise each channel with its own mean and biased variance, which are returned too.

    Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 1 and section 3.
    """
    mean = channel_mean(x)
    var = channel_mean((x - mean[:, None, None]) ** 2)
    deviation = np.sqrt(var + epsilon)[:, None, None]
    normalised = (x - mean[:, None, None]) / deviation
    y = normalised * weight[:, None, None] + bias[:, None, None]

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dweight, dbias = (dy * normalised).sum((0, 2, 3)), dy.sum((0, 2, 3))
        n = x.size // x.shape[1]
        centred = dy - dbias[:, None, None] / n - normalised * dweight[:, None, None] / n
        return centred * weight[:, None, None] / deviation, dweight, dbias

    return y, mean, var, backward


def relu(x: Array) -> tuple[Array, Callable]:
    """max(x, 0), with gradient 0 at 0."""
    return np.maximum(x, 0), lambda dy: dy * (x > 0)


def max_pool(x: Array, padding: str, size: int = 3, stride: int = 2) -> tuple[Array, Callable]:
    """Largest value of each window, over −∞ outside the image; the first one gets the gradient."""
    around = pads(x, size, stride, padding)
    padded = pad(x, around, -np.inf)
    patches = windows(padded, size, stride)
    flat = patches.reshape(*patches.shape[:4], size * size)
    largest = flat.argmax(-1)[..., None]

    def backward(dy: Array) -> Array:
        dflat = np.zeros(flat.shape)
        np.put_along_axis(dflat, largest, dy[..., None], -1)
        return unpad(scatter_windows(dflat.reshape(patches.shape), padded.shape, stride), around)

    return np.take_along_axis(flat, largest, -1)[..., 0], backward


def global_average_pool(x: Array) -> tuple[Array, Callable]:
    """(N, C, H, W) → (N, C)."""
    area = x.shape[2] * x.shape[3]
    return x.mean((2, 3)), lambda dy: np.broadcast_to(dy[:, :, None, None] / area, x.shape)


def dense(x: Array, weight: Array, bias: Array) -> tuple[Array, Callable]:
    """(N, in) → (N, out), with `weight` (out, in)."""
    return x @ weight.T + bias, lambda dy: (dy @ weight, dy.T @ x, dy.sum(0))


def softmax(logits: Array) -> Array:
    """Probabilities (N, classes)."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))  # so that none overflows
    return exponentials / exponentials.sum(1, keepdims=True)


def softmax_cross_entropy(
    logits: Array, labels: NDArray[np.integer], label_smoothing: float = 0.0
) -> tuple[float, Array]:
    """Mean loss over the batch, and its gradient with respect to the logits.

    With smoothing e, the loss asks for (1 - e) of the label and for e spread over all K classes.
    Szegedy et al., "Rethinking the Inception architecture" (2015), section 7.
    """
    shifted = logits - logits.max(1, keepdims=True)  # so that no exponential overflows
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    n, k = logits.shape
    targets = np.full((n, k), label_smoothing / k)
    targets[np.arange(n), labels] += 1 - label_smoothing
    loss = -(targets * log_probabilities).sum(1).mean()
    return float(loss), (np.exp(log_probabilities) - targets) / n


class Pass:
    """One pass through the network: layers by canonical name, gradients and statistics as they come."""

    def __init__(self, arch: Architecture, weights: Weights, training: bool) -> None:
        self.arch = arch
        self.weights = weights
        self.training = training
        self.gradients: Weights = {}
        self.running: Weights = {}

    # The layers without parameters: neither names nor gradients to collect.
    relu = staticmethod(relu)
    max_pool = staticmethod(max_pool)
    global_average_pool = staticmethod(global_average_pool)

    def convolution(
        self, name: str, x: Array, stride: int = 1, padding: str = "symmetric"
    ) -> tuple[Array, Callable]:
        """A convolution layer."""
        y, backward = convolution(x, *self._parameters(name), stride, padding)
        return y, self._collect(name, backward)

    def batch_norm(self, name: str, x: Array) -> tuple[Array, Callable]:
        """A batch norm layer; in training it notes what the running statistics become."""
        mean, var = (self.weights[f"{name}.{statistic}"] for statistic in ("running_mean", "running_var"))
        if not self.training:
            y = batch_norm(x, *self._parameters(name), mean, var, self.arch.epsilon)
            return y, evaluation_has_no_gradient
        y, batch_mean, batch_var, backward = batch_norm_training(
            x, *self._parameters(name), self.arch.epsilon
        )
        decay = self.arch.decay
        self.running[f"{name}.running_mean"] = decay * mean + (1 - decay) * batch_mean
        self.running[f"{name}.running_var"] = decay * var + (1 - decay) * batch_var
        return y, self._collect(name, backward)

    def dense(self, name: str, x: Array) -> tuple[Array, Callable]:
        """A dense layer."""
        y, backward = dense(x, *self._parameters(name))
        return y, self._collect(name, backward)

    def stem(self, x: Array) -> tuple[Array, Callable]:
        """b1: 7×7 convolution at stride 2, batch norm, ReLU, 3×3 max-pool at stride 2."""
        y, convolution_back = self.convolution("b1.conv", x, 2, self.arch.stem_padding)  # H → ⌈H / 2⌉
        y, norm_back = self.batch_norm("b1.bn", y)
        y, relu_back = self.relu(y)
        y, pool_back = self.max_pool(y, self.arch.padding)  # → ⌈H / 4⌉
        return y, lambda dy: convolution_back(norm_back(relu_back(pool_back(dy))))

    def block(self, block: Block, x: Array) -> tuple[Array, Callable]:
        """Residual or ResNeXtBlock: a chain of convolutions and the shortcut, added, then ReLU."""
        y, backs = x, []
        for i, stride in enumerate(block.chain, start=1):
            y, convolution_back = self.convolution(f"{block.name}.conv{i}", y, stride, block.padding)
            y, norm_back = self.batch_norm(f"{block.name}.bn{i}", y)
            backs += [convolution_back, norm_back]
            if i < len(block.chain):
                y, relu_back = self.relu(y)
                backs.append(relu_back)

        shortcut, shortcut_backs = x, []
        if block.use_1x1conv:
            i = len(block.chain) + 1
            shortcut, convolution_back = self.convolution(f"{block.name}.conv{i}", x, block.strides)
            shortcut_backs.append(convolution_back)
            if block.groups is not None or block.shortcut_norm:
                shortcut, norm_back = self.batch_norm(f"{block.name}.bn{i}", shortcut)
                shortcut_backs.append(norm_back)
        y, addition_back = self.addition(y, shortcut)

        def backward(dy: Array) -> Array:
            dsum = addition_back(dy)
            return _walk_back(backs, dsum) + _walk_back(shortcut_backs, dsum)

        return y, backward

    def addition(self, y: Array, shortcut: Array) -> tuple[Array, Callable]:
        """The end of a block: both ways added, then ReLU. The sum's gradient is that of either way."""
        return self.relu(y + shortcut)

    def head(self, x: Array) -> tuple[Array, Callable]:
        """last: global average pool, then the logits."""
        y, pool_back = self.global_average_pool(x)
        logits, dense_back = self.dense("last", y)
        return logits, lambda dy: pool_back(dense_back(dy))

    def network(self, x: Array) -> tuple[list[Array], Callable]:
        """The outputs of b1, b2, …, last, and the way back from the logits."""
        y, back = self.stem(x)
        outputs, backs = [y], [back]
        for stage in self.arch.blocks():
            for block in stage:
                y, back = self.block(block, y)
                backs.append(back)
            outputs.append(y)
        logits, back = self.head(y)
        return [*outputs, logits], lambda dy: _walk_back([*backs, back], dy)

    def _parameters(self, name: str) -> tuple[Array, Array]:
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    def _collect(self, name: str, backward: Callable) -> Callable:
        def collecting(dy: Array) -> Array:
            dx, self.gradients[f"{name}.weight"], self.gradients[f"{name}.bias"] = backward(dy)
            return dx

        return collecting


def _walk_back(backs: list[Callable], dy: Array) -> Array:
    for back in reversed(backs):
        dy = back(dy)
    return dy


def evaluation_has_no_gradient(dy: Array) -> Array:
    """The way back through a pass with running statistics: there is none."""
    raise NotImplementedError("gradients are defined for training, with batch statistics")


class Model(contract.Model):
    """The oracle under the contract. It computes in float64 only, on the CPU only.

    Attributes:
        new_pass: what makes a pass; a model that computes otherwise has its own.
    """

    new_pass: Callable[[Architecture, Weights, bool], Pass] = Pass

    def __init__(self, arch: Architecture, dtype: str = "float64", device: str = "cpu") -> None:
        if device != "cpu":
            raise BadInput("the oracle has no GPU; build it with device cpu")
        super().__init__(arch, "float64", "cpu")
        self._velocity: Weights = {}
        self._average: Weights = {}

    def _load_weights(self, weights: Weights) -> None:
        self._state = weights

    def _weights(self) -> Weights:
        return self._state

    def _predict(self, x: Array) -> Array:
        return self._activations(x)["last"]

    def _activations(self, x: Array) -> dict[str, Array]:
        outputs, _ = self.new_pass(self.arch, self._state, False).network(x)
        return dict(zip(self.arch.stage_names(), outputs, strict=True))

    def _loss_and_gradients(self, x: Array, y: NDArray) -> contract.Evaluation:
        return self._training_pass(x, y, PLAIN)

    def _training_pass(self, x: Array, y: NDArray, recipe: Recipe) -> contract.Evaluation:
        """The loss that the recipe asks for, and the gradients of what it trains."""
        one_pass = self.new_pass(self.arch, self._state, not recipe.freeze)
        outputs, backward = one_pass.network(x)
        if recipe.freeze:  # the way back ends at the classifier
            *_, features, _ = outputs
            _, backward = one_pass.head(features)
        loss, dlogits = softmax_cross_entropy(outputs[-1], y, recipe.label_smoothing)
        backward(dlogits)
        gradients = {name: one_pass.gradients[name] for name in self._state if recipe.trains(name)}
        return contract.Evaluation(loss, outputs[-1], gradients, one_pass.running)

    def _keep(self) -> Callable[[], bool]:
        before = dict(self._state), dict(self._velocity), dict(self._average)

        def undo() -> bool:
            self._state, self._velocity, self._average = before
            return True

        return undo

    def _new_optimizer(self, recipe: Recipe) -> None:
        trained = [name for name in self._state if recipe.momentum and recipe.trains(name)]
        self._velocity = {name: np.zeros(self._state[name].shape) for name in trained}
        self._average = dict(self._state) if recipe.ema else {}

    def _begin_step(self, x: Array, y: NDArray, lr: float, recipe: Recipe) -> Callable[[], tuple[float, int]]:
        result = self._training_pass(x, y, recipe)
        for name, gradient in result.gradients.items():
            rate = lr if is_last(name) else recipe.lr_backbone * lr
            decay = 0.0 if recipe.no_decay_norm and gradient.ndim == 1 else recipe.weight_decay
            change = gradient + decay * self._state[name]
            if recipe.momentum:
                self._velocity[name] = change = recipe.momentum * self._velocity[name] + change
            self._state[name] = self._state[name] - rate * change
        self._state.update(result.running)
        for name, weight in self._state.items() if recipe.ema else ():
            self._average[name] = recipe.ema * self._average[name] + (1 - recipe.ema) * weight
        return lambda: (result.loss, int((result.logits.argmax(1) == y).sum()))

    def _optimizer_state(self) -> Weights:
        return self._velocity

    def _load_optimizer_state(self, state: Weights) -> None:
        self._velocity = state

    def _averaged_weights(self) -> Weights:
        return self._average

    def _load_averaged_weights(self, weights: Weights) -> None:
        self._average = weights

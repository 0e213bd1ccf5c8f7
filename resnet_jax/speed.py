"""What our speed is held against: JAX's own matrix product and the network of Flax's ImageNet example."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from jax import numpy as jnp
from jax.typing import DTypeLike
from numpy.typing import NDArray

from common.architecture import Architecture, Block
from common.backend import array_type
from common.layout import nhwc


def precision(dtype: str) -> str:
    """Of the products of float32 on a GPU."""
    return "tensorfloat32" if dtype == "tf32" else "highest"


class Reference:
    """The network and the step of Flax's ImageNet example, in float32 at XLA's full precision.

    The example has no ResNeXt and no wide ResNet: these are its network with other bottlenecks, "plain Flax".

    Args:
        name: of the network.
        arch: its stages, channels and classes.
        dtype: "float32", "float64", "bfloat16" or "tf32".
        device: "cpu" or "gpu".
        compile: JAX always does.
    """

    def __init__(self, name: str, arch: Architecture, dtype: str, device: str, compile: bool = True) -> None:
        self.label = "Flax's ImageNet example" if name.startswith("resnet") else "plain Flax"
        self._device = jax.devices(device)[0]
        self._type = array_type(dtype)
        self._x64 = dtype == "float64"
        self._precision = precision(dtype) if device == "gpu" else None
        self._net = Example(arch, jnp.dtype(dtype.replace("tf32", "float32")))
        self._state: list[Any] = []
        self._momentum = 0.0

    def train_step(self, x: NDArray, y: NDArray, lr: float, momentum: float = 0.0) -> float:
        """One step of SGD on images (N, C, H, W) and labels (N,); returns the loss before it."""
        with jax.enable_x64(self._x64), jax.default_matmul_precision(self._precision):
            X, Y = self._images_in(x), jax.device_put(y, self._device)
            params, batch_stats, *velocity = self._started(X)
            if not velocity or momentum != self._momentum:
                self._momentum = momentum
                velocity = [optax.sgd(lr, momentum).init(params)]
            *self._state, loss = train(self._net, lr, momentum, params, batch_stats, *velocity, X, Y)
            return float(loss)

    def predict(self, x: NDArray) -> NDArray:
        """Logits (N, classes) of images (N, C, H, W)."""
        with jax.enable_x64(self._x64), jax.default_matmul_precision(self._precision):
            X = self._images_in(x)
            params, batch_stats, *_ = self._started(X)
            return np.asarray(infer(self._net, params, batch_stats, X))

    def _started(self, X: Array) -> list[Any]:
        if not self._state:
            variables = jax.jit(partial(self._net.init, train=False))(jax.random.key(0), X[:1])
            variables = jax.tree.map(lambda leaf: leaf.astype(self._type), variables)
            self._state = [variables["params"], variables["batch_stats"]]
        return self._state

    def _images_in(self, x: NDArray) -> Array:
        return jax.device_put(nhwc(x).astype(self._type), self._device)


class Example(nn.Module):
    """The example's ResNet: padding "SAME", convolutions without bias, a batch norm on the shortcut."""

    arch: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, X: Array, train: bool) -> Array:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype
        )
        X = conv(self.arch.stem_channels, (7, 7), (2, 2), padding=[(3, 3), (3, 3)])(X)
        X = nn.max_pool(nn.relu(norm()(X)), (3, 3), strides=(2, 2), padding="SAME")
        for block in (block for stage in self.arch.blocks() for block in stage):
            X = self.residual(X, block, conv, norm)
        Y_hat = nn.Dense(self.arch.num_classes, dtype=self.dtype)(X.mean((1, 2)))
        return Y_hat.astype(jnp.promote_types(Y_hat.dtype, jnp.float32))

    def residual(self, X: Array, block: Block, conv: Any, norm: Any) -> Array:
        """A block of two 3×3 convolutions, or a bottleneck."""
        strides = (block.strides, block.strides)
        if block.groups is None:
            Y = nn.relu(norm()(conv(block.num_channels, (3, 3), strides)(X)))
            Y = norm()(conv(block.num_channels, (3, 3))(Y))
        else:
            number = block.bot_channels // block.groups
            Y = nn.relu(norm()(conv(block.bot_channels, (1, 1))(X)))
            Y = nn.relu(norm()(conv(block.bot_channels, (3, 3), strides, feature_group_count=number)(Y)))
            Y = norm()(conv(block.num_channels, (1, 1))(Y))
        if X.shape != Y.shape:
            X = norm()(conv(block.num_channels, (1, 1), strides)(X))
        return nn.relu(X + Y)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4, 5))
def train(
    net: Example, lr: float, momentum: float, params: Any, batch_stats: Any, velocity: Any, X: Array, Y: Array
) -> tuple[Any, Any, Any, Array]:
    """Parameters, running statistics and velocity after a step of SGD, and the loss before it."""

    def loss(params: Any) -> tuple[Array, Any]:
        variables = {"params": params, "batch_stats": batch_stats}
        Y_hat, updates = net.apply(variables, X, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(Y_hat, Y).mean(), updates["batch_stats"]

    (value, batch_stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    updates, velocity = optax.sgd(lr, momentum).update(gradients, velocity, params)
    return optax.apply_updates(params, updates), batch_stats, velocity, value


@partial(jax.jit, static_argnums=0)
def infer(net: Example, params: Any, batch_stats: Any, X: Array) -> Any:
    """Logits with running statistics."""
    return net.apply({"params": params, "batch_stats": batch_stats}, X, train=False)


def matrix_product(size: int, dtype: str, device: str) -> Callable[[], None]:
    """A function that multiplies two size × size matrices once, and waits for the result."""
    with jax.enable_x64(dtype == "float64"):
        A = jax.device_put(jnp.ones((size, size), dtype.replace("tf32", "float32")), jax.devices(device)[0])
        product = jax.jit(partial(jnp.matmul, precision=precision(dtype)))

    def multiply() -> None:
        with jax.enable_x64(dtype == "float64"):
            product(A, A).block_until_ready()

    return multiply


def device_memory() -> int:
    """Bytes: the most that this process has used of the GPU."""
    return jax.devices("gpu")[0].memory_stats()["peak_bytes_in_use"]

"""Where Flax is told to agree with the other three. Every trap is named, with its reason."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import linen as nn
from jax import Array, lax

from resnet_jax.convolution import convolve

# Trap: XLA takes three quarters of a GPU's memory at the start; another framework may need it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# Trap: Flax draws weights from LeCun normal. The others start from Glorot uniform
# (Glorot and Bengio 2010, equation 16); biases are 0 everywhere.
_glorot = nn.initializers.glorot_uniform()


def _precise() -> lax.Precision | None:
    """Trap: on a GPU, JAX rounds float32 products to TF32, ten bits of mantissa, unless told "highest".

    What the caller has chosen with `jax.default_matmul_precision` stays.
    """
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # JAX adds it as it starts
    return None if chosen else lax.Precision.HIGHEST


def Conv(features: int, kernel_size: tuple[int, int], padding: int | str = 0, **options: Any) -> nn.Conv:
    """Convolution over (N, H, W, C).

    `padding` is "symmetric", kernel_size // 2 zeros on every side; Flax's "same"; or a number of zeros.

    Trap: Flax pads "SAME" by default, which at stride 2 on an even size is 0 before and 1 after.
    Trap: XLA's convolution has blind spots on a CPU; see `convolve`.
    """
    return nn.Conv(
        features,
        kernel_size,
        padding=_pads(kernel_size) if padding == "symmetric" else padding,
        kernel_init=_glorot,
        precision=_precise(),
        conv_general_dilated=convolve,
        **options,
    )


def _pads(kernel_size: tuple[int, int]) -> list[tuple[int, int]]:
    return [(size // 2, size // 2) for size in kernel_size]


def Dense(features: int, **options: Any) -> nn.Dense:
    """Fully connected layer over (N, C)."""
    return nn.Dense(features, kernel_init=_glorot, precision=_precise(), **options)


# Trap: Flax's running statistics keep 0.99 of the old value, and its "fast" variance
# E[x²] − E[x]² cancels where the mean is large.
BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)


class Sequential(nn.Module):
    """Layers in a row, by name.

    Trap: Flax's own numbers its layers, functions too: a parameter's name would count what comes before it.
    Trap: `nn.remat` and its like sort the names in a dictionary, so their order is kept beside it.
    """

    layers: dict[str, Callable[[Array], Array]]
    order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.order = self.order or tuple(self.layers)
        super().__post_init__()

    def __call__(self, X: Array) -> Array:
        for name in self.order:
            X = self.layers[name](X)
        return X


def max_pool(X: Array, padding: str = "symmetric") -> Array:
    """3×3 max-pool at stride 2 over (N, H, W, C); `padding`, of −∞, is "symmetric" or "same"."""
    return nn.max_pool(X, (3, 3), strides=(2, 2), padding="SAME" if padding == "same" else _pads((3, 3)))


def global_average_pool(X: Array) -> Array:
    """(N, H, W, C) → (N, C)."""
    return X.mean((1, 2))

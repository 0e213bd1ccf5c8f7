"""How a convolution is computed where XLA's own is slow."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from jax import Array, lax
from jax import numpy as jnp


def convolve(
    X: Array, kernel: Array, strides: Sequence[int], padding: str | Sequence[tuple[int, int]], **options: Any
) -> Array:
    """`lax.conv_general_dilated` of images (N, H, W, C) and a kernel (height, width, C / groups, features).

    Trap: XLA's convolution on a CPU has blind spots, in which it takes up to 40 times as long as a product of
    matrices and, for the gradient of a grouped kernel, 1,000 times as long as PyTorch.
    """
    rates = options.get("rhs_dilation") or (1, 1)
    if isinstance(padding, str):
        reach = [(size - 1) * rate + 1 for size, rate in zip(kernel.shape[:2], rates, strict=True)]
        padding = lax.padtype_to_pads(X.shape[1:3], reach, strides, padding.upper())
    plain = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    if any(rate != 1 for rate in (*rates, *(options.get("lhs_dilation") or ()))):
        return plain(X, kernel)
    on_cpu = partial(_convolve_on_cpu, strides=strides, padding=padding, **options)
    return lax.platform_dependent(X, kernel, cpu=on_cpu, default=plain)


def _convolve_on_cpu(
    X: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    precision: Any,
    feature_group_count: int,
    **options: Any,
) -> Array:
    """As products of matrices where XLA is slow: for few pixels, 1×1, gradients at a stride in float64.

    Groups are put together into parts of 32 channels or more, with zeros between them in the kernels.
    """
    (height, width), (down, across), groups = kernel.shape[:2], strides, feature_group_count
    rows, columns = (
        (size + sum(zeros) - reach) // stride + 1
        for size, zeros, reach, stride in zip(X.shape[1:3], padding, (height, width), strides, strict=True)
    )
    few = rows * columns <= height * width
    strided = down * across > 1 and X.dtype == jnp.float64
    if few or (groups == 1 and (height * width == 1 or strided)):
        kernels = _in_parts(kernel, groups, X.shape[-1] // 32)
        X = jnp.pad(X, ((0, 0), *padding, (0, 0)))
        shifted = [
            X[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * across + 1 : across]
            for i in range(height)
            for j in range(width)
        ]
        return _multiply(shifted, kernels, precision).reshape(len(X), rows, columns, -1)
    kernels = _in_parts(kernel, groups, min(8, X.shape[-1] // 32))  # XLA compiles each part by itself
    conv = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    pairs = zip(jnp.split(X, len(kernels), -1), kernels, strict=True)
    return jnp.concatenate([conv(X, kernel, precision=precision) for X, kernel in pairs], -1)


def _in_parts(kernel: Array, groups: int, most: int) -> Array:
    """(height, width, C / groups, features) → (parts, height, width, C / parts, features / parts)."""
    if groups == 1:
        return kernel[None]
    height, width, channels, features = kernel.shape
    parts = next(n for n in range(max(1, most), 0, -1) if groups % n == 0)
    each = groups // parts
    kernels = kernel.reshape(height, width, channels, parts, each, features // groups)
    kernels = jnp.einsum("hwcpgf,Gg->phwGcgf", kernels, jnp.eye(each, dtype=kernel.dtype))
    return kernels.reshape(parts, height, width, each * channels, features // parts)


def _multiply(shifted: Sequence[Array], kernels: Array, precision: Any) -> Array:
    """What lies under each pixel of the kernels (N, H, W, C), times these: (N·H·W, features)."""
    parts, height, width, channels, features = kernels.shape
    if parts == 1:
        patches = jnp.concatenate(shifted, -1).reshape(-1, height * width * channels)
        return jnp.dot(patches, kernels.reshape(-1, features), precision=precision)
    patches = jnp.stack(shifted, 3).reshape(-1, height * width, parts, channels)
    kernels = kernels.reshape(parts, height * width, channels, features)
    return jnp.einsum("nkpc,pkcf->npf", patches, kernels, precision=precision)

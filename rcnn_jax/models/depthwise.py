"""Depthwise convolution of stride 1: each channel by a kernel of its own."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcnn_jax.models.layers import biased
from rcnn_jax.types import Array


class DepthwiseConv(nn.Module):
  """A depthwise convolution with biases, of an odd kernel, which keeps the size of the map."""

  kernel_size: int = 7
  kernel_init: nn.initializers.Initializer = nn.initializers.truncated_normal(0.02)

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x: f[B, H, W, C] -> f[B, H, W, C]."""
    size, channels = self.kernel_size, x.shape[-1]
    kernel = self.param("kernel", self.kernel_init, (size, size, 1, channels)).astype(x.dtype)
    y = depthwise(x, kernel, jax.config.jax_default_matmul_precision)
    return biased(y, self.param("bias", nn.initializers.zeros, (channels,)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: Array, kernel: Array, precision: str | None) -> Array:
  """x f[B, H, W, C] by f[k, k, 1, C] -> f[B, H, W, C].

  XLA has no fast form of it for the CPU. There it is a sum of shifted products instead, and its gradient by the kernel
  is summed row by row: 5 ms, and 16 ms for both gradients, against 82 ms and 293 ms for 2×80×80×96 by 7×7
  (processor time of 2 cores, jax 0.10.1, 2026-11-27).
  """
  return jax.lax.platform_dependent(
    x, kernel, cpu=_shifted, default=functools.partial(_convolution, precision=precision)
  )


def _convolution(x: Array, kernel: Array, precision: str | None) -> Array:
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (1, 1),
    ((kernel.shape[0] // 2,) * 2,) * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
    precision=precision,
  )


def _shifted(x: Array, kernel: Array) -> Array:
  """The sum over the kernel's cells of the map, shifted there, times the cell."""
  size, (height, width) = kernel.shape[0], x.shape[1:3]
  padded = jnp.pad(x, ((0, 0), *((size // 2,) * 2,) * 2, (0, 0))).astype(jnp.float32)
  products = (
    padded[:, row : row + height, column : column + width] * kernel[row, column, 0]
    for row in range(size)
    for column in range(size)
  )
  return sum(products).astype(x.dtype)


def _forward(x, kernel, precision):
  return depthwise(x, kernel, precision), (x, kernel)


def _backward(precision, residuals, cotangent):
  def by_rows(x, kernel, cotangent):
    return _shifted(cotangent, kernel[::-1, ::-1]), _kernel_gradient(x, cotangent, kernel.shape[0]).astype(
      kernel.dtype
    )

  def derived(x, kernel, cotangent):
    return jax.vjp(functools.partial(_convolution, precision=precision), x, kernel)[1](cotangent)

  return jax.lax.platform_dependent(*residuals, cotangent, cpu=by_rows, default=derived)


def _kernel_gradient(x: Array, cotangent: Array, size: int) -> Array:
  """f32[k, k, 1, C]: for each row of the cotangent, its products with the k rows of the map about it."""
  _, height, width, channels = x.shape
  padded = jnp.pad(x, ((0, 0), *((size // 2,) * 2,) * 2, (0, 0))).astype(jnp.float32)

  def add_row(index, total):
    image, row = index // height, index % height
    given = jax.lax.dynamic_slice(cotangent, (image, row, 0, 0), (1, 1, width, channels))[0, 0].astype(jnp.float32)

    def add_column(column, total):
      about = jax.lax.dynamic_slice(padded, (image, row, column, 0), (1, size, width, channels))[0]
      return total.at[:, column].add((about * given).sum(1))

    return jax.lax.fori_loop(0, size, add_column, total)

  total = jax.lax.fori_loop(0, len(x) * height, add_row, jnp.zeros((size, size, channels)))
  return total[:, :, None]


depthwise.defvjp(_forward, _backward)

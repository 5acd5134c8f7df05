"""Resizing within a program: what OpenCV and Pillow do on the host, for one image of any size on a static canvas.

The image stands in the top left corner of its array, and the resized one in that of its canvas: shapes are static, and
sizes are numbers of the program. Positions are quotients of whole numbers, so that they are as exact as the host's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rcnn_jax.types import Array

BITS = 11  # of the weights with which OpenCV resizes bytes


def linear(image: Array, size: Array, new_size: Array, canvas: tuple[int, int]) -> Array:
  """OpenCV's INTER_LINEAR: the four nearest pixels, of bytes in its whole numbers of 11 bits.

  Args:
    image: u8[H, W, 3] or f32[H, W, 3].
    size: i32[2], (height, width) of the image in its array, at least 1.
    new_size: i32[2], (height, width) that it gets.
    canvas: (height, width) of the result.

  Returns:
    [*canvas, 3] of the image's type; what stands beyond `new_size` has no meaning.
  """
  (top, bottom, down), (left, right, across) = (_neighbours(size[i], new_size[i], canvas[i]) for i in (0, 1))
  # At the left and the right border OpenCV takes the nearest column alone, at the others the nearest row twice.
  across = jnp.where(left == right, 0, across)
  down, across = down[:, None, None], across[:, None]
  if image.dtype != jnp.uint8:
    mixed = lambda rows: rows[:, left] * (1 - across) + rows[:, right] * across
    return mixed(image[top]) * (1 - down) + mixed(image[bottom]) * down
  whole = lambda weight: jnp.round(weight * 2**BITS).astype(jnp.int32)

  def mixed(rows):
    rows = rows.astype(jnp.int32)
    return (rows[:, left] * whole(1 - across) + rows[:, right] * whole(across)) >> 4

  of_rows = (mixed(image[top]) * whole(1 - down) >> 16) + (mixed(image[bottom]) * whole(down) >> 16)
  return ((of_rows + 2) >> 2).astype(jnp.uint8)


def pillow(image: Array, size: Array, new_size: Array, canvas: tuple[int, int]) -> Array:
  """Pillow's BILINEAR: a triangle as wide as the old pixels or the new ones, whichever are larger.

  Arguments and result are those of `linear`. Bytes are rounded after each of the two passes, as there.
  """
  down, across = (_triangles(size[i], new_size[i], canvas[i], image.shape[i]) for i in (0, 1))
  rounded = (lambda x: jnp.clip(jnp.floor(x + 0.5), 0, 255)) if image.dtype == jnp.uint8 else lambda x: x
  product = lambda spec, *factors: rounded(jnp.einsum(spec, *factors, precision=jax.lax.Precision.HIGHEST))
  columns = product("wx,yxc->ywc", across, image.astype(jnp.float32))
  return product("hy,ywc->hwc", down, columns).astype(image.dtype)


def _neighbours(old: Array, new: Array, length: int) -> tuple[Array, Array, Array]:
  """For each new pixel, the two old ones beside its centre, i32[length] each, and the weight of the second, f32."""
  numerator, denominator = (2 * jnp.arange(length, dtype=jnp.int32) + 1) * old - new, 2 * new
  with jax.enable_x64(True):  # divided in float32, one position in some thousands would be off by its last bit
    position = (numerator.astype(jnp.float64) / denominator.astype(jnp.float64)).astype(jnp.float32)
  first = jnp.floor(position)
  weight, first = position - first, first.astype(jnp.int32)
  return jnp.clip(first, 0, old - 1), jnp.clip(first + 1, 0, old - 1), weight


def _triangles(old: Array, new: Array, length: int, room: int) -> Array:
  """f32[length, room]: the weights of the old pixels in each new one; what lies beyond the old size has none."""
  centres = (2 * jnp.arange(length)[:, None] + 1) * old
  distance = jnp.abs(centres - (2 * jnp.arange(room) + 1) * new).astype(jnp.float32)
  weights = jnp.maximum(0, 1 - distance / (2 * jnp.maximum(old, new)).astype(jnp.float32))
  weights = jnp.where(jnp.arange(room) < old, weights, 0)
  return weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-6)

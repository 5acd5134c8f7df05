"""Keypoints between the canvas and the heat map of a region: what a head is to predict, and what it has predicted."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_CUBIC = -0.75  # PyTorch's and OpenCV's parameter of cubic convolution
_GRID = 112  # pixels along each axis of a box that are looked at first
_PEAKS = 8  # of these, the local maxima that are looked at more closely
_RADIUS = 16  # pixels to either side of them that are looked at then
_CHUNK = 8  # regions decoded at once, which bounds the memory


def encode(keypoints: jax.Array, rois: jax.Array, *, size: int) -> tuple[jax.Array, jax.Array]:
  """The heat map's cell in which each joint lies (Mask R-CNN, section 5).

  Args:
    keypoints: f32[S, J, 3], of the object of each region: x, y in canvas pixels, COCO's visibility.
    rois: f32[S, 4], canvas pixels.
    size: cells along each side of the heat map.

  Returns:
    (row * size + column i32[S, J], valid bool[S, J]): joints that are labelled and lie in the region; 0 for others.
  """
  low, high = rois[:, None, :2], rois[:, None, 2:]
  extent = high - low
  cell = jnp.floor((keypoints[..., :2] - low) * (size / jnp.where(extent > 0, extent, 1.0)))
  # The right and the lower border belong to the last cell.
  cell = jnp.where(keypoints[..., :2] == high, size - 1, cell)
  inside = (cell >= 0) & (cell < size) & (extent > 0)
  valid = inside.all(axis=-1) & (keypoints[..., 2] > 0)
  column, row = jnp.where(valid[..., None], cell, 0).astype(jnp.int32).transpose(2, 0, 1)
  return row * size + column, valid


def decode(logits: jax.Array, boxes: jax.Array) -> jax.Array:
  """f32[N, J, 3]: x, y in canvas pixels and the score of each joint (Mask R-CNN, section 5).

  A joint is at the centre of that pixel of the box at which the heat map, enlarged bicubically to as many whole
  pixels as the box takes, is highest; its score is the enlarged map there. Of boxes larger than the grid only every
  n-th pixel is looked at first, then all those round the best peaks (of boxes beyond 1,792 pixels, every second or
  third). Where many peaks are almost equally high, the highest may be missed.

  Args:
    logits: f32[N, S, S, J], one heat map for each joint.
    boxes: f32[N, 4], canvas pixels.
  """

  def region(inputs):
    maps, box = inputs
    extent = jnp.maximum(box[2:] - box[:2], 1.0)
    pixels = jnp.ceil(extent)
    positions, scores = jax.vmap(_highest_pixel, (2, None))(maps, pixels)
    points = (positions + 0.5) * (extent / pixels) + box[:2]
    return jnp.concatenate([points, scores[:, None]], axis=1)

  return jax.lax.map(region, (logits.astype(jnp.float32), boxes), batch_size=_CHUNK)


def _highest_pixel(heat_map: jax.Array, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(x, y) f32[2] and value f32[] of the highest of `pixels` f32[2] = (width, height) samples of a map [S, S]."""
  stride = jnp.ceil(pixels / _GRID)
  grid = jnp.arange(_GRID) * stride[:, None]
  inside = (grid[0] < pixels[0]) & (grid[1] < pixels[1])[:, None]
  row, column = _local_maxima(jnp.where(inside, _enlarge(heat_map, grid, pixels), -jnp.inf))
  peaks = jnp.stack([grid[0, column], grid[1, row]], axis=1)
  around = jnp.arange(-_RADIUS, _RADIUS + 1) * jnp.ceil(stride / _RADIUS)[:, None]
  around = jnp.clip(peaks[..., None] + around, 0.0, pixels[:, None] - 1.0)
  surfaces = jax.vmap(_enlarge, (None, 0, None))(heat_map, around, pixels)
  peak, row, column = jnp.unravel_index(surfaces.argmax(), surfaces.shape)
  return jnp.stack([around[peak, 0, column], around[peak, 1, row]]), surfaces[peak, row, column]


def _local_maxima(surface: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(rows, columns) i32[_PEAKS] of the highest elements of a surface that are not below any neighbour."""
  highest = jnp.pad(surface, 1, constant_values=-jnp.inf)
  highest = jnp.maximum(jnp.maximum(highest[:-2], highest[1:-1]), highest[2:])
  highest = jnp.maximum(jnp.maximum(highest[:, :-2], highest[:, 1:-1]), highest[:, 2:])
  _, index = jax.lax.top_k(jnp.where(surface == highest, surface, -jnp.inf).reshape(-1), _PEAKS)
  return jnp.unravel_index(index, surface.shape)


def _enlarge(heat_map: jax.Array, samples: jax.Array, pixels: jax.Array) -> jax.Array:
  """f32[P, P]: the map [S, S], enlarged to `pixels` (width, height), at the samples f32[2, P] of x and of y."""
  x, y = (_cubic_weights(at, count, heat_map.shape[0]) for at, count in zip(samples, pixels))
  return jnp.einsum("ps,st,qt->pq", y, heat_map, x, precision="highest", optimize=True)


def _cubic_weights(samples: jax.Array, pixels: jax.Array, cells: int) -> jax.Array:
  """f32[P, cells]: what each cell contributes to the samples f32[P] of an axis enlarged to `pixels`."""
  position = (samples + 0.5) * (cells / pixels) - 0.5
  # Two cells beyond either border, which have the border's value.
  distance = jnp.abs(position[:, None] - jnp.arange(-2, cells + 2))
  near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
  far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
  weights = jnp.where(distance <= 1, near, jnp.where(distance < 2, far, 0.0))
  inner = weights[:, 2:-2].at[:, 0].add(weights[:, :2].sum(axis=1))
  return inner.at[:, -1].add(weights[:, -2:].sum(axis=1))

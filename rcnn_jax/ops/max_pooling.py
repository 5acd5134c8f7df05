"""Maxima over the bins of regions: RoI max pooling and the spatial pyramid.

What `pooling` says of NaN, other garbage and gradients holds here as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rcnn_jax.ops.pooling import in_cells, level_index, pair, rounded

_MARGIN = 2  # cells beyond the map that a canvas may reach whose size is no multiple of the stride


def roi_max_pool(
  features: jax.Array, boxes: jax.Array, *, output_size: int | tuple[int, int], spatial_scale: float
) -> jax.Array:
  """[N, P, P, C]: the maximum of each of P x P bins, in whole cells (Fast R-CNN, section 2.1); empty bins are 0.

  Maxima over windows whose sides are powers of two are taken once for the image; any bin is then the maximum of the
  four such windows in its corners.

  Args:
    features: [H, W, C].
    boxes: f32[N, 4], canvas pixels; what reaches farther than two cells beyond the map is cut there.
    output_size: P, or (rows, columns).
    spatial_scale: feature cells per canvas pixel, 1 / stride.
  """
  level = jnp.zeros(boxes.shape[0], jnp.int32)
  return _max_pool([features], in_cells(boxes, (spatial_scale,), level), level, pair(output_size))


def multilevel_roi_max_pool(
  features: Sequence[jax.Array],
  boxes: jax.Array,
  *,
  strides: Sequence[int],
  output_size: int | tuple[int, int],
  canonical_size: float = 224.0,
  canonical_level: int = 4,
) -> jax.Array:
  """[N, P, P, C]: RoI max pooling of each region on the pyramid level of its size (FPN, section 4.2).

  Each region reads from its own level alone. The maxima over windows take the memory of the maps times the log2 of
  the longest bin along either axis, twice: about 30 times that of the maps at 256 x 256 pixels and a stride of 4.

  Args:
    features: [H_l, W_l, C] for each level, from fine to coarse.
    boxes: f32[N, 4], canvas pixels.
    strides: canvas pixels per feature cell for each level: powers of two, each twice the one before.
    output_size: P, or (rows, columns).
    canonical_size, canonical_level: as for `pooling.level_of`.
  """
  level = level_index(boxes, strides, canonical_size, canonical_level)
  return _max_pool(features, in_cells(boxes, [1 / stride for stride in strides], level), level, pair(output_size))


def _max_pool(features, regions, level, output_size: tuple[int, int]) -> jax.Array:
  """RoI max pooling of regions f32[N, 4], in cells of their level i32[N], an index of features."""
  rows, columns = output_size
  heights, widths = ([f.shape[axis] for f in features] for axis in (0, 1))
  x1, y1, x2, y2 = jnp.moveaxis(regions, -1, 0)
  vertical = _cover(*_roi_bins(y1, y2, heights, level, rows), max(heights))
  horizontal = _cover(*_roi_bins(x1, x2, widths, level, columns), max(widths))
  longest = [(_longest_bin(h, rows), _longest_bin(w, columns)) for h, w in zip(heights, widths)]
  return _bin_maxima(features, level, vertical, horizontal, longest)


def spatial_pyramid(features: jax.Array, boxes: jax.Array, *, bins: Sequence[int], spatial_scale: float) -> jax.Array:
  """[N, cells, C]: the maxima of n x n bins for each n of `bins`, level after level, row by row (SPPnet, section 4).

  A region's window is made of the cells whose centre lies inside of it, cell k having its own at pixel
  (k + 1/2) / spatial_scale, or of the one cell at its middle (SPPnet, appendix A, with the offset of an unpadded
  network). Bin i of a window of w cells is floor(i w / n) up to ceil((i + 1) w / n). A window beyond the map is the
  nearest of its cells.

  Args:
    features: [H, W, C].
    boxes: f32[N, 4], canvas pixels.
    bins: the levels, (1, 2, 3, 6) in the paper: 50 cells.
    spatial_scale: feature cells per canvas pixel, 1 / stride.
  """
  height, width, channels = features.shape
  level = jnp.zeros(boxes.shape[0], jnp.int32)
  x1, y1, x2, y2 = jnp.moveaxis(in_cells(boxes, (spatial_scale,), level), -1, 0)
  rows, columns = _window(y1, y2, height), _window(x1, x2, width)
  # The bins of a level that divides another are unions of that level's bins: these alone are pooled.
  finest = {n: max(m for m in bins if m % n == 0) for n in bins}
  pooled = {}
  for n in set(finest.values()):
    vertical, horizontal = (
      _cover(*_pyramid_bins(*window, n), side) for window, side in ((rows, height), (columns, width))
    )
    longest = min(-(-height // n) + 1, height), min(-(-width // n) + 1, width)
    pooled[n] = _bin_maxima([features], level, vertical, horizontal, [longest])
  levels = []
  for n in bins:
    fine = finest[n]
    parts = pooled[fine].reshape(-1, n, fine // n, n, fine // n, channels)
    levels.append(parts.max(axis=(2, 4)).reshape(-1, n * n, channels))
  return jnp.concatenate(levels, axis=1)


def _bin_maxima(features, level, vertical, horizontal, longest: Sequence[tuple[int, int]]) -> jax.Array:
  """[N, rows, columns, C]: the maximum of each bin, as the maximum of the four windows in its corners; 0 if empty.

  Found are the cells that hold the maxima, the first of equals as in torchvision; they are then read, so that the
  gradient is one scatter to them. Derived from the maxima themselves it takes three times as long on the CPU.

  Args:
    features: [H_l, W_l, C] for each level.
    level: i32[N], the level of each region.
    vertical, horizontal: as `_cover` gives them.
    longest: for each level the most cells of a bin along either axis.
  """
  (top, bottom, exponent_y, empty_y), (left, right, exponent_x, empty_x) = vertical, horizontal
  cells = jnp.concatenate([f.reshape(-1, f.shape[-1]) for f in features])
  first = np.cumsum([0, *(f.shape[0] * f.shape[1] for f in features)])[:-1]
  windows = [_window_maxima(*each) for each in zip(features, first, longest)]
  shapes = [value.shape for value, _ in windows]
  values, places = (jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in each]) for each in zip(*windows))
  height, num_exponents_x, width = (_of_level([shape[axis] for shape in shapes], level) for axis in (1, 2, 3))
  start = _of_level(np.cumsum([0, *(math.prod(shape[:-1]) for shape in shapes)])[:-1], level)

  def corner(y, x):
    row = start + (exponent_y * height + y) * num_exponents_x * width
    index = row[:, :, None] + (exponent_x * width + x)[:, None]
    return tuple(table.at[index].get(mode="promise_in_bounds") for table in (values, places))

  upper = _larger(corner(top, left), corner(top, right))
  lower = _larger(corner(bottom, left), corner(bottom, right))
  _, place = _larger(upper, lower)
  maxima = cells.at[place, jnp.arange(cells.shape[-1])].get(mode="promise_in_bounds")
  empty = empty_y[:, :, None] | empty_x[:, None]
  return jnp.where(empty[..., None], 0, maxima)


def _larger(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
  """Of two (value, place) the one with the larger value; of equals the first place."""
  second = (b[0] > a[0]) | ((b[0] == a[0]) & (b[1] < a[1]))
  return tuple(jnp.where(second, in_b, in_a) for in_a, in_b in zip(a, b))


def _of_level(values: Sequence[int], level: jax.Array) -> jax.Array:
  """i32[N, 1]: for each region the value of its level i32[N]."""
  return jnp.asarray(values, jnp.int32)[level][:, None]


def _longest_bin(length: int, bins: int) -> int:
  """How many cells a bin can have at most: its region has the map's length and two cells on either side."""
  return min(length, math.ceil((length + 2 * _MARGIN + 1) / bins) + 1)


def _window_maxima(feature, first: int, longest: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
  """The maximum of feature[y : y + 2**i, x : x + 2**j] for each i and j, up to the longest windows.

  Windows that run over the end hold values that mean nothing, and are never read.

  Args:
    feature: [H, W, C].
    first: the place of its first cell; the others follow row by row.
    longest: cells along either axis.

  Returns:
    (the maxima, their places i32), [i, H, j, W, C] each; without a gradient.
  """
  height, width, _ = feature.shape
  place = first + jnp.arange(height * width, dtype=jnp.int32).reshape(height, width, 1)
  pair = jax.lax.stop_gradient(feature), jnp.broadcast_to(place, feature.shape)
  for axis, most in ((1, longest[1]), (0, longest[0])):
    windows = [pair]
    while 2 ** len(windows) <= most:
      half = 2 ** (len(windows) - 1)
      windows.append(_larger(windows[-1], tuple(jnp.roll(x, -half, axis) for x in windows[-1])))
    pair = tuple(jnp.stack(each, axis) for each in zip(*windows))
  return pair


def _roi_bins(low, high, lengths: Sequence[int], level, bins: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """RoI max pooling's bins of the regions low..high f32[N], in cells: (start i32, end i32, empty bool), [N, bins]."""
  nowhere = jnp.isnan(low) | jnp.isnan(high)
  length = _of_level(lengths, level)
  low, high = (_whole_cells(jnp.where(nowhere, 0.0, edge)[:, None], length) for edge in (low, high))
  # The bins of a region of 0, 1, 2 ... cells, in the float32 arithmetic of torchvision; compiled, divisions round.
  bin_size = np.arange(max(lengths) + 2 * _MARGIN + 2, dtype=np.float32)[:, None] / np.float32(bins)
  index = np.arange(bins, dtype=np.float32)
  starts, ends = np.floor(index * bin_size), np.ceil((index + 1) * bin_size)
  num_cells = jnp.maximum(high - low + 1, 1)[:, 0]
  start = jnp.clip(jnp.asarray(starts, jnp.int32)[num_cells] + low, 0, length)
  end = jnp.clip(jnp.asarray(ends, jnp.int32)[num_cells] + low, 0, length)
  return start, end, (end <= start) | nowhere[:, None]


def _window(low: jax.Array, high: jax.Array, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The pyramid's window of the regions low..high f32[N], in cells: (first i32, last i32, nowhere bool), [N]."""
  nowhere = jnp.isnan(low) | jnp.isnan(high)
  low, high = (jnp.clip(jnp.where(nowhere, 0.0, edge), -1.0, length + 1.0) for edge in (low, high))
  first, last = jnp.floor(low - 0.5) + 1, jnp.ceil(high - 0.5) - 1
  middle = jnp.floor(0.5 * (low + high))
  hollow = last < first
  first, last = jnp.where(hollow, middle, first), jnp.where(hollow, middle, last)
  first, last = (jnp.clip(cell, 0, length - 1).astype(jnp.int32) for cell in (first, last))
  return first, last, nowhere


def _pyramid_bins(first, last, nowhere, bins: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The bins of windows first..last i32[N]: (start i32, end i32, empty bool), [N, bins]."""
  num_cells = (last - first + 1)[:, None]
  index = jnp.arange(bins)
  start, end = index * num_cells // bins, -(-(index + 1) * num_cells // bins)
  return start + first[:, None], end + first[:, None], jnp.broadcast_to(nowhere[:, None], start.shape)


def _cover(start: jax.Array, end: jax.Array, empty: jax.Array, length: int) -> tuple[jax.Array, ...]:
  """The two windows, each of 2**exponent cells, that together cover each bin start..end i32[N, bins].

  Returns (start of the first i32, start of the second i32, exponent i32, empty bool), each [N, bins].
  """
  start, end = jnp.where(empty, 0, start), jnp.where(empty, 1, end)
  exponents = np.frexp(np.arange(length + 1))[1] - 1  # floor(log2(n)), exactly
  exponent = jnp.asarray(exponents, jnp.int32)[end - start]
  return start, end - 2**exponent, exponent, empty


def _whole_cells(edges: jax.Array, length: jax.Array) -> jax.Array:
  """i32: edges f32 to whole cells, cut beyond the margin."""
  return jnp.clip(rounded(edges), -_MARGIN, length + _MARGIN).astype(jnp.int32)

"""Maxima over the bins of regions: RoI max pooling and the spatial pyramid.

What `pooling` says of NaN, other garbage and gradients holds here as well.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

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
  longest = tuple((_longest_bin(h, rows), _longest_bin(w, columns)) for h, w in zip(heights, widths))
  return _bin_maxima(list(features), level, vertical, horizontal, longest, False)


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
    pooled[n] = _bin_maxima([features], level, vertical, horizontal, (longest,), True)
  levels = []
  for n in bins:
    fine = finest[n]
    parts = pooled[fine].reshape(-1, n, fine // n, n, fine // n, channels)
    # Slice by slice, which on the CPU is faster than the maximum over two axes.
    joined = functools.reduce(jnp.maximum, (parts[:, :, i] for i in range(fine // n)))
    joined = functools.reduce(jnp.maximum, (joined[:, :, :, i] for i in range(fine // n)))
    levels.append(joined.reshape(-1, n * n, channels))
  return jnp.concatenate(levels, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _bin_maxima(
  features, level, vertical, horizontal, longest: tuple[tuple[int, int], ...], reused: bool
) -> jax.Array:
  """[N, rows, columns, C]: the maximum of each bin, as the maximum of the four windows in its corners; 0 if empty.

  Where a gradient is asked for, the cells that hold the maxima are found too, the first of equals as in torchvision,
  so that it is one scatter to them. Derived from the maxima themselves it takes three times as long on the CPU, and
  finding the cells for nothing takes twice as long as the maxima.

  Args:
    features: [H_l, W_l, C] for each level.
    level: i32[N], the level of each region.
    vertical, horizontal: as `_cover` gives them.
    longest: for each level the most cells of a bin along either axis.
    reused: whether several things are made of the result. XLA on the CPU would find the maxima anew for each of
      them, were they not the result of a loop.
  """
  windows = [_window_maxima((f,), each, _maximum) for f, each in zip(features, longest)]
  (table,), corners = _corners(windows, level, vertical, horizontal)
  read = lambda index: table.at[index].get(mode="promise_in_bounds")
  if reused:
    corners = jnp.stack(corners)
    maxima = jax.lax.fori_loop(1, 4, lambda i, most: jnp.maximum(most, read(corners[i])), read(corners[0]))
  else:
    maxima = functools.reduce(jnp.maximum, map(read, corners))
  return jnp.where(_empty(vertical, horizontal), 0, maxima)


def _bin_maxima_forward(features, level, vertical, horizontal, longest, reused):
  del reused
  sizes = [f.shape[0] * f.shape[1] for f in features]
  windows = []
  for feature, first, each in zip(features, np.cumsum([0, *sizes]), longest):
    place = first + jnp.arange(feature.shape[0] * feature.shape[1], dtype=jnp.int32)
    place = jnp.broadcast_to(place.reshape(*feature.shape[:2], 1), feature.shape)
    windows.append(_window_maxima((feature, place), each, _larger))
  tables, corners = _corners(windows, level, vertical, horizontal)
  read = lambda index: tuple(table.at[index].get(mode="promise_in_bounds") for table in tables)
  maxima, place = functools.reduce(_larger, map(read, corners))
  empty = _empty(vertical, horizontal)
  return jnp.where(empty, 0, maxima), (features, place, empty)


def _bin_maxima_backward(longest, reused, residuals, cotangent):
  del longest, reused
  features, place, empty = residuals
  sizes = [f.shape[0] * f.shape[1] for f in features]
  channels = jnp.arange(features[0].shape[-1])
  # Many regions have their maximum in one cell: in bfloat16 their sum would lose the smaller ones.
  gradient = jnp.zeros((sum(sizes), len(channels)), jnp.float32)
  cotangent = jnp.where(empty, 0, cotangent).astype(jnp.float32)
  gradient = gradient.at[place, channels].add(cotangent, mode="promise_in_bounds")
  levels = jnp.split(gradient, np.cumsum(sizes)[:-1])
  return [each.reshape(f.shape).astype(f.dtype) for each, f in zip(levels, features)], None, None, None


_bin_maxima.defvjp(_bin_maxima_forward, _bin_maxima_backward)


def _corners(windows, level, vertical, horizontal) -> tuple[list[jax.Array], list[jax.Array]]:
  """(tables [cells, C] of the windows, rows i32[N, rows, columns] of the windows in each bin's four corners).

  windows: what `_window_maxima` gives for each level.
  """
  (top, bottom, exponent_y, _), (left, right, exponent_x, _) = vertical, horizontal
  shapes = [each[0].shape for each in windows]
  tables = [jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in each]) for each in zip(*windows)]
  height, num_exponents_x, width = (_of_level([shape[axis] for shape in shapes], level) for axis in (1, 2, 3))
  start = _of_level(np.cumsum([0, *(math.prod(shape[:-1]) for shape in shapes)])[:-1], level)
  rows = [start + (exponent_y * height + y) * num_exponents_x * width for y in (top, bottom)]
  columns = [exponent_x * width + x for x in (left, right)]
  return tables, [row[:, :, None] + column[:, None] for row in rows for column in columns]


def _empty(vertical, horizontal) -> jax.Array:
  """bool[N, rows, columns, 1]: bins without a cell."""
  return (vertical[3][:, :, None] | horizontal[3][:, None])[..., None]


def _maximum(a: tuple[jax.Array], b: tuple[jax.Array]) -> tuple[jax.Array]:
  """Of two values the larger."""
  return (jnp.maximum(a[0], b[0]),)


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


def _window_maxima(cells: tuple[jax.Array, ...], longest: tuple[int, int], larger: Callable) -> tuple[jax.Array, ...]:
  """What `larger` leaves of cells[y : y + 2**i, x : x + 2**j] for each i and j, up to the longest windows.

  Windows that run over the end hold values that mean nothing, and are never read.

  Args:
    cells: arrays [H, W, C].
    longest: cells along either axis.
    larger: of two such tuples.

  Returns:
    [i, H, j, W, C] for each of the arrays.
  """
  for axis, most in ((1, longest[1]), (0, longest[0])):
    windows = [cells]
    while 2 ** len(windows) <= most:
      half = 2 ** (len(windows) - 1)
      windows.append(larger(windows[-1], tuple(jnp.roll(x, -half, axis) for x in windows[-1])))
    cells = tuple(jnp.stack(each, axis) for each in zip(*windows))
  return cells


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

"""Features of regions: RoI Align, warped crops, RoI max pooling, the spatial pyramid, and the choice of the level.

A region with a NaN coordinate lies outside of every map: it pools zeros and sends no gradient. No other garbage makes
a NaN either, so rows that are not valid need no masking. Gradients go to the features, never to the boxes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rcnn_jax.ops import boxes as box_ops

_MARGIN = 2  # cells beyond the map that a canvas may reach whose size is no multiple of the stride


def roi_align(
  features: jax.Array,
  boxes: jax.Array,
  *,
  output_size: int | tuple[int, int],
  spatial_scale: float,
  sampling_ratio: int = 2,
  aligned: bool,
) -> jax.Array:
  """[N, P, P, C]: each region cut into P x P bins, each the mean of bilinear samples (Mask R-CNN, section 3).

  Args:
    features: [H, W, C].
    boxes: f32[N, 4], canvas pixels.
    output_size: P, or (rows, columns).
    spatial_scale: feature cells per canvas pixel, 1 / stride.
    sampling_ratio: samples per bin along each axis; 0 is one for each cell that the bin spans, rounded up, at most
      as many as a region of the size of the map needs. It is slow: every region takes as long as the largest.
    aligned: True takes the half pixel into account (Detectron2), False does not (torchvision).
  """
  level = jnp.zeros(boxes.shape[0], jnp.int32)
  return _align([features], (spatial_scale,), boxes, level, _pair(output_size), sampling_ratio, aligned)


def multilevel_roi_align(
  features: Sequence[jax.Array],
  boxes: jax.Array,
  *,
  strides: Sequence[int],
  output_size: int | tuple[int, int],
  sampling_ratio: int = 2,
  aligned: bool,
  canonical_size: float = 224.0,
  canonical_level: int = 4,
) -> jax.Array:
  """[N, P, P, C]: RoI Align of each region on the pyramid level of its size (FPN, section 4.2).

  The levels are laid end to end, and each region reads from its own: the cost does not grow with their number.

  Args:
    features: [H_l, W_l, C] for each level, from fine to coarse.
    boxes: f32[N, 4], canvas pixels.
    strides: canvas pixels per feature cell for each level: powers of two, each twice the one before.
    output_size, sampling_ratio, aligned: as for `roi_align`.
    canonical_size, canonical_level: as for `level_of`.
  """
  finest = int(math.log2(strides[0]))
  coarsest = finest + len(strides) - 1
  if list(strides) != [2**level for level in range(finest, coarsest + 1)]:
    raise ValueError(f"strides must be powers of two, each twice the one before, not {tuple(strides)}")
  level = level_of(
    boxes,
    min_level=finest,
    max_level=coarsest,
    canonical_size=canonical_size,
    canonical_level=canonical_level,
  )
  scales = [1.0 / stride for stride in strides]
  return _align(features, scales, boxes, level - finest, _pair(output_size), sampling_ratio, aligned)


def warp_crop(image: jax.Array, boxes: jax.Array, *, output_size: int, context: int) -> jax.Array:
  """[N, P, P, C]: each region warped to a square with its surroundings about it (R-CNN, section 2.1, appendix A).

  Sides are scaled apart from each other so that the region fills the crop up to a border of `context` crop pixels.
  Each crop pixel is one bilinear sample. What lies beyond the image is zero: its mean, once that is subtracted.

  Args:
    image: [H, W, C].
    boxes: f32[N, 4], canvas pixels.
    output_size: P, 227 in the paper.
    context: 16 in the paper.
  """
  inner = output_size - 2 * context
  if inner <= 0:
    raise ValueError(f"a crop of {output_size} pixels has no room inside a context of {context}")
  border = context / inner * (boxes[:, 2:] - boxes[:, :2])
  grown = jnp.concatenate([boxes[:, :2] - border, boxes[:, 2:] + border], axis=1)
  crops = roi_align(image, grown, output_size=output_size, spatial_scale=1.0, sampling_ratio=1, aligned=True)
  step = (jnp.arange(output_size) + 0.5) / output_size
  low, side = jax.lax.stop_gradient((grown[:, :2], grown[:, 2:] - grown[:, :2]))
  centres = low + step[:, None, None] * side  # [P, N, (x, y)]
  inside = (centres >= 0) & (centres <= jnp.array([image.shape[1], image.shape[0]]))
  columns, rows = jnp.moveaxis(inside, (2, 1), (0, 1))
  return jnp.where((rows[:, :, None] & columns[:, None])[..., None], crops, 0)


def level_of(
  boxes: jax.Array, *, min_level: int, max_level: int, canonical_size: float = 224.0, canonical_level: int = 4
) -> jax.Array:
  """i32[N]: the pyramid level, min_level..max_level, for boxes f32[N, 4] in canvas pixels (FPN, equation 1)."""
  area = box_ops.area(boxes)
  side = jnp.sqrt(jnp.where(area > 0, area, jnp.finfo(jnp.float32).tiny))
  # torchvision's tolerance, so that a box of exactly the canonical size stays on the canonical level.
  level = jnp.floor(canonical_level + jnp.log2(side / canonical_size) + 1e-6)
  return jnp.clip(level, min_level, max_level).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class _Taps:
  """The cells of one axis that each bin of each region reads: two for each bilinear sample.

  cells: i32[T, N, bins].
  weights: f32[T, N, bins], which sum to 1 over T where all samples lie inside the map.
  used: i32[], beyond which number of taps all weights are 0.
  """

  cells: jax.Array
  weights: jax.Array
  used: jax.Array


jax.tree_util.register_dataclass(_Taps, ["cells", "weights", "used"], [])


def _align(features, scales, boxes, level, output_size, sampling_ratio, aligned) -> jax.Array:
  """RoI Align of each region on its level i32[N], an index of features and scales; see `multilevel_roi_align`."""
  heights = [f.shape[0] for f in features]
  widths = [f.shape[1] for f in features]
  starts = np.cumsum([0] + [h * w for h, w in zip(heights, widths)])[:-1]
  scaled = jax.lax.stop_gradient(boxes) * jnp.asarray(scales, jnp.float32)[level][:, None]
  x1, y1, x2, y2 = jnp.moveaxis(scaled, -1, 0)
  rows = _axis_taps(y1, y2, heights, level, output_size[0], sampling_ratio, aligned)
  columns = _axis_taps(x1, x2, widths, level, output_size[1], sampling_ratio, aligned)
  row_starts = rows.cells * jnp.asarray(widths)[level][:, None] + jnp.asarray(starts)[level][:, None]
  rows = dataclasses.replace(rows, cells=row_starts)
  cells = jnp.concatenate([f.reshape(-1, f.shape[-1]) for f in features])
  return _read(sampling_ratio == 0, cells, rows, columns)


def _axis_taps(low, high, lengths, level, bins: int, sampling_ratio: int, aligned: bool) -> _Taps:
  """What the bins of the regions low..high f32[N], in cells, read along an axis of lengths[level] cells."""
  length = jnp.asarray(lengths, jnp.float32)[level]
  low, high = (low - 0.5, high - 0.5) if aligned else (low, high)
  extent = high - low if aligned else jnp.maximum(high - low, 1.0)
  bin_size = extent / bins
  most = sampling_ratio or math.ceil(max(lengths) / bins) + 1
  # ceil(extent / bins), without a division: compiled, that of 14 by 7 may come out above 2.
  cells_spanned = (extent[:, None] > bins * jnp.arange(most)).sum(axis=1).astype(jnp.float32)
  count = jnp.full_like(low, sampling_ratio) if sampling_ratio else cells_spanned
  sample = jnp.arange(most, dtype=jnp.float32)[:, None, None]
  step = (sample + 0.5) / jnp.maximum(count, 1.0)[:, None]  # 0..1 within the bin
  bin_index = jnp.arange(bins, dtype=jnp.float32)
  position = low[:, None] + bin_index * bin_size[:, None] + step * bin_size[:, None]  # [samples, N, bins]
  # Up to one cell beyond the map its border's value holds; farther out, and for NaN, there is nothing.
  inside = (position >= -1.0) & (position <= length[:, None]) & (sample < count[:, None])
  position = jnp.clip(jnp.where(inside, position, 0.0), 0.0, length[:, None] - 1.0)
  first = jnp.floor(position)
  second = jnp.minimum(first + 1.0, length[:, None] - 1.0)
  share = position - first
  weights = jnp.where(inside, jnp.stack([1.0 - share, share]), 0.0) / jnp.maximum(count, 1.0)[:, None]
  # Interleaved, the two cells of one sample after those of the other, so that the taps in use come first.
  cells = jnp.stack([first, second], axis=1).reshape(2 * most, -1, bins).astype(jnp.int32)
  weights = jnp.swapaxes(weights, 0, 1).reshape(2 * most, -1, bins)
  used = 2 * count.max().astype(jnp.int32)
  return _Taps(cells, weights, used)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(adaptive: bool, cells: jax.Array, rows: _Taps, columns: _Taps) -> jax.Array:
  """[N, P, P, C]: the sum over all pairs of taps of their weights and the cells [., C] that they meet in.

  Written as a sum over pairs of taps, the gather fuses with the arithmetic and no sample is ever stored. The gradient
  by hand, one scatter after another, is three times as fast on the CPU as the one that JAX derives.
  """

  def add(pair, total):
    index, weight = _meet(rows, columns, pair, adaptive)
    return total + weight[..., None] * cells.at[index].get(mode="promise_in_bounds")

  total = jnp.zeros((*rows.cells.shape[1:], columns.cells.shape[2], cells.shape[-1]), jnp.float32)
  if adaptive:
    total = jax.lax.fori_loop(0, rows.used * columns.used, add, total)
  else:
    for pair in range(rows.cells.shape[0] * columns.cells.shape[0]):
      total = add(pair, total)
  return total.astype(cells.dtype)


def _read_forward(adaptive, cells, rows, columns):
  return _read(adaptive, cells, rows, columns), (cells, rows, columns)


def _read_backward(adaptive, residuals, cotangent):
  cells, rows, columns = residuals

  def add(pair, gradient):
    index, weight = _meet(rows, columns, pair, adaptive)
    return gradient.at[index].add(weight[..., None] * cotangent, mode="promise_in_bounds")

  num_pairs = rows.used * columns.used if adaptive else rows.cells.shape[0] * columns.cells.shape[0]
  gradient = jax.lax.fori_loop(0, num_pairs, add, jnp.zeros(cells.shape, jnp.float32))
  return gradient.astype(cells.dtype), None, None


_read.defvjp(_read_forward, _read_backward)


def _meet(rows: _Taps, columns: _Taps, pair, adaptive: bool) -> tuple[jax.Array, jax.Array]:
  """(index i32[N, P, P] of the cell, its weight f32[N, P, P]) for one pair of a row's and a column's tap."""
  num_columns = columns.used if adaptive else columns.cells.shape[0]
  row, column = pair // num_columns, pair % num_columns
  index = rows.cells[row][:, :, None] + columns.cells[column][:, None]
  weight = rows.weights[row][:, :, None] * columns.weights[column][:, None]
  return index, weight


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else tuple(size)


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
  height, width = features.shape[:2]
  rows, columns = _pair(output_size)
  x1, y1, x2, y2 = jnp.moveaxis(jax.lax.stop_gradient(boxes), -1, 0) * spatial_scale
  vertical = _cover(*_roi_bins(y1, y2, height, rows), height)
  horizontal = _cover(*_roi_bins(x1, x2, width, columns), width)
  return _bin_maxima(features, vertical, horizontal, _longest_bin(height, rows), _longest_bin(width, columns))


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
  x1, y1, x2, y2 = jnp.moveaxis(jax.lax.stop_gradient(boxes), -1, 0) * spatial_scale
  rows, columns = _window(y1, y2, height), _window(x1, x2, width)
  # The bins of a level that divides another are unions of that level's bins: these alone are pooled.
  finest = {n: max(m for m in bins if m % n == 0) for n in bins}
  pooled = {}
  for n in set(finest.values()):
    vertical, horizontal = (
      _cover(*_pyramid_bins(*window, n), side) for window, side in ((rows, height), (columns, width))
    )
    longest = -(-height // n) + 1, -(-width // n) + 1
    pooled[n] = _bin_maxima(features, vertical, horizontal, min(longest[0], height), min(longest[1], width))
  levels = []
  for n in bins:
    fine = finest[n]
    parts = pooled[fine].reshape(-1, n, fine // n, n, fine // n, channels)
    levels.append(parts.max(axis=(2, 4)).reshape(-1, n * n, channels))
  return jnp.concatenate(levels, axis=1)


def _bin_maxima(features, vertical, horizontal, longest_row: int, longest_column: int) -> jax.Array:
  """[N, rows, columns, C]: the maximum of each bin, as the maximum of the four windows in its corners; 0 if empty.

  vertical, horizontal: as `_cover` gives them. longest_row, longest_column: the most cells of a bin along each axis.
  """
  height, width, channels = features.shape
  (top, bottom, exponent_y, empty_y), (left, right, exponent_x, empty_x) = vertical, horizontal
  windows = _window_maxima(features, 1, longest_column)
  windows = _window_maxima(windows, 0, longest_row)  # [exponents y, H, exponents x, W, C]
  num_exponents_x = windows.shape[2]
  windows = windows.reshape(-1, channels)

  def corner(y, x):
    row = (exponent_y * height + y)[:, :, None] * num_exponents_x
    index = (row + exponent_x[:, None]) * width + x[:, None]
    return windows.at[index].get(mode="promise_in_bounds")

  upper = jnp.maximum(corner(top, left), corner(top, right))
  lower = jnp.maximum(corner(bottom, left), corner(bottom, right))
  empty = empty_y[:, :, None] | empty_x[:, None]
  return jnp.where(empty[..., None], 0, jnp.maximum(upper, lower))


def _longest_bin(length: int, bins: int) -> int:
  """How many cells a bin can have at most: its region has the map's length and two cells on either side."""
  return min(length, math.ceil((length + 2 * _MARGIN + 1) / bins) + 1)


def _window_maxima(values: jax.Array, axis: int, longest: int) -> jax.Array:
  """[..., exponents, length, ...]: the maximum of values[i : i + 2**k] for each k, up to the longest window.

  Windows that run over the end hold values that mean nothing, and are never read.
  """
  windows = [values]
  while 2 ** len(windows) <= longest:
    half = 2 ** (len(windows) - 1)
    windows.append(jnp.maximum(windows[-1], jnp.roll(windows[-1], -half, axis)))
  return jnp.stack(windows, axis)


def _roi_bins(low: jax.Array, high: jax.Array, length: int, bins: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """RoI max pooling's bins of the regions low..high f32[N], in cells: (start i32, end i32, empty bool), [N, bins]."""
  nowhere = jnp.isnan(low) | jnp.isnan(high)
  low, high = (_whole_cells(jnp.where(nowhere, 0.0, edge), length) for edge in (low, high))
  # The bins of a region of 0, 1, 2 ... cells, in the float32 arithmetic of torchvision; compiled, divisions round.
  bin_size = np.arange(length + 2 * _MARGIN + 2, dtype=np.float32)[:, None] / np.float32(bins)
  index = np.arange(bins, dtype=np.float32)
  starts, ends = np.floor(index * bin_size), np.ceil((index + 1) * bin_size)
  num_cells = jnp.maximum(high - low + 1, 1)
  start = jnp.clip(jnp.asarray(starts, jnp.int32)[num_cells] + low[:, None], 0, length)
  end = jnp.clip(jnp.asarray(ends, jnp.int32)[num_cells] + low[:, None], 0, length)
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


def _whole_cells(edges: jax.Array, length: int) -> jax.Array:
  """i32[N]: edges f32[N] to whole cells, cut beyond the margin; halves go away from zero, as in C and torchvision."""
  rounded = jnp.sign(edges) * jnp.floor(jnp.abs(edges) + 0.5)
  return jnp.clip(rounded, -_MARGIN, length + _MARGIN).astype(jnp.int32)

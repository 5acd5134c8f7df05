"""Features of regions by bilinear samples: RoI Align, RoI warp, warped crops; and the choice of the level.

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
from rcnn_jax.ops.errors import ModelError


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
  cells = in_cells(boxes, (spatial_scale,), level)
  return _align([features], cells, level, pair(output_size), sampling_ratio, aligned)


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
  image: jax.Array | None = None,
) -> jax.Array:
  """[N, P, P, C]: RoI Align of each region on the pyramid level of its size (FPN, section 4.2).

  The levels are laid end to end, and each region reads from its own: the cost does not grow with their number.

  Args:
    features: [H_l, W_l, C] for each level, from fine to coarse.
    boxes: f32[N, 4], canvas pixels.
    strides: canvas pixels per feature cell for each level: powers of two, each twice the one before.
    output_size, sampling_ratio, aligned: as for `roi_align`.
    canonical_size, canonical_level: as for `level_of`.
    image: i32[N], for regions of several images, whose features are then [B, H_l, W_l, C]: the image of each region.
  """
  level = level_index(boxes, strides, canonical_size, canonical_level)
  cells = in_cells(boxes, [1 / stride for stride in strides], level)
  return _align(features, cells, level, pair(output_size), sampling_ratio, aligned, image)


def roi_warp(
  features: Sequence[jax.Array],
  boxes: jax.Array,
  *,
  strides: Sequence[float],
  output_size: int | tuple[int, int],
  sampling_ratio: int = 2,
  canonical_size: float = 224.0,
  canonical_level: int = 4,
) -> jax.Array:
  """[N, P, P, C]: RoI Align of regions that are first rounded to whole cells, as RoI max pooling rounds them.

  What Mask R-CNN compares itself to (table 2c, RoIWarp with the mean; arXiv:1512.04412): the samples are bilinear,
  the quantisation remains. A region from cell a to cell b holds both of them, so none is empty.

  Args:
    features, strides: one or more levels, as for `multilevel_roi_align`.
    boxes, output_size, sampling_ratio, canonical_size, canonical_level: as there.
  """
  level = level_index(boxes, strides, canonical_size, canonical_level)
  cells = rounded(in_cells(boxes, [1 / stride for stride in strides], level))
  low, high = cells[:, :2], cells[:, 2:]
  cells = jnp.concatenate([low, jnp.maximum(low, high) + 1], axis=1)
  return _align(features, cells, level, pair(output_size), sampling_ratio, aligned=True)


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
    raise ModelError(f"a crop of {output_size} pixels has no room inside a context of {context}")
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


def level_index(
  boxes: jax.Array, strides: Sequence[float], canonical_size: float = 224.0, canonical_level: int = 4
) -> jax.Array:
  """i32[N]: of levels with these strides, the place of the one that each of boxes f32[N, 4] is pooled from.

  Raises:
    ModelError: several strides that are no powers of two, each twice the one before.
  """
  if len(strides) == 1:
    return jnp.zeros(boxes.shape[0], jnp.int32)
  finest = int(math.log2(strides[0]))
  coarsest = finest + len(strides) - 1
  if list(strides) != [2**level for level in range(finest, coarsest + 1)]:
    raise ModelError(f"strides must be powers of two, each twice the one before, not {tuple(strides)}")
  options = dict(canonical_size=canonical_size, canonical_level=canonical_level)
  return level_of(boxes, min_level=finest, max_level=coarsest, **options) - finest


def in_cells(boxes: jax.Array, scales: Sequence[float], level: jax.Array) -> jax.Array:
  """f32[N, 4]: boxes f32[N, 4] in cells of the level i32[N], whose cells per pixel are scales[level]."""
  return jax.lax.stop_gradient(boxes) * jnp.asarray(scales, jnp.float32)[level][:, None]


def rounded(edges: jax.Array) -> jax.Array:
  """Edges in cells, to whole ones; halves go away from zero, as in C and torchvision."""
  return jnp.sign(edges) * jnp.floor(jnp.abs(edges) + 0.5)


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


def _align(features, regions, level, output_size, sampling_ratio, aligned, image=None) -> jax.Array:
  """RoI Align of regions f32[N, 4], in cells of their level i32[N], an index of features, and of their image."""
  features = features if image is not None else [f[None] for f in features]
  num_images, heights, widths = len(features[0]), [f.shape[1] for f in features], [f.shape[2] for f in features]
  sizes = np.multiply(heights, widths)
  starts = num_images * (np.cumsum(sizes) - sizes)  # of a level's cells, image after image
  image = jnp.zeros_like(level) if image is None else image
  x1, y1, x2, y2 = jnp.moveaxis(regions, -1, 0)
  rows = _axis_taps(y1, y2, heights, level, output_size[0], sampling_ratio, aligned)
  columns = _axis_taps(x1, x2, widths, level, output_size[1], sampling_ratio, aligned)
  start = jnp.asarray(starts)[level] + image * jnp.asarray(sizes)[level]
  row_starts = rows.cells * jnp.asarray(widths)[level][:, None] + start[:, None]
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


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else tuple(size)

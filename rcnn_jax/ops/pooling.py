"""Features of regions: RoI Align, RoI max pooling, and the choice of the pyramid's level.

Every function treats a region whose coordinates are not finite as lying outside, so that it pools zeros and sends
no gradient: rows that are not valid need no masking. Gradients go to the features, never to the boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rcnn_jax.ops import boxes as box_ops


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

  Bilinear sampling and the mean over a bin's samples are both separable, so a region is two small matrices of
  weights, one for each axis: out = rows @ features @ columns. The gradient is a product of matrices as well.

  Args:
    features: [H, W, C].
    boxes: f32[N, 4], canvas pixels.
    output_size: P, or (rows, columns).
    spatial_scale: feature cells per canvas pixel, 1 / stride.
    sampling_ratio: samples per bin along each axis; 0 is one for each cell that the bin spans, rounded up.
    aligned: True takes the half pixel into account (Detectron2), False does not (torchvision).
  """
  height, width, _ = features.shape
  rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
  x1, y1, x2, y2 = jnp.moveaxis(jax.lax.stop_gradient(boxes), -1, 0) * spatial_scale
  row_weights = _axis_weights(y1, y2, height, rows, sampling_ratio, aligned).astype(features.dtype)
  column_weights = _axis_weights(x1, x2, width, columns, sampling_ratio, aligned).astype(features.dtype)
  strips = jnp.einsum('nph,hwc->npwc', row_weights, features, precision='highest')
  return jnp.einsum('nqw,npwc->npqc', column_weights, strips, precision='highest')


def interpolation_weights(positions: jax.Array, inside: jax.Array, length: int) -> jax.Array:
  """f32[..., length]: what each cell of an axis contributes to a linear interpolation at positions f32[...].

  Cell k has its centre at k; positions beyond the first and last centre take the value there. Zero where not inside.
  """
  clamped = jnp.clip(positions, 0.0, length - 1.0)
  distance = jnp.abs(clamped[..., None] - jnp.arange(length, dtype=jnp.float32))
  return jnp.where(inside[..., None], jnp.maximum(1.0 - distance, 0.0), 0.0)


def _axis_weights(low, high, length: int, bins: int, sampling_ratio: int, aligned: bool) -> jax.Array:
  """f32[N, bins, length]: what each cell of one axis contributes to each bin of the regions low..high f32[N]."""
  low = low - (0.5 if aligned else 0.0)
  high = high - (0.5 if aligned else 0.0)
  extent = high - low if aligned else jnp.maximum(high - low, 1.0)
  bin_size = extent / bins
  if sampling_ratio > 0:
    most, count = sampling_ratio, jnp.full_like(low, sampling_ratio)
  else:
    # A region within the canvas never needs more samples in a bin than the most that fit the axis.
    most = -(-length // bins) + 1
    count = jnp.clip(jnp.ceil(bin_size), 0, most)
  sample = jnp.arange(most, dtype=jnp.float32)
  step = (sample + 0.5) / jnp.maximum(count, 1.0)[:, None]  # [N, samples], 0..1 within the bin
  bin_low = low[:, None] + jnp.arange(bins, dtype=jnp.float32) * bin_size[:, None]
  positions = bin_low[:, :, None] + step[:, None] * bin_size[:, None, None]
  # Up to one cell beyond the map the border's value holds, farther out is nothing.
  inside = (positions >= -1.0) & (positions <= length) & (sample < count[:, None])[:, None]
  total = interpolation_weights(positions, inside, length).sum(axis=2)
  return total / jnp.maximum(count, 1.0)[:, None, None]


def roi_max_pool(
  features: jax.Array, boxes: jax.Array, *, output_size: int | tuple[int, int], spatial_scale: float
) -> jax.Array:
  """[N, P, P, C]: the maximum of each of P x P bins, in whole cells (Fast R-CNN, section 2.1); empty bins are 0.

  Maxima over all windows whose sides are powers of two are taken once for the image; any bin is then the maximum of
  the four such windows in its corners.

  Args:
    features: [H, W, C].
    boxes: f32[N, 4], canvas pixels.
    output_size: P, or (rows, columns).
    spatial_scale: feature cells per canvas pixel, 1 / stride.
  """
  height, width, _ = features.shape
  rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
  x1, y1, x2, y2 = jnp.moveaxis(jax.lax.stop_gradient(boxes), -1, 0) * spatial_scale
  low_y, high_y, exponent_y, empty_y = _window_pair(y1, y2, height, rows)
  low_x, high_x, exponent_x, empty_x = _window_pair(x1, x2, width, columns)
  windows = _window_maxima(_window_maxima(features, axis=1), axis=0)  # [exponents y, H, exponents x, W, C]

  def corner(y, x):
    return windows[exponent_y[:, :, None], y[:, :, None], exponent_x[:, None], x[:, None]]

  top = jnp.maximum(corner(low_y, low_x), corner(low_y, high_x))
  bottom = jnp.maximum(corner(high_y, low_x), corner(high_y, high_x))
  empty = empty_y[:, :, None] | empty_x[:, None]
  return jnp.where(empty[..., None], 0, jnp.maximum(top, bottom))


def _window_maxima(values: jax.Array, axis: int) -> jax.Array:
  """[..., exponents, length, ...]: the maximum of values[i : i + 2**k] for each k; the axis counts its windows.

  Windows that run over the end hold values that mean nothing, and are never read.
  """
  windows = [values]
  while 2 ** len(windows) <= values.shape[axis]:
    half = 2 ** (len(windows) - 1)
    windows.append(jnp.maximum(windows[-1], jnp.roll(windows[-1], -half, axis)))
  return jnp.stack(windows, axis)


def _window_pair(low: jax.Array, high: jax.Array, length: int, bins: int) -> tuple[jax.Array, ...]:
  """The two windows, each of 2**exponent cells, that together cover each bin of the regions low..high f32[N].

  Returns (start of the first i32, start of the second i32, exponent i32, empty bool), each [N, bins].
  """
  low, high = _round_half_away(low), _round_half_away(high)
  bin_size = jnp.maximum(high - low + 1.0, 1.0) / bins
  index = jnp.arange(bins, dtype=jnp.float32)
  start = jnp.clip(jnp.floor(index * bin_size[:, None]) + low[:, None], 0, length)
  end = jnp.clip(jnp.ceil((index + 1.0) * bin_size[:, None]) + low[:, None], 0, length)
  empty = ~(end > start)
  start = jnp.where(empty, 0, start).astype(jnp.int32)
  end = jnp.where(empty, 1, end).astype(jnp.int32)
  exponents = np.frexp(np.arange(length + 1))[1] - 1  # floor(log2), of an array exactly
  exponent = jnp.asarray(exponents, jnp.int32)[end - start]
  return start, end - 2**exponent, exponent, empty


def _round_half_away(values: jax.Array) -> jax.Array:
  """Rounds as C does, and so torchvision's RoI pooling: halves go away from zero."""
  return jnp.sign(values) * jnp.floor(jnp.abs(values) + 0.5)


def level_of(
  boxes: jax.Array, *, min_level: int, max_level: int, canonical_size: float = 224.0, canonical_level: int = 4
) -> jax.Array:
  """i32[N]: the pyramid level, min_level..max_level, for boxes f32[N, 4] in canvas pixels (FPN, equation 1)."""
  area = box_ops.area(boxes)
  side = jnp.sqrt(jnp.where(area > 0, area, jnp.finfo(jnp.float32).tiny))
  # torchvision's tolerance, so that a box of exactly the canonical size stays on the canonical level.
  level = jnp.floor(canonical_level + jnp.log2(side / canonical_size) + 1e-6)
  return jnp.clip(level, min_level, max_level).astype(jnp.int32)


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

  Args:
    features: [H_l, W_l, C] for each level, from fine to coarse.
    boxes: f32[N, 4], canvas pixels.
    strides: canvas pixels per feature cell for each level, powers of two, each twice the one before.
    output_size, sampling_ratio, aligned: as for `roi_align`.
    canonical_size, canonical_level: as for `level_of`.
  """
  min_level = int(np.log2(strides[0]))
  levels = level_of(
    boxes,
    min_level=min_level,
    max_level=min_level + len(strides) - 1,
    canonical_size=canonical_size,
    canonical_level=canonical_level,
  )
  pooled = 0
  for index, (level_features, stride) in enumerate(zip(features, strides, strict=True)):
    # A region of another level lies nowhere on this one, and pools zeros.
    here = jnp.where((levels == min_level + index)[:, None], boxes, jnp.nan)
    pooled += roi_align(
      level_features,
      here,
      output_size=output_size,
      spatial_scale=1.0 / stride,
      sampling_ratio=sampling_ratio,
      aligned=aligned,
    )
  return pooled

"""Geometry of boxes: areas, overlaps, and the regression between boxes.

Boxes are f32[..., 4], xyxy in continuous pixels (width = x2 - x1). Degenerate boxes (no width or no height, or
coordinates that are not finite) overlap nothing; no function here returns NaN for a box of size zero, nor has one
in its gradient. What may live here: arithmetic on coordinates, and nothing that knows images, classes or scores.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

# Regression may enlarge a box at most 62.5-fold (1000 pixels from 16), as in every published implementation.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)


def widths(boxes: jax.Array) -> jax.Array:
  """f32[...]: x2 - x1 of boxes f32[..., 4]; negative if the box is turned inside out."""
  return boxes[..., 2] - boxes[..., 0]


def heights(boxes: jax.Array) -> jax.Array:
  """f32[...]: y2 - y1 of boxes f32[..., 4]; negative if the box is turned inside out."""
  return boxes[..., 3] - boxes[..., 1]


def centres(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(x f32[...], y f32[...]): the centres of boxes f32[..., 4]."""
  return boxes[..., 0] + 0.5 * widths(boxes), boxes[..., 1] + 0.5 * heights(boxes)


def area(boxes: jax.Array) -> jax.Array:
  """f32[...]: the area of boxes f32[..., 4], square pixels; 0 for boxes that are turned inside out."""
  return jnp.maximum(widths(boxes), 0.0) * jnp.maximum(heights(boxes), 0.0)


def intersection(a: jax.Array, b: jax.Array) -> jax.Array:
  """f32[...]: the area that a f32[..., 4] and b f32[..., 4] share, square pixels; leading axes broadcast."""
  return _shared(_coordinates(a), _coordinates(b))


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """f32[N, M]: intersection over union of every a f32[N, 4] with every b f32[M, 4], 0..1; 0 where degenerate."""
  shared = _shared_by_pairs(a, b)
  union = area(a)[:, None] + area(b)[None] - shared
  return _ratio(shared, union)


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
  """f32[...]: generalised IoU (arXiv:1902.09630, algorithm 1), -1..1, of a and b f32[..., 4].

  Leading axes broadcast: row by row for a loss, `giou(a[:, None], b[None])` for every pair.
  """
  shared = intersection(a, b)
  union = area(a) + area(b) - shared
  hull_area = area(hull(a, b))
  return _ratio(shared, union) - _ratio(hull_area - union, hull_area)


def diou(a: jax.Array, b: jax.Array) -> jax.Array:
  """f32[...]: distance IoU (arXiv:1911.08287, equation 7), -1..1, of a and b f32[..., 4]; leading axes broadcast.

  IoU less the squared distance of the centres over the squared diagonal of the hull.
  """
  (a_x, a_y), (b_x, b_y) = centres(a), centres(b)
  around = hull(a, b)
  diagonal = widths(around) ** 2 + heights(around) ** 2
  return _paired_iou(a, b) - _ratio((a_x - b_x) ** 2 + (a_y - b_y) ** 2, diagonal)


def ciou(a: jax.Array, b: jax.Array) -> jax.Array:
  """f32[...]: complete IoU (arXiv:1911.08287, equations 8 to 11) of a and b f32[..., 4]; leading axes broadcast.

  Distance IoU less a penalty for another aspect ratio, whose weight, larger the better the boxes overlap, has no
  gradient. As in torchvision and Detectron2 it holds at every overlap; in arXiv:2005.03572 from an IoU of 0.5 on.
  """
  unlike = 4 / math.pi**2 * (_slope(a) - _slope(b)) ** 2
  weight = jax.lax.stop_gradient(_ratio(unlike, 1 - _paired_iou(a, b) + unlike))
  return diou(a, b) - weight * unlike


def hull(a: jax.Array, b: jax.Array) -> jax.Array:
  """f32[..., 4]: the smallest box around a f32[..., 4] and b f32[..., 4]; leading axes broadcast."""
  low = jnp.minimum(a[..., :2], b[..., :2])
  high = jnp.maximum(a[..., 2:], b[..., 2:])
  return jnp.concatenate([low, high], axis=-1)


def intersection_over_area(a: jax.Array, b: jax.Array) -> jax.Array:
  """f32[N, M]: the share of each a f32[N, 4] that lies inside each b f32[M, 4], 0..1; COCO's measure for crowds."""
  return _ratio(_shared_by_pairs(a, b), area(a)[:, None])


def clip(boxes: jax.Array, size: jax.Array) -> jax.Array:
  """f32[..., 4]: the part of boxes f32[..., 4] that lies inside an image of size (height, width), pixels."""
  height, width = size[0], size[1]
  limits = jnp.stack([width, height, width, height]).astype(boxes.dtype)
  return jnp.clip(boxes, 0.0, limits)


def flip(boxes: jax.Array, width: jax.Array | float) -> jax.Array:
  """f32[..., 4]: boxes f32[..., 4] of an image that is mirrored left to right, width in pixels."""
  x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
  return jnp.stack([width - x2, y1, width - x1, y2], axis=-1)


def encode(
  boxes: jax.Array, anchors: jax.Array, weights: tuple[float, float, float, float] = (1, 1, 1, 1)
) -> jax.Array:
  """f32[..., 4]: the deltas (dx, dy, dw, dh) that take anchors to boxes, both f32[..., 4] (R-CNN, appendix C).

  Each delta is multiplied with its weight, the inverse of its usual standard deviation: (10, 10, 5, 5) in the heads
  of torchvision and Detectron2. A coordinate whose box or anchor has no size gets a delta of 0.
  """
  (x, y), (anchor_x, anchor_y) = centres(boxes), centres(anchors)
  anchor_w, anchor_h = widths(anchors), heights(anchors)
  deltas = (
    _ratio(x - anchor_x, anchor_w),
    _ratio(y - anchor_y, anchor_h),
    _log_ratio(widths(boxes), anchor_w),
    _log_ratio(heights(boxes), anchor_h),
  )
  return jnp.stack(deltas, axis=-1) * jnp.asarray(weights, jnp.float32)


def decode(
  deltas: jax.Array,
  anchors: jax.Array,
  weights: tuple[float, float, float, float] = (1, 1, 1, 1),
  max_log_scale: float = MAX_LOG_SCALE,
) -> jax.Array:
  """f32[..., 4]: the boxes that deltas f32[..., 4] make of anchors f32[..., 4]; the inverse of `encode`.

  Leading axes broadcast. Enlargement stops at exp(max_log_scale), so that no early step of training overflows.
  """
  deltas = deltas.astype(jnp.float32) / jnp.asarray(weights, jnp.float32)
  anchor_x, anchor_y = centres(anchors)
  x = anchor_x + deltas[..., 0] * widths(anchors)
  y = anchor_y + deltas[..., 1] * heights(anchors)
  half_w = 0.5 * widths(anchors) * jnp.exp(jnp.minimum(deltas[..., 2], max_log_scale))
  half_h = 0.5 * heights(anchors) * jnp.exp(jnp.minimum(deltas[..., 3], max_log_scale))
  return jnp.stack([x - half_w, y - half_h, x + half_w, y + half_h], axis=-1)


def _coordinates(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """(x1, y1, x2, y2), each f32[...], of boxes f32[..., 4]."""
  return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def _shared(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> jax.Array:
  """f32[...]: `intersection` of boxes given by coordinates (x1, y1, x2, y2), which broadcast."""
  width = jnp.minimum(a[2], b[2]) - jnp.maximum(a[0], b[0])
  height = jnp.minimum(a[3], b[3]) - jnp.maximum(a[1], b[1])
  return jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)


def _shared_by_pairs(a: jax.Array, b: jax.Array) -> jax.Array:
  """f32[N, M]: the area that every a f32[N, 4] shares with every b f32[M, 4], square pixels.

  The coordinates are taken apart first: corners f32[N, M, 2] would be several times the memory of the answer.
  """
  return _shared(tuple(x[:, None] for x in _coordinates(a)), tuple(x[None] for x in _coordinates(b)))


def _paired_iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """f32[...]: `iou` row by row."""
  shared = intersection(a, b)
  return _ratio(shared, area(a) + area(b) - shared)


def _slope(boxes: jax.Array) -> jax.Array:
  """f32[...]: the angle of the diagonal to the vertical, radians; 0 (with gradient 0) for a box without a size."""
  w, h = widths(boxes), heights(boxes)
  sized = (w > 0) & (h > 0)
  return jnp.arctan2(jnp.where(sized, w, 0.0), jnp.where(sized, h, 1.0))


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
  """numerator / denominator, and 0 (with gradient 0) where the denominator is not positive, NaN included."""
  positive = denominator > 0
  return jnp.where(positive, numerator, 0.0) / jnp.where(positive, denominator, 1.0)


def _log_ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
  """log(numerator / denominator), and 0 (with gradient 0) where either is not positive."""
  positive = (numerator > 0) & (denominator > 0)
  return jnp.log(jnp.where(positive, numerator, 1.0) / jnp.where(positive, denominator, 1.0))

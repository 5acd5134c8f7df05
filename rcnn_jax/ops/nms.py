"""Non-maximum suppression, exactly greedy, as one program of fixed size.

Greedy suppression is sequential: a box is kept unless a kept box of higher score overlaps it. The same set is the
fixed point of applying that sentence to all boxes at once, starting with all kept: after t rounds the first t
boxes are right, and in practice a handful of rounds, the longest chain of suppressions, is enough.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rcnn_jax.ops import boxes as box_ops


def nms(
  boxes: jax.Array,
  scores: jax.Array,
  valid: jax.Array,
  *,
  iou_threshold: float,
  max_output: int,
  groups: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """(indices i32[max_output], valid bool[max_output]): the rows that survive, by falling score.

  Of equal scores the lower row goes first. A box is suppressed by an IoU above the threshold with a box that is kept.
  Needs the IoU of every pair, N * N numbers: choose the best few thousand boxes before.

  Args:
    boxes: f32[N, 4].
    scores: f32[N].
    valid: bool[N].
    iou_threshold: 0..1.
    max_output: how many rows to return; those beyond the survivors are 0 and not valid.
    groups: i32[N], classes or levels; boxes of different groups never suppress each other.
  """
  order, keep = _ordered_survivors(boxes, scores, valid, iou_threshold, groups)
  available = min(max_output, boxes.shape[0])
  front = jnp.argsort(~keep, stable=True)[:available]
  survives = keep[front]
  indices = jnp.where(survives, order[front], 0)
  padding = (0, max_output - available)
  return jnp.pad(indices, padding), jnp.pad(survives, padding)


def nms_mask(
  boxes: jax.Array, scores: jax.Array, valid: jax.Array, *, iou_threshold: float, groups: jax.Array | None = None
) -> jax.Array:
  """bool[N]: which of the rows survive; arguments as for `nms`."""
  order, keep = _ordered_survivors(boxes, scores, valid, iou_threshold, groups)
  return keep[jnp.argsort(order)]


def _ordered_survivors(boxes, scores, valid, iou_threshold, groups) -> tuple[jax.Array, jax.Array]:
  """(order i32[N], keep bool[N]): the rows by falling score, and in that order, which of them survive."""
  order = jnp.argsort(-scores, stable=True).astype(jnp.int32)
  boxes, valid = boxes[order], valid[order]
  rank = jnp.arange(boxes.shape[0])
  may_suppress = rank[None, :] < rank[:, None]  # [suppressed, suppressor]
  if groups is not None:
    groups = groups[order]
    may_suppress &= groups[None, :] == groups[:, None]
  suppresses = may_suppress & (box_ops.iou(boxes, boxes) > iou_threshold)

  def refine(state):
    keep, _ = state
    refined = valid & ~(suppresses & keep[None, :]).any(axis=1)
    return refined, (refined != keep).any()

  keep, _ = jax.lax.while_loop(lambda state: state[1], refine, (valid, valid.any()))
  return order, keep

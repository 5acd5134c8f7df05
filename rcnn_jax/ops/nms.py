"""Non-maximum suppression, exactly greedy or soft, as one program of fixed size.

Greedy suppression is sequential: a box is kept unless a kept box of higher score overlaps it. The boxes are swept in
blocks, by falling score: each block is decided by itself, and what it keeps then suppresses all boxes behind it at
once. Within a block the boxes are bits of words, and a box takes those that it suppresses out of a word at a time. So
the work is the same however the boxes lie: N * N overlaps at most, and a few operations of whole words for each box.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from rcnn_jax.ops import boxes as box_ops
from rcnn_jax.ops.bits import WORD, packed, unpacked

# Boxes that suppress those behind them together. Of 2,000 boxes on a GPU (H200), blocks of 128 took 0.71 ms, of 256
# 0.49; with the loop over words not unrolled, 1.87 and 1.48, for each of its rounds starts kernels of its own.
BLOCK = 256


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
  Computes up to N * N overlaps, BLOCK * N at a time: choose the best few thousand boxes before.

  Args:
    boxes: f32[N, 4].
    scores: f32[N].
    valid: bool[N].
    iou_threshold: 0..1.
    max_output: how many rows to return; those beyond the survivors are 0 and not valid.
    groups: i32[N], classes or levels; boxes of different groups never suppress each other.
  """
  order, keep = _ordered_survivors(boxes, scores, valid, iou_threshold, groups, enough=max_output)
  place = jnp.where(keep, jnp.cumsum(keep) - 1, max_output)  # beyond the last: dropped
  indices = jnp.zeros(max_output, jnp.int32).at[place].set(order, mode="drop")
  return indices, jnp.arange(max_output) < keep.sum()


def nms_mask(
  boxes: jax.Array, scores: jax.Array, valid: jax.Array, *, iou_threshold: float, groups: jax.Array | None = None
) -> jax.Array:
  """bool[N]: which of the rows survive; arguments as for `nms`."""
  order, keep = _ordered_survivors(boxes, scores, valid, iou_threshold, groups, enough=boxes.shape[0])
  return jnp.zeros(order.shape, bool).at[order].set(keep)


def soft_nms(
  boxes: jax.Array,
  scores: jax.Array,
  valid: jax.Array,
  *,
  decay: Literal["linear", "gaussian"],
  iou_threshold: float,
  sigma: float,
  score_threshold: float,
  max_output: int,
  groups: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(indices i32[max_output], scores f32[max_output], valid bool[max_output]): Soft-NMS (arXiv:1704.04503, figure 3).

  The best box is taken, the scores of the others decay by their overlap with it, and again: `max_output` rounds. Of
  equal scores the lower row goes first. The scores returned have decayed, and fall; rows beyond the last are 0.

  Args:
    boxes: f32[N, 4].
    scores: f32[N], 0 or more.
    valid: bool[N].
    decay: by 1 - IoU where the IoU is above the threshold ('linear'), or by exp(-IoU^2 / sigma) ('gaussian').
    iou_threshold: 0..1, of the linear decay.
    sigma: of the Gaussian decay.
    score_threshold: 0 or more; boxes that do not score above it, at first or once decayed, are dropped.
    max_output: how many rows to return.
    groups: i32[N], classes or levels; boxes of different groups do not touch each other's scores.
  """
  boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
  groups = jnp.zeros(len(boxes), jnp.int32) if groups is None else jnp.asarray(groups)
  rows = jnp.arange(len(boxes))

  def take_best(state, _):
    scores, left = state
    best = jnp.argmax(jnp.where(left, scores, -jnp.inf)).astype(jnp.int32)
    overlap = box_ops.iou(boxes[best][None], boxes)[0]
    linear = jnp.where(overlap > iou_threshold, 1 - overlap, 1.0)
    factor = linear if decay == "linear" else jnp.exp(-(overlap**2) / sigma)
    decayed = scores * jnp.where(groups == groups[best], factor, 1.0)
    taken = jnp.where(left[best], best, 0), jnp.where(left[best], scores[best], 0.0), left[best]
    return (decayed, left & (rows != best) & (decayed > score_threshold)), taken

  # The rows left are a mask of their own: a score of minus infinity would not survive a factor of 0.
  return jax.lax.scan(take_best, (scores, valid & (scores > score_threshold)), length=max_output)[1]


def _ordered_survivors(boxes, scores, valid, iou_threshold, groups, enough) -> tuple[jax.Array, jax.Array]:
  """(order i32[N], keep bool[N]): the rows by falling score, and in that order, which of them survive.

  The sweep ends with the block in which the survivors become `enough`: rows behind that block are not all decided.
  """
  num_rows = boxes.shape[0]
  if num_rows == 0:
    return jnp.zeros(0, jnp.int32), valid
  # Rows that are not valid go last, so that the sweep ends before them.
  order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True).astype(jnp.int32)
  size = min(BLOCK, num_rows + -num_rows % WORD)
  order = jnp.pad(order, (0, -num_rows % size))
  rank = jnp.arange(order.shape[0])
  boxes, keep = jnp.asarray(boxes)[order], jnp.asarray(valid)[order] & (rank < num_rows)
  groups = None if groups is None else jnp.asarray(groups)[order]
  end = jnp.max(jnp.where(keep, rank + 1, 0))

  def sweep(state):
    start, keep = state
    block = lambda rows: jax.lax.dynamic_slice_in_dim(rows, start, size)
    suppresses = box_ops.iou(block(boxes), boxes) > iou_threshold  # [suppressor, suppressed]
    suppresses &= block(rank)[:, None] < rank[None]
    if groups is not None:
      suppresses &= block(groups)[:, None] == groups[None]
    kept = _decide(jax.lax.dynamic_slice_in_dim(suppresses, start, size, axis=1), block(keep))
    keep &= ~(suppresses & kept[:, None]).any(axis=0)
    return start + size, keep

  def unfinished(state):
    start, keep = state
    return (start < end) & ((keep & (rank < start)).sum() < enough)

  _, keep = jax.lax.while_loop(unfinished, sweep, (jnp.int32(0), keep))
  return order[:num_rows], keep[:num_rows]


def _decide(suppresses: jax.Array, left: jax.Array) -> jax.Array:
  """bool[n]: which boxes of a block are kept, of those that the blocks before have left.

  Args:
    suppresses: bool[n, n], what each suppresses where it is kept: boxes behind it alone. n is a multiple of WORD.
    left: bool[n].
  """
  words = packed(suppresses)

  def decide_word(word, kept):
    rows = jax.lax.dynamic_slice_in_dim(words, word * WORD, WORD)
    inside = jax.lax.dynamic_index_in_dim(rows, word, axis=1, keepdims=False)
    own = jax.lax.dynamic_index_in_dim(kept, word, keepdims=False)
    for bit in range(WORD):  # numbers, not arrays of them: one short piece of code on any device
      own &= ~(inside[bit] * ((own >> bit) & 1))
    return kept & ~jnp.bitwise_or.reduce(jnp.where(unpacked(own)[:, None], rows, 0), axis=0)

  kept = jax.lax.fori_loop(0, words.shape[1], decide_word, packed(left), unroll=True)
  return unpacked(kept)

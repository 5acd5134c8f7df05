"""Which regions are to become which objects: matching, sampling, and gathering the targets.

Everything returns row numbers and validity; boxes, classes, masks and keypoints follow by gather.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from rcnn_jax.ops import boxes
from rcnn_jax.ops.bits import packed
from rcnn_jax.types import GroundTruth, RoiSamples


@struct.dataclass
class Match:
  """What each of N regions was matched to. A region that is neither foreground nor background is ignored."""

  matched: jax.Array  # i32[N], the row of the ground truth with the highest IoU; 0 where there is none
  foreground: jax.Array  # bool[N]
  background: jax.Array  # bool[N]
  iou: jax.Array  # f32[N], the IoU with the matched object; 0 where there is none


@struct.dataclass
class Samples:
  """A random choice of regions: the foreground first, then the background, then the rows that are not valid."""

  indices: jax.Array  # i32[S], rows of the N regions; 0 where not valid
  foreground: jax.Array  # bool[S]
  valid: jax.Array  # bool[S]


def match(
  iou: jax.Array,
  truth_valid: jax.Array,
  *,
  foreground_iou: float,
  background_iou: float,
  allow_low_quality: bool = False,
  anchor_valid: jax.Array | None = None,
  ignored: jax.Array | None = None,
) -> Match:
  """Matches each of N regions to the object that it overlaps most (Faster R-CNN, section 3.1.2).

  A region is foreground from foreground_iou upwards and background below background_iou; without any object, every
  region is background. With allow_low_quality, whatever region has an object's highest IoU (all of them in a tie)
  is foreground as well, and keeps the object that it overlaps most, which in rare cases is another one: so do
  torchvision and Detectron2. Unlike there, an object that no region touches makes nothing foreground.

  Args:
    iou: f32[N, M].
    truth_valid: bool[M], the objects to match with (leave crowds out).
    foreground_iou: 0..1.
    background_iou: 0..1, not above foreground_iou.
    allow_low_quality: the rule of region proposal networks that gives every object at least one anchor.
    anchor_valid: bool[N], the regions that exist; all, if None.
    ignored: bool[N], regions that are neither foreground nor background, such as those inside a crowd.
  """
  anchor_valid = jnp.ones(iou.shape[0], bool) if anchor_valid is None else anchor_valid
  iou = jnp.where(anchor_valid[:, None] & truth_valid[None, :], iou, -1.0)
  best = iou.max(axis=1)
  foreground = best >= foreground_iou
  if allow_low_quality:
    best_of_truth = iou.max(axis=0)
    foreground |= ((iou == best_of_truth) & (best_of_truth > 0)).any(axis=1)
  background = (best < background_iou) & ~foreground
  usable = anchor_valid if ignored is None else anchor_valid & ~ignored
  return Match(
    matched=iou.argmax(axis=1).astype(jnp.int32),
    foreground=foreground & usable,
    background=background & usable,
    iou=jnp.maximum(best, 0.0),
  )


def match_anchors(
  anchors: jax.Array,
  objects: jax.Array,
  truth_valid: jax.Array,
  *,
  foreground_iou: float,
  background_iou: float,
  anchor_valid: jax.Array | None = None,
  chunk: int = 16384,
) -> Match:
  """`match` of N anchors with M objects, with low-quality matches, without a table of N x M overlaps.

  A picture of 800 x 1344 has 268,569 anchors, whose overlaps with 100 objects take 102 MiB. They are computed for
  `chunk` anchors at a time at most. What is kept of each is one bit for each object: whether the anchor has the
  object's highest overlap within its chunk. Once the chunk with the highest of all is known, that settles who has the
  highest. All is equal to `match` where overlaps are computed exactly, as of boxes in whole pixels; else they may
  differ in their last bit, as of any two compiled programs.

  Args:
    anchors: f32[N, 4], canvas pixels.
    objects: f32[M, 4], canvas pixels.
    truth_valid: bool[M], the objects to match with.
    foreground_iou: 0..1.
    background_iou: 0..1, not above foreground_iou.
    anchor_valid: bool[N], the anchors that exist; all, if None.
    chunk: how many anchors at a time, at most.
  """
  num_anchors = anchors.shape[0]
  anchor_valid = jnp.ones(num_anchors, bool) if anchor_valid is None else anchor_valid

  num_chunks = max(1, -(-num_anchors // chunk))

  def divided(x):
    x = jnp.pad(x, ((0, -num_anchors % num_chunks), *((0, 0),) * (x.ndim - 1)))
    return x.reshape(num_chunks, -1, *x.shape[1:])

  def part(rows):
    anchors, valid = rows
    iou = jnp.where(valid[:, None] & truth_valid[None, :], boxes.iou(anchors, objects), -1.0)
    # Computed once: twice, it might be rounded in two ways, and no tie be found.
    iou = jax.lax.optimization_barrier(iou)
    best_of_truth = iou.max(axis=0)
    return iou.max(axis=1), iou.argmax(axis=1).astype(jnp.int32), packed(iou == best_of_truth), best_of_truth

  best, matched, ties, best_of_truth = jax.lax.map(part, (divided(anchors), divided(anchor_valid)))
  highest = best_of_truth.max(axis=0)
  here = (best_of_truth == highest) & (highest > 0)  # bool[N / chunk, M]: the chunk has the highest overlap of all
  low_quality = (ties & packed(here)[:, None] != 0).any(axis=-1)
  best, matched, low_quality = (x.reshape(-1)[:num_anchors] for x in (best, matched, low_quality))
  foreground = (best >= foreground_iou) | low_quality
  return Match(
    matched=matched,
    foreground=foreground & anchor_valid,
    background=(best < background_iou) & ~foreground & anchor_valid,
    iou=jnp.maximum(best, 0.0),
  )


def sample(
  key: jax.Array, foreground: jax.Array, background: jax.Array, *, num_samples: int, foreground_fraction: float
) -> Samples:
  """Draws S = num_samples of N regions, uniformly and without replacement (Fast R-CNN, section 2.3).

  At most int(S * foreground_fraction) are foreground; the background fills up the rest as far as it goes.

  Args:
    key: of this image.
    foreground: bool[N].
    background: bool[N], disjoint from the foreground.
    num_samples: S.
    foreground_fraction: 0..1.
  """
  draws = jax.random.uniform(key, foreground.shape)
  max_foreground = int(num_samples * foreground_fraction)
  foreground_rows, num_foreground = _draw(draws, foreground, max_foreground)
  background_rows, num_background = _draw(draws, background, num_samples)
  position = jnp.arange(num_samples)
  is_foreground = position < num_foreground
  valid = position < num_foreground + num_background
  # Rows of the background move up to where the foreground ends.
  candidates = jnp.concatenate([foreground_rows, background_rows])
  source = jnp.where(is_foreground, position, position - num_foreground + max_foreground)
  indices = jnp.where(valid, candidates[source], 0)
  return Samples(indices=indices, foreground=is_foreground, valid=valid)


def targets(samples: Samples, match: Match, boxes: jax.Array, truth: GroundTruth) -> RoiSamples:
  """The sampled regions and what they are to become; rows that are not valid are zero.

  Args:
    samples: S of the N regions.
    match: of the N regions.
    boxes: f32[N, 4], the regions, canvas pixels.
    truth: M objects.
  """
  matched = jnp.where(samples.valid, match.matched[samples.indices], 0)
  return RoiSamples(
    boxes=jnp.where(samples.valid[:, None], boxes[samples.indices], 0.0),
    classes=jnp.where(samples.foreground, truth.classes[matched], 0),
    matched=matched,
    valid=samples.valid,
  )


def _draw(draws: jax.Array, eligible: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """(rows i32[count], how many of them were drawn): the eligible rows with the highest draws f32[N]."""
  available = min(count, draws.shape[0])
  _, rows = jax.lax.top_k(jnp.where(eligible, draws, -1.0), available)
  return jnp.pad(rows, (0, count - available)), jnp.minimum(eligible.sum(), available)

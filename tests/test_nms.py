"""Fixed-size NMS, greedy and soft, against each written as its definition reads."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rcnn_jax.ops import boxes as box_ops
from rcnn_jax.ops import nms as nms_ops

N = 24
THRESHOLD = 0.45
compiled = jax.jit(functools.partial(nms_ops.nms, iou_threshold=THRESHOLD, max_output=N))
compiled_mask = jax.jit(functools.partial(nms_ops.nms_mask, iou_threshold=THRESHOLD))


def greedy(boxes, scores, valid, groups):
  """The rows that survive, best first: the algorithm of every paper, box by box."""
  kept = []
  overlap = np.asarray(box_ops.iou(boxes, boxes))
  for row in sorted(np.flatnonzero(valid), key=lambda row: (-scores[row], row)):
    if not any(groups[row] == groups[other] and overlap[row, other] > THRESHOLD for other in kept):
      kept.append(row)
  return kept


def rows(result):
  indices, valid = map(np.asarray, result)
  return list(indices[valid])


@st.composite
def candidates(draw):
  """Boxes on a coarse grid with few distinct scores, so that ties and duplicates are common."""
  corner = draw(hnp.arrays(np.int32, (N, 2), elements=st.integers(0, 8)))
  size = draw(hnp.arrays(np.int32, (N, 2), elements=st.integers(0, 8)))
  scores = draw(hnp.arrays(np.int32, N, elements=st.integers(0, 6)))
  valid = draw(hnp.arrays(bool, N))
  groups = draw(hnp.arrays(np.int32, N, elements=st.integers(0, 2)))
  boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
  return boxes, scores.astype(np.float32) / 6, valid, groups


@settings(deadline=None, max_examples=40)
@given(candidates())
def test_equals_greedy_with_ties_duplicates_and_groups(case):
  boxes, scores, valid, groups = case
  expected = greedy(boxes, scores, valid, groups)
  assert rows(compiled(boxes, scores, valid, groups=groups)) == expected
  np.testing.assert_array_equal(np.flatnonzero(compiled_mask(boxes, scores, valid, groups=groups)), sorted(expected))


@settings(deadline=None, max_examples=20)
@given(candidates())
def test_no_groups_is_one_group(case):
  boxes, scores, valid, _ = case
  assert rows(compiled(boxes, scores, valid)) == greedy(boxes, scores, valid, np.zeros(N))


def test_a_chain_is_suppressed_every_other_box():
  # Each box overlaps its neighbours by 3/5: the slowest case of the fixed point, one box decided per round.
  left = np.arange(N, dtype=np.float32)
  boxes = np.stack([left, left * 0, left + 4, left * 0 + 1], axis=1)
  scores = np.linspace(1, 0.1, N, dtype=np.float32)
  got = rows(compiled(boxes, scores, np.ones(N, bool)))
  assert got == list(range(0, N, 2))


def test_survivors_beyond_max_output_are_dropped_and_missing_ones_are_not_valid():
  boxes = np.float32([[0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]])
  scores, valid = np.float32([0.1, 0.9, 0.5]), np.ones(3, bool)
  few = nms_ops.nms(boxes, scores, valid, iou_threshold=0.5, max_output=2)
  many = nms_ops.nms(boxes, scores, valid, iou_threshold=0.5, max_output=5)
  assert rows(few) == [1, 2]
  np.testing.assert_array_equal(many[0], [1, 2, 0, 0, 0])
  np.testing.assert_array_equal(many[1], [True, True, True, False, False])


def test_an_overlap_of_exactly_the_threshold_suppresses_nothing():
  boxes = np.float32([[0, 0, 2, 1], [0, 0, 1, 1]])  # IoU 1/2
  got = nms_ops.nms(boxes, np.float32([1, 0.5]), np.ones(2, bool), iou_threshold=0.5, max_output=2)
  assert rows(got) == [0, 1]


SOFT = dict(iou_threshold=THRESHOLD, sigma=0.5, score_threshold=0.04)


def softly(overlap, scores, left, decay):
  """{row: decayed score} of the rows `left`, of one class: the algorithm of the paper's figure 3, box by box."""
  scores, kept = scores.astype(np.float64), {}
  while left := [row for row in left if scores[row] > SOFT["score_threshold"]]:
    best = max(left, key=lambda row: scores[row])
    kept[best] = scores[best]
    left.remove(best)
    for row in left:
      if decay == "gaussian":
        scores[row] *= np.exp(-(overlap[best, row] ** 2) / SOFT["sigma"])
      elif overlap[best, row] > SOFT["iou_threshold"]:
        scores[row] *= 1 - overlap[best, row]
  return kept


@pytest.mark.parametrize("decay", ["linear", "gaussian"])
def test_soft_nms_equals_the_papers_loop_class_by_class(decay):
  soft = jax.jit(functools.partial(nms_ops.soft_nms, decay=decay, max_output=N + 3, **SOFT))
  dropped = 0
  for seed in range(20):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 6, (N, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 8, (N, 2))], axis=1).astype(np.float32)
    scores, valid, groups = rng.random(N, np.float32), rng.random(N) < 0.9, rng.integers(0, 2, N)
    overlap, expected = np.asarray(box_ops.iou(boxes, boxes)), {}
    for group in range(2):
      expected |= softly(overlap, scores, np.flatnonzero(valid & (groups == group)), decay)
    indices, decayed, found = map(np.asarray, soft(boxes, scores, valid, groups=groups))
    ranked = sorted(expected, key=expected.get, reverse=True)
    assert indices.tolist() == ranked + [0] * (N + 3 - len(ranked))
    assert found.tolist() == [True] * len(ranked) + [False] * (N + 3 - len(ranked))
    np.testing.assert_allclose(decayed[found], [expected[row] for row in ranked], rtol=1e-5)
    assert not decayed[~found].any()
    dropped += valid.sum() - len(ranked)
  assert dropped


def test_soft_nms_by_eye():
  # The second box is half of the first (IoU 1/2), the third is the first again, the fourth stands alone.
  boxes = np.float32([[0, 0, 2, 1], [0, 0, 1, 1], [0, 0, 2, 1], [5, 5, 6, 6]])
  scores, valid = np.float32([0.9, 0.8, 0.9, 0.5]), np.ones(4, bool)
  options = dict(sigma=0.5, score_threshold=0.001, max_output=3)
  linear = nms_ops.soft_nms(boxes, scores, valid, decay="linear", iou_threshold=0.4, **options)
  np.testing.assert_array_equal(linear[0], [0, 3, 1])  # the copy scores 0, and is gone
  np.testing.assert_allclose(linear[1], [0.9, 0.5, 0.4], rtol=1e-6)
  gaussian = nms_ops.soft_nms(boxes, scores, valid, decay="gaussian", iou_threshold=0.4, **options)
  np.testing.assert_array_equal(gaussian[0], [0, 3, 1])
  np.testing.assert_allclose(gaussian[1], [0.9, 0.5, 0.8 * np.exp(-0.5)], rtol=1e-6)

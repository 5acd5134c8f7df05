"""Fixed-size NMS, greedy and soft, against each written as its definition reads."""

from __future__ import annotations

import functools
import re

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
  overlap = np.asarray(jax.jit(box_ops.iou)(boxes, boxes))
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


MANY = 2 * nms_ops.BLOCK + 44  # two whole blocks and a part of one
compiled_many = jax.jit(functools.partial(nms_ops.nms, iou_threshold=THRESHOLD, max_output=MANY))


def boxes_in_blocks(kind, seed=0):
  """(boxes, scores, valid, groups) of MANY rows in an order without meaning."""
  rng = np.random.default_rng(seed)
  corner = rng.integers(0, 40, (MANY, 2))
  boxes = np.concatenate([corner, corner + rng.integers(1, 16, (MANY, 2))], axis=1).astype(np.float32)
  scores, valid, groups = rng.random(MANY, np.float32), np.ones(MANY, bool), np.zeros(MANY, np.int32)
  if kind == "chain":  # each box overlaps those beside it by 3/5 and scores more than the next
    left = rng.permutation(MANY).astype(np.float32)
    boxes, scores = np.stack([left, left * 0, left + 4, left * 0 + 1], axis=1), -left
  if kind == "equal scores":
    scores[:] = 0.5
  if kind == "groups":
    groups = rng.integers(0, 3, MANY)
  if kind == "garbage":
    valid = rng.random(MANY) < 0.4
    boxes[~valid] = rng.choice([np.nan, np.inf, -np.inf, 0, 1e30], ((~valid).sum(), 4))
    scores[~valid] = rng.choice([np.nan, np.inf, 1e30], (~valid).sum())
  return boxes, scores, valid, groups


KINDS = ["random", "chain", "equal scores", "groups", "garbage"]


@pytest.mark.parametrize("kind", KINDS)
def test_block_by_block_equals_greedy(kind):
  boxes, scores, valid, groups = boxes_in_blocks(kind)
  expected = greedy(boxes, scores, valid, groups)
  assert 20 < len(expected) < valid.sum()
  assert rows(compiled_many(boxes, scores, valid, groups=groups)) == expected
  survives = nms_ops.nms_mask(boxes, scores, valid, iou_threshold=THRESHOLD, groups=groups)
  np.testing.assert_array_equal(np.flatnonzero(survives), sorted(expected))


def test_block_by_block_of_images_side_by_side_equals_greedy_of_each():
  # The images end after one block or after three: those that are done wait, unchanged, for the last.
  images = [boxes_in_blocks(kind) for kind in ["random", "chain", "equal scores", "garbage"]]
  images[0][2][40:] = False
  side_by_side = jax.vmap(lambda *image: compiled_many(*image[:3], groups=image[3]))
  indices, valid = side_by_side(*map(np.stack, zip(*images)))
  for image, found in zip(images, zip(indices, valid), strict=True):
    assert rows(found) == greedy(*image)


@pytest.mark.parametrize("max_output", [0, 1, 20, 150])
def test_fewer_outputs_are_the_first_of_all(max_output):
  # The sweep ends early, with boxes behind that nothing has suppressed yet: none of them is returned.
  boxes, scores, valid, groups = boxes_in_blocks("chain")
  got = nms_ops.nms(boxes, scores, valid, iou_threshold=THRESHOLD, max_output=max_output)
  assert rows(got) == greedy(boxes, scores, valid, groups)[:max_output]
  assert len(got[0]) == len(got[1]) == max_output


def test_no_boxes_give_no_survivors():
  none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, bool)
  assert rows(nms_ops.nms(*none, iou_threshold=THRESHOLD, max_output=3)) == []
  assert nms_ops.nms_mask(*none, iou_threshold=THRESHOLD).shape == (0,)


def test_no_array_holds_a_number_for_every_pair():
  program = compiled_many.lower(*boxes_in_blocks("random")[:3]).as_text()
  shapes = re.findall(r"tensor<((?:\d+x)*\d+)x\w+>", program)
  sizes = [np.prod([int(n) for n in shape.split("x")]) for shape in shapes]
  assert max(sizes) == nms_ops.BLOCK * (3 * nms_ops.BLOCK)  # of one block with all rows, filled up to whole blocks


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

"""Areas, overlaps, regression: values readable by eye, and the laws that hold for all boxes."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rcnn_jax.ops import boxes

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
DEGENERATE = np.float32([[5, 5, 5, 5], [5, 0, 5, 10], [0, 5, 10, 5], [9, 9, 1, 1]])
ORDINARY = np.float32([[0, 0, 10, 10], [2, 3, 4, 9]])


@st.composite
def some_boxes(draw, count=6):
  """Boxes on a grid of quarter pixels, at least one pixel wide and high."""
  corner = draw(hnp.arrays(np.int32, (count, 2), elements=st.integers(-200, 2000)))
  size = draw(hnp.arrays(np.int32, (count, 2), elements=st.integers(4, 2000)))
  return np.concatenate([corner, corner + size], axis=1).astype(np.float32) / 4


def test_area_is_width_times_height_and_never_negative():
  got = boxes.area(np.float32([[0, 0, 4, 3], [1, 2, 1, 9], [4, 4, 2, 1]]))
  np.testing.assert_array_equal(got, [12, 0, 0])


def test_iou_by_eye():
  a = np.float32([[0, 0, 2, 2], [10, 10, 12, 12]])
  b = np.float32([[0, 0, 2, 2], [1, 0, 3, 2], [1, 1, 3, 3], [2, 0, 4, 2]])
  expected = [[1, 1 / 3, 1 / 7, 0], [0, 0, 0, 0]]
  np.testing.assert_allclose(boxes.iou(a, b), expected, rtol=1e-6)


def test_giou_by_eye():
  unit = np.float32([0, 0, 1, 1])
  others = np.float32([[0, 0, 1, 1], [1, 0, 2, 1], [3, 0, 4, 1], [0, 0, 2, 1]])
  # The hull of the third pair is 4 pixels, of which 2 belong to neither box.
  np.testing.assert_allclose(boxes.giou(unit, others), [1, 0, -0.5, 0.5], atol=1e-6)


def test_diou_by_eye():
  unit = np.float32([0, 0, 1, 1])
  others = np.float32([[0, 0, 1, 1], [1, 0, 2, 1], [3, 0, 4, 1], [-1, -1, 2, 2]])
  # The second pair's centres are 1 apart, and its hull, 2 by 1, has a squared diagonal of 5; the last are concentric.
  np.testing.assert_allclose(boxes.diou(unit, others), [1, -1 / 5, -9 / 17, 1 / 9], atol=1e-6)


def test_ciou_by_eye():
  long, short = np.sqrt(3) / 2, 0.5
  lying, standing = np.float32([-long, -short, long, short]), np.float32([-short, -long, short, long])
  # Concentric, so that only the aspect is wrong: diagonals at 60 and 30 degrees, v = 4 / pi^2 * (pi / 6)^2 = 1 / 9.
  iou = 1 / (2 * np.sqrt(3) - 1)
  weight = (1 / 9) / (1 - iou + 1 / 9)
  np.testing.assert_allclose(boxes.ciou(lying, standing), iou - weight / 9, rtol=1e-5)
  np.testing.assert_allclose(boxes.ciou(lying, 3 * lying), 1 / 9, rtol=1e-5)  # the same aspect: IoU alone


@pytest.mark.parametrize("measure", [boxes.giou, boxes.diou, boxes.ciou], ids=["giou", "diou", "ciou"])
def test_equal_boxes_overlap_wholly_and_their_gradient_is_finite(measure):
  value, gradient = jax.value_and_grad(lambda box: measure(box, ORDINARY).sum())(jnp.asarray(ORDINARY))
  np.testing.assert_allclose(value, len(ORDINARY), rtol=1e-6)
  assert np.isfinite(gradient).all()


def test_intersection_over_area_is_the_share_of_the_first_box():
  small, crowd = np.float32([[0, 0, 2, 2], [3, 0, 5, 2]]), np.float32([[0, 0, 4, 100]])
  np.testing.assert_allclose(boxes.intersection_over_area(small, crowd), [[1.0], [0.5]])


def test_clip_keeps_boxes_in_the_image():
  got = boxes.clip(np.float32([[-5, -1, 30, 8], [15, 15, 18, 18]]), np.array([10, 20]))
  np.testing.assert_array_equal(got, [[0, 0, 20, 8], [15, 10, 18, 10]])


def test_encode_by_eye():
  anchor, box = np.float32([0, 0, 10, 20]), np.float32([5, 10, 5 + 10 * np.e, 30])
  dx, dy, dw, dh = boxes.encode(box, anchor, WEIGHTS)
  np.testing.assert_allclose(dw, 5.0, rtol=1e-5)  # e times as wide
  np.testing.assert_allclose(dh, 0.0, atol=1e-6)
  np.testing.assert_allclose(dx, 10 * np.e / 2, rtol=1e-5)  # the centre moves by half of e anchor widths
  np.testing.assert_allclose(dy, 5.0, rtol=1e-5)


def test_decode_stops_growing_at_the_maximal_scale():
  got = boxes.decode(np.float32([0, 0, 50, 1e30]), np.float32([-8, -8, 8, 8]))
  np.testing.assert_allclose(got, [-500, -500, 500, 500], rtol=1e-5)


@settings(deadline=None, max_examples=25)
@given(some_boxes(), some_boxes())
def test_decode_inverts_encode(targets, anchors):
  got = boxes.decode(boxes.encode(targets, anchors, WEIGHTS), anchors, WEIGHTS, max_log_scale=20.0)
  np.testing.assert_allclose(got, targets, atol=2e-2)


@settings(deadline=None, max_examples=25)
@given(some_boxes(), some_boxes())
def test_iou_is_symmetric_bounded_and_above_giou(a, b):
  iou = np.asarray(boxes.iou(a, b))
  np.testing.assert_allclose(iou, boxes.iou(b, a).T, rtol=1e-6)
  assert (iou >= 0).all() and (iou <= 1 + 1e-6).all()
  assert (np.asarray(boxes.giou(a[:, None], b[None])) <= iou + 1e-6).all()


def corner_by_corner(a, b):
  """(areas a, areas b, shared) of every pair, from corners [N, M, 2], as the definition of an overlap reads."""
  extent = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
  of_a, of_b = (np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1) for boxes in (a, b))
  return of_a[:, None], of_b[None], np.maximum(extent, 0).prod(axis=2)


@settings(deadline=None, max_examples=25)
@given(some_boxes(5), some_boxes(7))
def test_overlaps_of_pairs_are_what_their_definition_says(a, b):
  # Of whole pixels, areas are whole numbers below 2^24 and so exact in f32: all that rounds is one division,
  # which XLA gives to the last place or to the one beside it.
  a, b = np.floor(a), np.floor(b)
  of_a, of_b, shared = corner_by_corner(a, b)
  for compiled in (lambda function: function, jax.jit):
    np.testing.assert_array_equal(compiled(boxes.intersection)(a[:, None], b[None]), shared)
    over_union, over_area = compiled(boxes.iou)(a, b), compiled(boxes.intersection_over_area)(a, b)
    np.testing.assert_array_max_ulp(over_union, shared / (of_a + of_b - shared), maxulp=1)
    np.testing.assert_array_max_ulp(over_area, shared / of_a, maxulp=1)


@pytest.mark.parametrize("measure", [boxes.iou, boxes.intersection_over_area])
def test_overlaps_of_pairs_hold_no_array_beyond_one_number_a_pair(measure):
  program = jax.jit(measure).lower(jnp.zeros((268, 4)), jnp.zeros((100, 4))).as_text()
  assert "tensor<268x100xf32>" in program
  assert not re.findall(r"tensor<\d+x\d+x\d+x\w+>", program)


@settings(deadline=None, max_examples=25)
@given(some_boxes(), some_boxes())
def test_ciou_is_symmetric_and_below_diou_which_is_below_iou(a, b):
  ciou, diou = boxes.ciou(a, b), boxes.diou(a, b)
  np.testing.assert_allclose(ciou, boxes.ciou(b, a), atol=1e-6)
  assert (ciou <= diou).all()
  assert (diou <= np.diagonal(boxes.iou(a, b)) + 1e-6).all()


@settings(deadline=None, max_examples=25)
@given(some_boxes(), some_boxes())
def test_flip_is_its_own_inverse_and_keeps_overlaps(a, b):
  np.testing.assert_array_equal(boxes.flip(boxes.flip(a, 640.0), 640.0), a)
  np.testing.assert_allclose(boxes.iou(boxes.flip(a, 640.0), boxes.flip(b, 640.0)), boxes.iou(a, b), rtol=1e-6)


def test_degenerate_boxes_overlap_nothing():
  np.testing.assert_array_equal(boxes.iou(DEGENERATE, np.concatenate([DEGENERATE, ORDINARY])), 0)


@pytest.mark.parametrize(
  "function",
  [
    lambda box: boxes.iou(box, ORDINARY),
    lambda box: boxes.giou(box[:, None], ORDINARY),
    lambda box: boxes.diou(box[:, None], ORDINARY),
    lambda box: boxes.diou(box, box),
    lambda box: boxes.ciou(box[:, None], ORDINARY),
    lambda box: boxes.ciou(box, box),
    lambda box: boxes.intersection_over_area(box, ORDINARY),
    lambda box: boxes.encode(box, ORDINARY[0]),
    lambda box: boxes.encode(ORDINARY[0], box),
    lambda box: boxes.decode(jnp.ones(4), box),
  ],
  ids=[
    "iou",
    "giou",
    "diou",
    "diou of itself",
    "ciou",
    "ciou of itself",
    "intersection_over_area",
    "encode",
    "encode from",
    "decode",
  ],
)
def test_degenerate_boxes_have_finite_values_and_gradients(function):
  both = jax.jit(jax.value_and_grad(lambda box: function(box).sum()))
  value, gradient = both(jnp.asarray(DEGENERATE))
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


def test_iou_of_garbage_is_zero():
  garbage = jnp.array([[np.nan] * 4, [-np.inf, -np.inf, np.inf, np.inf], [-3e38, -3e38, 3e38, 3e38]], jnp.float32)
  np.testing.assert_array_equal(boxes.iou(garbage, jnp.concatenate([garbage, ORDINARY])), 0)

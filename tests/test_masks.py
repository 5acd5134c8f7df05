"""Mask targets: regions against crops, by eye."""

from __future__ import annotations

import numpy as np
import pytest

from rcnn_jax.ops import masks

BOX = np.float32([[10, 20, 50, 100]])
FULL = np.ones((1, 112, 112), np.uint8)
LEFT_HALF = FULL * (np.arange(112) < 56).astype(np.uint8)


def target(mask, roi, box=BOX, size=4):
  return np.asarray(masks.crop_targets(mask, box, np.array([0]), np.float32([roi]), size=size))[0]


def test_a_region_that_is_the_box_sees_the_mask():
  np.testing.assert_array_equal(target(FULL, BOX[0]), np.ones((4, 4)))
  np.testing.assert_array_equal(target(LEFT_HALF, BOX[0]), np.tile([1, 1, 0, 0], (4, 1)))


def test_outside_of_the_box_there_is_no_mask():
  # Twice the box, from its top left corner.
  expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(target(FULL, [10, 20, 90, 180]), expected)


def test_a_region_inside_the_box_is_enlarged():
  np.testing.assert_array_equal(target(LEFT_HALF, [20, 20, 40, 40]), np.tile([1, 1, 0, 0], (4, 1)))
  np.testing.assert_array_equal(target(LEFT_HALF, [10, 20, 20, 40]), np.ones((4, 4)))


def test_each_region_looks_at_the_object_that_it_is_matched_to():
  crops = np.concatenate([FULL, LEFT_HALF])
  boxes = np.float32([[0, 0, 8, 8], [100, 100, 108, 108]])
  got = masks.crop_targets(crops, boxes, np.array([1, 0, 0]), boxes[[1, 0, 1]], size=2)
  np.testing.assert_array_equal(got, [[[1, 0], [1, 0]], np.ones((2, 2)), np.zeros((2, 2))])


def test_a_circle_seen_from_a_shifted_region_is_the_circle():
  y, x = np.mgrid[:112, :112]
  crop = ((y + 0.5 - 56) ** 2 + (x + 0.5 - 56) ** 2 < 40**2).astype(np.uint8)[None]
  box = np.float32([[0, 0, 112, 112]])
  got = target(crop, [28, 14, 140, 126], box, size=28)
  y, x = np.mgrid[:28, :28] * 4 + 2.0
  radius = np.hypot(y + 14 - 56, x + 28 - 56)
  sure = np.abs(radius - 40) > 3  # three pixels from the edge no rounding can matter
  np.testing.assert_array_equal(got[sure], (radius < 40)[sure])


@pytest.mark.parametrize("roi", [[5, 5, 5, 5], [9, 9, 1, 1]])
def test_degenerate_boxes_and_regions_give_zeros_and_ones_only(roi):
  assert set(np.unique(target(FULL, roi))) <= {0.0, 1.0}
  np.testing.assert_array_equal(target(FULL, [0, 0, 9, 9], box=np.float32([roi])), np.zeros((4, 4)))

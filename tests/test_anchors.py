"""Anchor grids against numbers written out by hand and against torchvision's construction."""

from __future__ import annotations

import numpy as np
import pytest

from rcnn_jax.ops import anchors


def test_square_anchors_stand_on_the_grid_row_by_row():
  got = anchors.grid((2, 3), 16, sizes=(8,), ratios=(1.0,))
  np.testing.assert_array_equal(
    got,
    [
      [-4, -4, 4, 4],
      [12, -4, 20, 4],
      [28, -4, 36, 4],
      [-4, 12, 4, 20],
      [12, 12, 20, 20],
      [28, 12, 36, 20],
    ],
  )
  assert got.dtype == np.float32


def test_cell_anchors_are_ordered_by_ratio_then_size_and_rounded():
  # torchvision's generate_anchors((32, 64), (0.5, 1, 2)): a ratio of 2 is twice as high as wide.
  np.testing.assert_array_equal(
    anchors.cell_anchors((32, 64), (0.5, 1.0, 2.0)),
    [
      [-23, -11, 23, 11],
      [-45, -23, 45, 23],
      [-16, -16, 16, 16],
      [-32, -32, 32, 32],
      [-11, -23, 11, 23],
      [-23, -45, 23, 45],
    ],
  )


def test_unrounded_anchors_have_the_exact_area_and_ratio():
  got = anchors.cell_anchors((32, 100), (0.5, 2.0), rounded=False)
  widths, heights = got[:, 2] - got[:, 0], got[:, 3] - got[:, 1]
  np.testing.assert_allclose(widths * heights, [32**2, 100**2] * 2, rtol=1e-5)
  np.testing.assert_allclose(heights / widths, [0.5, 0.5, 2, 2], rtol=1e-5)


def test_offset_and_uneven_stride_shift_the_grid():
  got = anchors.grid((2, 2), (10, 20), sizes=(4,), ratios=(1.0,), offset=0.5)
  centres = (got[:, :2] + got[:, 2:]) / 2
  np.testing.assert_array_equal(centres, [[10, 5], [30, 5], [10, 15], [30, 15]])


@pytest.mark.parametrize("shape", [(1, 1), (3, 5)])
def test_count(shape):
  assert anchors.grid(shape, 8, (16, 32), (0.5, 1, 2)).shape == (shape[0] * shape[1] * 6, 4)

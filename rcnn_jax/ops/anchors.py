"""Grids of anchors: constants, made once with numpy for each canvas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def grid(
  feature_size: tuple[int, int],
  stride: int | tuple[int, int],
  sizes: Sequence[float],
  ratios: Sequence[float],
  *,
  offset: float = 0.0,
  rounded: bool = True,
) -> np.ndarray:
  """Anchors of one feature level, f32[A, 4] in pixels of the canvas (Faster R-CNN, section 3.1.1).

  The order is row, column, ratio, size, A = height * width * len(ratios) * len(sizes), as in torchvision; with the
  default arguments the numbers are torchvision's too. Detectron2 does not round, and orders the anchors of a cell
  by size, then ratio (the same where a level has one size).

  Args:
    feature_size: (height, width) of the feature map, cells.
    stride: pixels from one cell to the next, one number or (vertical, horizontal).
    sizes: square roots of the anchors' areas, pixels.
    ratios: height / width.
    offset: where in its cell the anchors' centre lies, as a share of the stride.
    rounded: whether the anchor at the origin is rounded to whole pixels.
  """
  height, width = feature_size
  stride_y, stride_x = (stride, stride) if np.isscalar(stride) else stride
  cell = cell_anchors(sizes, ratios, rounded=rounded)
  x = (np.arange(width, dtype=np.float32) + np.float32(offset)) * np.float32(stride_x)
  y = (np.arange(height, dtype=np.float32) + np.float32(offset)) * np.float32(stride_y)
  y, x = np.meshgrid(y, x, indexing="ij")
  shifts = np.stack([x, y, x, y], axis=-1)
  return (shifts[:, :, None] + cell).reshape(-1, 4)


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float], *, rounded: bool = True) -> np.ndarray:
  """The anchors of one cell, centred at (0, 0): f32[len(ratios) * len(sizes), 4], by ratio, then size."""
  sizes = np.asarray(sizes, np.float32)
  root = np.sqrt(np.asarray(ratios, np.float32))
  heights = (root[:, None] * sizes).reshape(-1)
  widths = ((1 / root)[:, None] * sizes).reshape(-1)
  anchors = np.stack([-widths, -heights, widths, heights], axis=-1) / 2
  return np.round(anchors) if rounded else anchors

"""What augmentations share: images moved by a matrix, and which objects are left in sight after that.

Coordinates are continuous pixels: pixel i is [i, i + 1). An affine map is f64[2, 3], from old to new pixels.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rcnn_jax.data import transforms
from rcnn_jax.data.object_masks import Masks, Window, at_centres
from rcnn_jax.data.transforms import Example

LEAST_SIDE = 1.0  # pixels; an object whose box is narrower or lower is gone


def translation(x: float, y: float) -> np.ndarray:
  """The map that adds (x, y)."""
  return np.array([[1, 0, x], [0, 1, y]], np.float64)


def warped(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The image after an affine map, [size, 3] in its own type: bilinear, black beyond the old borders."""
  import cv2

  return cv2.warpAffine(np.ascontiguousarray(image), at_centres(matrix), size[::-1], flags=cv2.INTER_LINEAR)


def cropped(example: Example, window: Window, min_visibility: float) -> Example:
  """What stands in a window of the image; objects as in `in_sight`."""
  x1, y1, x2, y2 = window
  return in_sight(example.moved(translation(-x1, -y1), example.image[y1:y2, x1:x2]), min_visibility)


def scaled_window(
  example: Example, size: tuple[int, int], window: Window, min_visibility: float, interpolation: str
) -> Example:
  """The example scaled to `size` (height, width), and of that a window.

  Where that is an enlargement, the part of the original is cut first, at its nearest whole pixels, and then made as
  large as the window: no pixel outside of it is computed. The sides' scales change by less than a pixel of it.
  """
  old = example.image.shape[:2]
  if size[0] * size[1] <= old[0] * old[1]:
    return cropped(transforms.scaled(example, size, interpolation), window, min_visibility)
  x1, y1, x2, y2 = window
  columns, rows = _part(x1, x2, size[1] / old[1], old[1]), _part(y1, y2, size[0] / old[0], old[0])
  part = cropped(example, (columns[0], rows[0], columns[1], rows[1]), min_visibility)
  return transforms.scaled(part, (y2 - y1, x2 - x1), interpolation)


def _part(start: int, stop: int, scale: float, length: int) -> tuple[int, int]:
  """The whole pixels of the original, at least one, next to those of an enlargement."""
  first = min(round(start / scale), length - 1)
  return first, min(max(round(stop / scale), first + 1), length)


def in_sight(example: Example, min_visibility: float) -> Example:
  """The objects of which the image still shows enough, cut to it.

  An object is left out where less than `min_visibility` of its area shows, or its box has a side of less than a
  pixel: of its mask's area where there are masks, else of its box's. The box of one that is cut is around the part of
  its mask that shows. Joints beyond the image lose their label, (0, 0, 0); proposals are cut, and left out likewise.
  """
  height, width = example.image.shape[:2]
  limits = np.array([width, height] * 2, np.float32)
  boxes = np.clip(example.boxes, 0, limits)
  cut = (boxes != example.boxes).any(axis=1)
  if example.masks is not None:
    cut |= ~example.masks.upright  # the box around a turned box is too wide
  share = _areas(boxes) / np.maximum(_areas(example.boxes), 1e-12)
  kept = (share >= min_visibility) & _has_sides(boxes)
  if example.masks is not None:
    rows = np.flatnonzero(cut & _has_sides(boxes))
    boxes, shares = _around_masks(example.masks, boxes, rows, (height, width))
    kept[rows] = (shares >= min_visibility) & _has_sides(boxes[rows])
  example = dataclasses.replace(
    example,
    boxes=boxes,
    masks=None if example.masks is None else example.masks.cut(np.flatnonzero(cut & kept), boxes[cut & kept]),
    keypoints=None if example.keypoints is None else _labelled_within(example.keypoints, width, height),
  )
  return _proposals_in_sight(example if kept.all() else example.take(np.flatnonzero(kept)), limits)


def _around_masks(masks: Masks, boxes: np.ndarray, rows: np.ndarray, size) -> tuple[np.ndarray, np.ndarray]:
  """Boxes, at `rows` no larger than what shows of the masks within them, and how much of each mask that is."""
  boxes, shares = boxes.copy(), np.zeros(len(rows))
  for place, row in enumerate(rows):
    window = around(boxes[row], size)
    pixels = masks.pixels(row, window)
    boxes[row] = tightened(boxes[row], pixels, window)
    shares[place] = np.count_nonzero(pixels) / max(masks.area(row), 1e-12)
  return boxes, np.minimum(shares, 1)


def around(box: np.ndarray, size: tuple[int, int]) -> Window:
  """The whole pixels of an image of `size` (height, width) that a box f32[4] touches."""
  limits = np.array([*size[::-1]] * 2)
  x1, y1, x2, y2 = np.clip([*np.floor(box[:2]), *np.ceil(box[2:])], 0, limits).astype(int).tolist()
  return x1, y1, x2, y2


def tightened(box: np.ndarray, pixels: np.ndarray, window: Window) -> np.ndarray:
  """The part of a box f32[4] that holds pixels u8[h, w] of a window; without any, a box of no size."""
  x1, y1, _, _ = window
  columns, rows = np.flatnonzero(pixels.any(axis=0)), np.flatnonzero(pixels.any(axis=1))
  if not len(columns):
    return np.zeros(4, np.float32)
  low, high = np.array([x1 + columns[0], y1 + rows[0]]), np.array([x1 + columns[-1] + 1, y1 + rows[-1] + 1])
  return np.concatenate([np.maximum(box[:2], low), np.minimum(box[2:], high)]).astype(np.float32)


def _areas(boxes: np.ndarray) -> np.ndarray:
  return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)


def _has_sides(boxes: np.ndarray) -> np.ndarray:
  return (boxes[:, 2:] - boxes[:, :2] >= LEAST_SIDE).all(axis=1)


def _labelled_within(keypoints: np.ndarray, width: int, height: int) -> np.ndarray:
  """Joints f32[N, J, 3], zeros where one is not in the image."""
  x, y = keypoints[..., 0], keypoints[..., 1]
  within = (x >= 0) & (y >= 0) & (x <= width) & (y <= height)
  return np.where(within[..., None], keypoints, 0).astype(np.float32)


def _proposals_in_sight(example: Example, limits: np.ndarray) -> Example:
  if example.proposals is None:
    return example
  proposals = np.clip(example.proposals, 0, limits)
  kept = _has_sides(proposals)
  return dataclasses.replace(example, proposals=proposals[kept], proposal_scores=example.proposal_scores[kept])

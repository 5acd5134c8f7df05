"""The masks of an image's objects on their way to the canvas: stored whole, moved by a matrix, cropped at the end.

An affine map is f64[2, 3] from pixels to pixels, (x, y, 1) to (x, y); pixel i is [i, i + 1), as everywhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from rcnn_jax.types import MASK_SIDE

Window = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels


@dataclasses.dataclass(frozen=True, eq=False)
class Masks:
  """The masks of N objects, each as it was stored, and where it stands in the image now.

  Nothing is resampled before it is asked for, so that any number of moves costs no sharpness.
  """

  runs: tuple[dict, ...]  # N run-length encodings as COCO writes them, each of a size of its own
  frames: np.ndarray  # f32[N, 4], xyxy in the mask's own pixels: around all that is still in sight of the object
  matrices: np.ndarray  # f64[N, 2, 3], from the mask's own pixels to those of the image

  @classmethod
  def of(cls, runs: Sequence[dict], boxes: np.ndarray) -> Masks:
    """Masks that stand where they were stored; boxes f32[N, 4] are those of the objects."""
    return cls(tuple(runs), boxes, np.broadcast_to(np.eye(2, 3), (len(boxes), 2, 3)))

  def __len__(self) -> int:
    return len(self.runs)

  def take(self, rows: np.ndarray) -> Masks:
    """Those at `rows` (i64[n]), in that order."""
    return Masks(tuple(self.runs[row] for row in rows), self.frames[rows], self.matrices[rows])

  def joined(self, other: Masks) -> Masks:
    """These, then the other ones."""
    arrays = (np.concatenate([getattr(each, name) for each in (self, other)]) for name in ("frames", "matrices"))
    return Masks(self.runs + other.runs, *arrays)

  def moved(self, matrix: np.ndarray) -> Masks:
    """Where they stand after the image was moved by an affine map."""
    matrices = matrix[:, :2] @ self.matrices
    matrices[:, :, 2] += matrix[:, 2]
    return dataclasses.replace(self, matrices=matrices)

  @property
  def upright(self) -> np.ndarray:
    """bool[N]: those whose sides have stayed parallel to the image's."""
    return ~(self._is_slanted(0, 0) | self._is_slanted(0, 1))

  def _is_slanted(self, row: int, column: int) -> np.ndarray:
    return (self.matrices[:, row, column] != 0) & (self.matrices[:, row, 1 - column] != 0)

  def cut(self, rows: np.ndarray, boxes: np.ndarray) -> Masks:
    """The same masks, of which no more is in sight at `rows` (i64[n]) than what boxes f32[n, 4] of the image hold."""
    frames = self.frames.copy()
    for row, box in zip(rows, boxes):
      if self.upright[row]:
        frames[row] = moved_boxes(box[None], inverse(self.matrices[row]))[0]
    return dataclasses.replace(self, frames=frames)

  def pixels(self, row: int, window: Window) -> np.ndarray:
    """u8[h, w] in {0, 1}: the object's pixels in a window of the image."""
    x1, y1, x2, y2 = window
    shift = np.array([[1, 0, -x1], [0, 1, -y1]], np.float64)
    return (self._sampled(row, composed(shift, self.matrices[row]), (y2 - y1, x2 - x1)) >= 128).astype(np.uint8)

  def area(self, row: int) -> float:
    """Pixels of the image that the whole object covers, also those that are out of sight by now."""
    from pycocotools import mask

    return float(mask.area(self.runs[row])) * abs(np.linalg.det(self.matrices[row][:, :2]))

  def crops(self, boxes: np.ndarray) -> np.ndarray:
    """Each mask in the frame of its box: u8[N, 112, 112] in {0, 1}; boxes f32[N, 4] are in pixels of the image."""
    crops = np.zeros((len(self), MASK_SIDE, MASK_SIDE), np.uint8)
    for row, upright in enumerate(self.upright):
      crops[row] = self._upright_crop(row) if upright else self._slanted_crop(row, boxes[row])
    return crops

  def _upright_crop(self, row: int) -> np.ndarray:
    """Made in the mask's own pixels, then mirrored and turned as the object has been."""
    from pycocotools import mask

    matrix = self.matrices[row][:, :2]
    crop = cropped(mask.decode(self.runs[row]), self.frames[row])
    if matrix[0, 0] == 0:
      crop = crop.T
    down, right = matrix.sum(axis=1)[::-1] >= 0
    return crop[:: 1 if down else -1, :: 1 if right else -1]

  def _slanted_crop(self, row: int, box: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = box.astype(np.float64)
    samples = [max(1, math.ceil(side / MASK_SIDE)) for side in (x2 - x1, y2 - y1)]  # of a cell, as in `cropped`
    across, down = (MASK_SIDE * count / side for count, side in zip(samples, (x2 - x1, y2 - y1)))
    to_cells = np.array([[across, 0, -x1 * across], [0, down, -y1 * down]])
    size = (MASK_SIDE * samples[1], MASK_SIDE * samples[0])
    sampled = self._sampled(row, composed(to_cells, self.matrices[row]), size)
    return sampled.reshape(MASK_SIDE, samples[1], MASK_SIDE, samples[0]).mean(axis=(1, 3)) >= 127.5

  def _sampled(self, row: int, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """u8[size], 255 inside: the object's frame, moved by a matrix from the mask's own pixels."""
    import cv2
    from pycocotools import mask

    decoded = mask.decode(self.runs[row])
    limits = np.array([*decoded.shape[1::-1]] * 2)
    low, high = np.floor(self.frames[row][:2]), np.ceil(self.frames[row][2:])
    x1, y1, x2, y2 = np.clip([*low, *high], 0, limits).astype(int)
    part = np.ascontiguousarray(decoded[y1:y2, x1:x2]) * 255
    if not part.size or not min(size):
      return np.zeros(size, np.uint8)
    start = np.array([[1, 0, x1], [0, 1, y1]], np.float64)
    return cv2.warpAffine(part, at_centres(composed(matrix, start)), size[::-1], flags=cv2.INTER_LINEAR)


def mask_crops(segmentations: Sequence[dict], boxes: np.ndarray) -> np.ndarray:
  """Each object's mask in the frame of its box: u8[N, 112, 112] in {0, 1}, as `cropped` makes it.

  Args:
    segmentations: N run-length encodings, at the size of the image.
    boxes: f32[N, 4], xyxy in pixels of that image.
  """
  return Masks.of(segmentations, boxes).crops(boxes)


def cropped(mask: np.ndarray, box: np.ndarray) -> np.ndarray:
  """A mask u8[h, w] in {0, 1} in the frame of a box f32[4]: bool[112, 112].

  A cell of a crop is 1 where at least half of it is mask, by bilinear samples, at least one for each pixel: what RoI
  Align would make of the whole mask. Targets that are made from the crops are then those of the whole mask, small
  objects' too, whose pixels are larger than a cell.
  """
  rows, row_weights = _cell_weights(box[1], box[3], mask.shape[0])
  columns, column_weights = _cell_weights(box[0], box[2], mask.shape[1])
  return row_weights @ mask[rows, columns].astype(np.float32) @ column_weights.T >= 0.5


def composed(second: np.ndarray, first: np.ndarray) -> np.ndarray:
  """The affine map that is `first`, then `second`."""
  product = second[:, :2] @ first
  product[:, 2] += second[:, 2]
  return product


def inverse(matrix: np.ndarray) -> np.ndarray:
  """The affine map that takes back what `matrix` does."""
  linear = np.linalg.inv(matrix[:, :2])
  return np.column_stack([linear, -linear @ matrix[:, 2]])


def moved_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
  """Boxes f32[N, 4] after an affine map: around their four corners, f32[N, 4]."""
  corners = boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2).astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
  return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


def at_centres(matrix: np.ndarray) -> np.ndarray:
  """The same map for OpenCV, which counts from the centre of the first pixel."""
  half = 0.5 * np.ones(2)
  return np.column_stack([matrix[:, :2], matrix[:, :2] @ half + matrix[:, 2] - half])


def _cell_weights(start: float, stop: float, length: int) -> tuple[slice, np.ndarray]:
  """The pixels that the 112 cells of [start, stop] read, and f32[112, pixels], how much; pixel i is [i, i + 1)."""
  samples = max(1, math.ceil((stop - start) / MASK_SIDE))  # of a cell
  points = start + (np.arange(MASK_SIDE * samples) + 0.5) / (MASK_SIDE * samples) * (stop - start)
  centres = np.clip(points - 0.5, 0, length - 1)  # beyond the first and the last pixel's centre their values hold
  first, last = math.floor(centres[0]), math.ceil(centres[-1])
  distance = np.abs(centres[:, None] - np.arange(first, last + 1))
  weights = np.maximum(1 - distance, 0).reshape(MASK_SIDE, samples, -1).mean(axis=1)
  return slice(first, last + 1), weights.astype(np.float32)

"""Copy-paste: objects of another image over this one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from rcnn_jax.data.augment import checks, geometry
from rcnn_jax.data.object_masks import Masks
from rcnn_jax.data.transforms import Example


@dataclasses.dataclass(frozen=True)
class CopyPaste:
  """Simple Copy-Paste (arXiv:2012.07177): a random part of another image's objects, where they stand in that image.

  Pixels are taken from the other image by the objects' masks (`Data.load_masks`); both images have gone through the
  augmentations that stand before this one, so that large-scale jitter before it varies sizes and places. Crowds are
  not pasted. The objects below lose what is covered: an object of which less than `min_visibility` is left is gone,
  the others' masks and boxes are what is left, and joints that are covered are labelled but not visible. Borders are
  not smoothed, which the paper finds to change nothing. The result is as large as the larger image.
  """

  probability: float = 0.5
  min_visibility: float = 0.1  # an object of which less than this share of its visible area is left is left out
  max_pasted: int = 100  # objects

  takes_others: ClassVar[bool] = True
  needs_masks: ClassVar[bool] = True
  max_images: ClassVar[int] = 2  # whose objects stand in one

  def __post_init__(self):
    checks.share(self, "probability")
    checks.share(self, "min_visibility")
    checks.at_least(self, "max_pasted", 1)

  def __call__(self, example: Example, rng: np.random.Generator, other: Callable[[], Example]) -> Example:
    """The example with some objects of `other()`."""
    if rng.random() >= self.probability:
      return example
    source = other()
    rows = rng.permutation(np.flatnonzero(~source.crowd))
    number = int(rng.integers(len(rows) + 1)) if len(rows) else 0
    return pasted(example, source.take(np.sort(rows[: min(number, self.max_pasted)])), self.min_visibility)


def pasted(example: Example, source: Example, min_visibility: float) -> Example:
  """All objects of `source` put over `example`, at their own places."""
  import cv2

  if not len(source.boxes):
    return example
  height, width = (max(sides) for sides in zip(example.image.shape[:2], source.image.shape[:2]))
  covered = np.zeros((height, width), np.uint8)
  for row, box in enumerate(source.boxes):
    window = geometry.around(box, covered.shape)
    covered[_region(window)] |= source.masks.pixels(row, window)
  image = np.zeros((height, width, 3), example.image.dtype)
  image[: example.image.shape[0], : example.image.shape[1]] = example.image
  rows = slice(0, source.image.shape[0]), slice(0, source.image.shape[1])
  cv2.copyTo(np.ascontiguousarray(source.image), np.ascontiguousarray(covered[rows]), image[rows])
  below = dataclasses.replace(below_cover(example, covered.astype(bool), min_visibility), image=image)
  return below.joined(source)


def below_cover(example: Example, covered: np.ndarray, min_visibility: float) -> Example:
  """The objects of which enough is left where pixels bool[H, W] are covered, with what is left of them."""
  boxes, masks, kept = example.boxes.copy(), example.masks, np.ones(len(example.boxes), bool)
  for row, box in enumerate(example.boxes):
    window = geometry.around(box, covered.shape)
    over = covered[_region(window)]
    if not over.any():
      continue
    pixels = masks.pixels(row, window)
    left = pixels & ~over
    boxes[row] = geometry.tightened(box, left, window)
    kept[row] = left.any() and left.sum() >= min_visibility * pixels.sum()
    if kept[row]:
      masks = with_pixels(masks, row, left, window, boxes[row])
  keypoints = example.keypoints if example.keypoints is None else _hidden(example.keypoints, covered)
  return dataclasses.replace(example, boxes=boxes, masks=masks, keypoints=keypoints).take(np.flatnonzero(kept))


def with_pixels(masks: Masks, row: int, pixels: np.ndarray, window: geometry.Window, box: np.ndarray) -> Masks:
  """The masks with another one at a row: pixels u8[h, w] in a window of the image; `box` is that of the object."""
  from pycocotools import mask

  runs = mask.encode(np.asfortranarray(pixels, np.uint8))
  frames, matrices = masks.frames.copy(), masks.matrices.copy()
  frames[row] = box - np.array(window[:2] * 2, np.float32)
  matrices[row] = geometry.translation(*window[:2])
  return Masks((*masks.runs[:row], runs, *masks.runs[row + 1 :]), frames, matrices)


def _region(window: geometry.Window) -> tuple[slice, slice]:
  x1, y1, x2, y2 = window
  return slice(y1, y2), slice(x1, x2)


def _hidden(keypoints: np.ndarray, covered: np.ndarray) -> np.ndarray:
  """Joints f32[N, J, 3]; visible ones (2) on covered pixels become labelled ones (1)."""
  columns, rows = (np.clip(keypoints[..., axis].astype(int), 0, covered.shape[1 - axis] - 1) for axis in (0, 1))
  hidden = (keypoints[..., 2] == 2) & covered[rows, columns]
  return np.concatenate([keypoints[..., :2], (keypoints[..., 2:] - hidden[..., None])], axis=-1).astype(np.float32)

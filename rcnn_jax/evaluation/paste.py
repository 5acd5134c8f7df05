"""From a mask in the frame of its box to a mask of the whole image, and to COCO's run lengths.

Only host code (numpy) lives here: it runs once per detection, after the device has answered.
"""

from __future__ import annotations

import numpy as np
from pycocotools import mask as rle


def paste(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
  """Samples a box-frame mask bilinearly at the centre of every pixel of the image (Detectron2's paste).

  Beyond the mask's border the probability is 0, so a pixel exactly on the edge of the box gets half the border's
  probability. Sampled in f32, box edges are not rounded.

  Args:
    mask: f32[P, P], probabilities; cell (i, j) covers an equal share of the box.
    box: f32[4], xyxy in pixels of the image; it may reach beyond the image.
    size: (height, width) of the image.
    threshold: a pixel belongs to the object where the sampled probability is at least this.

  Returns:
    u8[height, width] in {0, 1}.
  """
  height, width = size
  x1, y1, x2, y2 = (float(v) for v in box)
  rows, row_weights = _axis_weights(y1, y2, mask.shape[0], height)
  columns, column_weights = _axis_weights(x1, x2, mask.shape[1], width)
  pasted = np.zeros((height, width), np.uint8)
  pasted[rows, columns] = row_weights @ mask.astype(np.float32) @ column_weights.T >= threshold
  return pasted


def paste_rounded(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
  """torchvision's paste: one cell of zeros is put round the mask, the box grows with it and loses its fractions.

  Arguments and result are those of `paste`, but a pixel belongs to the object where the probability is more than
  `threshold`. The box is stretched to whole pixels, its last row and column included, so that a mask reaches up to a
  pixel farther than the exact one.
  """
  side = mask.shape[0]
  x1, y1, x2, y2 = np.float32(box)
  # In float32 and in this order, because the fractions are cut off afterwards.
  half = np.float32([x2 - x1, y2 - y1]) * np.float32(0.5) * np.float32((side + 2) / side)
  centre = np.float32([x2 + x1, y2 + y1]) * np.float32(0.5)
  low, high = np.trunc(centre - half).astype(int), np.trunc(centre + half).astype(int)
  rows, row_weights = _stretched_weights(low[1], high[1], side + 2, size[0])
  columns, column_weights = _stretched_weights(low[0], high[0], side + 2, size[1])
  pasted = np.zeros(size, np.uint8)
  pasted[rows, columns] = row_weights @ np.pad(mask.astype(np.float32), 1) @ column_weights.T > threshold
  return pasted


def encode(mask: np.ndarray) -> dict:
  """u8[H, W] in {0, 1} -> COCO's compressed run lengths, with the counts as text so that they fit into JSON."""
  encoded = rle.encode(np.asfortranarray(mask))
  return {"size": [int(v) for v in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def _axis_weights(low: float, high: float, cells: int, length: int) -> tuple[slice, np.ndarray]:
  """The pixels that the interval [low, high] touches, and f32[pixels, cells] of bilinear weights of its cells."""
  first = min(max(int(np.floor(low)), 0), length)
  last = min(max(int(np.ceil(high)), first), length)
  if high <= low:
    return slice(first, first), np.zeros((0, cells), np.float32)
  centres = np.arange(first, last, dtype=np.float32) + 0.5
  position = (centres - low) / (high - low) * cells - 0.5  # in cells; cell j has its centre at j
  distance = np.abs(position[:, None] - np.arange(cells, dtype=np.float32)[None, :])
  return slice(first, last), np.maximum(0.0, 1.0 - distance).astype(np.float32)


def _stretched_weights(low: int, high: int, cells: int, length: int) -> tuple[slice, np.ndarray]:
  """The pixels low..high that lie in the image, and f32[pixels, cells] of bilinear weights, the border's held."""
  first, last = min(max(low, 0), length), min(high + 1, length)
  pixels = np.arange(first, max(last, first))
  position = np.clip((pixels - low + 0.5) * cells / max(high - low + 1, 1) - 0.5, 0, cells - 1)
  distance = np.abs(position[:, None] - np.arange(cells))
  return slice(first, first + len(pixels)), np.maximum(0.0, 1.0 - distance).astype(np.float32)

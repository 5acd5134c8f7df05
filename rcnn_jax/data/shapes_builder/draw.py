"""Drawing: one textured picture with overlapping shapes, and the exact mask of what is visible of each."""

from __future__ import annotations

import cv2
import numpy as np

CLASSES = ("circle", "square", "triangle")
MIN_VISIBLE = 0.6  # the share of an object that later ones leave visible, and that must lie within the image
MIN_SIDE = 14  # pixels, the least side of a visible box


def scene(rng: np.random.Generator, side: int, num_objects: int):
  """Paints up to `num_objects` shapes, later ones over earlier ones.

  A shape that would hide too much of an earlier one is painted elsewhere or not at all, so that nothing in the
  picture is without a label.

  Returns:
    image u8[side, side, 3], classes (a list of names), masks bool[N, side, side] of the visible parts.
  """
  image = _texture(rng, side, contrast=25)
  classes, masks, whole_areas = [], np.zeros((0, side, side), bool), []
  for _ in range(num_objects):
    for _ in range(20):
      name = CLASSES[rng.integers(len(CLASSES))]
      mask, whole_area = _shape(rng, side, name)
      visible = np.concatenate([masks & ~mask, mask[None]])
      if all(_is_visible(part, area) for part, area in zip(visible, whole_areas + [whole_area])):
        image = np.where(mask[..., None], _texture(rng, side, contrast=40), image)
        masks, classes, whole_areas = visible, classes + [name], whole_areas + [whole_area]
        break
  return image, classes, masks


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
  """The tightest box (x1, y1, x2, y2) round a mask bool[H, W], in continuous pixels."""
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _is_visible(mask: np.ndarray, whole_area: float) -> bool:
  if mask.sum() < MIN_VISIBLE * whole_area:
    return False
  x1, y1, x2, y2 = box_of(mask)
  return min(x2 - x1, y2 - y1) >= MIN_SIDE


def _shape(rng: np.random.Generator, side: int, name: str) -> tuple[np.ndarray, float]:
  """The mask bool[side, side] of one shape, and the area in pixels that it has with nothing cut off."""
  radius = rng.uniform(0.1, 0.22) * side
  centre = rng.uniform(0.6 * radius, side - 0.6 * radius, size=2)
  corners = {"circle": 64, "square": 4, "triangle": 3}[name]
  angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
  points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
  canvas = np.zeros((side, side), np.uint8)
  cv2.fillPoly(canvas, [np.round(points).astype(np.int32)], 1)
  return canvas.astype(bool), 0.5 * corners * radius**2 * np.sin(2 * np.pi / corners)


def _texture(rng: np.random.Generator, side: int, contrast: float) -> np.ndarray:
  """u8[side, side, 3]: a colour with stripes of a random direction and period, blotches and grain."""
  y, x = np.mgrid[:side, :side].astype(np.float32)
  angle, period = rng.uniform(0, np.pi), rng.uniform(4, 16)
  stripes = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
  blotches = cv2.resize(rng.normal(size=(6, 6)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
  pattern = contrast * (rng.uniform(0, 1) * stripes + rng.uniform(0, 1) * blotches)
  grain = rng.normal(scale=4, size=(side, side, 3))
  return np.clip(rng.uniform(40, 215, size=3) + pattern[..., None] + grain, 0, 255).astype(np.uint8)

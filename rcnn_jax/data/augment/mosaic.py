"""Mosaic: four images in one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np

from rcnn_jax.data import transforms
from rcnn_jax.data.augment import checks, geometry
from rcnn_jax.data.transforms import Example


@dataclasses.dataclass(frozen=True)
class Mosaic:
  """Four images about a point of the canvas, each with a corner at it (YOLOv4, arXiv:2004.10934, section 3.3).

  Each is scaled by a factor of its own, where 1 just fits the canvas, and cut by its quarter; what none fills is
  black. The mosaic fills the canvas. It takes the place of `Data.resize` in training; an image of which no mosaic is
  made is scaled to fit the canvas.
  """

  probability: float = 1.0
  scale: tuple[float, float] = (0.4, 1.0)
  middle: tuple[float, float] = (0.3, 0.7)  # where the point may lie, as shares of the canvas' sides
  min_visibility: float = 0.1  # an object of which less than this share of its area shows is left out
  interpolation: Literal["linear", "area", "cubic", "pillow"] = "linear"

  resizes: ClassVar[bool] = True
  takes_others: ClassVar[bool] = True
  max_images: ClassVar[int] = 4

  def __post_init__(self):
    checks.share(self, "probability")
    checks.positive_range(self, "scale")
    checks.positive_range(self, "middle", 1.0)
    checks.share(self, "min_visibility")

  def __call__(self, example: Example, rng: np.random.Generator, other: Callable[[], Example]) -> Example:
    """The example and three others."""
    if rng.random() >= self.probability:
      return transforms.scaled(example, _fitting(example, 1.0), self.interpolation)
    height, width = example.canvas
    x, y = (min(max(1, round(side * rng.uniform(*self.middle))), side - 1) for side in (width, height))
    quarters = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
    image, parts = np.zeros((height, width, 3), example.image.dtype), []
    for quarter in quarters:
      window, part = self._part(other() if parts else example, rng, quarter, (x, y))
      image[window[1] : window[3], window[0] : window[2]] = part.image
      parts.append(part.moved(geometry.translation(*window[:2]), image))
    whole = parts[0]
    for part in parts[1:]:
      whole = whole.joined(part)
    return dataclasses.replace(whole, image=image)

  def _part(self, example: Example, rng, quarter: geometry.Window, corner: tuple[int, int]):
    """(Where it stands on the canvas, the part of the example that shows there.)"""
    height, width = size = _fitting(example, rng.uniform(*self.scale))
    shown = min(height, quarter[3] - quarter[1]), min(width, quarter[2] - quarter[0])
    left, above = quarter[0] < corner[0], quarter[1] < corner[1]
    # The corner of the image that lies at the point is its lower right one in the upper left quarter, and so on.
    x1, y1 = width - shown[1] if left else 0, height - shown[0] if above else 0
    window = (x1, y1, x1 + shown[1], y1 + shown[0])
    part = geometry.scaled_window(example, size, window, self.min_visibility, self.interpolation)
    place = corner[0] - shown[1] * left, corner[1] - shown[0] * above
    return (*place, place[0] + shown[1], place[1] + shown[0]), part


def _fitting(example: Example, factor: float) -> tuple[int, int]:
  """A factor times the size at which the image just fits its canvas."""
  old, canvas = example.image.shape[:2], example.canvas
  return transforms.scaled_size(old, factor * min(canvas[0] / old[0], canvas[1] / old[1]))

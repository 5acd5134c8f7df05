"""Turns by right angles and by small ones."""

from __future__ import annotations

import dataclasses

import numpy as np

from rcnn_jax.data.augment import checks, geometry
from rcnn_jax.data.transforms import Example


@dataclasses.dataclass(frozen=True)
class QuarterTurns:
  """The image turned by 0, 90, 180 or 270 degrees, for pictures that have no up: microscopes, satellites.

  Pixels, boxes and masks stay exact. A turned landscape that does not fit its canvas is shrunk to it: square canvases
  shrink nothing.
  """

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """The example turned as often as is drawn."""
    return quarter_turned(example, int(rng.integers(4)))


def quarter_turned(example: Example, times: int) -> Example:
  """The example turned anticlockwise by so many right angles."""
  for _ in range(times % 4):
    width = example.image.shape[1]
    example = example.moved(np.array([[0.0, 1, 0], [-1, 0, width]]), np.rot90(example.image))
    example = dataclasses.replace(example, scale=example.scale[::-1])
  return example


@dataclasses.dataclass(frozen=True)
class Rotate:
  """The image turned about its middle by up to `degrees` either way; black where nothing was, corners cut off.

  Without masks, a turned object's box is that around its turned box, which is too wide: keep the angles small.
  """

  degrees: float = 10.0
  probability: float = 0.5
  min_visibility: float = 0.2  # an object of which less than this share of its area shows is left out

  def __post_init__(self):
    checks.at_least(self, "degrees", 0)
    checks.share(self, "probability")
    checks.share(self, "min_visibility")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """The example turned by an angle that is drawn."""
    if rng.random() >= self.probability:
      return example
    return rotated(example, rng.uniform(-self.degrees, self.degrees), self.min_visibility)


def rotated(example: Example, degrees: float, min_visibility: float) -> Example:
  """The example turned anticlockwise about its middle."""
  height, width = size = example.image.shape[:2]
  cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
  linear = np.array([[cosine, sine], [-sine, cosine]])
  middle = np.array([width, height]) / 2
  matrix = np.column_stack([linear, middle - linear @ middle])
  return geometry.in_sight(example.moved(matrix, geometry.warped(example.image, matrix, size)), min_visibility)

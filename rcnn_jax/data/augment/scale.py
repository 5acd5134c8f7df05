"""Large-scale jitter."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from rcnn_jax.data import transforms
from rcnn_jax.data.augment import checks, geometry
from rcnn_jax.data.transforms import Example


@dataclasses.dataclass(frozen=True)
class LargeScaleJitter:
  """A size between a tenth and twice the canvas'; of what is larger than the canvas, a part (arXiv:2012.07177).

  A scale of 1 is that at which the image just fits the canvas. It takes the place of `Data.resize` in training, and
  reads the original pixels: an enlarged part is made from them, not from an image that was shrunk before. A smaller
  image stands in the canvas' top left corner, as all images do; nothing is padded by the mean.
  """

  scale: tuple[float, float] = (0.1, 2.0)
  min_visibility: float = 0.1  # an object of which less than this share of its area shows is left out
  interpolation: Literal["linear", "area", "cubic", "pillow"] = "linear"

  resizes: ClassVar[bool] = True

  def __post_init__(self):
    checks.positive_range(self, "scale")
    checks.share(self, "min_visibility")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """The example at a scale that is drawn."""
    old, canvas = example.image.shape[:2], example.canvas
    factor = rng.uniform(*self.scale) * min(canvas[0] / old[0], canvas[1] / old[1])
    size = transforms.scaled_size(old, factor)
    height, width = (min(side, limit) for side, limit in zip(size, canvas))
    y1, x1 = (int(rng.integers(side - shown + 1)) for side, shown in zip(size, (height, width)))
    window = (x1, y1, x1 + width, y1 + height)
    return geometry.scaled_window(example, size, window, self.min_visibility, self.interpolation)

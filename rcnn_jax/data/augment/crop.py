"""Random crops."""

from __future__ import annotations

import dataclasses

import numpy as np

from rcnn_jax.data.augment import checks, geometry
from rcnn_jax.data.transforms import Example


@dataclasses.dataclass(frozen=True)
class RandomCrop:
  """A window of the image, its sides each a share of the image's that is drawn (Detectron2's `relative_range`).

  An object of which too little shows is left out. Where there are objects to train on, a window that shows none of
  them is drawn again; after `attempts` of them the image stays whole, so that no crop leaves nothing. The crop stays
  as small as it is: `augmentations=(RandomCrop(), Resize(...))` crops the original and resizes what is left.
  """

  share: tuple[float, float] = (0.3, 1.0)  # of each side
  min_visibility: float = 0.2  # an object of which less than this share of its area shows is left out
  keep_objects: bool = True  # False: a window without an object is as good as any
  attempts: int = 10
  probability: float = 1.0

  def __post_init__(self):
    checks.positive_range(self, "share", 1.0)
    checks.share(self, "min_visibility")
    checks.at_least(self, "attempts", 1)
    checks.share(self, "probability")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """The part of the example in a window that is drawn."""
    if rng.random() >= self.probability:
      return example
    wanted = self.keep_objects and not example.crowd.all()  # of no objects, all are crowds
    for _ in range(self.attempts):
      found = geometry.cropped(example, self._window(example.image.shape[:2], rng), self.min_visibility)
      if not wanted or not found.crowd.all():
        return found
    return example

  def _window(self, size: tuple[int, int], rng: np.random.Generator) -> geometry.Window:
    height, width = (max(1, round(side * rng.uniform(*self.share))) for side in size)
    y1, x1 = (int(rng.integers(side - shown + 1)) for side, shown in zip(size, (height, width)))
    return x1, y1, x1 + width, y1 + height

"""Photometric distortion."""

from __future__ import annotations

import dataclasses

import numpy as np

from rcnn_jax.data import transforms
from rcnn_jax.data.augment import checks
from rcnn_jax.data.transforms import Example


@dataclasses.dataclass(frozen=True)
class PhotometricDistortion:
  """SSD's colours (arXiv:1512.02325, after Howard, 1312.5402), as torchvision's RandomPhotometricDistort has them.

  Brightness, contrast, saturation and hue, each with `probability`; contrast comes either before saturation and hue
  or after them. At last, with the same probability, the channels change places.
  """

  brightness: tuple[float, float] = (0.875, 1.125)
  contrast: tuple[float, float] = (0.5, 1.5)
  saturation: tuple[float, float] = (0.5, 1.5)
  hue: float = 0.05  # the greatest turn of the colour circle, in 0..0.5
  probability: float = 0.5

  def __post_init__(self):
    for name in ("brightness", "contrast", "saturation"):
      checks.positive_range(self, name)
    checks.share(self, "hue")
    checks.share(self, "probability")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """The example in other colours."""
    image = example.image
    happens = lambda: rng.random() < self.probability
    contrast_first = rng.random() < 0.5
    if happens():
      image = transforms.with_brightness(image, rng.uniform(*self.brightness))
    if contrast_first and happens():
      image = transforms.with_contrast(image, rng.uniform(*self.contrast))
    if happens():
      image = transforms.with_saturation(image, rng.uniform(*self.saturation))
    if happens():
      image = transforms.with_hue(image, rng.uniform(-self.hue, self.hue))
    if not contrast_first and happens():
      image = transforms.with_contrast(image, rng.uniform(*self.contrast))
    if happens():
      image = image[..., rng.permutation(3)]
    return dataclasses.replace(example, image=image)

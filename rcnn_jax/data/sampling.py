"""How often each image is trained on in an epoch: samplers as values, and their draws.

A sampler has `factors(pairs, num_images)`, f64[n]: how often each of n images is to be seen, on average over epochs.
`pairs` i64[P, 2] are the (image, class) that occur, each once, images counted from 0.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from rcnn_jax.data.source import Source, degenerate


@dataclasses.dataclass(frozen=True)
class RepeatFactor:
  """Images of rare classes are repeated (LVIS, arXiv:1908.03195, repeat factor sampling).

  An image has the largest of its classes' max(1, sqrt(threshold / f)), f the share of images that show the class. One
  without an object has 1. An epoch is as much longer as there are repetitions.
  """

  threshold: float = 0.001  # classes that fewer of the images show than this share are repeated

  def __post_init__(self):
    if not 0 < self.threshold <= 1:
      raise ValueError(f"RepeatFactor: threshold is {self.threshold:g}: it must lie above 0 and be at most 1")

  def factors(self, pairs: np.ndarray, num_images: int) -> np.ndarray:
    """f64[num_images], at least 1 each."""
    images, classes = pairs.T
    shares = np.bincount(classes) / num_images
    of_class = np.sqrt(self.threshold / np.maximum(shares, 1 / num_images))
    found = np.ones(num_images)
    np.maximum.at(found, images, of_class[classes])
    return found


@dataclasses.dataclass(frozen=True)
class ClassBalanced:
  """Each class is drawn as often as any other, and then one of the images that show it (class-aware
  sampling, arXiv:1512.05830).

  An epoch has as many draws as there are images. An image without an object to train on is never drawn.
  """

  def factors(self, pairs: np.ndarray, num_images: int) -> np.ndarray:
    """f64[num_images], with the sum num_images."""
    images, classes = pairs.T
    counts = np.bincount(classes)
    draws = num_images / max(np.count_nonzero(counts), 1)  # of each class
    return np.bincount(images, draws / counts[classes], num_images)


def pairs(source: Source, images: np.ndarray) -> np.ndarray:
  """i64[P, 2]: (place in `images`, class) of the objects to train on, each pair once; `images` i64[n] are numbers."""
  found = []
  for place, index in enumerate(images.tolist()):
    one = source.annotations(index, masks=False)
    sound = ~one.crowd & ~degenerate(one.boxes, np.broadcast_to(np.array(one.size), (len(one.boxes), 2)))
    found += [(place, k) for k in np.unique(one.classes[sound]).tolist()]
  return np.array(found, np.int64).reshape(-1, 2)


def num_draws(factors: np.ndarray) -> int:
  """How many draws an epoch has, at least one."""
  return max(1, round(float(factors.sum())))


def most_draws(factors: np.ndarray) -> int:
  """How often an epoch may have the image that it has most often: factors are stretched to a whole number of draws."""
  total = num_draws(factors)
  return min(total, math.ceil(float(factors.max()) * total / float(factors.sum()) - 1e-9))


def draws(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """i64[n]: how often each image is seen in an epoch, `num_draws` in all.

  An image is seen one of the two whole numbers next to its factor, and over epochs the factor itself on average
  (systematic sampling, with the images in random order).
  """
  order = rng.permutation(len(factors))
  total, ends = num_draws(factors), np.cumsum(factors[order])
  ends *= total / ends[-1]
  ends[-1] = total
  counts = np.zeros(len(factors), np.int64)
  counts[order] = np.diff(np.floor(ends + rng.random()), prepend=0)
  return counts

"""Several data sets as one, like VOC 2007 and 2012 trainval (07+12)."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from typing import Any

import numpy as np

from rcnn_jax.data.errors import DataError, Fault
from rcnn_jax.data.source import (
  Annotations,
  Category,
  KeypointNames,
  Overview,
  Source,
  concatenate,
  overview,
  unfollowed_orientation,
)


@dataclasses.dataclass(frozen=True)
class Union:
  """The images of all parts, one part behind the other; the image id is the place in the whole, from 1.

  The parts are specs like VocFolder, of the same classes and joints.
  """

  parts: tuple[Any, ...]

  def open(self, strict: bool = True) -> UnionSource:
    """Opens all parts. Raises DataError for none of them, and where their classes or joints differ."""
    if not self.parts:
      raise DataError("a union of no data sets")
    first, *others = sources = tuple(part.open(strict) for part in self.parts)
    for number, other in enumerate(others, start=1):
      for what in ("categories", "keypoints"):
        if getattr(other, what) != getattr(first, what):
          difference = f"{_names(getattr(first, what))}; {_names(getattr(other, what))}"
          raise DataError(f"the {what} of {self.parts[0]} and {self.parts[number]} differ: {difference}")
    return UnionSource(sources, tuple(itertools.accumulate(len(source) for source in sources)))


@dataclasses.dataclass(frozen=True)
class UnionSource:
  """An open union."""

  sources: tuple[Source, ...]
  ends: tuple[int, ...]  # of each source, the number of images up to its last

  @property
  def categories(self) -> tuple[Category, ...]:
    """Those of each part."""
    return self.sources[0].categories

  @property
  def keypoints(self) -> KeypointNames | None:
    """Those of each part."""
    return self.sources[0].keypoints

  @property
  def faults(self) -> tuple[Fault, ...]:
    """Those of all parts."""
    return tuple(fault for source in self.sources for fault in source.faults)

  def __len__(self) -> int:
    return self.ends[-1]

  def annotations(self, index: int, masks: bool = True) -> Annotations:
    """The objects of image `index`."""
    source, place = self._place(index)
    return dataclasses.replace(source.annotations(place, masks), image_id=index + 1, file_id=None)

  def overview(self, masks: bool) -> Overview:
    """Those of the parts, one behind the other. Raises DataError as `source.overview` does."""
    return concatenate([overview(part, masks) for part in self.sources])

  def image(self, index: int) -> np.ndarray:
    """u8[H, W, 3] RGB."""
    source, place = self._place(index)
    return source.image(place)

  def orientation(self, index: int) -> int:
    """EXIF's orientation of image `index` where it is given as it is stored; 1: it is upright."""
    source, place = self._place(index)
    return unfollowed_orientation(source, place)

  def _place(self, index: int) -> tuple[Source, int]:
    """The part that has image `index`, and the image's place in it."""
    number = bisect.bisect_right(self.ends, index)
    return self.sources[number], index - (self.ends[number - 1] if number else 0)


def _names(what: Any) -> str:
  """Categories or joints, for people."""
  if what is None:
    return "none"
  return ", ".join(what.names if isinstance(what, KeypointNames) else (f"{one.id} {one.name}" for one in what))

"""A data source seen by tiles, each an image of its own, for evaluation."""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterable

import numpy as np

from rcnn_jax.data.errors import DataError
from rcnn_jax.data.images import size_problem
from rcnn_jax.data.source import Annotations, Source
from rcnn_jax.evaluation.results import Found
from rcnn_jax.evaluation.tiles import Tiles, merged


class TiledSource:
  """The tiles of all images of a source, without objects; tile k has the image_id k + 1."""

  def __init__(self, source: Source, tiles: Tiles):
    self._source = source
    self._images = [source.annotations(index, masks=False) for index in range(len(source))]
    self._places = [(n, window) for n, one in enumerate(self._images) for window in tiles.windows(one.size)]
    self._image = functools.lru_cache(maxsize=4)(source.image)  # tiles of an image mostly come one after the other
    self.categories, self.keypoints, self.faults = source.categories, source.keypoints, ()

  def __len__(self) -> int:
    return len(self._places)

  def annotations(self, index: int, masks: bool = True) -> Annotations:
    """The size of a tile, without objects."""
    del masks
    number, (x1, y1, x2, y2) = self._places[index]
    none = np.zeros(0, np.int64)
    return Annotations(
      image_id=index + 1,
      file_name=self._images[number].file_name,
      size=(y2 - y1, x2 - x1),
      boxes=np.zeros((0, 4), np.float32),
      classes=none.astype(np.int32),
      crowd=none.astype(bool),
      difficult=none.astype(bool),
      ids=none,
      areas=none.astype(np.float32),
    )

  def image(self, index: int) -> np.ndarray:
    """u8[h, w, 3], RGB. Raises DataError where the file cannot be read, or is of another size than is said of it."""
    number, (x1, y1, x2, y2) = self._places[index]
    image, one = self._image(number), self._images[number]
    if image.shape[:2] != tuple(one.size):
      raise DataError(f"{one.file_name}: {size_problem(image.shape[:2], one.size)}")
    return image[y1:y2, x1:x2]

  def whole(self, found: Iterable[Found]) -> list[Found]:
    """What was found in each image of the source, from what was found in each tile."""
    parts = collections.defaultdict(list)
    for one in found:
      number, window = self._places[one.image_id - 1]
      parts[number].append((window, one))
    return [merged(parts[n], one.image_id, tuple(map(int, one.size))) for n, one in enumerate(self._images)]

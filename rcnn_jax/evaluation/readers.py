"""How images are read from files, ahead of the model, and put into batches: whole, by tiles, or by several views.

No more images than make up a few batches are in memory at a time.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from rcnn_jax.data import images, pipeline
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.proposals import Regions
from rcnn_jax.evaluation.image_files import ImageFile
from rcnn_jax.evaluation.results import Found
from rcnn_jax.evaluation.tiles import Tiles, Window, merged
from rcnn_jax.evaluation.view_masks import Masker
from rcnn_jax.evaluation.views import Merging, View
from rcnn_jax.types import Batch

_READERS = 2  # threads that decode ahead
_WAITING_BATCHES = 4  # so many batches' images wait for others of their canvas, or 128 million pixels of them
_WAITING_PIXELS = 1 << 27


class Reader:
  """Reads images ahead and puts those of one canvas together; `sizes` and `take` know those that are under way."""

  def __init__(self, files: Sequence[ImageFile], data: Data, search, batch_size: int, bar: tqdm):
    self._files, self._data, self._search, self._batch_size, self._bar = files, data, search, batch_size, bar
    self._images: dict[int, np.ndarray] = {}
    self.sizes: dict[int, tuple[int, int]] = {}
    self.unread: list[pathlib.Path] = []

  def take(self, image_id: int) -> np.ndarray:
    """u8[H, W, 3], RGB; it is forgotten here."""
    del self.sizes[image_id]
    return self._images.pop(image_id)

  def whole(self, found: Iterator[Found]) -> Iterator[Found]:
    """What was found in each image, from what was found in each of the `batches`' rows."""
    return found

  def _pixels(self, number: int) -> np.ndarray:
    return self._images[number]

  def _data_of(self, number: int) -> Data:
    del number
    return self._data

  def batches(self) -> Iterator[Batch]:
    """The images that can be read, in batches of one canvas and one size; the others are named and left out.

    The id of an image is its place among the files, from 1. A batch that is not full has rows that are not valid.
    """
    groups: dict[Any, list[tuple[int, Regions | None]]] = {}
    for image_id, found in self._read():
      data = self._data_of(image_id)
      kind = pipeline.canvas_of(self.sizes[image_id], data), data.resize
      groups.setdefault(kind, []).append((image_id, found))
      if len(groups[kind]) == self._batch_size:
        yield self._batch(groups.pop(kind))
      while self._are_too_many([number for group in groups.values() for number, _ in group]):
        yield self._batch(groups.pop(max(groups, key=lambda one: len(groups[one]))))
    for group in groups.values():
      yield self._batch(group)

  def _are_too_many(self, waiting: Sequence[int]) -> bool:
    pixels = sum(self.sizes[number][0] * self.sizes[number][1] for number in waiting)
    return len(waiting) > _WAITING_BATCHES * self._batch_size or pixels > _WAITING_PIXELS

  def _batch(self, group: Sequence[tuple[int, Regions | None]]) -> Batch:
    ids = [image_id for image_id, _ in group]
    found = None if self._search is None else [regions for _, regions in group]
    batch = pipeline.image_batch([self._pixels(number) for number in ids], self._data_of(ids[0]), ids, found)
    missing = self._batch_size - len(group)
    batch = jax.tree.map(lambda rows: np.concatenate([rows, *[rows[:1]] * missing]), batch)
    return batch.replace(valid=np.arange(self._batch_size) < len(group))

  def _read(self) -> Iterator[tuple[int, Regions | None]]:
    """The ids of the images in their order, with their proposals where the model makes none itself."""
    with ThreadPoolExecutor(_READERS) as threads:
      ahead: collections.deque[tuple[int, Future]] = collections.deque()
      for image_id, (path, _) in enumerate(self._files, start=1):
        ahead.append((image_id, threads.submit(_image_and_proposals, path, self._search)))
        if len(ahead) > _READERS:
          yield from self._finished(*ahead.popleft())
      while ahead:
        yield from self._finished(*ahead.popleft())

  def _finished(self, image_id: int, reading: Future) -> Iterator[tuple[int, Regions | None]]:
    try:
      image, found = reading.result()
    except DataError as error:
      tqdm.write(f"warning: {error}", file=sys.stderr)
      self.unread.append(self._files[image_id - 1][0])
      self._bar.update()
      return
    self._images[image_id], self.sizes[image_id] = image, image.shape[:2]
    yield image_id, found


class PartsReader(Reader, abc.ABC):
  """Gives several parts of each image, each with an id of its own, and puts together what was found in them."""

  def __init__(self, files: Sequence[ImageFile], data: Data, search, batch_size: int, bar: tqdm):
    super().__init__(files, data, search, batch_size, bar)
    self._numbers = itertools.count(len(files) + 1)  # ids that no image has
    self._places: dict[int, tuple[int, Any]] = {}  # the image of each part that is under way, and which part it is
    self._found: dict[int, list[tuple[Any, Found]]] = {}  # in the parts of each image

  @abc.abstractmethod
  def _parts(self, size: tuple[int, int]) -> list[tuple[Any, tuple[int, int]]]:
    """The parts of an image of `size` (height, width), and the size of each."""

  @abc.abstractmethod
  def _merged(self, parts: list[tuple[Any, Found]], image_id: int, size: tuple[int, int]) -> Found:
    """What was found in all parts of an image, as one."""

  def take(self, image_id: int) -> np.ndarray:
    """u8[H, W, 3], RGB; it is forgotten here."""
    return self._images.pop(image_id)

  def whole(self, found: Iterator[Found]) -> Iterator[Found]:
    """What was found in each image, once all its parts have been looked at."""
    for one in found:
      image_id, part = self._places.pop(one.image_id)
      del self.sizes[one.image_id]
      self._found[image_id].append((part, one))
      size = self._images[image_id].shape[:2]
      if len(self._found[image_id]) == len(self._parts(size)):
        yield self._merged(self._found.pop(image_id), image_id, size)

  def _finished(self, image_id: int, reading: Future) -> Iterator[tuple[int, Regions | None]]:
    for number, regions in super()._finished(image_id, reading):
      self._found[number] = []
      for part, size in self._parts(self.sizes.pop(number)):
        place = next(self._numbers)
        self._places[place], self.sizes[place] = (number, part), size
        yield place, regions


class TiledReader(PartsReader):
  """Gives the tiles of the images."""

  def __init__(self, files: Sequence[ImageFile], data: Data, tiles: Tiles, batch_size: int, bar: tqdm):
    super().__init__(files, data, None, batch_size, bar)
    self._tiles = tiles

  def _parts(self, size: tuple[int, int]) -> list[tuple[Window, tuple[int, int]]]:
    return [(window, (window[3] - window[1], window[2] - window[0])) for window in self._tiles.windows(size)]

  def _pixels(self, number: int) -> np.ndarray:
    image_id, (x1, y1, x2, y2) = self._places[number]
    return self._images[image_id][y1:y2, x1:x2]

  def _merged(self, parts: list[tuple[Window, Found]], image_id: int, size: tuple[int, int]) -> Found:
    return merged(parts, image_id, size)


class ViewsReader(PartsReader):
  """Gives the views of the images."""

  def __init__(
    self,
    files: Sequence[ImageFile],
    data: Data,
    search,
    views: Sequence[View],
    merging: Merging,
    masker: Masker | None,
    batch_size: int,
    bar: tqdm,
  ):
    super().__init__(files, data, search, batch_size, bar)
    self._views, self._merging, self._masker = views, merging, masker

  def _parts(self, size: tuple[int, int]) -> list[tuple[int, tuple[int, int]]]:
    return [(view, size) for view in range(len(self._views))]

  def _pixels(self, number: int) -> np.ndarray:
    return self._images[self._places[number][0]]

  def _data_of(self, number: int) -> Data:
    return self._views[self._places[number][1]].data

  def _are_too_many(self, waiting: Sequence[int]) -> bool:
    one_of_each = {self._places[number][0]: number for number in waiting}  # an image is held once, for all its views
    return super()._are_too_many(list(one_of_each.values()))

  def _merged(self, parts: list[tuple[int, Found]], image_id: int, size: tuple[int, int]) -> Found:
    del size
    in_order = sorted(parts, key=lambda part: part[0])  # they come as their batches are full
    found = self._merging([(self._views[view], one) for view, one in in_order])
    found = dataclasses.replace(found, image_id=image_id)
    return found if self._masker is None else self._masker.of_image(found, self._images[image_id])


def _image_and_proposals(path: pathlib.Path, search: Callable | None) -> tuple[np.ndarray, Regions | None]:
  image = images.read(path, upright=True)
  return image, None if search is None else search(image, str(path))

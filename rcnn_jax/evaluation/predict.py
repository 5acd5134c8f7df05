"""Objects in image files: read, found, written and drawn image by image, in a time that is linear in their number.

No more images than make up a few batches are in memory at a time.
"""

from __future__ import annotations

import collections
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from tqdm import tqdm

from rcnn_jax.data import images, pipeline, proposals, selective_search
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.proposals import Regions
from rcnn_jax.data.selective_search import SelectiveSearch
from rcnn_jax.evaluation import detect, draw, outputs
from rcnn_jax.evaluation.classes import class_keys
from rcnn_jax.evaluation.detect import EvaluationError
from rcnn_jax.evaluation.image_files import ImageFile
from rcnn_jax.evaluation.results import Found
from rcnn_jax.evaluation.tiles import Tiles, Window, merged
from rcnn_jax.files import naming
from rcnn_jax.types import Batch

_READERS = 2  # threads that decode ahead
_WAITING_BATCHES = 4  # so many batches' images wait for others of their canvas, or 128 million pixels of them
_WAITING_PIXELS = 1 << 27


def predict(
  run,
  files: Sequence[ImageFile],
  output: pathlib.Path,
  min_score: float,
  batch_size: int | None = None,
  tiles: Tiles | None = None,
) -> list[pathlib.Path]:
  """Writes detections.json and a picture of each image into `output`, as they come.

  No file that an earlier prediction did not write is replaced: a picture gets another name instead
  (`outputs.picture_path`).

  Args:
    run: `training.checkpoint` Run.
    files: of `image_files.matching_files`.
    output: made if need be.
    min_score: detections below are left out.
    batch_size: images, or tiles, that are looked at together; None: as many as in the run's evaluations.
    tiles: look at each image by these, and not at it as a whole.

  Returns:
    The files that could not be read; each has been named in a warning on stderr.

  Raises:
    EvaluationError: `output` is no folder, or holds a detections.json that no prediction wrote.
  """
  check_output(output)
  data, model = run.experiment.data, run.experiment.model.with_data(run.categories, run.keypoints)
  search = chosen_search(data)
  if tiles is not None and search is not None:
    raise EvaluationError("tiles need a model that makes its own proposals")
  with tqdm(total=len(files), unit="image", file=sys.stderr, disable=None, leave=False) as bar:
    if tiles is None:
      reader = Reader(files, data, search, min(batch_size or data.batch_size[1], len(files)), bar)
    else:
      reader = TiledReader(files, data, tiles, batch_size or data.batch_size[1], bar)
    found = detect.find(
      model,
      run.variables,
      reader.batches(),
      reader.sizes,
      [category.id for category in run.categories],
      joint_offset=data.joint_offset,
    )
    count = write(run, files, reader, reader.whole(found), output, min_score, bar)
  print(f"{count} objects in {len(files) - len(reader.unread)} images; written to {output}")
  return reader.unread


def check_output(output: pathlib.Path) -> None:
  """Raises EvaluationError where predictions cannot be written into `output` without a loss."""
  if output.exists() and not output.is_dir():
    raise EvaluationError(f"--output={output} is a file; it must be a folder, or not there yet")
  for name in ("detections.json", "detections.json.partial"):
    if (output / name).exists() and not outputs.is_own_detections(output / name):
      what = "no prediction wrote this file; choose another --output, or move it away"
      raise EvaluationError(f"{output / name}: {what}")


def chosen_search(data: pipeline.Data) -> SelectiveSearch | None:
  """The search that made the run's evaluation proposals; None where the model makes its own.

  Raises:
    DataError: they are not there, or were not found by a search that can be repeated here.
  """
  if data.proposals is None:
    return None
  folder = data.proposals[1]
  return selective_search.like(proposals.read_settings(folder), folder)


def write(run, files, reader: Reader, found: Iterator[Found], output: pathlib.Path, min_score: float, bar) -> int:
  """Writes what was found in each image; returns the number of objects."""
  names = {category.id: category.name for category in run.categories}
  keys = class_keys(names.items())
  skeleton = run.keypoints.skeleton if run.keypoints else ()
  kept, taken, count = outputs.file_ids([path for path, _ in files]), set(), 0
  with DetectionsFile(output / "detections.json") as detections:
    for image in found:
      relative = files[image.image_id - 1][1]
      entries = image.above(min_score).entries
      picture = draw.draw(reader.take(image.image_id), entries, keys, skeleton=skeleton)
      outputs.write_picture(outputs.picture_path(output, relative, taken, kept), picture)
      detections.add([{**e, "category": names[e["category_id"]], "file_name": relative} for e in entries])
      count += len(entries)
      bar.update()
  return count


class DetectionsFile:
  """detections.json as it grows. `detections.json.partial` is whole JSON after each image, then takes its place."""

  def __init__(self, path: pathlib.Path):
    self._path, self._partial = path, path.with_name(f"{path.name}.partial")
    with naming(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      self._file = open(self._partial, "wb", buffering=0)
      self._file.write(b"[\n]\n")
    self._end = 1  # where the next entry begins

  def add(self, entries: Sequence[dict]) -> None:
    """Appends entries, one a line. Where there is no room for them, the file is left with those before."""
    text = b",\n".join(json.dumps(entry, allow_nan=False).encode() for entry in entries)
    if not text:
      return
    text = (b",\n" if self._end > 1 else b"\n") + text
    with naming(self._path):
      try:
        self._put(text + b"\n]\n")
      except OSError:
        self._file.truncate(self._end)
        self._put(b"\n]\n")
        raise
    self._end += len(text)

  def _put(self, text: bytes) -> None:
    self._file.seek(self._end)
    while text:
      text = text[self._file.write(text) :]

  def __enter__(self) -> DetectionsFile:
    return self

  def __exit__(self, kind, *_) -> None:
    self._file.close()
    if kind is None:
      self._partial.replace(self._path)


class Reader:
  """Reads images ahead and puts those of one canvas together; `sizes` and `take` know those that are under way."""

  def __init__(self, files: Sequence[ImageFile], data: pipeline.Data, search, batch_size: int, bar: tqdm):
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

  def _pixels(self, image_id: int) -> np.ndarray:
    return self._images[image_id]

  def batches(self) -> Iterator[Batch]:
    """The images that can be read, in batches of one canvas and one size; the others are named and left out.

    The id of an image is its place among the files, from 1. A batch that is not full has rows that are not valid.
    """
    groups: dict[tuple[int, int], list[tuple[int, Regions | None]]] = {}
    for image_id, found in self._read():
      canvas = pipeline.canvas_of(self.sizes[image_id], self._data)
      groups.setdefault(canvas, []).append((image_id, found))
      if len(groups[canvas]) == self._batch_size:
        yield self._batch(groups.pop(canvas))
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
    batch = pipeline.image_batch([self._pixels(number) for number in ids], self._data, ids, found)
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


class TiledReader(Reader):
  """Gives the tiles of the images, each with an id of its own, and puts together what was found in them."""

  def __init__(self, files: Sequence[ImageFile], data: pipeline.Data, tiles: Tiles, batch_size: int, bar: tqdm):
    super().__init__(files, data, None, batch_size, bar)
    self._tiles, self._numbers = tiles, itertools.count(len(files) + 1)  # ids that no image has
    self._views: dict[int, tuple[int, Window]] = {}  # the image and the place of each tile that is under way
    self._parts: dict[int, list[tuple[Window, Found]]] = {}  # of each image

  def take(self, image_id: int) -> np.ndarray:
    """u8[H, W, 3], RGB; it is forgotten here."""
    return self._images.pop(image_id)

  def whole(self, found: Iterator[Found]) -> Iterator[Found]:
    """What was found in each image, once all its tiles have been looked at."""
    for one in found:
      image_id, window = self._views.pop(one.image_id)
      del self.sizes[one.image_id]
      self._parts[image_id].append((window, one))
      size = self._images[image_id].shape[:2]
      if len(self._parts[image_id]) == len(self._tiles.windows(size)):
        yield merged(self._parts.pop(image_id), image_id, size)

  def _pixels(self, image_id: int) -> np.ndarray:
    number, (x1, y1, x2, y2) = self._views[image_id]
    return self._images[number][y1:y2, x1:x2]

  def _finished(self, image_id: int, reading: Future) -> Iterator[tuple[int, Regions | None]]:
    for number, found in super()._finished(image_id, reading):
      self._parts[number] = []
      for window in self._tiles.windows(self.sizes.pop(number)):
        view = next(self._numbers)
        self._views[view] = number, window
        self.sizes[view] = window[3] - window[1], window[2] - window[0]
        yield view, found


def _image_and_proposals(path: pathlib.Path, search: Callable | None) -> tuple[np.ndarray, Regions | None]:
  image = images.read(path, upright=True)
  return image, None if search is None else search(image, str(path))

"""Region proposals as data: the folder that holds them, and how much of the ground truth they cover.

A folder holds the N proposals of n images, and the settings that made them:

    settings.json    format version, method and its parameters, which data set
    boxes.npy        f32[N, 4], xyxy, continuous pixels of the original image
    scores.npy       f32[N]
    offsets.npy      i64[n + 1]: image i has the rows offsets[i] to offsets[i + 1], the best first
    image_ids.npy    i64[n], in the order of the data set
    seconds.npy      f32[n], the time that each image took

Nothing that finds proposals may live here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from rcnn_jax.data.errors import DataError
from rcnn_jax.data.source import Source, clean, overview
from rcnn_jax.files import FileError, read_json

VERSION = 1
ARRAYS = ("boxes", "scores", "offsets", "image_ids", "seconds")


class Regions(NamedTuple):
  """The proposals of one image, the best first."""

  boxes: np.ndarray  # f32[n, 4], xyxy, continuous pixels of the original image
  scores: np.ndarray  # f32[n], falling
  seconds: float = 0.0  # that it took to find them


@dataclasses.dataclass(frozen=True, eq=False)
class StoredProposals:
  """An open folder, memory-mapped; `arrays` are those of the module's description."""

  folder: str
  settings: dict[str, Any]
  arrays: dict[str, np.ndarray]
  limit: int | None = None  # how many of an image's best are given

  def __len__(self) -> int:
    return len(self.arrays["image_ids"])

  def __getitem__(self, index: int) -> Regions:
    """The best `limit` proposals of image `index` of the data set."""
    start, stop = self.arrays["offsets"][index : index + 2].tolist()
    rows = slice(start, stop if self.limit is None else min(stop, start + self.limit))
    return Regions(self.arrays["boxes"][rows], self.arrays["scores"][rows], float(self.arrays["seconds"][index]))

  def __reduce__(self):
    # A memory-mapped array would travel to a worker process by value.
    return _open, (self.folder, self.limit)


def header(settings: dict[str, Any], spec: Any, source: Source) -> dict[str, Any]:
  """The contents of settings.json: `settings` (plain JSON values, with a 'method') bound to a data set."""
  return {"version": VERSION, **settings, "data": fingerprint(spec, source)}


def fingerprint(spec: Any, source: Source) -> dict[str, Any]:
  """What tells one data set and split from another, wherever its folder lies: plain JSON values.

  Compared are the spec's class, its numbers (a seed draws other images), how many images there are, and the id,
  file name and size of each of them, in order. The spec itself is written down to be shown.
  """
  found = overview(source, masks=False)
  images = zip(found.image_ids.tolist(), found.file_names, found.sizes.tolist())
  rows = "".join(f"{number} {name} {height} {width}\n" for number, name, (height, width) in images)
  values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
  return {
    "spec": repr(spec),
    "class": type(spec).__name__,
    "numbers": {name: value for name, value in values.items() if type(value) in (int, float)},
    "num_images": len(source),
    "crc32": zlib.crc32(rows.encode(errors="surrogatepass")),
  }


def write(
  folder: str | os.PathLike, head: dict[str, Any], image_ids: Iterable[int], regions: Iterable[Regions]
) -> None:
  """Writes a whole folder, or nothing.

  Args:
    folder: must not be there yet.
    head: of `header`.
    image_ids, regions: of each image, in the order of the data set.
  """
  folder = pathlib.Path(folder).expanduser()
  each = list(regions)
  arrays = {
    "boxes": np.concatenate([np.zeros((0, 4)), *(one.boxes for one in each)]).astype(np.float32),
    "scores": np.concatenate([np.zeros(0), *(one.scores for one in each)]).astype(np.float32),
    "offsets": np.cumsum([0, *(len(one.boxes) for one in each)]).astype(np.int64),
    "image_ids": np.array(list(image_ids), np.int64),
    "seconds": np.array([one.seconds for one in each], np.float32),
  }
  being_written = folder.with_name(f"{folder.name}.being_written")
  shutil.rmtree(being_written, ignore_errors=True)
  being_written.mkdir(parents=True)
  for name, array in arrays.items():
    np.save(being_written / f"{name}.npy", array)
  (being_written / "settings.json").write_text(json.dumps(head, indent=1) + "\n")
  being_written.rename(folder)


def open_folder(folder: str | os.PathLike, spec: Any, source: Source, limit: int | None = None) -> StoredProposals:
  """Opens the proposals of the data set that `spec` names and `source` has open.

  Raises:
    DataError: no such folder, a file of it is missing or damaged, or it was made by another version of the format
      or for another data set.
  """
  stored = _open(os.path.expanduser(folder), limit)
  theirs, ours = stored.settings.get("data"), fingerprint(spec, source)
  if not (isinstance(theirs, dict) and theirs.keys() == ours.keys()):
    raise DataError(f"{folder}/settings.json: it does not say for which data set the proposals are")
  if {**theirs, "spec": None} != {**ours, "spec": None}:
    counts = f"({theirs['num_images']} images against {ours['num_images']})"
    raise DataError(f"{folder}: these proposals are for {theirs['spec']!s:.500}, not for {ours['spec']} {counts}")
  return stored


def read_settings(folder: str | os.PathLike) -> dict[str, Any]:
  """The contents of a folder's settings.json. Raises DataError where it is not there, or of another version."""
  path = pathlib.Path(folder, "settings.json").expanduser()
  if not path.is_file():
    raise DataError(f"{folder}: no proposals here (no settings.json); launch.prepare_data makes them")
  try:
    settings = read_json(path)
  except FileError as error:
    raise DataError(str(error)) from error
  version = settings.get("version") if isinstance(settings, dict) else None
  if version != VERSION:
    raise DataError(
      f"{folder}: proposals of format version {version!r:.40}, and this is version {VERSION}: make them anew"
    )
  return settings


def _open(folder: str, limit: int | None) -> StoredProposals:
  settings = read_settings(folder)
  arrays = {name: _array(pathlib.Path(folder, f"{name}.npy")) for name in ARRAYS}
  offsets = arrays["offsets"]
  if not (len(offsets) and offsets[0] == 0 and np.all(np.diff(offsets) >= 0)):
    raise DataError(f"{folder}/offsets.npy: damaged: its numbers do not rise from 0")
  num_rows, num_images = int(offsets[-1]), len(offsets) - 1
  lengths = {"boxes": num_rows, "scores": num_rows, "image_ids": num_images, "seconds": num_images}
  for name, length in lengths.items():
    if len(arrays[name]) != length:
      raise DataError(f"{folder}/{name}.npy: {len(arrays[name])} rows where offsets.npy speaks of {length}")
  return StoredProposals(folder, settings, arrays, limit)


def _array(path: pathlib.Path) -> np.ndarray:
  """An array of the module's description, memory-mapped; raises DataError where it is none of the kind."""
  try:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
  except Exception as error:  # numpy has no error of its own for a damaged header, and raises a dozen others
    why = " ".join(str(error).split())
    raise DataError(f"{path}: missing or damaged ({why:.200})") from error
  if not isinstance(array, np.ndarray):
    raise DataError(f"{path}: damaged: no array, but an archive of arrays")
  shape = ("n", 4) if path.stem == "boxes" else ("n",)
  kind = "i" if path.stem in ("offsets", "image_ids") else "f"
  if array.ndim != len(shape) or array.shape[1:] != shape[1:] or array.dtype.kind != kind:
    raise DataError(f"{path}: damaged: {array.dtype} numbers of shape {array.shape}")
  return array


def recall(
  proposals: StoredProposals, source: Source, ious: tuple[float, ...], counts: tuple[int, ...]
) -> tuple[list[list[float | None]], int]:
  """The part of the objects that some proposal overlaps enough: (one row an IoU, one column a count; the objects).

  An object counts as found among the best n of its image if one of them has at least that IoU with it. Faulty
  objects, crowds and difficult ones are left out; None where no object is left.
  """
  from pycocotools import mask

  best = []
  for index in range(len(source)):
    truth = clean(source.annotations(index, masks=False))
    truth = truth.take(np.flatnonzero(~(truth.crowd | truth.difficult)))
    boxes = proposals[index].boxes
    if len(truth.boxes) == 0:
      continue
    iou = np.zeros((len(boxes) + 1, len(truth.boxes)))  # the first row: no proposal, nothing found
    if len(boxes):
      iou[1:] = mask.iou(_xywh(boxes), _xywh(truth.boxes), [0] * len(truth.boxes))
    best.append(np.stack([iou[: count + 1].max(axis=0) for count in counts]))
  found = np.concatenate(best, axis=1) if best else np.zeros((len(counts), 0))
  rows = [[float((row >= iou).mean()) if row.size else None for row in found] for iou in ious]
  return rows, found.shape[1]


def _xywh(boxes: np.ndarray) -> np.ndarray:
  boxes = np.asarray(boxes, np.float64)
  return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)

"""COCO folders: a folder of images and one annotation file (instances_*.json, person_keypoints_*.json)."""

from __future__ import annotations

import dataclasses
import difflib
import json
import pathlib
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np

from rcnn_jax.data import columns, file_names, images
from rcnn_jax.data.columns import Columns
from rcnn_jax.data.errors import DataError, Fault, logger, raise_or_warn, reason_of
from rcnn_jax.data.file_names import readable
from rcnn_jax.data.segmentations import FILLED, REFUSED, encode, run_lengths
from rcnn_jax.data.source import (
  Annotations,
  Category,
  KeypointNames,
  Overview,
  degenerate,
  object_faults,
  require_masks,
)


@dataclasses.dataclass(frozen=True)
class CocoFolder:
  """A data set in COCO's layout: `images` is the folder, `annotations` the JSON file.

  Classes are the file's categories by rising id (ids need not be contiguous), or those of `class_names` in that
  order; objects of others are left out. Categories of one name stay classes of their own, unless they are chosen by
  their name. Segmentations may be polygons or run lengths, compressed or not. Keypoints and limbs are read where a
  category names them. An object with `"ignore": 1` is difficult in VOC's sense.

  Images without their file, and annotations that make no sense, are left out with one warning; launch.validate_data
  lists them. The annotations of a file of more than 5 MB are kept in a cache, see `columns.cached`.
  """

  images: str
  annotations: str
  class_names: tuple[str, ...] | None = None
  upright: bool = False  # turn images as their EXIF orientation says; the annotations are for the upright image

  def open(self, strict: bool = True) -> CocoSource:
    """Reads the annotation file. Raises DataError: it is missing or, when `strict`, has a fatal fault."""
    folder, path = (pathlib.Path(name).expanduser() for name in (self.images, self.annotations))
    if not folder.is_dir():
      raise DataError(f"{folder}: no such folder")
    held = _columns(path)
    categories, class_of = self._classes(held, path)
    keypoints, joints_read, faults = _keypoints(held.values["categories"], categories, class_of, path)
    names = _names(held)
    rows, files, missing = _images_there(names, folder)
    # The columns may have been made when the file was called by another path.
    of_file = [Fault(file or str(path), *rest) for file, *rest in json.loads(held["faults"].tobytes())]
    faults = of_file + _fractions(held, path) + faults + missing
    if strict:
      raise_or_warn(faults)
    return CocoSource(
      categories=categories,
      keypoints=keypoints,
      faults=tuple(faults),
      folder=folder,
      columns=held,
      rows=rows,
      files=files,
      class_of=class_of,
      has_masks=bool(held["masks"].any()),
      joints_read=joints_read,
      upright=self.upright,
    )

  def _classes(self, held: Columns, path: pathlib.Path) -> tuple[tuple[Category, ...], np.ndarray]:
    """The classes, and the class 1..K of each of the file's categories, i32, 0 where it is left out."""
    entries = held.values["categories"]
    every = tuple(Category(entry["id"], entry["name"]) for entry in entries)
    if self.class_names is None:
      return every, np.arange(1, len(every) + 1, dtype=np.int32)
    _check_choice(self.class_names, [category.name for category in every], path)
    class_of = np.array(
      [self.class_names.index(one.name) + 1 if one.name in self.class_names else 0 for one in every], np.int32
    )
    counts = np.bincount(held["categories"], minlength=len(every))
    if counts[class_of == 0].any():
      left_out, chosen = int(counts[class_of == 0].sum()), ", ".join(self.class_names)
      logger.warning("%s: objects of other classes than %s left out: %d", path, chosen, left_out)
    # Of several categories of one name, the one with the most objects has the id.
    first = [max(np.flatnonzero(class_of == k), key=lambda row: counts[row]) for k in range(1, class_of.max() + 1)]
    return tuple(every[row] for row in first), class_of


@dataclasses.dataclass(frozen=True, eq=False)
class CocoSource:
  """An open COCO folder; `columns` are those of `coco_columns`, shared with worker processes by their path."""

  categories: tuple[Category, ...]
  keypoints: KeypointNames | None
  faults: tuple[Fault, ...]
  folder: pathlib.Path
  columns: Columns
  rows: np.ndarray  # i64[n], the places in the columns of the images whose files are there
  files: dict[int, str]  # by such a place, the file's path in the folder where that is not its name
  class_of: np.ndarray  # i32: the class of each of the file's categories, 0 where its objects are left out
  has_masks: bool  # some object has one; tools that know boxes alone write "segmentation": []
  joints_read: np.ndarray  # bool: the categories whose objects have the joints of `keypoints`, if any
  upright: bool = False

  def __len__(self) -> int:
    return len(self.rows)

  def __getstate__(self) -> dict[str, Any]:
    # Worker processes read images and annotations; what is wrong with the file may be a million lines.
    return self.__dict__ | {"faults": ()}

  def annotations(self, index: int, masks: bool = True) -> Annotations:
    """The objects of image `index`; `masks=False` leaves the segmentations out.

    With masks, an object whose segmentation cannot be read, which is one of `faults`, is left out.
    """
    held, row = self.columns, int(self.rows[index])
    size = tuple(held["sizes"][row].tolist())
    objects = np.arange(*held["offsets"][row : row + 2].tolist())
    objects = objects[self._read(objects, masks)]
    file_ids = held.values["file_ids"]
    segmentations = None
    if masks and self.has_masks:
      segmentations = tuple(self._segmentation(number, size) for number in objects.tolist())
    return Annotations(
      image_id=int(held["image_ids"][row]),
      file_name=_name(held, row),
      size=size,
      boxes=held["boxes"][objects],
      classes=self.class_of[held["categories"][objects]],
      crowd=held["crowd"][objects],
      difficult=held["difficult"][objects],
      ids=held["ids"][objects],
      areas=held["areas"][objects],
      segmentations=segmentations,
      keypoints=None if self.keypoints is None else self._joints(objects),
      file_id=None if file_ids is None else file_ids[row],
    )

  def image(self, index: int) -> np.ndarray:
    """u8[H, W, 3] RGB. Raises DataError where the file is missing, truncated or no image."""
    return images.read(self._path(index), self.upright)

  def orientation(self, index: int) -> int:
    """The EXIF orientation that `image` does not follow; 1 where it does, or there is none."""
    return 1 if self.upright else images.orientation(self._path(index))

  def _path(self, index: int) -> pathlib.Path:
    row = int(self.rows[index])
    return self.folder / (self.files.get(row) or _name(self.columns, row))

  def overview(self, masks: bool) -> Overview:
    """Sizes and counts, from the columns alone. Raises DataError: `masks`, and the objects have none."""
    held, rows = self.columns, self.rows
    if masks and not self.has_masks:
      for index in np.flatnonzero(np.diff(held["offsets"])[rows]).tolist():
        require_masks(self.annotations(index))
    image_of = np.repeat(np.arange(len(held["sizes"])), np.diff(held["offsets"]))
    read = self._read(slice(None), masks)
    faulty = degenerate(held["boxes"], held["sizes"][image_of])
    if masks and self.has_masks:
      faulty |= held["masks"] != FILLED
    sound = read & ~faulty
    trainable = sound & ~held["crowd"]
    labelled = np.where(self._jointed(slice(None)), held["num_labelled"], 0)

    def total(counted: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
      weights = None if weights is None else weights[counted]
      return np.bincount(image_of[counted], weights, len(held["sizes"]))[rows].astype(np.int32)

    num_faulty = total(read & faulty)
    first, names = np.flatnonzero(num_faulty)[:1].tolist(), _names(held)
    return Overview(
      sizes=held["sizes"][rows],
      num_objects=total(sound),
      num_trainable=total(trainable),
      num_keypoints=total(trainable, labelled),
      num_faulty=int(num_faulty.sum()),
      first_fault=next((self._first_fault(index, masks) for index in first), None),
      image_ids=held["image_ids"][rows],
      file_names=tuple(names[row] for row in rows.tolist()),
    )

  def _first_fault(self, index: int, masks: bool) -> str:
    annotations = self.annotations(index, masks)
    row, reason = next(iter(object_faults(annotations).items()))
    return f"{annotations.file_name}: object {annotations.ids[row]}: {reason}"

  def _read(self, objects: np.ndarray | slice, masks: bool) -> np.ndarray:
    """bool: which of some objects of the columns are read at all."""
    read = self.class_of[self.columns["categories"][objects]] > 0
    return read & (self.columns["masks"][objects] != REFUSED) if masks else read

  def _jointed(self, objects: np.ndarray | slice) -> np.ndarray:
    """bool: which of some objects of the columns have joints that are read."""
    if self.keypoints is None:
      return np.zeros(len(self.columns["categories"][objects]), bool)
    counts = np.diff(self.columns["joint_offsets"])[objects]
    return self.joints_read[self.columns["categories"][objects]] & (counts == 3 * len(self.keypoints.names))

  def _joints(self, objects: np.ndarray) -> np.ndarray:
    """f32[N, J, 3], zeros for an object without joints."""
    joints = np.zeros((len(objects), len(self.keypoints.names), 3), np.float32)
    starts = self.columns["joint_offsets"][objects]
    for place in np.flatnonzero(self._jointed(objects)):
      numbers = self.columns["joints"][starts[place] : starts[place] + joints[place].size]
      joints[place] = numbers.reshape(-1, 3)
    return joints

  def _segmentation(self, number: int, size: tuple[int, int]) -> dict:
    """The mask of an object of the columns as compressed run lengths."""
    held = self.columns
    runs = held["runs"][slice(*held["run_offsets"][number : number + 2])]
    if len(runs):
      return run_lengths(runs.tobytes(), size)
    if held["masks"][number] != FILLED:
      return encode(None, size)
    lengths = held["polygon_lengths"][slice(*held["polygon_offsets"][number : number + 2])]
    coordinates = held["coordinates"][slice(*held["coordinate_offsets"][number : number + 2])]
    return encode(np.split(coordinates, np.cumsum(lengths)[:-1]), size)


def _columns(path: pathlib.Path) -> Columns:
  """The columns of an annotation file. Raises DataError: it cannot be read."""
  try:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
      raise DataError(f"{path}: {'is a directory' if stat.S_ISDIR(status.st_mode) else 'not a file'}")
    return columns.cached(path, status, lambda writer: _build(path, writer))
  except OSError as error:
    raise DataError(f"{path}: {reason_of(error)}") from error


def _build(path: pathlib.Path, writer: columns.Writer) -> Columns:
  from rcnn_jax.data import coco_columns  # needs msgspec, and an accelerator machine has no more than jax

  try:
    encoded = path.read_bytes()
  except OSError as error:
    raise DataError(f"{path}: {reason_of(error)}") from error
  return coco_columns.build(encoded, path, writer)


def _name(held: Columns, row: int) -> str:
  """The file name of an image as the annotation file has it."""
  start, stop = held["name_offsets"][row : row + 2].tolist()
  return held["names"][start:stop].tobytes().decode("utf-8", "surrogatepass")


def _names(held: Columns) -> list[str]:
  """The file names of all images."""
  text, ends = held["names"].tobytes(), held["name_offsets"].tolist()
  return [text[start:stop].decode("utf-8", "surrogatepass") for start, stop in zip(ends, ends[1:])]


def _check_choice(chosen: Sequence[str], names: Sequence[str], path: pathlib.Path) -> None:
  """Raises DataError unless the chosen class names occur in the file, each once in the choice."""
  if not chosen or len(set(chosen)) < len(chosen):
    given = ", ".join(chosen) or "none"
    raise DataError(f"{path}: class_names must name at least one class, and none of them twice: {given}")
  for name in chosen:
    if name not in names:
      nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
      hint = f": the nearest is {nearest[0]!r}" if nearest else ""
      raise DataError(f"{path}: no category has the name {name!r} of class_names{hint}")


def _keypoints(
  entries: Sequence[dict[str, Any]], classes: Sequence[Category], class_of: np.ndarray, path: pathlib.Path
) -> tuple[KeypointNames | None, np.ndarray, list[Fault]]:
  """The joints of the first class that names some, the categories whose objects have these, and what is wrong."""
  named = [row for row in np.argsort(class_of, kind="stable") if class_of[row] and entries[row]["keypoints"]]
  if not named:
    return None, np.zeros(len(entries), bool), []
  joints, faults = entries[named[0]]["keypoints"], []
  keypoints = KeypointNames.from_names(joints, entries[named[0]]["skeleton"])
  others = [entries[row]["name"] for row in named if entries[row]["keypoints"] != joints]
  if others:
    problem = f"only one skeleton is supported, that of {entries[named[0]]['name']!r}: objects of other joints"
    faults.append(Fault(str(path), f"{problem} ({', '.join(others)}) are read without them", fatal=False))
  if keypoints.unpaired:
    message = f"joints with a side and no counterpart, which a mirror image leaves as they are: {keypoints.unpaired}"
    faults.append(Fault(str(path), message, fatal=False))
  return keypoints, np.array([not entry["keypoints"] or entry["keypoints"] == joints for entry in entries]), faults


def _fractions(held: Columns, path: pathlib.Path) -> list[Fault]:
  """A fatal fault where coordinates are parts of the image, as YOLO has them."""
  boxes = held["boxes"]
  if not len(boxes) or not ((boxes >= 0) & (boxes <= 1)).all() or not (boxes % 1).any():
    return []
  return [Fault(str(path), "all boxes lie between 0 and 1: fractions, where pixels are expected")]


def _images_there(names: Sequence[str], folder: pathlib.Path) -> tuple[np.ndarray, dict[int, str], list[Fault]]:
  """The places of the images whose files are there, the paths of those that are called otherwise, and the faults."""
  try:
    files, problems = file_names.find(names, folder)
  except OSError as error:
    raise DataError(f"{folder}: {reason_of(error)}") from error
  faults = [Fault(readable(str(folder / names[row])), problem, fatal=False) for row, problem in problems.items()]
  if names and len(problems) == len(names):
    faults.insert(0, Fault(str(folder), f"has none of the {len(names)} images: {faults[0]}"))
  return np.array([row for row in range(len(names)) if row not in problems], np.int64), files, faults

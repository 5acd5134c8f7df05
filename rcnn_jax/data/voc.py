"""Pascal VOC folders: Annotations/*.xml, JPEGImages/, ImageSets/Main/SPLIT.txt."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import logging
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from rcnn_jax.data import images, voc_files, voc_xml
from rcnn_jax.data.errors import DataError, Fault, clipped, raise_or_warn
from rcnn_jax.data.source import Annotations, Category
from rcnn_jax.data.table import Table
from rcnn_jax.data.voc_xml import Record

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VocFolder:
  """A data set in Pascal VOC's layout.

  `one_based=True` reads VOC's own convention, in which pixels count from 1 and the last one belongs to the box: a
  box becomes (xmin - 1, ymin - 1, xmax, ymax) in continuous pixels. Boxes whose xmax <= xmin or ymax <= ymin as
  written are degenerate in either convention.

  The classes are `class_names`, in that order, and objects of others are left out; or else all names in Annotations/
  (of every split, so that training and evaluation agree), sorted. The image id is the place of an image's name among
  those of the split file, from 1. Objects marked difficult are ignored by the metrics; without `difficult` they are
  not read at all, as in the training of R-CNN to Faster R-CNN (Detectron2 trains on them).

  A line of the split file is a name with or without the end of a file's name (im000, cam1/im000, my photo.jpg); a
  second column of -1, 0 or 1, as in VOC's lists of one class, is not read. An image may be of any type that OpenCV
  reads; where several have the name, <filename> decides. Its size is that in its annotation file, or, where that says
  none (labelImg writes 0 x 0), the file's own.

  Images are read as they are stored, or with `upright` turned as their EXIF orientation says: annotations are then
  for the upright image.
  """

  root: str
  split: str = "trainval"
  one_based: bool = True
  class_names: tuple[str, ...] | None = None
  difficult: bool = True
  upright: bool = False

  def open(self, strict: bool = True) -> VocSource:
    """Reads all annotations, and the header of every image of the split.

    What cannot be read is left out and stands in the source's faults: an object, or an image without an annotation
    file, or whose size is not that of its annotations.

    Raises:
      DataError: a folder is missing or, when `strict`, nothing usable is left, or a class occurs nowhere.
    """
    root = pathlib.Path(os.path.expanduser(self.root))
    for folder in (root, root / voc_files.ANNOTATIONS, root / voc_files.IMAGES):
      if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    annotation_files, pictures = voc_files.xml_files(root), voc_files.image_files(root)
    path = root / voc_files.SPLITS / f"{self.split}.txt"
    split = voc_files.read_split(path, annotation_files, pictures)
    records = {file: voc_xml.read(annotation_files.path(file)) for file in split.annotations if file is not None}
    classes, fatal = self._classes(annotation_files, records)
    rows, faults = _rows(split, records, pictures, annotation_files, self.upright)
    faults = [*split.faults, *faults]
    if split.names and not rows:
      fatal = [Fault(str(path), f"none of the images that it names can be used: {faults[0]}")]
    if strict:
      raise_or_warn(fatal + faults)
      _warn_of_other_classes(path, rows, classes)
    class_of = {name: number for number, name in enumerate(classes, 1)}
    return VocSource(
      categories=tuple(Category(number, name) for name, number in class_of.items()),
      folder=pictures.root,
      table=Table.of([_annotations(row, self, class_of) for row in rows]),
      faults=(*fatal, *faults),
      upright=self.upright,
    )

  def _classes(self, files: voc_files.Files, records: dict[str, Record]) -> tuple[tuple[str, ...], list[Fault]]:
    """The names of the classes, and what is wrong with those that were asked for."""
    asked = self.class_names
    if asked is not None:
      if isinstance(asked, str) or not all(isinstance(name, str) for name in asked):
        raise DataError(f"class_names={asked!r}: several names are meant, like ('dog', 'cat')")
      asked = tuple(map(voc_xml.words, asked))
    found = _names(records.values())
    if asked is None or not set(asked) <= found:
      found |= _names(voc_xml.read(files.path(file)) for file in files.all() if file not in records)
    if asked is None:
      none = [] if found else [Fault(str(files.root), "no object in any of its files: no class")]
      return tuple(sorted(found)), none
    if not asked or len(set(asked)) < len(asked):
      return asked, [Fault(str(files.root), f"class_names={asked!r}: names one or more classes, each once")]
    faults = []
    for name in asked:
      if name not in found:
        near = difflib.get_close_matches(name, found, 3, 0.5) or sorted(found)[:10]
        nearest = f"the nearest: {', '.join(near)}" if near else "there is no object at all"
        faults.append(Fault(str(files.root), f"no object is of the class {clipped(name)}; {nearest}"))
    return asked, faults


@dataclasses.dataclass(frozen=True, eq=False)
class VocSource:
  """An open VOC folder."""

  categories: tuple[Category, ...]
  folder: pathlib.Path  # in which the table's file names are
  table: Table
  faults: tuple[Fault, ...]
  upright: bool = False
  keypoints: None = None

  def __len__(self) -> int:
    return len(self.table)

  def annotations(self, index: int, masks: bool = True) -> Annotations:
    """The objects of image `index`; VOC folders have no masks of objects here."""
    return self.table.annotations(index, masks)

  def image(self, index: int) -> np.ndarray:
    """u8[H, W, 3] RGB."""
    return images.read(self.folder / self.table.file_names[index], self.upright)

  def orientation(self, index: int) -> int:
    """The EXIF orientation that `image` does not follow; 1 where it does, or there is none."""
    return 1 if self.upright else images.orientation(self.folder / self.table.file_names[index])


@dataclasses.dataclass(frozen=True)
class _Row:
  """One image that can be used."""

  image_id: int
  file: str
  size: tuple[int, int]
  record: Record


def _names(records) -> set[str]:
  return {item.name for record in records for item in record.objects}


def _rows(split, records, pictures, annotation_files, upright: bool) -> tuple[list[_Row], list[Fault]]:
  """The images of a split that can be used, each once, and what is wrong with the others."""
  rows, faults, of_image = [], [], {}
  for image_id, (name, file) in enumerate(zip(split.names, split.annotations), 1):
    row, found = _usable(image_id, name, file and records[file], pictures, annotation_files.root, upright)
    faults += found
    if row is not None and of_image.setdefault(row.file, file) == file:
      rows.append(row)
    elif row is not None:
      problem = f"its image {row.file} is that of {of_image[row.file]} too"
      faults.append(Fault(annotation_files.path(file), problem, fatal=False))
  return rows, faults


def _usable(image_id, name, record: Record | None, pictures, folder, upright) -> tuple[_Row | None, Sequence[Fault]]:
  """The image of one line of the split, or None; and what is wrong with it."""
  if record is None:
    return None, [Fault(str(folder / f"{name}.xml"), "no such annotation file", fatal=False)]
  if not record.usable:
    return None, record.faults
  file, problem = voc_files.choose_image(name, record.image_name, pictures)
  if file is None:
    return None, [*record.faults, Fault(str(pictures.root / name), problem, fatal=False)]
  path = pictures.path(file)
  try:
    header = images.header(path)
  except DataError as error:
    return None, [*record.faults, Fault(path, str(error).removeprefix(f"{path}: "), fatal=False)]
  size = images.turned_size(header.size, header.orientation) if upright else header.size
  problem = images.size_problem(size, record.size or size, 1 if upright else header.orientation)
  if problem:
    return None, [*record.faults, Fault(path, problem, fatal=False)]
  return _Row(image_id, file, size, record), record.faults


def _annotations(row: _Row, folder: VocFolder, class_of: dict[str, int]) -> Annotations:
  read = lambda item: item.name in class_of and (folder.difficult or not item.difficult)
  objects = [item for item in row.record.objects if read(item)]
  with np.errstate(over="ignore"):  # a corner beyond float32 becomes infinite, which is reported as a degenerate box
    boxes = np.array([item.corners for item in objects], np.float64).reshape(-1, 4).astype(np.float32)
  if folder.one_based:
    # A box that is degenerate as written stays so: counting pixels would turn a stray click into a 1-pixel object.
    proper = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes[:, :2] -= proper[:, None].astype(np.float32)
  with np.errstate(over="ignore", invalid="ignore"):
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  return Annotations(
    image_id=row.image_id,
    file_name=row.file,
    size=row.size,
    boxes=boxes,
    classes=np.array([class_of[item.name] for item in objects], np.int32),
    crowd=np.zeros(len(objects), bool),
    difficult=np.array([item.difficult for item in objects], bool),
    ids=np.array([item.number for item in objects], np.int64),
    areas=areas,
  )


def _warn_of_other_classes(path: pathlib.Path, rows: Sequence[_Row], classes: tuple[str, ...]) -> None:
  names = [item.name for row in rows for item in row.record.objects]
  others = collections.Counter(name for name in names if name not in classes)
  if others:
    shown = ", ".join(name for name, _ in others.most_common(5)) + (", ..." if len(others) > 5 else "")
    logger.warning("%s: objects of other classes left out: %d (%s)", path, others.total(), shown)

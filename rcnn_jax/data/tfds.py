"""Prepared TensorFlow Datasets, read without TensorFlow where they are stored as array_record."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from rcnn_jax.data import images
from rcnn_jax.data.errors import DataError, Fault, raise_or_warn
from rcnn_jax.data.source import Annotations, Category
from rcnn_jax.data.table import Table
from rcnn_jax.data.tfds_record import Form, form_of, parse, reason


@dataclasses.dataclass(frozen=True)
class Tfds:
  """A detection data set that TFDS has prepared under `data_dir`: `name` may be 'coco/2017', 'voc/2007/5.0.0' ...

  The features are TFDS' usual ones: image, objects: {bbox, label}, and where present image/id, image/filename,
  objects/is_crowd, /is_difficult, /area, and /segmentation (COCO's compressed run lengths). Category ids are the
  labels counted from 1.

  `split` is in TFDS' own writing: 'train', 'train+validation', 'train[:10%]'.

  array_record data sets need no TensorFlow (prepare them with `file_format='array_record'`); TFRecord ones do.
  """

  name: str
  split: str = "train"
  data_dir: str = "~/tensorflow_datasets"

  def open(self, strict: bool = True) -> TfdsSource:
    """Reads every record's annotations once. A record that cannot be read is left out, and is one of the faults.

    Raises:
      DataError: not prepared, no such split, not a detection data set, TensorFlow needed; or, when `strict`, no
        record can be read.
    """
    builder = _builder(_prepared_folder(pathlib.Path(os.path.expanduser(self.data_dir)), self.name))
    _check_split(builder, self.split)
    form = form_of(builder.info.features, str(builder.data_dir))
    records = _records(builder, self.split)
    rows, annotations, faults = [], [], []
    for row in range(len(records)):
      found, problems = _read(records, row, self.name, form)
      faults += problems
      if found is not None:
        rows.append(row)
        annotations.append(found)
    annotations, repeated = _with_ids(annotations)
    if repeated is not None:
      problem = f"image/id {repeated!r} stands twice: images are numbered"
      faults.append(Fault(str(builder.data_dir), problem, fatal=False))
    if not rows:
      faults.insert(0, Fault(str(builder.data_dir), f"no record can be read: {faults[0]}"))
    if strict:
      raise_or_warn(faults)
    categories = tuple(Category(number, name) for number, name in enumerate(form.names, 1))
    return TfdsSource(categories, records, np.array(rows, np.int64), Table.of(annotations), tuple(faults))


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
  """An open TFDS data set."""

  categories: tuple[Category, ...]
  records: Sequence[dict]  # images still encoded
  rows: np.ndarray  # i64[n], which of the records the images of the table are
  table: Table
  faults: tuple[Fault, ...] = ()
  keypoints: None = None

  def __len__(self) -> int:
    return len(self.table)

  def annotations(self, index: int, masks: bool = True) -> Annotations:
    """The objects of image `index`."""
    return self.table.annotations(index, masks)

  def image(self, index: int) -> np.ndarray:
    """u8[H, W, 3] RGB."""
    return images.decode(self._encoded(index), self.table.file_names[index])

  def orientation(self, index: int) -> int:
    """The EXIF orientation of image `index`, which `image` does not follow; 1: there is none."""
    return images.orientation(self._encoded(index))

  def _encoded(self, index: int) -> bytes:
    try:
      return self.records[int(self.rows[index])]["image"]
    except Exception as error:  # as in `_read`
      raise DataError(f"{self.table.file_names[index]}: the record cannot be read: {reason(error)}") from error


def _read(records: Sequence[dict], row: int, name: str, form: Form) -> tuple[Annotations | None, list[Fault]]:
  """One record: its annotations, numbered from 1, or None; and what is wrong with it."""
  try:
    record = records[row]
  except Exception as error:  # of array_record, protobuf, TFDS: whatever they raise on damaged bytes
    problem = f"the record cannot be read: {reason(error)}"
    return None, [Fault(f"{name}, image {row + 1}", problem, fatal=False)]
  return parse(record, row + 1, name, form)


def _with_ids(annotations: Sequence[Annotations]) -> tuple[list[Annotations], int | str | None]:
  """The images with the data set's own ids where these are whole numbers of 31 bits, and with numbers from 1 else.

  Returns:
    The annotations, and the first id that stands twice, if one does.
  """
  ids = [one.image_id if one.file_id is None else one.file_id for one in annotations]
  seen: set = set()
  repeated = next((number for number in ids if number in seen or seen.add(number)), None)
  if repeated is None and all(isinstance(number, int) and 0 <= number < 2**31 for number in ids):
    return [dataclasses.replace(one, image_id=number, file_id=None) for one, number in zip(annotations, ids)], None
  return list(annotations), repeated


def _prepared_folder(data_dir: pathlib.Path, name: str) -> pathlib.Path:
  """The folder of the newest version of the data set, found by its dataset_info.json."""
  folder = data_dir / name
  found = [info.parent for depth in (".", "*", "*/*") for info in folder.glob(f"{depth}/dataset_info.json")]
  if not found:
    raise DataError(f"{folder}: no prepared TFDS data set (no dataset_info.json in it)")
  configs = {path.parent for path in found}
  if len(configs) > 1:
    raise DataError(f"{folder}: several configurations, name one: {', '.join(sorted(p.name for p in configs))}")
  return max(found, key=_version)


def _version(folder: pathlib.Path) -> tuple[bool, tuple[int, ...]]:
  """What folders are ordered by: those whose name is a version behind those whose is none."""
  numbers = folder.name.split(".")
  whole = len(numbers) == 3 and all(number.isascii() and number.isdigit() for number in numbers)
  return whole, tuple(map(int, numbers)) if whole else ()


def _builder(folder: pathlib.Path):
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(folder)
    features, splits = builder.info.features, builder.info.splits
  except Exception as error:  # of protobuf, JSON and TFDS, on damaged descriptions
    raise DataError(f"{folder}: TFDS cannot read its description: {reason(error)}") from error
  if not features or not splits:
    raise DataError(f"{folder}: its description names no {'splits' if features else 'features'}")
  return builder


def _check_split(builder, split: str) -> None:
  """Raises DataError unless TFDS understands the split and it has images."""
  unknown = [part for part in split.split("+") if part.split("[")[0] not in builder.info.splits]
  if unknown:
    have = ", ".join(builder.info.splits)
    raise DataError(f"{builder.data_dir}: no split {unknown[0]!r}; it has {have}")
  try:
    num_images = builder.info.splits[split].num_examples
  except Exception as error:  # ValueError, and others where the numbers are nonsense
    raise DataError(f"{builder.data_dir}: no split {split!r}: {reason(error)}") from error
  if not num_images:
    raise DataError(f"{builder.data_dir}: the split {split!r} has no images")


def _records(builder, split: str) -> Sequence[dict]:
  import tensorflow_datasets as tfds

  undecoded = {"image": tfds.decode.SkipDecoding()}
  file_format = builder.info.file_format.value
  if file_format != "array_record" and importlib.util.find_spec("tensorflow") is None:
    raise DataError(
      f"{builder.data_dir}: stored as {file_format}, which needs TensorFlow (pip install 'rcnn-jax[tensorflow]'); "
      "or prepare it again with file_format=array_record"
    )
  try:
    if file_format == "array_record":
      return builder.as_data_source(split=split, decoders=undecoded)
    return list(tfds.as_numpy(builder.as_dataset(split=split, decoders=undecoded)))
  except Exception as error:  # a part is missing or damaged
    raise DataError(f"{builder.data_dir}: the split {split!r} cannot be read: {reason(error)}") from error

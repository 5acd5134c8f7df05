"""Prepared TensorFlow Datasets, read without TensorFlow where they are stored as array_record."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from collections.abc import Sequence

import numpy as np

from rcnn_jax.data import images
from rcnn_jax.data.errors import DataError, Fault
from rcnn_jax.data.source import Annotations, Category


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
    """Reads every record's annotations once. Raises DataError: not prepared, no such split, TensorFlow needed."""
    del strict  # TFDS has checked what it wrote
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(_prepared_folder(pathlib.Path(self.data_dir).expanduser(), self.name))
    _check_split(builder, self.split)
    features = builder.info.features
    if "image" not in features or "objects" not in features:
      raise DataError(f"{builder.data_dir}: not a detection data set: its features are {', '.join(features)}")
    records = _records(builder, self.split)
    annotations = tuple(_annotations(records[row], row, self.name) for row in range(len(records)))
    names = features["objects"]["label"].names
    categories = tuple(Category(number, name) for number, name in enumerate(names, 1))
    return TfdsSource(categories, records, annotations)


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """An open TFDS data set."""

  categories: tuple[Category, ...]
  records: Sequence[dict]  # images still encoded
  parsed: tuple[Annotations, ...]
  faults: tuple[Fault, ...] = ()
  keypoints: None = None

  def __len__(self) -> int:
    return len(self.parsed)

  def annotations(self, index: int, masks: bool = True) -> Annotations:
    """The objects of image `index`."""
    annotations = self.parsed[index]
    return annotations if masks else dataclasses.replace(annotations, segmentations=None)

  def image(self, index: int) -> np.ndarray:
    """u8[H, W, 3] RGB."""
    return images.decode(self.records[index]["image"], self.parsed[index].file_name)


def _prepared_folder(data_dir: pathlib.Path, name: str) -> pathlib.Path:
  """The folder of the newest version of the data set, found by its dataset_info.json."""
  import tensorflow_datasets as tfds

  folder = data_dir / name
  found = [info.parent for depth in (".", "*", "*/*") for info in folder.glob(f"{depth}/dataset_info.json")]
  if not found:
    raise DataError(f"{folder}: no prepared TFDS data set (no dataset_info.json in it)")
  configs = {path.parent for path in found}
  if len(configs) > 1:
    raise DataError(f"{folder}: several configurations, name one: {', '.join(sorted(p.name for p in configs))}")
  return max(found, key=lambda path: tfds.core.Version(path.name))


def _check_split(builder, split: str) -> None:
  """Raises DataError unless TFDS understands the split and it has images."""
  unknown = [part for part in split.split("+") if part.split("[")[0] not in builder.info.splits]
  if unknown:
    have = ", ".join(builder.info.splits)
    raise DataError(f"{builder.data_dir}: no split {unknown[0]!r}; it has {have}")
  try:
    num_images = builder.info.splits[split].num_examples
  except ValueError as error:
    raise DataError(f"{builder.data_dir}: no split {split!r}: {str(error).splitlines()[0]}") from error
  if not num_images:
    raise DataError(f"{builder.data_dir}: the split {split!r} has no images")


def _records(builder, split: str) -> Sequence[dict]:
  import tensorflow_datasets as tfds

  undecoded = {"image": tfds.decode.SkipDecoding()}
  file_format = builder.info.file_format.value
  if file_format == "array_record":
    return builder.as_data_source(split=split, decoders=undecoded)
  if importlib.util.find_spec("tensorflow") is None:
    raise DataError(
      f"{builder.data_dir}: stored as {file_format}, which needs TensorFlow (pip install 'rcnn-jax[tensorflow]'); "
      "or prepare it again with file_format=array_record"
    )
  return list(tfds.as_numpy(builder.as_dataset(split=split, decoders=undecoded)))


def _annotations(record: dict, row: int, name: str) -> Annotations:
  objects = record["objects"]
  file_name = _text(record.get("image/filename", f"{name}, image {row + 1}"))
  height, width = size = images.encoded_size(record["image"], file_name)
  edges = np.array(objects["bbox"], np.float64).reshape(-1, 4)  # ymin, xmin, ymax, xmax in 0..1
  # Whole pixels do not survive division in float32: a thousandth of a pixel brings them back.
  boxes = np.round(edges[:, [1, 0, 3, 2]] * [width, height, width, height], 3).astype(np.float32)
  sides = boxes[:, 2:] - boxes[:, :2]
  segmentations = None
  if "segmentation" in objects:
    segmentations = tuple({"size": [height, width], "counts": _text(counts)} for counts in objects["segmentation"])
  none = np.zeros(len(boxes), bool)
  return Annotations(
    image_id=int(record.get("image/id", row + 1)),
    file_name=file_name,
    size=size,
    boxes=boxes,
    classes=np.array(objects["label"], np.int32).reshape(-1) + 1,
    crowd=np.array(objects.get("is_crowd", none), bool).reshape(-1),
    difficult=np.array(objects.get("is_difficult", none), bool).reshape(-1),
    ids=np.arange(1, len(boxes) + 1),
    areas=np.array(objects.get("area", sides.prod(1)), np.float32).reshape(-1),
    segmentations=segmentations,
  )


def _text(value: str | bytes) -> str:
  return value.decode() if isinstance(value, bytes) else value

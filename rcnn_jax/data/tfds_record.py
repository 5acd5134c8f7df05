"""One record of a prepared TFDS data set: the features that a detection data set has, and a record's annotations."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rcnn_jax.data import images
from rcnn_jax.data.errors import DataError, Fault
from rcnn_jax.data.segmentations import check_runs
from rcnn_jax.data.source import Annotations

# Columns that make (x1, y1, x2, y2) of each of TFDS' forms of a box, and whether it is in fractions of the image.
_BOX_FORMS = {
  "REL_YXYX": ((1, 0, 3, 2), True),
  "REL_XYXY": ((0, 1, 2, 3), True),
  "YXYX": ((1, 0, 3, 2), False),
  "XYXY": ((0, 1, 2, 3), False),
  "XYWH": ((0, 1, 2, 3), False),
}
_BEYOND = 0.01  # so much of the image may a fraction lie outside of 0..1


@dataclasses.dataclass(frozen=True)
class Form:
  """What a data set's features say."""

  names: tuple[str, ...]  # of the classes
  box_form: str = "REL_YXYX"
  has_masks: bool = False  # COCO's compressed run lengths


def form_of(features: Any, where: str) -> Form:
  """What the features say. Raises DataError where they are not those of a detection data set."""
  import tensorflow_datasets as tfds

  prefix = f"{where}: not a detection data set of the usual form"
  if not isinstance(features, tfds.features.FeaturesDict) or not {"image", "objects"} <= set(features):
    has = ", ".join(sorted(features)) if hasattr(features, "keys") else type(features).__name__
    raise DataError(f"{prefix}: it has no image and objects: its features are {has}")
  if not isinstance(features["image"], tfds.features.Image):
    raise DataError(f"{prefix}: its image is {type(features['image']).__name__}, no Image")
  objects = features["objects"]
  objects = getattr(objects, "feature", objects)  # of a Sequence
  if not isinstance(objects, tfds.features.FeaturesDict):
    raise DataError(f"{prefix}: its objects are {type(objects).__name__}, no sequence of features")
  missing = [name for name in ("bbox", "label") if name not in objects]
  if missing:
    raise DataError(f"{prefix}: objects have no {' and no '.join(missing)}, but {', '.join(sorted(objects))}")
  label = objects["label"]
  if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
    raise DataError(f"{prefix}: objects/label is no ClassLabel: its classes have no names")
  box_form = getattr(getattr(objects["bbox"], "bbox_format", None), "value", None)
  if isinstance(objects["bbox"], tfds.features.BBoxFeature) and box_form not in _BOX_FORMS:
    raise DataError(f"{prefix}: the bbox_format of objects/bbox is {box_form}")
  has_masks = "segmentation" in objects and isinstance(objects["segmentation"], tfds.features.Text)
  return Form(tuple(label.names), box_form or "REL_YXYX", has_masks)


def parse(record: Any, number: int, name: str, form: Form) -> tuple[Annotations | None, list[Fault]]:
  """The annotations of the record with this number, counted from 1 and their image_id; or None.

  Returns:
    (annotations or None, what is wrong): an object that cannot be read is left out.
  """
  file_name = f"{name}, image {number}"
  try:
    file_name = _text(record.get("image/filename")) or file_name
    size = images.encoded_size(bytes(record["image"]), file_name)
    objects = record["objects"]
    corners = _column(objects, "bbox", np.float64, width=4)
    labels = _column(objects, "label", np.int64, like=corners)
    flags = [_column(objects, flag, bool, like=corners) for flag in ("is_crowd", "is_difficult")]
    given_areas = _column(objects, "area", np.float32, like=corners)
    counts = [_text(text) for text in objects["segmentation"]] if form.has_masks else None
    if counts is not None and len(counts) != len(corners):
      raise ValueError(f"{len(counts)} segmentations of {len(corners)} objects")
    file_id = _file_id(record.get("image/id"))
  except DataError as error:
    return None, [Fault("", str(error), fatal=False)]
  except Exception as error:  # what is no dictionary, no bytes, no numbers ...
    return None, [Fault(file_name, f"the record is not of the form of its features: {reason(error)}", fatal=False)]
  boxes = _boxes(corners, size, form.box_form)
  with np.errstate(over="ignore", invalid="ignore"):  # of corners without bound, whose boxes are degenerate
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
  areas = areas if given_areas is None else np.where(np.isfinite(given_areas), given_areas, areas)
  crowd, difficult = (np.zeros(len(boxes), bool) if flag is None else flag for flag in flags)
  annotations = Annotations(
    image_id=number,
    file_name=file_name,
    size=size,
    boxes=boxes,
    classes=np.clip(labels, -1, len(form.names)).astype(np.int32) + 1,
    crowd=crowd,
    difficult=difficult,
    ids=np.arange(1, len(boxes) + 1),
    areas=areas.astype(np.float32),
    segmentations=None if counts is None else tuple({"size": list(size), "counts": text} for text in counts),
    file_id=file_id,
  )
  problems = _problems(corners, labels, counts, size, form)
  faults = [Fault(file_name, why, f"object {row + 1}", fatal=False) for row, why in problems.items()]
  kept = np.array([row for row in range(len(boxes)) if row not in problems], np.int64)
  return annotations.take(kept), faults


def reason(error: Exception) -> str:
  """What an error of a library says, in one line of moderate length."""
  lines = str(error).strip().splitlines()
  return (lines[0] if lines else type(error).__name__)[:200]


def _problems(corners, labels, counts, size, form: Form) -> dict[int, str]:
  """Why an object cannot be read, by its row; degenerate boxes are reported elsewhere."""
  problems, num_pixels, sound = {}, size[0] * size[1], np.ones(len(corners), bool)
  if counts is not None:
    sound, _ = check_runs([text.encode("latin-1", "replace") for text in counts], np.full(len(counts), num_pixels))
  for row, (box, label) in enumerate(zip(corners, labels)):
    if not 0 <= label < len(form.names):
      problems[row] = f"label {label} is none of the {len(form.names)} classes, which are counted from 0"
    elif _BOX_FORMS[form.box_form][1] and (np.any(box < -_BEYOND) or np.any(box > 1 + _BEYOND)):
      problems[row] = f"bbox [{', '.join(f'{value:g}' for value in box)}] is not in 0..1, fractions of the image"
    elif not sound[row]:
      problems[row] = f"the mask's run lengths are corrupt: they do not sum to the image's {num_pixels} pixels"
  return problems


def _boxes(corners: np.ndarray, size: tuple[int, int], box_form: str) -> np.ndarray:
  order, relative = _BOX_FORMS[box_form]
  boxes = corners[:, order]
  height, width = size
  if box_form == "XYWH":
    boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
  if relative:
    boxes = boxes * [width, height, width, height]
  # Whole pixels do not survive division in float32: a thousandth of a pixel brings them back.
  with np.errstate(over="ignore", invalid="ignore"):
    return np.round(boxes, 3).astype(np.float32)


def _column(objects: Any, name: str, dtype, like: np.ndarray | None = None, width: int | None = None):
  """One feature of the objects as an array, or None where they have it not (bbox and label they have)."""
  if name not in objects:
    if name in ("bbox", "label"):
      raise ValueError(f"objects have no {name}")
    return None
  values = np.asarray(objects[name])
  if values.size and (values.dtype.kind not in "biuf" or (dtype == np.int64 and values.dtype.kind == "f")):
    raise ValueError(f"objects/{name} is of type {values.dtype}")
  values = values.astype(dtype).reshape(-1, width) if width else values.astype(dtype).reshape(-1)
  if like is not None and len(values) != len(like):
    raise ValueError(f"{len(values)} {name} of {len(like)} objects")
  return values


def _file_id(value: Any) -> int | str | None:
  if value is None:
    return None
  return _text(value) if isinstance(value, (str, bytes)) else int(value)


def _text(value: str | bytes | None) -> str:
  """Text, in one line."""
  text = value.decode("utf-8", "replace") if isinstance(value, bytes) else (value or "")
  return text if text.isprintable() else repr(text)[1:-1]

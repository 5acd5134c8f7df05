"""What every data source offers: a length, random access to annotations and images, and a category table.

A data set is named in an experiment by a frozen dataclass of plain values (`VocFolder(root='...')`); its `open()`
returns the `Source`. Annotations are kept as they were written, faults included; `clean` is what training sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from rcnn_jax.data.errors import DataError, Fault


@dataclasses.dataclass(frozen=True)
class Category:
  """One class. Class k of the model is `categories[k - 1]`; `id` is the data set's own number for it."""

  id: int
  name: str


@dataclasses.dataclass(frozen=True)
class KeypointNames:
  """The joints of an object, in order, the pairs of them that a mirror exchanges, and those that limbs join.

  Joints are counted from 0.
  """

  names: tuple[str, ...]
  flip_pairs: tuple[tuple[int, int], ...]
  skeleton: tuple[tuple[int, int], ...] = ()

  @classmethod
  def from_names(cls, names, skeleton=()) -> KeypointNames:
    """Joints whose names differ only in left_ and right_ are each other's mirror image."""
    names = tuple(names)
    pairs = tuple(
      (names.index(name), names.index(name.replace("left", "right", 1)))
      for name in names
      if "left" in name and name.replace("left", "right", 1) in names
    )
    return cls(names, pairs, tuple((int(a), int(b)) for a, b in skeleton))

  @property
  def flip_order(self) -> np.ndarray:
    """i32[J]: joint j of the mirrored object is joint `flip_order[j]` of the object."""
    order = np.arange(len(self.names), dtype=np.int32)
    for left, right in self.flip_pairs:
      order[left], order[right] = right, left
    return order


@dataclasses.dataclass(frozen=True)
class Annotations:
  """The objects of one image of N objects, in pixels of the original image, as the data set has them."""

  image_id: int  # 0 <= image_id < 2**31: what metrics, loaders and random draws know the image by
  file_name: str
  size: tuple[int, int]  # (height, width)
  boxes: np.ndarray  # f32[N, 4], xyxy, continuous
  classes: np.ndarray  # i32[N], 1..K
  crowd: np.ndarray  # bool[N]
  difficult: np.ndarray  # bool[N]
  ids: np.ndarray  # i64[N], the object's number in its file: COCO's annotation id, else its position from 1
  areas: np.ndarray  # f32[N], as the data set gives them: COCO's is the mask's area
  segmentations: tuple[dict, ...] | None = None  # N run-length encodings as COCO writes them: size, counts (str)
  keypoints: np.ndarray | None = None  # f32[N, J, 3]: x, y as the data set gives them, visibility
  file_id: int | str | None = None  # the data set's own id, which results are written with; None: the image_id

  def take(self, rows: np.ndarray) -> Annotations:
    """The objects at `rows` (i64[n]), in that order."""
    segmentations = self.segmentations and tuple(self.segmentations[row] for row in rows)
    keypoints = None if self.keypoints is None else self.keypoints[rows]
    arrays = {name: getattr(self, name)[rows] for name in ("boxes", "classes", "crowd", "difficult", "ids", "areas")}
    return dataclasses.replace(self, **arrays, segmentations=segmentations, keypoints=keypoints)


class Source(Protocol):
  """An open data set."""

  categories: tuple[Category, ...]
  keypoints: KeypointNames | None
  faults: tuple[Fault, ...]  # what is wrong with the annotation files; none of them fatal unless opened not strict

  def __len__(self) -> int:
    """The number of images."""

  def annotations(self, index: int, masks: bool = True) -> Annotations:
    """The objects of image `index`, without decoding the image; `masks=False` saves making the segmentations."""

  def image(self, index: int) -> np.ndarray:
    """u8[H, W, 3], RGB. Raises DataError where the file is missing, truncated or no image."""


@dataclasses.dataclass(frozen=True)
class Overview:
  """What is known of all n images of a source before the first of them is decoded."""

  sizes: np.ndarray  # i32[n, 2], original sizes, (height, width)
  num_objects: np.ndarray  # i32[n], objects that are not faulty
  num_trainable: np.ndarray  # i32[n], objects that are neither faulty nor crowds
  num_keypoints: np.ndarray  # i32[n], labelled joints of the trainable objects; 0 where the source names no joints
  num_faulty: int  # objects of all images
  first_fault: str | None  # of these, in one line: file, object, reason


def overview(source: Source, masks: bool) -> Overview:
  """An overview of the source; with `masks`, an object whose mask is missing or empty is faulty.

  A source that holds its objects as arrays has a method `overview(masks)` of its own; of others, the annotations
  are read image by image.

  Raises:
    DataError: `masks`, and the objects of an image have none.
  """
  own = getattr(source, "overview", None)
  if own is not None:
    return own(masks)
  sizes, counts, faults = [], [], []
  for index in range(len(source)):
    annotations = source.annotations(index, masks=masks)
    if masks:
      require_masks(annotations)
    faulty = object_faults(annotations)
    faults += [f"{annotations.file_name}: object {annotations.ids[row]}: {why}" for row, why in faulty.items()]
    trainable = [row for row, crowd in enumerate(annotations.crowd) if not crowd and row not in faulty]
    labelled = () if annotations.keypoints is None else annotations.keypoints[trainable, :, 2] > 0
    sizes.append(annotations.size)
    counts.append((len(annotations.boxes) - len(faulty), len(trainable), np.count_nonzero(labelled)))
  columns = np.array(counts, np.int32).reshape(-1, 3).T
  return Overview(np.array(sizes, np.int32).reshape(-1, 2), *columns, len(faults), next(iter(faults), None))


def unfollowed_orientation(source: Source, index: int) -> int:
  """EXIF's orientation of image `index` where `source.image` gives it as it is stored; 1: it is upright.

  Asks the source's own method `orientation(index)`, and takes images of sources without one as upright.

  Raises:
    DataError: the image cannot be read.
  """
  own = getattr(source, "orientation", None)
  return 1 if own is None else own(index)


def untrainable(found: Overview) -> str | None:
  """Why no detector learns anything from a data set, in one line; None where there is an object to train on."""
  if found.num_trainable.any():
    return None
  crowds, faulty = int(found.num_objects.sum()), found.num_faulty
  if not crowds + faulty:
    why = f"none of the {len(found.sizes)} images has an object"
  elif not faulty:
    why = f"all {crowds} objects are crowds"
  elif not crowds:
    why = f"all {faulty} objects are faulty (first: {found.first_fault})"
  else:
    why = f"all {crowds + faulty} objects are crowds ({crowds}) or faulty ({faulty}; first: {found.first_fault})"
  return f"no image has an object to train on: {why}"


def concatenate(overviews: Sequence[Overview]) -> Overview:
  """The overview of several sources as one, in their order; of at least one."""
  arrays = ("sizes", "num_objects", "num_trainable", "num_keypoints")
  return Overview(
    **{name: np.concatenate([getattr(one, name) for one in overviews]) for name in arrays},
    num_faulty=sum(one.num_faulty for one in overviews),
    first_fault=next((one.first_fault for one in overviews if one.first_fault is not None), None),
  )


def require_masks(annotations: Annotations) -> None:
  """Raises DataError where the image has objects and these have no masks."""
  if len(annotations.boxes) and annotations.segmentations is None:
    raise DataError(f"{annotations.file_name}: load_masks is set, but the objects have no masks")


def box_fault(box: np.ndarray, size: tuple[int, int]) -> str | None:
  """Why a box f32[4] (xyxy, pixels) in an image of `size` (height, width) is no box, or None."""
  x1, y1, x2, y2 = (float(value) for value in box)
  corners = f"[{x1:g}, {y1:g}, {x2:g}, {y2:g}]"
  if not np.all(np.isfinite(box)):
    return f"degenerate box {corners}: not a number"
  if x2 <= x1 or y2 <= y1:
    return f"degenerate box {corners}: width {x2 - x1:g}, height {y2 - y1:g}"
  height, width = size
  if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
    return f"degenerate box {corners}: outside the image of {width} x {height}"
  return None


def object_faults(annotations: Annotations) -> dict[int, str]:
  """The objects that no detector can be trained on: row -> reason."""
  found = {}
  for row, box in enumerate(annotations.boxes):
    problem = box_fault(box, annotations.size)
    if problem is None and annotations.segmentations is not None and is_empty(annotations.segmentations[row]):
      problem = "the segmentation is missing or empty"
    if problem is not None:
      found[row] = problem
  return found


def is_empty(segmentation: dict) -> bool:
  """Whether a run-length encoded mask has no pixel."""
  from pycocotools import mask

  return int(mask.area(segmentation)) == 0


def clean(annotations: Annotations) -> Annotations:
  """What training sees: faulty objects dropped, boxes clipped to the image."""
  faulty = object_faults(annotations)
  kept = annotations.take(np.array([row for row in range(len(annotations.boxes)) if row not in faulty], np.int64))
  height, width = annotations.size
  limits = np.array([width, height, width, height], np.float32)
  return dataclasses.replace(kept, boxes=np.clip(kept.boxes, 0, limits).astype(np.float32))

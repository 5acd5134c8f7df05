"""What every data source offers: a length, random access to annotations and images, and a category table.

A data set is named in an experiment by a frozen dataclass of plain values (`VocFolder(root='...')`); its `open()`
returns the `Source`. Annotations are kept as they were written, faults included; `clean` is what training sees.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from rcnn_jax.data.errors import DataError, Fault
from rcnn_jax.data.segmentations import is_empty


@dataclasses.dataclass(frozen=True)
class Category:
  """One class. Class k of the model is `categories[k - 1]`; `id` is the data set's own number for it."""

  id: int
  name: str


_SIDES = {"left": "left", "l": "left", "right": "right", "r": "right"}


def _words(name: str) -> list[str]:
  """The words of a name in small letters: leftEye, left_eye and LEFT-EYE all have two."""
  return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|[A-Z]|\d+", name)]


def _sided(name: str) -> tuple[tuple[str, ...], str | None]:
  """A joint's name without its side, in words, and the side: "left", "right" or None."""
  words = _words(name)
  for place, word in enumerate(words):
    if word in _SIDES:
      return (*words[:place], "*", *words[place + 1 :]), _SIDES[word]
  for place, word in enumerate(words):
    found = re.fullmatch("(left|right)(.+)|(.+)(left|right)", word) or re.fullmatch("([lr])(..+)()()", word)
    if found:
      before, stem = ("*", found[2]) if found[1] else (found[3], "*")
      return (*words[:place], before, stem, *words[place + 1 :]), _SIDES[found[1] or found[4]]
  return tuple(words), None


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
    """Joints whose names differ only in their side are each other's mirror image.

    A side is "left" and "right" or "l" and "r" as a word of its own, or else at an end of a word: left_eye, LeftEye,
    "Eye (L)", eyeL, lefteye, leye. Signs, spaces, digits and capital letters divide words; case does not count. Names
    that stand twice are paired with nothing.
    """
    names = tuple(names)
    places = collections.defaultdict(list)
    for place, name in enumerate(names):
      stem, side = _sided(name)
      places[stem, side].append(place)
    pairs = [
      (lefts[0], places[stem, "right"][0])
      for (stem, side), lefts in list(places.items())
      if side == "left" and len(lefts) == len(places.get((stem, "right"), ())) == 1
    ]
    return cls(names, tuple(sorted(pairs)), tuple((int(a), int(b)) for a, b in skeleton))

  @property
  def unpaired(self) -> tuple[str, ...]:
    """The joints whose names have a side as a word of its own, and that no mirror exchanges with another."""
    paired = {place for pair in self.flip_pairs for place in pair}
    sided = [place for place, name in enumerate(self.names) if any(word in _SIDES for word in _words(name))]
    return tuple(self.names[place] for place in sided if place not in paired)

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
  image_ids: np.ndarray  # i32[n]
  file_names: tuple[str, ...]


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
  sizes, counts, faults, names, ids = [], [], [], [], []
  for index in range(len(source)):
    annotations = source.annotations(index, masks=masks)
    if masks:
      require_masks(annotations)
    faulty = object_faults(annotations)
    faults += [f"{annotations.file_name}: object {annotations.ids[row]}: {why}" for row, why in faulty.items()]
    trainable = [row for row, crowd in enumerate(annotations.crowd) if not crowd and row not in faulty]
    labelled = () if annotations.keypoints is None else annotations.keypoints[trainable, :, 2] > 0
    sizes.append(annotations.size)
    names.append(annotations.file_name)
    ids.append(annotations.image_id)
    counts.append((len(annotations.boxes) - len(faulty), len(trainable), np.count_nonzero(labelled)))
  columns = np.array(counts, np.int32).reshape(-1, 3).T
  sizes, first = np.array(sizes, np.int32).reshape(-1, 2), next(iter(faults), None)
  return Overview(sizes, *columns, len(faults), first, np.array(ids, np.int32), tuple(names))


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
  """The overview of several sources as one, in their order; of at least one. The images are numbered from 1."""
  arrays = ("sizes", "num_objects", "num_trainable", "num_keypoints")
  return Overview(
    **{name: np.concatenate([getattr(one, name) for one in overviews]) for name in arrays},
    num_faulty=sum(one.num_faulty for one in overviews),
    first_fault=next((one.first_fault for one in overviews if one.first_fault is not None), None),
    image_ids=np.arange(1, sum(len(one.sizes) for one in overviews) + 1, dtype=np.int32),
    file_names=tuple(name for one in overviews for name in one.file_names),
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


def degenerate(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """bool[N]: the boxes f32[N, 4] for which `box_fault` has a reason, each in an image of sizes[n] (height, width)."""
  height, width = sizes[:, 0], sizes[:, 1]
  x1, y1, x2, y2 = boxes.T
  finite = np.isfinite(boxes).all(axis=1)
  return ~(finite & (x2 > x1) & (y2 > y1) & (x1 < width) & (y1 < height) & (x2 > 0) & (y2 > 0))


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


def clean(annotations: Annotations) -> Annotations:
  """What training sees: faulty objects dropped, boxes clipped to the image."""
  faulty = object_faults(annotations)
  kept = annotations.take(np.array([row for row in range(len(annotations.boxes)) if row not in faulty], np.int64))
  height, width = annotations.size
  limits = np.array([width, height, width, height], np.float32)
  return dataclasses.replace(kept, boxes=np.clip(kept.boxes, 0, limits).astype(np.float32))

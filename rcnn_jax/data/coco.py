"""COCO folders: a folder of images and one annotation file (instances_*.json, person_keypoints_*.json)."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import pathlib

import numpy as np

from rcnn_jax.data import images
from rcnn_jax.data.errors import DataError, Fault, raise_first
from rcnn_jax.data.source import Annotations, Category, KeypointNames


@dataclasses.dataclass(frozen=True)
class CocoFolder:
  """A data set in COCO's layout: `images` is the folder, `annotations` the JSON file.

  Classes are the file's categories by rising id (ids need not be contiguous). Segmentations may be polygons or run
  lengths, compressed or not. Keypoints and limbs are read where a category names them, and joints whose names
  differ only in left and right are each other's mirror image.
  """

  images: str
  annotations: str

  def open(self, strict: bool = True) -> CocoSource:
    """Reads the annotation file. Raises DataError: it is missing or, when `strict`, has a fatal fault."""
    folder, path = (pathlib.Path(name).expanduser() for name in (self.images, self.annotations))
    if not folder.is_dir():
      raise DataError(f"{folder}: no such folder")
    contents = _contents(path)
    categories = sorted(contents["categories"], key=lambda category: category["id"])
    jointed = next((category for category in categories if category.get("keypoints")), None)
    faults, legible = _examine(contents, path, len(jointed["keypoints"]) if jointed else 0)
    of_image = collections.defaultdict(list)
    for entry in legible:
      of_image[entry["image_id"]].append(entry)
    if strict:
      raise_first(faults + _missing_images(contents, folder))
    return CocoSource(
      categories=tuple(Category(category["id"], category["name"]) for category in categories),
      keypoints=jointed and _keypoint_names(jointed),
      folder=folder,
      entries=tuple((image, tuple(of_image[image["id"]])) for image in contents["images"]),
      faults=tuple(faults),
      has_masks=any(entry.get("segmentation") for entry in contents["annotations"]),
    )


@dataclasses.dataclass(frozen=True)
class CocoSource:
  """An open COCO folder; `entries` pairs each image's entry with its annotations', as they stand in the file.

  Opened not strict, annotations with a fatal fault are left out.
  """

  categories: tuple[Category, ...]
  keypoints: KeypointNames | None
  folder: pathlib.Path
  entries: tuple[tuple[dict, tuple[dict, ...]], ...]
  faults: tuple[Fault, ...]
  has_masks: bool  # some object has one; tools that know boxes alone write "segmentation": []

  def __len__(self) -> int:
    return len(self.entries)

  def annotations(self, index: int, masks: bool = True) -> Annotations:
    """The objects of image `index`; `masks=False` leaves the segmentations out."""
    image, entries = self.entries[index]
    size = image["height"], image["width"]
    class_of = {category.id: number for number, category in enumerate(self.categories, 1)}
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    areas = [entry["area"] if _is_number(entry.get("area")) else math.prod(entry["bbox"][2:]) for entry in entries]
    has_masks = masks and self.has_masks
    return Annotations(
      image_id=image["id"],
      file_name=image["file_name"],
      size=size,
      boxes=boxes.astype(np.float32),
      classes=np.array([class_of[entry["category_id"]] for entry in entries], np.int32),
      crowd=np.array([entry.get("iscrowd", 0) for entry in entries], bool),
      difficult=np.zeros(len(entries), bool),
      ids=np.array([entry.get("id", 0) for entry in entries], np.int64),
      areas=np.array(areas, np.float32),
      segmentations=tuple(encode(entry.get("segmentation"), size) for entry in entries) if has_masks else None,
      keypoints=None if self.keypoints is None else _keypoints(entries, len(self.keypoints.names)),
    )

  def image(self, index: int) -> np.ndarray:
    """u8[H, W, 3] RGB."""
    return images.read(self.folder / self.entries[index][0]["file_name"])


def encode(segmentation: list | dict | None, size: tuple[int, int]) -> dict:
  """COCO's three spellings of a mask (polygons, run lengths, compressed run lengths) as compressed run lengths.

  Polygons of fewer than three points are left out, as Detectron2 does; what has no pixel left is an empty mask of
  `size` (height, width).
  """
  from pycocotools import mask

  height, width = size
  if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
    encoded = mask.frPyObjects(segmentation, *segmentation["size"])
  elif isinstance(segmentation, dict):
    encoded = segmentation
  else:
    polygons = [polygon for polygon in segmentation or () if _is_polygon(polygon)]
    if polygons:
      encoded = mask.merge(mask.frPyObjects(polygons, height, width))
    else:
      encoded = mask.encode(np.zeros((height, width), np.uint8, order="F"))
  counts = encoded["counts"]
  counts = counts if isinstance(counts, str) else counts.decode()
  return {"size": [int(side) for side in encoded["size"]], "counts": counts}


def _is_polygon(polygon) -> bool:
  return len(polygon) >= 6 and len(polygon) % 2 == 0


def _is_box(box) -> bool:
  return isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box)


def _are_numbers(values, count: int) -> bool:
  return isinstance(values, list) and len(values) == count and all(map(_is_number, values))


def _is_number(value) -> bool:
  return isinstance(value, (int, float)) and math.isfinite(value)


def _keypoint_names(category: dict) -> KeypointNames:
  joints = range(len(category["keypoints"]))
  limbs = [(a - 1, b - 1) for a, b in category.get("skeleton") or ()]  # counted from 1 in the file
  return KeypointNames.from_names(category["keypoints"], [(a, b) for a, b in limbs if a in joints and b in joints])


def _keypoints(entries, num_joints: int) -> np.ndarray:
  none = [0] * (3 * num_joints)
  rows = [entry.get("keypoints") or none for entry in entries]
  return np.array(rows, np.float32).reshape(-1, num_joints, 3)


def _contents(path: pathlib.Path) -> dict:
  try:
    contents = json.loads(path.read_text())
  except OSError as error:
    raise DataError(f"{path}: {error.strerror.lower()}") from error
  except ValueError as error:
    raise DataError(f"{path}: not readable as JSON: {error}") from error
  # Each key that an entry needs, and the least that its whole number may be (None: anything).
  needed = {
    "images": {"id": None, "file_name": None, "height": 1, "width": 1},
    "annotations": {},
    "categories": {"id": 0, "name": None},
  }
  missing = [key for key in needed if not isinstance(contents, dict) or key not in contents]
  if missing:
    raise DataError(f"{path}: has no {', '.join(missing)}: not a COCO annotation file")
  for kind, keys in needed.items():
    for number, entry in enumerate(contents[kind], 1):
      problem = _unreadable(entry, keys)
      if problem:
        raise DataError(f"{path}: {kind}: entry {number} {problem}")
  return contents


def _unreadable(entry, keys: dict[str, int | None]) -> str | None:
  """Why an entry cannot even be looked at, or None."""
  if not isinstance(entry, dict):
    return f"is {entry!r}, no object"
  absent = [key for key in keys if key not in entry]
  if absent:
    return f"has no {', '.join(absent)}"
  for key, least in keys.items():
    if least is not None and not (isinstance(entry[key], int) and entry[key] >= least):
      name = entry.get("file_name", entry.get("name"))
      return f"({name}) has {key} {entry[key]!r}, which is no whole number from {least} on"
  return None


def _missing_images(contents: dict, folder: pathlib.Path) -> list[Fault]:
  present = {file.name for file in folder.iterdir()}
  names = [image["file_name"] for image in contents["images"]]
  missing = [name for name in names if name not in present and not (folder / name).is_file()]
  return [Fault(str(folder / name), "no such image file") for name in missing]


def _examine(contents: dict, path: pathlib.Path, num_joints: int) -> tuple[list[Fault], list[dict]]:
  """Every fault of the file, and the annotations that have no fatal one."""
  faults = [Fault(str(path), f"names no {kind}") for kind in ("images", "categories") if not contents[kind]]
  for kind, name in (("images", "image"), ("annotations", "annotation"), ("categories", "category")):
    ids = collections.Counter(entry.get("id") for entry in contents[kind])
    repeated = [(number, times) for number, times in ids.items() if times > 1]
    faults += [Fault(str(path), f"{times} {kind} have this id", f"{name} {number}") for number, times in repeated]
  for image in contents["images"]:
    if not isinstance(image["id"], int) or not 0 <= image["id"] < 2**31:
      faults.append(Fault(image["file_name"], f"image id {image['id']!r} is no whole number below 2 ** 31"))
  file_of = {image["id"]: image["file_name"] for image in contents["images"]}
  known = {category["id"] for category in contents["categories"]}
  sizes = {image["id"]: (image["height"], image["width"]) for image in contents["images"]}
  legible = []
  for entry in contents["annotations"]:
    image_id = entry.get("image_id")
    item = f"annotation {entry.get('id')}"
    if image_id not in file_of:
      faults.append(Fault(str(path), f"belongs to image {image_id}, which is not in the table of images", item))
      continue
    problems = list(_entry_problems(entry, known, sizes[image_id], num_joints))
    faults += [Fault(file_of[image_id], problem, item, fatal) for problem, fatal in problems]
    if not any(fatal for _, fatal in problems):
      legible.append(entry)
  return faults, legible


def _entry_problems(entry: dict, known: set, size: tuple[int, int], num_joints: int):
  """Yields (problem, fatal) for one annotation; degenerate boxes and empty masks are told by `object_faults`."""
  if entry.get("category_id") not in known:
    yield f"category id {entry.get('category_id')} is not in the table of categories", True
  if not _is_box(entry.get("bbox")):
    yield f"bbox {entry.get('bbox')} is not four numbers", True
  if not _is_number(entry.get("area", 0)):
    yield f"area {entry['area']} is not a number: that of the box is taken", False
  segmentation = entry.get("segmentation")
  if isinstance(segmentation, dict) and tuple(segmentation.get("size", ())) != size:
    yield f"the mask is {segmentation.get('size')}, the image is {list(size)} (height, width)", True
  elif isinstance(segmentation, dict) and sum(_run_lengths(segmentation.get("counts"))) != math.prod(size):
    yield f"the mask's run lengths are corrupt: they do not sum to the image's {math.prod(size)} pixels", True
  if isinstance(segmentation, list) and not all(_is_polygon(polygon) for polygon in segmentation):
    yield "a polygon of fewer than three points, or of an odd number of coordinates", False
  joints = entry.get("keypoints")
  if num_joints and joints and not _are_numbers(joints, 3 * num_joints):
    yield f"keypoints are not {3 * num_joints} numbers, three for each of {num_joints} joints", True


def _run_lengths(counts: str | list | None) -> list[int]:
  """The lengths that COCO's `counts` stand for, compressed or not; none where they are no such thing, or break off.

  Compressed, a length is written in characters of five bits from the lowest on, and a sixth where more follow; from
  the fourth on it is the difference to the length two before. pycocotools trusts what it is given.
  """
  if not isinstance(counts, str):
    sound = isinstance(counts, list) and all(isinstance(length, int) and length >= 0 for length in counts)
    return counts if sound else []
  lengths, value, shift = [], 0, 0
  for character in counts:
    bits = ord(character) - 48
    if not 0 <= bits < 64:
      return []
    value |= (bits & 31) << shift
    shift += 5
    if not bits & 32:
      value -= (bits & 16) << (shift - 4)  # the highest bit is the sign
      value += lengths[-2] if len(lengths) > 2 else 0
      lengths.append(value)
      value = shift = 0
  return [] if shift or min(lengths, default=0) < 0 else lengths

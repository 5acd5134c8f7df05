"""Bare files of a comparison: truth and results in COCO's formats; and whether two truths agree."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

from rcnn_jax.evaluation.results import Results
from rcnn_jax.files import FileError, read_json


class ComparisonError(ValueError):
  """What cannot be compared as asked."""


def read_truth(path: pathlib.Path) -> dict:
  """A COCO annotation file as `coco.truth_dataset` has it: masks in run lengths, nothing left out.

  Nothing is dropped, so that AP is that of pycocotools on the file. An object without `area` has that of its box;
  `ignore` makes it difficult.

  Raises:
    FileError: the file is not what it should be; the message names the entry.
  """
  form = read_json(path)
  if not isinstance(form, dict) or not all(
    isinstance(form.get(k), list) for k in ("images", "annotations", "categories")
  ):
    raise FileError(f"{path}: no COCO annotation file: it has no lists of images, annotations and categories")
  take = lambda name, read: [_taken(path, name, n, read, one) for n, one in enumerate(form[name])]
  images = take(
    "images", lambda one: {"id": int(one["id"]), "file_name": str(one.get("file_name", one["id"])), **_size(one)}
  )
  categories = take("categories", lambda one: {"id": int(one["id"]), "name": str(one.get("name", one["id"]))})
  sizes = {one["id"]: (one["height"], one["width"]) for one in images}
  known = {one["id"] for one in categories}
  objects = take("annotations", lambda one: _object(one, sizes, known))
  for key in ("segmentation", "keypoints"):  # a kind is compared where all objects have it
    if not all(key in one for one in objects):
      objects = [{name: value for name, value in one.items() if name != key} for one in objects]
  return {
    "info": {},
    "images": images,
    "annotations": [{"id": n, **one} for n, one in enumerate(objects, start=1)],
    "categories": categories,
  }


def _taken(path: pathlib.Path, name: str, number: int, read: Callable[[Any], dict], one: Any) -> dict:
  try:
    return read(one)
  except KeyError as error:
    raise FileError(f"{path}: {name}[{number}] has no {error}") from error
  except Exception as error:  # of whatever a library makes of a value that is none
    raise FileError(f"{path}: {name}[{number}] cannot be read: {error}") from error


def _size(one: Mapping[str, Any]) -> dict[str, int]:
  return {"height": int(one.get("height") or 0), "width": int(one.get("width") or 0)}


def _object(one: Mapping[str, Any], sizes: Mapping[int, tuple[int, int]], known: set[int]) -> dict:
  image_id, category_id = int(one["image_id"]), int(one["category_id"])
  if image_id not in sizes or category_id not in known:
    raise ValueError(f"image {image_id} or category {category_id} is not one of the file's")
  x, y, width, height = box = [float(v) for v in one["bbox"]]
  found = {
    "image_id": image_id,
    "category_id": category_id,
    "bbox": box,
    "area": float(one.get("area", width * height)),
    "iscrowd": int(bool(one.get("iscrowd", 0))),
    "difficult": int(bool(one.get("ignore", 0) or one.get("difficult", 0))),
  }
  if one.get("segmentation"):
    found["segmentation"] = run_lengths(one["segmentation"], sizes[image_id])
  if one.get("keypoints"):
    found["keypoints"] = [float(v) for v in one["keypoints"]]
    found["num_keypoints"] = int(one.get("num_keypoints", sum(v > 0 for v in found["keypoints"][2::3])))
  return found


def run_lengths(segmentation: Any, size: tuple[int, int]) -> dict:
  """Polygons or run lengths of any form as compressed run lengths."""
  if isinstance(segmentation, list):
    segmentation = rle.merge(rle.frPyObjects(segmentation, *size))
  elif isinstance(segmentation["counts"], list):
    segmentation = rle.frPyObjects(segmentation, *size)
  counts = segmentation["counts"]
  if not isinstance(counts, (str, bytes)):
    raise TypeError(f"run lengths are no text: {counts!r}")
  return {"size": list(segmentation["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def read_detections(path: pathlib.Path, truth: dict, ids: Mapping[Any, int]) -> Results:
  """A COCO results file as columns.

  Args:
    path: of the file.
    truth: whose images and categories it is about.
    ids: the truth's image ids by those of files, where they are others.

  Raises:
    FileError: an entry is none, or of an image or category that the truth does not have.
  """
  entries = read_json(path)
  if not isinstance(entries, list):
    raise FileError(f"{path}: no COCO results file: it is not a list of detections")
  images = {one["id"]: (one["height"], one["width"]) for one in truth["images"]}
  by_name = {one["file_name"]: one["id"] for one in truth["images"]}
  categories = {one["id"] for one in truth["categories"]}
  kinds = [
    kind
    for kind, key in (("segm", "segmentation"), ("keypoints", "keypoints"))
    if _all_have(entries or truth["annotations"], key)
  ]
  for number, entry in enumerate(entries):
    try:
      image = ids.get(entry["image_id"], entry["image_id"])
      image = by_name.get(entry.get("file_name"), image) if image not in images else image
      if image not in images:
        raise FileError(f"{path}: entry {number} is of image {entry['image_id']!r}, which the truth does not have")
      if entry["category_id"] not in categories:
        raise FileError(
          f"{path}: entry {number} is of category {entry['category_id']!r}, which the truth does not have"
        )
      entry["image_id"] = image
      if "segm" in kinds:
        entry["segmentation"] = run_lengths(entry["segmentation"], images[image])
      if "keypoints" in kinds and len(entry["keypoints"]) != len(entries[0]["keypoints"]) // 3 * 3:
        raise FileError(f"{path}: entry {number} has {len(entry['keypoints'])} numbers for its joints")
      if "bbox" not in entry:  # a mask alone
        entry["bbox"] = rle.toBbox(entry["segmentation"]).tolist()
      x, y, width, height = entry["bbox"]
      if not np.isfinite([x, y, width, height, entry["score"]]).all():
        raise FileError(f"{path}: entry {number} has a box or a score that is not finite")
    except FileError:
      raise
    except (KeyError, TypeError, ValueError) as error:
      raise FileError(
        f"{path}: entry {number} is no detection: image_id, category_id, bbox and score are needed"
      ) from error
  return Results.from_entries(entries, ("bbox", *kinds))


def _all_have(entries: Sequence[Any], key: str) -> bool:
  return bool(entries) and all(isinstance(one, dict) and one.get(key) for one in entries)


def check_same_truth(a: dict, b: dict, name_a: str, name_b: str) -> None:
  """Raises ComparisonError unless two truths have the same images, classes and objects; says what differs."""
  for what, key in (("images", lambda one: one["file_name"]), ("classes", lambda one: one["name"])):
    part = {"images": "images", "classes": "categories"}[what]
    ours, theirs = ([key(one) for one in side[part]] for side in (a, b))
    for name, others, missing in ((name_b, theirs, set(ours) - set(theirs)), (name_a, ours, set(theirs) - set(ours))):
      if missing:
        first = ", ".join(sorted(missing)[:5])
        raise ComparisonError(
          f"{name_a} and {name_b} were not evaluated on the same {what}: {name} lacks {len(missing)}, e.g. {first}"
        )
    if ours != theirs:
      raise ComparisonError(f"{name_a} and {name_b} were evaluated on the same {what} in another order")
  names = {one["id"]: one["file_name"] for one in a["images"]}
  for one, other in zip(a["annotations"], b["annotations"]):
    if any(one[key] != other[key] for key in ("image_id", "category_id", "bbox", "iscrowd", "difficult")):
      where = names[one["image_id"]]
      raise ComparisonError(f"{name_a} and {name_b} were evaluated on other objects, the first of them in {where}")
  if len(a["annotations"]) != len(b["annotations"]):
    counts = f"{len(a['annotations'])} and {len(b['annotations'])}"
    raise ComparisonError(f"{name_a} and {name_b} were evaluated on {counts} objects")

"""The detection loop: batches in, COCO results entries in pixels of the original images out.

Only what turns a model and batches into entries may live here: no metric, no file.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rcnn_jax.evaluation import paste
from rcnn_jax.types import Batch, Detections

PASTE = {"exact": paste.paste, "rounded": paste.paste_rounded}  # by MaskHead.pasting


class EvaluationError(ValueError):
  """A model, data set or run directory that cannot be evaluated or shown as asked."""


@dataclasses.dataclass(frozen=True)
class Results:
  """What a model found in a set of images.

  Attributes:
    entries: COCO results entries, by image as they were seen and by falling score: image_id, category_id (the data
      set's own), bbox [x, y, w, h] in pixels of the original, score, and where the model gives them segmentation
      (run lengths) and keypoints [x, y, score, ...].
    kinds: what the model gives, whether or not it found anything: "bbox", and "segm" and "keypoints".
  """

  entries: list[dict]
  kinds: tuple[str, ...]


def detect(
  model,
  variables,
  batches: Iterable[Batch],
  sizes: Mapping[int, tuple[int, int]],
  category_ids: Sequence[int],
  *,
  joint_offset: float = 0.0,
  mesh: Mesh | None = None,
) -> Results:
  """Runs `model` over `batches`, each image exactly once.

  The next batch is dispatched before the last one is converted, so that host and device work at the same time.
  The ground truth of a batch is left on the host: a model cannot see it.

  Args:
    model: hashable, with `apply(variables, batch, method='detect') -> Detections`; its mask head, where it has one,
      says how masks become pixels.
    variables: of the model.
    batches: host batches, the same in every process; rows that are not `valid` are skipped.
    sizes: (height, width) of the original by image id, for every image that is to be seen.
    category_ids: the data set's id of class 1, 2, ..., K.
    joint_offset: of the data that the model learned from (`data.pipeline.Data`).
    mesh: with an axis 'data', over which the rows of each batch are shared out; a batch must be divisible by it.

  Raises:
    EvaluationError: an image was missed, seen twice or unknown, or the model gave a number that is not finite.
  """
  entries, seen, kinds, last = [], [], ("bbox",), None
  pasting = getattr(getattr(model, "mask", None), "pasting", "exact")
  convert = functools.partial(_convert, pasting=pasting, joint_offset=joint_offset)
  variables = _place(variables, mesh, PartitionSpec())
  for batch in batches:
    found = _detect_step(model, variables, _place(batch.replace(truth=None), mesh, PartitionSpec("data")))
    kinds = _kinds(found)
    if last is not None:
      entries += convert(*last, sizes, category_ids, seen)
    last = (batch, found)
  if last is not None:
    entries += convert(*last, sizes, category_ids, seen)
  _check_each_once(seen, sizes)
  return Results(entries, kinds)


@functools.partial(jax.jit, static_argnums=0)
def _detect_step(model, variables, batch: Batch) -> Detections:
  # Jitted once and keyed by the model's value, so that evaluating again during training compiles nothing.
  return model.apply(variables, batch, method="detect")


def _place(tree: Any, mesh: Mesh | None, spec: PartitionSpec) -> Any:
  return jax.device_put(tree, None if mesh is None else NamedSharding(mesh, spec))


def _fetch(found: Detections) -> Detections:
  """To the host; with several processes each of them gets the rows of all."""
  if jax.process_count() > 1:
    return multihost_utils.process_allgather(found, tiled=True)
  return jax.device_get(found)


def _kinds(found: Detections) -> tuple[str, ...]:
  extra = (("segm", found.masks), ("keypoints", found.keypoints))
  return ("bbox", *(kind for kind, values in extra if values is not None))


def _convert(
  batch: Batch, found: Detections, sizes: Mapping, category_ids: Sequence[int], seen: list[int], **options
) -> list[dict]:
  """Entries of one batch, with the options of `image_entries`; the ids of its images are added to `seen`."""
  found = _fetch(found)
  entries = []
  for row in np.flatnonzero(batch.valid):
    image_id = int(batch.image_id[row])
    seen.append(image_id)
    if image_id not in sizes:
      raise EvaluationError(f"image {image_id} of a batch is not an image of the data source")
    one = jax.tree.map(lambda values: values[row], found)
    entries += image_entries(one, image_id, batch.scale[row], sizes[image_id], category_ids, **options)
  return entries


def image_entries(
  found: Detections,
  image_id: int,
  scale: np.ndarray,
  size: tuple[int, int],
  category_ids: Sequence[int],
  pasting: str = "exact",
  joint_offset: float = 0.0,
) -> list[dict]:
  """COCO results entries of one image.

  Args:
    found: of one image, boxes and keypoints in pixels of the canvas.
    image_id: written into each entry.
    scale: f32[2], canvas pixels per pixel of the original, (vertical, horizontal).
    size: (height, width) of the original, to which boxes are clipped.
    category_ids: the data set's id of class 1, 2, ..., K.
    pasting: how masks become pixels, a key of PASTE.
    joint_offset: pixels of the original taken from each joint.

  Raises:
    EvaluationError: a valid row has a box or a score that is not finite.
  """
  rows = np.flatnonzero(found.valid)
  horizontal_first = np.asarray(scale, np.float64)[::-1]
  boxes = found.boxes[rows].astype(np.float64) / np.tile(horizontal_first, 2)
  if not (np.isfinite(boxes).all() and np.isfinite(found.scores[rows]).all()):
    raise EvaluationError(f"image {image_id}: the model gave a box or a score that is not finite")
  limits = np.array([size[1], size[0], size[1], size[0]], np.float64)
  clipped = np.clip(boxes, 0.0, limits)
  entries = []
  for row, box, (x1, y1, x2, y2) in zip(rows, boxes, clipped):
    entry = {
      "image_id": image_id,
      "category_id": int(category_ids[int(found.classes[row]) - 1]),
      "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
      "score": float(found.scores[row]),
    }
    if found.masks is not None:
      entry["segmentation"] = paste.encode(PASTE[pasting](found.masks[row], box, size))
    if found.keypoints is not None:
      points = found.keypoints[row].astype(np.float64) / np.append(horizontal_first, 1.0)
      points[:, :2] -= joint_offset
      entry["keypoints"] = points.reshape(-1).tolist()
    entries.append(entry)
  return entries


def _check_each_once(seen: list[int], sizes: Mapping[int, tuple[int, int]]) -> None:
  unique = set(seen)
  if len(unique) != len(seen):
    twice = sorted(i for i in unique if seen.count(i) > 1)
    raise EvaluationError(f"evaluation saw images more than once: {twice[:5]}")
  missed = sorted(set(sizes) - unique)
  if missed:
    raise EvaluationError(f"evaluation missed {len(missed)} of {len(sizes)} images: {missed[:5]}")

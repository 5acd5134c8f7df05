"""The detection loop: batches in, what was found in pixels of the original images out.

Only what turns a model and batches into results may live here: no metric, no file.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rcnn_jax import hosts
from rcnn_jax.evaluation.mask_workers import MaskWorkers
from rcnn_jax.evaluation.results import Found, Results
from rcnn_jax.types import Batch, Detections


class EvaluationError(ValueError):
  """A model, data set or run directory that cannot be evaluated or shown as asked."""


def detect(
  model,
  variables,
  batches: Iterable[Batch],
  sizes: Mapping[int, tuple[int, int]],
  category_ids: Sequence[int],
  *,
  mesh: Mesh | None = None,
  **options,
) -> Results:
  """What `model` finds in `batches`, each image exactly once; processes that share a mesh get the results of all.

  Arguments are those of `find`; `sizes` names every image that is to be seen.

  Raises:
    EvaluationError: an image was missed, seen twice or unknown, or the model gave a number that is not finite.
  """
  images = list(find(model, variables, batches, sizes, category_ids, mesh=mesh, **options))
  own = Results.of(images), [one.image_id for one in images]
  everywhere = [own] if mesh is None else hosts.gathered(own)
  _check_each_once([image_id for _, seen in everywhere for image_id in seen], sizes)
  return Results.joined([results for results, _ in everywhere])


def find(
  model,
  variables,
  batches: Iterable[Batch],
  sizes: Mapping[int, tuple[int, int]],
  category_ids: Sequence[int],
  *,
  joint_offset: float = 0.0,
  mesh: Mesh | None = None,
  mask_workers: int | None = None,
) -> Iterator[Found]:
  """Runs `model` over `batches` and yields what it finds in each image, as it comes, in the order of the batches.

  The next batch is dispatched before the last one is converted, and masks become run lengths in processes of their
  own, so that host and device work at the same time. So many images as there are in two batches wait at most. The
  ground truth of a batch is left on the host: a model cannot see it.

  Args:
    model: hashable, with `apply(variables, batch, method='detect') -> Detections`; its mask head, where it has one,
      says how masks become pixels.
    variables: of the model.
    batches: host batches; with several processes each has its own share of the rows, and converts those alone. Rows
      that are not `valid` are skipped.
    sizes: (height, width) of the original by image id.
    category_ids: the data set's id of class 1, 2, ..., K.
    joint_offset: of the data that the model learned from (`data.pipeline.Data`).
    mesh: with an axis 'data', over which the rows of each batch are shared out; a batch must be divisible by it.
    mask_workers: how many processes encode masks; None: one for each core but one.

  Raises:
    EvaluationError: an image is not in `sizes`, or the model gave a number that is not finite.
    MaskWorkerError: a process that encodes masks was killed.
  """
  pasting = next((head.pasting for head in getattr(model, "heads", ()) if head.field == "masks"), "exact")
  variables = _place(variables, mesh, PartitionSpec())
  waiting, last = collections.deque(), None  # images of at most one batch whose masks are at work, and the last batch
  with MaskWorkers(mask_workers) as workers:
    for batch in batches:
      found = _detect_step(model, variables, _place(batch.replace(truth=None), mesh, PartitionSpec("data")), mesh)
      yield from _finished(waiting)
      if last is not None:
        waiting.extend(_convert(*last, sizes, category_ids, joint_offset, pasting, workers))
      last = batch, found
    yield from _finished(waiting)
    if last is not None:
      yield from _finished(collections.deque(_convert(*last, sizes, category_ids, joint_offset, pasting, workers)))


def _finished(waiting: collections.deque) -> Iterator[Found]:
  while waiting:
    one, counts = waiting.popleft()
    yield one if counts is None else dataclasses.replace(one, counts=counts.result())


@functools.partial(jax.jit, static_argnums=(0, 3))
def _detect_step(model, variables, batch: Batch, mesh: Mesh | None) -> Detections:
  """Detections [B, D] of a batch that is shared out over the devices of a mesh, by the model's `detect`."""
  # Jitted once and keyed by the model's value, so that evaluating again during training compiles nothing.
  detect = lambda variables, batch: model.apply(variables, batch, method="detect")
  if mesh is None:
    return detect(variables, batch)
  own = PartitionSpec("data")  # each device detects in its images, without a word to the others
  return jax.shard_map(detect, mesh=mesh, in_specs=(PartitionSpec(), own), out_specs=own, check_vma=False)(
    variables, batch
  )


def _place(tree: Any, mesh: Mesh | None, spec: PartitionSpec) -> Any:
  """On the devices; of an array that is shared out over several processes, `tree` holds this process' part."""
  if mesh is None or jax.process_count() == 1 or spec == PartitionSpec():
    return jax.device_put(tree, None if mesh is None else NamedSharding(mesh, spec))
  return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(NamedSharding(mesh, spec), rows), tree)


def _fetch(found: Detections) -> Detections:
  """To the host: the rows that this process has, which are those of its part of the batch."""
  if jax.process_count() == 1:
    return jax.device_get(found)

  def rows(array: jax.Array) -> np.ndarray:
    own = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(own[start]) for start in sorted(own)])

  return jax.tree.map(rows, found)


def _convert(
  batch: Batch,
  found: Detections,
  sizes: Mapping,
  category_ids: Sequence[int],
  joint_offset: float,
  pasting: str,
  workers: MaskWorkers,
) -> Iterator[tuple[Found, Future | None]]:
  """What was found in each image of a batch, without the run lengths of its masks, and these as a future."""
  found = _fetch(found)
  for row in np.flatnonzero(batch.valid):
    image_id = int(batch.image_id[row])
    if image_id not in sizes:
      raise EvaluationError(f"image {image_id} of a batch is not an image of the data source")
    size = tuple(int(side) for side in sizes[image_id])
    one = jax.tree.map(lambda values: values[row], found)
    image, boxes, masks = in_the_original(one, image_id, batch.scale[row], size, category_ids, joint_offset)
    yield image, None if masks is None else workers.submit(masks, boxes, size, pasting)


def in_the_original(
  found: Detections,
  image_id: int,
  scale: np.ndarray,
  size: tuple[int, int],
  category_ids: Sequence[int],
  joint_offset: float = 0.0,
) -> tuple[Found, np.ndarray, np.ndarray | None]:
  """The detections of one image in its own pixels, boxes clipped to it.

  Args:
    found: of one image, boxes and keypoints in pixels of the canvas; what stands in rows that are not valid is left.
    image_id: of the image.
    scale: f32[2], canvas pixels per pixel of the original, (vertical, horizontal).
    size: (height, width) of the original.
    category_ids: the data set's id of class 1, 2, ..., K.
    joint_offset: pixels of the original taken from each joint.

  Returns:
    The N valid detections without the run lengths of their masks; and what these are made from: the boxes as they
    were before they were clipped, f64[N, 4] xyxy, and the masks in their frames, f32[N, P, P] or None.

  Raises:
    EvaluationError: a valid row has a box, a score or a joint that is not finite.
  """
  found = jax.tree.map(lambda values: values[np.flatnonzero(found.valid)], found)
  horizontal_first = np.asarray(scale, np.float64)[::-1]
  boxes = found.boxes.astype(np.float64) / np.tile(horizontal_first, 2)
  points = None
  if found.keypoints is not None:
    points = found.keypoints.astype(np.float64) / np.append(horizontal_first, 1.0)
    points[..., :2] -= joint_offset
  numbers = (boxes, found.scores, *(() if points is None else (points,)))
  if not all(np.isfinite(array).all() for array in numbers):
    raise EvaluationError(f"image {image_id}: the model gave a box, a score or a joint that is not finite")
  clipped = np.clip(boxes, 0.0, np.array([size[1], size[0]] * 2, np.float64))
  clipped[:, 2:] -= clipped[:, :2]
  ids = np.asarray(category_ids, np.int64)[found.classes - 1]
  return Found(image_id, size, clipped, found.scores.astype(np.float64), ids, None, points), boxes, found.masks


def _check_each_once(seen: Sequence[int], sizes: Mapping[int, tuple[int, int]]) -> None:
  times = collections.Counter(seen)
  twice = sorted(image_id for image_id, count in times.items() if count > 1)
  if twice:
    raise EvaluationError(f"evaluation saw images more than once: {twice[:5]}")
  missed = sorted(set(sizes) - set(times))
  if missed:
    raise EvaluationError(f"evaluation missed {len(missed)} of {len(sizes)} images: {missed[:5]}")

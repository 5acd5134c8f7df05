"""Masks of merged boxes: the mask head looks at each box once more in every view, and the mean of its masks counts.

That is how Detectron2's GeneralizedRCNNWithTTA does it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from rcnn_jax.data import pipeline
from rcnn_jax.evaluation import paste
from rcnn_jax.evaluation.mask_workers import MaskWorkers
from rcnn_jax.evaluation.results import Found
from rcnn_jax.evaluation.views import View
from rcnn_jax.types import Batch, Detections


def split(model: nn.Module) -> tuple[nn.Module, nn.Module | None]:
  """The model without its mask head, and with that head alone; None where it has none."""
  heads = getattr(model, "heads", ())
  of_masks = tuple(head for head in heads if head.field == "masks")
  if not of_masks:
    return model, None
  return model.clone(heads=tuple(head for head in heads if head.field != "masks")), model.clone(heads=of_masks)


@dataclasses.dataclass(frozen=True, eq=False)
class Masker:
  """Gives objects their masks."""

  model: nn.Module  # with the mask head alone
  variables: Any
  category_ids: Sequence[int]  # the data set's id of class 1, 2, ..., K
  views: Sequence[View]

  def of_source(self, found: Sequence[Found], batches: Iterable[tuple[View, Iterable[Batch]]]) -> list[Found]:
    """What was found in images, with masks; `batches` are those of all images in each view."""
    by_id, sums = {one.image_id: one for one in found}, {}
    for view, in_view in batches:
      for batch in in_view:
        for image_id, masks in self.seen(view, batch, by_id):
          sums[image_id] = sums[image_id] + masks if image_id in sums else masks
    with MaskWorkers() as workers:
      submit = lambda one: workers.submit(*self._to_paste(one, sums.pop(one.image_id)))
      waiting = [(one, submit(one)) for one in found]
      return [dataclasses.replace(one, counts=counts.result()) for one, counts in waiting]

  def of_image(self, found: Found, image: np.ndarray) -> Found:
    """What was found in an image u8[H, W, 3], RGB, with masks."""
    total = 0
    for view in self.views:
      batch = pipeline.image_batch([image], view.data, [found.image_id])
      total = total + next(self.seen(view, batch, {found.image_id: found}))[1]
    return dataclasses.replace(found, counts=paste.run_lengths(*self._to_paste(found, total)))

  def seen(self, view: View, batch: Batch, found: Mapping[int, Found]) -> Iterator[tuple[int, np.ndarray]]:
    """Each image of a batch by its id, with the masks f32[n, P, P] of its n objects in the frames of their boxes."""
    rows = np.flatnonzero(batch.valid)
    ids = [int(batch.image_id[row]) for row in rows]
    objects = _nothing(len(batch.valid), self.model.box.max_detections)
    classes = {category_id: number for number, category_id in enumerate(self.category_ids, start=1)}
    for row, one in zip(rows, (found[image_id] for image_id in ids)):
      objects.boxes[row, : len(one)] = _in_view(one, view.flip, batch.scale[row])
      objects.classes[row, : len(one)] = [classes[category_id] for category_id in one.category_ids.tolist()]
      objects.valid[row, : len(one)] = True
    batch = batch.replace(truth=None, proposals=None)
    masks = jax.device_get(_describe(self.model, self.variables, batch, objects))
    for row, image_id in zip(rows, ids):
      own = masks[row, : len(found[image_id])]
      yield image_id, own[..., ::-1] if view.flip else own

  def _to_paste(self, found: Found, total: np.ndarray) -> tuple:
    """The arguments of `paste.run_lengths`, of the mean of all views' masks."""
    return total / len(self.views), _corners(found), found.size, self.model.heads[0].pasting


@functools.partial(jax.jit, static_argnums=0)
def _describe(model: nn.Module, variables: Any, batch: Batch, objects: Detections) -> jax.Array:
  return model.apply(variables, batch, objects, method="describe").masks


def _nothing(batch_size: int, room: int) -> Detections:
  shape = (batch_size, room)
  return Detections(
    boxes=np.zeros((*shape, 4), np.float32),
    scores=np.zeros(shape, np.float32),
    classes=np.ones(shape, np.int32),
    valid=np.zeros(shape, bool),
  )


def _corners(found: Found) -> np.ndarray:
  """f64[n, 4], xyxy."""
  return np.concatenate([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], axis=1)


def _in_view(found: Found, flip: bool, scale: np.ndarray) -> np.ndarray:
  """The boxes f64[n, 4], xyxy in pixels of the canvas; scale: f32[2], of `Batch`."""
  corners = _corners(found)
  if flip:
    corners[:, [2, 0]] = found.size[1] - corners[:, [0, 2]]
  return corners * np.tile(np.asarray(scale, np.float64)[::-1], 2)

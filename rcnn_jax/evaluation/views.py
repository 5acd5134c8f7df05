"""Test-time augmentation: how an image's views are made, and how what was found in them becomes one answer.

The boxes are merged as Detectron2's GeneralizedRCNNWithTTA does it: those of all views, in the image's own pixels, by
one more NMS with the settings of the model. Masks are made afterwards (`view_masks`). Joints, which Detectron2 refuses,
are those of the view that a box comes from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from rcnn_jax.data import transforms
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.source import KeypointNames
from rcnn_jax.data.transforms import Example, PaddedToMultiple, Resize
from rcnn_jax.evaluation.detect import EvaluationError
from rcnn_jax.evaluation.results import Found, Results
from rcnn_jax.evaluation.tiles import Tiles
from rcnn_jax.experiment import Views
from rcnn_jax.ops import nms

MULTIPLE = 32  # pixels, of the sides of a canvas that is made for a view


@dataclasses.dataclass(frozen=True)
class View:
  """One way to look at an image."""

  data: Data  # the experiment's, with the resizing and the canvases of this view
  flip: bool


@dataclasses.dataclass(frozen=True)
class Mirrored(Resize):
  """Resizes, then mirrors left and right; proposals go with the image."""

  def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
    """The mirror image in its new size."""
    return transforms.flip(super().__call__(example, rng))


@dataclasses.dataclass(frozen=True)
class Merging:
  """What views are merged by: the model's own NMS, and what a mirror does to joints."""

  head: nn.Module  # has nms_iou and max_detections, and soft_nms or none
  keypoints: KeypointNames | None = None  # where the model gives joints (`check_views`)
  joint_offset: float = 0.0  # of `Data`

  def __call__(self, parts: Sequence[tuple[View, Found]]) -> Found:
    """What was found in the views of one image, as one, without masks: the best `max_detections`, by falling score."""
    upright = [self.mirrored(found) if view.flip else found for view, found in parts]
    join = lambda name: np.concatenate([getattr(one, name) for one in upright])
    first, boxes, ids = upright[0], join("boxes"), join("category_ids")
    rows, scores = survivors(boxes, join("scores"), ids, self.head, len(parts))
    keypoints = None if first.keypoints is None else join("keypoints")[rows]
    return Found(first.image_id, first.size, boxes[rows], scores, ids[rows], None, keypoints)

  def mirrored(self, found: Found) -> Found:
    """What was found in a mirror image, in the image, without masks."""
    boxes, keypoints, width = found.boxes.copy(), found.keypoints, found.size[1]
    boxes[:, 0] = width - boxes[:, 0] - boxes[:, 2]
    if keypoints is not None:
      keypoints = keypoints[:, self.keypoints.flip_order]
      # The offset has been taken from them already: on the other side of the mirror, it is taken once more.
      keypoints[..., 0] = width - 2 * self.joint_offset - keypoints[..., 0]
    return dataclasses.replace(found, boxes=boxes, counts=None, keypoints=keypoints)


def check_views(settings: Views, tiles: Tiles | None, model: nn.Module, keypoints: KeypointNames | None) -> None:
  """Raises EvaluationError for tiles beside several views, and for a mirror of joints of which no pairs are known."""
  if tiles is not None and settings != Views():
    raise EvaluationError("tiles are looked at by one view each: leave evaluation.views as it is, or --tile away")
  gives_joints = any(head.field == "keypoints" for head in getattr(model, "heads", ()))
  if settings.flip and gives_joints and keypoints is None:
    raise EvaluationError("evaluation.views.flip: which joints a mirror exchanges is said nowhere in the data")


def views_of(settings: Views, data: Data) -> tuple[View, ...]:
  """The views, by short side; each unmirrored, then mirrored where that is asked for.

  The canvases of a view are the experiment's, enlarged or shrunk as its images are; both mirror images share their
  program. `PaddedToMultiple` stays as it is.
  """
  own = max(data.resize.short_side)
  views = []
  for short_side in settings.short_sides or (own,):
    long_side = settings.long_side or -(-data.resize.long_side * short_side // own)
    resize = dataclasses.replace(data.resize, short_side=(short_side,), long_side=long_side)
    canvases = data.canvases
    if not isinstance(canvases, PaddedToMultiple):
      ratios = (short_side, own), (long_side, data.resize.long_side)
      canvases = tuple(_canvas(canvas, *ratios) for canvas in canvases)
    views.append(View(dataclasses.replace(data, resize=resize, canvases=canvases), False))
    if settings.flip:
      mirrored = dataclasses.replace(views[-1].data, resize=Mirrored(**vars(resize)))
      views.append(View(mirrored, True))
  return tuple(views)


def _canvas(canvas: tuple[int, int], short: tuple[int, int], long: tuple[int, int]) -> tuple[int, int]:
  """The canvas (height, width) for images whose sides change by two ratios, (new, old) each."""
  height, width = canvas
  if height == width:
    short = long = max(short, long, key=lambda ratio: ratio[0] / ratio[1])
  of_height, of_width = (short, long) if height <= width else (long, short)
  scaled = lambda side, new, old: side if new == old else -(-side * new // (old * MULTIPLE)) * MULTIPLE
  return scaled(height, *of_height), scaled(width, *of_width)


def merged_images(
  parts: Sequence[tuple[View, Results]], sizes: Mapping[int, tuple[int, int]], merging: Merging
) -> list[Found]:
  """What was found in each image, from what was found in each view; `sizes` are (height, width) by image id."""
  each = [(view, _by_image(results, sizes)) for view, results in parts]
  return [merging([(view, images[image_id]) for view, images in each]) for image_id in sizes]


def _by_image(results: Results, sizes: Mapping[int, tuple[int, int]]) -> dict[int, Found]:
  order = np.argsort(results.image_ids, kind="stable")
  ids = results.image_ids[order]
  found = {}
  for image_id, size in sizes.items():
    rows = order[slice(*np.searchsorted(ids, [image_id, image_id + 1]))]
    keypoints = None if results.keypoints is None else results.keypoints[rows]
    columns = (results.boxes[rows], results.scores[rows], results.category_ids[rows])
    found[image_id] = Found(image_id, size, *columns, None, keypoints)
  return found


def survivors(
  boxes: np.ndarray, scores: np.ndarray, ids: np.ndarray, head: nn.Module, num_views: int
) -> tuple[np.ndarray, np.ndarray]:
  """(rows i64[n], scores f64[n]) that are left after the NMS of `head`, class by class, the best first.

  boxes: f64[N, 4], [x, y, w, h]; scores: f64[N]; ids: i64[N], of categories.
  """
  room = max(num_views * head.max_detections, len(boxes))  # one program for all images
  padded = lambda rows, dtype: np.concatenate([rows, np.zeros((room - len(rows), *rows.shape[1:]))]).astype(dtype)
  corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
  groups = np.unique(ids, return_inverse=True)[1]
  soft = getattr(head, "soft_nms", None)
  rule = (head.nms_iou, head.max_detections, soft)
  arrays = padded(corners, np.float32), padded(scores, np.float32), np.arange(room) < len(boxes)
  rows, left, valid = jax.device_get(_suppress(*rule, *arrays, padded(groups, np.int32)))
  return rows[valid].astype(np.int64), left[valid].astype(np.float64)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _suppress(nms_iou: float, max_detections: int, soft: Any, boxes, scores, valid, groups):
  options = dict(iou_threshold=nms_iou, max_output=max_detections, groups=groups)
  if soft is not None:
    return nms.soft_nms(boxes, scores, valid, **options, **dataclasses.asdict(soft))
  rows, kept = nms.nms(boxes, scores, valid, **options)
  return rows, scores[rows], kept

"""Batches of noise with random boxes, for programs that are timed or compiled rather than trained."""

from __future__ import annotations

import math
import types

import jax
import numpy as np

from rcnn_jax.data import pipeline
from rcnn_jax.data.transforms import PaddedToMultiple
from rcnn_jax.experiment import Experiment
from rcnn_jax.models.detector import Detector, blank_batch
from rcnn_jax.types import MASK_SIDE, Batch, Proposals

NUM_KEYPOINTS = 17  # COCO's, where the experiment leaves them to its data
NUM_ROWS = 100  # for objects of an image, where the experiment leaves them to its data


def sized_model(experiment: Experiment, num_classes: int) -> Detector:
  """The experiment's model with a number of classes, and of joints, where it leaves them to its data."""
  model = experiment.model
  if model.is_complete:
    return model
  names = range(num_keypoints(model))
  return model.with_data(range(model.num_classes or num_classes), types.SimpleNamespace(names=names))


def num_keypoints(model: Detector) -> int:
  """How many joints its keypoint head finds, COCO's number where its data alone know."""
  return next((head.num_keypoints for head in model.heads if head.field == "keypoints"), None) or NUM_KEYPOINTS


def largest_canvas(data: pipeline.Data, what: str) -> tuple[int, int]:
  """The canvas (height, width) of the most pixels on which images are trained on ('train') or detected in."""
  canvases = data.canvases
  if isinstance(canvases, PaddedToMultiple):
    whole = (canvases.around((max(data.resize.short_side), data.resize.long_side)),)
    canvases = canvases.training if what == "train" and canvases.training else whole
  return max(canvases, key=math.prod)


def synthetic_batch(
  experiment: Experiment,
  batch_size: int,
  *,
  num_objects: int,
  num_classes: int,
  canvas: tuple[int, int] | None = None,
) -> Batch:
  """Images of noise that fill a canvas, with random boxes of 1/12 to 1/3 of its shorter side.

  The canvas (height, width) is the experiment's first, where none is given. There are as many rows for objects as in
  training, of which `num_objects` hold one. Where the experiment has proposals, there are as many of them as it
  evaluates with. Where it loads masks, each is its whole box, and joints lie anywhere: what they hold takes no time.
  """
  rng = np.random.default_rng(0)
  model = sized_model(experiment, num_classes)
  canvas = canvas or pipeline.example_canvas(experiment.data)
  count = max(experiment.data.max_objects or NUM_ROWS, num_objects)
  blank = jax.tree.map(np.asarray, blank_batch(batch_size, canvas, count))
  side = min(canvas)
  boxes = random_boxes(rng, canvas, (batch_size, count))
  classes = rng.integers(1, model.num_classes + 1, (batch_size, count))
  masks = np.ones((batch_size, count, MASK_SIDE, MASK_SIDE), np.uint8) if experiment.data.load_masks else None
  joints = (batch_size, count, num_keypoints(model), 3)
  keypoints = rng.uniform(1, side, joints).astype(np.float32) if experiment.data.load_keypoints else None
  truth = blank.truth.replace(
    boxes=boxes,
    classes=classes.astype(np.int32),
    valid=np.tile(np.arange(count) < num_objects, (batch_size, 1)),
    masks=masks,
    keypoints=keypoints,
  )
  pixels = rng.integers(0, 256, blank.image.shape, dtype=np.uint8).astype(experiment.data.resize.pixels)
  found = blank.proposals
  if experiment.data.proposals is not None:
    rows = batch_size, experiment.data.num_proposals[1]
    found = Proposals(random_boxes(rng, canvas, rows), np.ones(rows, np.float32), np.ones(rows, bool))
  return blank.replace(image=pixels, truth=truth, proposals=found)


def random_boxes(rng: np.random.Generator, canvas: tuple[int, int], rows: tuple[int, ...]) -> np.ndarray:
  """f32[*rows, 4]: boxes within the canvas, with sides of 1/12 to 1/3 of its shorter side."""
  sides = rng.uniform(min(canvas) / 12, min(canvas) / 3, (*rows, 2))
  corner = rng.uniform(0, 1, (*rows, 2)) * (np.array(canvas[::-1]) - sides)
  return np.concatenate([corner, corner + sides], -1).astype(np.float32)

"""Real detectors that compile in seconds, and scenes for them: squares of one colour a class on a grey ground."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import numpy as np

from rcnn_jax.models.crops import CropNetwork, Pixels
from rcnn_jax.models.detector import Detector, RoiSampler, init_variables
from rcnn_jax.models.heads import BoxHead, FcTrunk
from rcnn_jax.models.layers import Conv, GroupNorm
from rcnn_jax.models.pooling import RoiAlign, WarpCrop
from rcnn_jax.models.proposers import External, Rpn
from rcnn_jax.models.protocols import Context
from rcnn_jax.models.rcnn_head import RcnnHead
from rcnn_jax.types import Array, Batch, GroundTruth

CANVAS = (48, 64)
MAX_OBJECTS = 6
COLOURS = np.array([[200, 40, 40], [40, 40, 200]], np.uint8)


class SmallBackbone(nn.Module):
  """Three convolutions to stride 8."""

  channels: int = 16
  pixel_mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
  pixel_std: tuple[float, float, float] = (64.0, 64.0, 64.0)

  @property
  def strides(self) -> tuple[int, ...]:
    return (8,)

  @nn.compact
  def __call__(self, x: Array, context: Context = Context()) -> tuple[Array, ...]:
    for i in range(3):
      x = Conv(self.channels, kernel_size=3, stride=2, use_bias=False, name=f"conv{i}")(x)
      x = nn.relu(GroupNorm(4, name=f"norm{i}")(x, context.train))
    return (x,)


def small_detector(**changes) -> Detector:
  """Faster R-CNN over SmallBackbone, two classes."""
  model = Detector(
    backbone=SmallBackbone(),
    proposer=Rpn(anchor_sizes=((12.0, 24.0),), num_pre_nms=(60, 60), num_post_nms=(30, 20), num_samples=32),
    pool=RoiAlign(output_size=3),
    sampler=RoiSampler(num_samples=16),
    trunk=FcTrunk((32,)),
    box=BoxHead(max_detections=10, score_threshold=0.01),
    num_classes=2,
  )
  return model.clone(**changes)


# R-CNN over SmallBackbone, two classes; its proposals come with the batch.
RCNN = Detector(
  backbone=Pixels(),
  proposer=External(),
  pool=CropNetwork(SmallBackbone(), WarpCrop(output_size=32, context=2), output_size=2),
  trunk=FcTrunk((32,)),
  box=RcnnHead(max_detections=10),
  sampler=RoiSampler(num_samples=16),
  num_classes=2,
)


@functools.cache
def _drawn(model: Detector):
  return init_variables(model, jax.random.key(0), CANVAS)


def fresh(model: Detector):
  """Fresh variables of a detector, drawn once for all tests; the arrays are the caller's own."""
  return jax.tree.map(np.array, _drawn(model))


@functools.cache
def variables():
  """Fresh variables of `small_detector()`."""
  return init_variables(small_detector(), jax.random.key(0), CANVAS)


@functools.cache
def compiled(method: str, model: Detector | None = None):
  """The jitted `losses` or `detect` of a detector, by default the small one; compiled once for all tests."""
  model = model or small_detector()
  return jax.jit(lambda variables, *inputs: model.apply(variables, *inputs, method=method))


def scene_batch(seed: int, batch_size: int = 2, num_objects: int = 3) -> Batch:
  """Images of different sizes within the canvas, each with up to `num_objects` coloured squares."""
  rng = np.random.default_rng(seed)
  height, width = CANVAS
  image = np.zeros((batch_size, height, width, 3), np.uint8)
  size = np.stack([rng.integers(36, height + 1, batch_size), rng.integers(48, width + 1, batch_size)], -1)
  boxes = np.zeros((batch_size, MAX_OBJECTS, 4), np.float32)
  classes = np.zeros((batch_size, MAX_OBJECTS), np.int32)
  for b in range(batch_size):
    image[b, : size[b, 0], : size[b, 1]] = rng.integers(100, 150, (*size[b], 3))
    for m in range(num_objects):
      side = int(rng.integers(10, 24))
      y, x = (int(rng.integers(0, limit - side)) for limit in size[b])
      classes[b, m] = rng.integers(1, 3)
      boxes[b, m] = (x, y, x + side, y + side)
      image[b, y : y + side, x : x + side] = COLOURS[classes[b, m] - 1]
  none = np.zeros((batch_size, MAX_OBJECTS), bool)
  valid = np.broadcast_to(np.arange(MAX_OBJECTS) < num_objects, none.shape)
  truth = GroundTruth(boxes=boxes, classes=classes, crowd=none, difficult=none, valid=valid)
  return Batch(
    image=image,
    image_size=size.astype(np.int32),
    scale=np.ones((batch_size, 2), np.float32),
    image_id=np.arange(batch_size, dtype=np.int32) + 100 * seed,
    valid=np.ones(batch_size, bool),
    truth=truth,
  )

"""The R-CNN family as one composition: backbone, proposer, pooling, trunk, heads.

R-CNN's regions, Fast R-CNN's shared features, Faster R-CNN's proposals and FPN's levels are choices of the parts;
what follows is the order in which the papers apply them. `losses` and `detect` are each one static program.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcnn_jax.ops import assign, boxes, pooling, random
from rcnn_jax.types import Array, Batch, Detections, GroundTruth, Proposals, RoiSamples


@dataclass(frozen=True)
class RoiSampler:
  """Which proposals the second stage is trained on (arXiv:1504.08083, section 2.3)."""

  num_samples: int = 512
  foreground_fraction: float = 0.25
  foreground_iou: float = 0.5
  background_iou: float = 0.5
  add_truth: bool = True  # the ground-truth boxes join the proposals

  def __call__(self, proposals: Proposals, truth: GroundTruth, key: Array) -> RoiSamples:
    """One image: proposals [N], truth [M] -> RoiSamples [S]."""
    candidates, valid = proposals.boxes, proposals.valid
    if self.add_truth:
      candidates = jnp.concatenate([candidates, truth.boxes])
      valid = jnp.concatenate([valid, truth.valid])
    matches = assign.match(
      boxes.iou(candidates, truth.boxes),
      truth.valid,
      foreground_iou=self.foreground_iou,
      background_iou=self.background_iou,
      anchor_valid=valid,
    )
    samples = assign.sample(
      key,
      matches.foreground,
      matches.background,
      num_samples=self.num_samples,
      foreground_fraction=self.foreground_fraction,
    )
    return assign.targets(samples, matches, candidates, truth)


@dataclass(frozen=True)
class RoiAlign:
  """RoI Align (arXiv:1703.06870, section 3), from the level that FPN's equation 1 gives each RoI."""

  output_size: int = 7
  sampling_ratio: int = 2
  aligned: bool = False  # torchvision: False; Detectron2: True (a shift of half a cell)
  num_levels: int = 1  # the finest levels, those that RoIs are pooled from

  def __call__(self, features: tuple[Array, ...], rois: Array, strides: tuple[int, ...]) -> Array:
    """One image: features f[h, w, C] a level, rois f32[R, 4] in canvas pixels -> f[R, P, P, C]."""
    features, strides = features[: self.num_levels], strides[: self.num_levels]
    options = dict(output_size=self.output_size, sampling_ratio=self.sampling_ratio, aligned=self.aligned)
    if len(features) == 1:
      return pooling.roi_align(features[0], rois, spatial_scale=1 / strides[0], **options)
    return pooling.multilevel_roi_align(features, rois, strides=strides, **options)


@dataclass(frozen=True)
class RoiMaxPool:
  """RoI max pooling (arXiv:1504.08083, section 2.1), on a single level."""

  output_size: int = 7

  def __call__(self, features: tuple[Array, ...], rois: Array, strides: tuple[int, ...]) -> Array:
    """One image: features (f[h, w, C],), rois f32[R, 4] in canvas pixels -> f[R, P, P, C]."""
    return pooling.roi_max_pool(features[0], rois, output_size=self.output_size, spatial_scale=1 / strides[0])


class Detector(nn.Module):
  """A detector of the R-CNN family. As a frozen dataclass it is also its own configuration."""

  backbone: nn.Module
  proposer: nn.Module
  pool: RoiAlign | RoiMaxPool
  trunk: nn.Module
  box: nn.Module
  sampler: RoiSampler = RoiSampler()
  num_classes: int | None = None  # K, without the background; filled in from the data
  dtype: str = "float32"  # what convolutions and matrix products compute in: 'float32' or 'bfloat16'

  def losses(self, batch: Batch, key: Array) -> dict[str, Array]:
    """The loss terms of a batch, f32[] each; their sum is what training minimises."""
    batch = batch.replace(truth=trainable(batch))
    features = self.backbone(self.normalise(batch), True)
    proposals, terms = self.proposer(features, self.backbone.strides, batch, key)
    keys = random.per_image(random.named(key, "rois"), batch.image_id)
    samples = jax.lax.stop_gradient(jax.vmap(self.sampler)(proposals, batch.truth, keys))
    outputs = self.second_stage(features, samples.boxes, random.named(key, "dropout"))
    return terms | self.box.losses(*outputs, samples, batch.truth)

  def detect(self, batch: Batch) -> Detections:
    """Detections [B, D] by falling score, boxes in canvas pixels."""
    features = self.backbone(self.normalise(batch), False)
    proposals, _ = self.proposer(features, self.backbone.strides, batch, None)
    outputs = self.second_stage(features, proposals.boxes, None)
    return self.box.detections(*outputs, proposals, batch)

  def second_stage(self, features: tuple[Array, ...], rois: Array, key: Array | None) -> tuple[Array, Array]:
    """rois f32[B, R, 4] -> class_logits f32[B, R, K+1] and box_deltas f32[B, R, K or 1, 4]."""
    if self.num_classes is None:
      raise ValueError("Detector.num_classes is not set: it comes with the data (model.clone(num_classes=K))")
    pooled = jax.vmap(lambda feature, roi: self.pool(feature, roi, self.backbone.strides))(features, rois)
    flat = pooled.reshape(-1, *pooled.shape[2:])
    logits, deltas = self.box(self.trunk(flat, key), self.num_classes)
    per_image = lambda x: x.reshape(*rois.shape[:2], *x.shape[1:])
    return per_image(logits), per_image(deltas)

  def normalise(self, batch: Batch) -> Array:
    """uint8 pixels to the backbone's statistics, zero beyond the image: f[B, H, W, 3] in `dtype`."""
    mean, std = jnp.array(self.backbone.pixel_mean), jnp.array(self.backbone.pixel_std)
    pixels = (batch.image.astype(jnp.float32) - mean) / std
    height, width = batch.image.shape[1:3]
    rows = jnp.arange(height)[:, None] < batch.image_size[:, 0, None, None]
    columns = jnp.arange(width) < batch.image_size[:, 1, None, None]
    return jnp.where((rows & columns)[..., None], pixels, 0).astype(self.dtype)


def trainable(batch: Batch) -> GroundTruth:
  """The objects to train on: those of real images that are no crowds; the other rows are not valid."""
  truth = batch.truth
  return truth.replace(valid=truth.valid & ~truth.crowd & batch.valid[:, None])


def blank_batch(batch_size: int, canvas: tuple[int, int], max_objects: int = 8) -> Batch:
  """A batch of black images without objects, for tracing shapes."""
  shape = (batch_size, max_objects)
  truth = GroundTruth(
    boxes=jnp.zeros((*shape, 4)),
    classes=jnp.ones(shape, jnp.int32),
    crowd=jnp.zeros(shape, bool),
    difficult=jnp.zeros(shape, bool),
    valid=jnp.zeros(shape, bool),
  )
  return Batch(
    image=jnp.zeros((batch_size, *canvas, 3), jnp.uint8),
    image_size=jnp.tile(jnp.array(canvas), (batch_size, 1)),
    scale=jnp.ones((batch_size, 2)),
    image_id=jnp.arange(batch_size),
    valid=jnp.ones(batch_size, bool),
    truth=truth,
  )


def init_variables(model: Detector, key: Array, canvas: tuple[int, int]) -> dict:
  """Fresh variables of `model` ({'params', and 'batch_stats' where it has norms}); `canvas` only has to be legal."""
  init = jax.jit(lambda key: model.init(key, blank_batch(1, canvas), method="detect"))
  return init(key)

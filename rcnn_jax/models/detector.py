"""The R-CNN family as one composition: backbone, proposer, pooling, trunk, heads.

R-CNN's regions, Fast R-CNN's shared features, Faster R-CNN's proposals, FPN's levels and a cascade's stages are
choices of the parts; what follows is the order in which the papers apply them. `losses` and `detect` are each one
static program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcnn_jax.models.cascade import Refinement, mean_logits, refined, scale_gradient
from rcnn_jax.models.layers import normalise
from rcnn_jax.models.pooling import Pool, pool_batch, pool_rows
from rcnn_jax.models.protocols import Context, ObjectHead
from rcnn_jax.models.rows import in_chunks, over_existing
from rcnn_jax.ops import assign, boxes, nms, random
from rcnn_jax.ops.errors import ModelError
from rcnn_jax.types import Array, Batch, Detections, GroundTruth, Proposals, RoiSamples


@dataclass(frozen=True)
class RoiSampler:
  """Which proposals the second stage is trained on (arXiv:1504.08083, section 2.3)."""

  num_samples: int = 512
  foreground_fraction: float = 0.25
  foreground_iou: float = 0.5
  background_iou: float = 0.5
  background_floor: float = 0.0  # a proposal of lower IoU is not drawn either; Fast R-CNN: 0.1, hard examples only
  add_truth: bool = True  # the ground-truth boxes join the proposals
  # Not drawn by chance but the hardest for a BoxHead, after NMS by their loss at this IoU (arXiv:1604.03540: 0.7);
  # then foreground_fraction only says how many of the foreground train masks and keypoints.
  hard_nms_iou: float | None = None

  def __call__(self, proposals: Proposals, truth: GroundTruth, key: Array) -> RoiSamples:
    """One image, by chance: proposals [N], truth [M] -> RoiSamples [S]."""
    regions, matches, background = self._matched(proposals, truth)
    samples = assign.sample(
      key,
      matches.foreground,
      background,
      num_samples=self.num_samples,
      foreground_fraction=self.foreground_fraction,
    )
    return assign.targets(samples, matches, regions, truth)

  def candidates(self, proposals: Proposals, truth: GroundTruth) -> RoiSamples:
    """One image: all that may be drawn, RoiSamples [N], or [N + M] where the truth joins them."""
    regions, matches, background = self._matched(proposals, truth)
    every = assign.Samples(jnp.arange(len(regions)), matches.foreground, matches.foreground | background)
    return assign.targets(every, matches, regions, truth)

  def hardest(self, candidates: RoiSamples, loss: Array) -> RoiSamples:
    """One image: those of the highest loss f32[N], less their near duplicates: RoiSamples [S], foreground first."""
    rows, valid = nms.nms(
      candidates.boxes, loss, candidates.valid, iou_threshold=self.hard_nms_iou, max_output=self.num_samples
    )
    order = jnp.argsort(jnp.where(valid, candidates.classes[rows] == 0, 2), stable=True)
    hard = jax.tree.map(lambda leaf: leaf[rows[order]], candidates)
    return hard.replace(valid=valid[order])

  def _matched(self, proposals: Proposals, truth: GroundTruth) -> tuple[Array, assign.Match, Array]:
    """(regions f32[N, 4], what they match, which are the background to draw from bool[N])."""
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
    return candidates, matches, matches.background & (matches.iou >= self.background_floor)


def _at_precision(method: Callable) -> Callable:
  """A method of the Detector whose products, and those of its gradient, are computed at `Detector.precision`.

  Each operation notes the precision when it is traced, and its gradient takes it over.
  """

  @functools.wraps(method)
  def precise(self, *args, **kwargs):
    if self.precision is None:
      return method(self, *args, **kwargs)
    with jax.default_matmul_precision(self.precision):
      return method(self, *args, **kwargs)

  return precise


class Detector(nn.Module):
  """A detector of the R-CNN family. As a frozen dataclass it is also its own configuration."""

  backbone: nn.Module  # protocols.Backbone
  proposer: nn.Module
  pool: Pool | nn.Module
  trunk: nn.Module
  box: nn.Module
  heads: tuple[nn.Module, ...] = ()  # what else is said of each object: MaskHead, KeypointHead (protocols.ObjectHead)
  cascade: tuple[Refinement, ...] = ()  # the stages after the first, with trunks and box heads like the first one's
  sampler: RoiSampler = RoiSampler()
  roi_chunk: int | None = None  # RoIs of an image at a time in detection, which bounds memory; None: an eighth
  num_classes: int | None = None  # K, without the background; filled in from the data
  dtype: Literal["float32", "bfloat16"] = "float32"  # what convolutions and matrix products compute in
  # How exactly products of float32 are computed. 'default' is bfloat16 on a TPU and TensorFloat-32 on a GPU, 'high'
  # three passes of bfloat16 or TensorFloat-32, 'highest' float32 itself; None: JAX's jax_default_matmul_precision.
  precision: Literal["default", "high", "highest"] | None = None

  def setup(self):
    # By stage: the first one's are `trunk` and `box`, whose settings the others share.
    self.trunks = (self.trunk, *(self.trunk.clone(parent=None) for _ in self.cascade))
    later = (self.box.clone(parent=None, delta_weights=stage.delta_weights) for stage in self.cascade)
    self.box_heads = (self.box, *later)
    if len({head.key for head in self.heads}) < len(self.heads):
      raise ModelError(f"Detector.heads has two of one kind: {', '.join(head.key for head in self.heads)}")
    for head in self.heads:  # each one's variables stand under its own name
      setattr(self, head.key, head.clone(parent=None))

  @property
  def is_complete(self) -> bool:
    """Whether all is filled in that the data alone know."""
    return self.num_classes is not None and all(head.is_complete for head in self.heads)

  @nn.nowrap
  def with_data(self, categories: Sequence[Any], keypoints: Any | None) -> Detector:
    """The detector of some data: what they alone know is filled in.

    categories: one for each class; keypoints: the data's KeypointNames, None where they have none.
    """
    heads = tuple(head.with_data(categories, keypoints) for head in self.heads)
    return self.clone(num_classes=len(categories), heads=heads)

  @_at_precision
  def losses(self, batch: Batch, key: Array) -> dict[str, Array]:
    """The loss terms of a batch, f32[] each; their sum is what training minimises."""
    batch = batch.replace(truth=trainable(batch))
    dropped = random.per_image(random.named(key, "backbone"), batch.image_id)
    features = self.backbone(self.normalise(batch), Context(True, dropped, batch.valid))
    proposals, terms = self.proposer(features, self.backbone.strides, batch, key)
    samples = jax.lax.stop_gradient(self.sample(features, proposals, batch, key))
    dropout = random.per_image(random.named(key, "dropout"), batch.image_id)
    embedded, pooled = self.pool_and_embed(features, samples.boxes, dropout, samples.valid)
    outputs = self.box_outputs(embedded, pooled)
    of_boxes = self.box.losses(*outputs, samples, batch.truth)
    terms |= self.cascade_losses(of_boxes, features, outputs, samples, batch, key) if self.cascade else of_boxes
    # The other heads learn from foreground alone, which stands in the first rows.
    num_foreground = int(self.sampler.num_samples * self.sampler.foreground_fraction)
    foreground = jax.tree.map(lambda leaf: leaf[:, :num_foreground], samples)
    learns_from = foreground.valid & (foreground.classes > 0)
    for head in self.heads:
      rois = foreground.boxes, foreground.classes, learns_from
      outputs = self.predict(head.key, features, *rois, embedded[:, :num_foreground], train=True)
      terms |= head.losses(outputs, foreground, batch.truth)
    return terms

  def sample(self, features: tuple[Array, ...], proposals: Proposals, batch: Batch, key: Array) -> RoiSamples:
    """What the second stage is trained on: proposals [B, N] -> RoiSamples [B, S].

    To find the hardest, all candidates are classified as in detection: without dropout, norms by running statistics.
    """
    if self.sampler.hard_nms_iou is None:
      keys = random.per_image(random.named(key, "rois"), batch.image_id)
      return jax.vmap(self.sampler)(proposals, batch.truth, keys)
    candidates = jax.vmap(self.sampler.candidates)(proposals, batch.truth)
    outputs = self.box_outputs(*self.pool_and_embed(features, candidates.boxes, None, candidates.valid))
    loss = self.box.loss_of_each(*jax.lax.stop_gradient(outputs), candidates, batch.truth)
    return jax.vmap(self.sampler.hardest)(candidates, loss)

  @_at_precision
  def detect(self, batch: Batch) -> Detections:
    """Detections [B, D] by falling score, boxes in canvas pixels."""
    features = self.backbone(self.normalise(batch))
    proposals, _ = self.proposer(features, self.backbone.strides, batch, None)
    outputs = self.box_outputs(*self.pool_and_embed(features, proposals.boxes, None, proposals.valid))
    if self.cascade:
      outputs, proposals = self.cascade_outputs(features, outputs, proposals, batch)
    return self.described(features, self.box_heads[-1].detections(*outputs, proposals, batch))

  @_at_precision
  def describe(self, batch: Batch, found: Detections) -> Detections:
    """Objects [B, D], boxes in canvas pixels, with what the heads say of them: masks, joints."""
    return self.described(self.backbone(self.normalise(batch)), found)

  def described(self, features: tuple[Array, ...], found: Detections) -> Detections:
    """`describe`, of images whose features are at hand."""
    for head in self.heads:
      found = head.detected(self.predict(head.key, features, found.boxes, found.classes, found.valid), found)
    return found

  def cascade_losses(
    self, of_boxes: dict, features: tuple, outputs: tuple, samples: RoiSamples, batch: Batch, key: Array
  ) -> dict[str, Array]:
    """The first stage's terms and those of the stages after it, each with its stage's number: roi_class_1, ..."""
    terms = {f"{term}_1": value for term, value in of_boxes.items()}
    for stage, refinement in enumerate(self.cascade, start=1):
      rois = self.refine(outputs, samples.boxes, batch, stage - 1)
      samples = jax.vmap(refinement.samples)(rois, samples.valid, batch.truth)
      dropout = random.per_image(random.named(key, f"dropout{stage + 1}"), batch.image_id)
      outputs = self.box_outputs(*self.pool_and_embed(features, samples.boxes, dropout, samples.valid, stage), stage)
      of_boxes = self.box_heads[stage].losses(*outputs, samples, batch.truth)
      terms |= {f"{term}_{stage + 1}": value for term, value in of_boxes.items()}
    return terms

  def cascade_outputs(
    self, features: tuple, outputs: tuple, proposals: Proposals, batch: Batch
  ) -> tuple[tuple[Array, ...], Proposals]:
    """The outputs of the last stage, its class logits the mean of all stages', and its regions."""
    class_logits = [outputs[0]]
    for stage in range(1, len(self.box_heads)):
      proposals = proposals.replace(boxes=self.refine(outputs, proposals.boxes, batch, stage - 1))
      outputs = self.box_outputs(*self.pool_and_embed(features, proposals.boxes, None, proposals.valid, stage), stage)
      class_logits.append(outputs[0])
    return (mean_logits(class_logits), *outputs[1:]), proposals

  def refine(self, outputs: tuple[Array, ...], rois: Array, batch: Batch, stage: int) -> Array:
    """rois f32[B, R, 4] -> the boxes f32[B, R, 4] that a stage made of them, for the next one."""
    regress = functools.partial(refined, delta_weights=self.box_heads[stage].delta_weights)
    return jax.vmap(regress)(outputs[-1], rois, batch.image_size)

  @_at_precision
  def propose(self, batch: Batch) -> Proposals:
    """The regions [B, N] that `detect` classifies, boxes in canvas pixels."""
    features = self.backbone(self.normalise(batch))
    return self.proposer(features, self.backbone.strides, batch, None)[0]

  @_at_precision
  def embed(self, features: tuple[Array, ...], rois: Array, keys: Array | None, valid: Array) -> Array:
    """rois f32[B, R, 4] -> what the trunk makes of them, f[B, R, C], or f[B, R, P, P, C] where it keeps the cells.

    keys: [B], one for each image, in training alone; valid: bool[B, R], the RoIs that batch norm takes its
    statistics from.
    """
    return self.pool_and_embed(features, rois, keys, valid)[0]

  def pool_and_embed(
    self, features: tuple[Array, ...], rois: Array, keys: Array | None, valid: Array, stage: int = 0
  ) -> tuple[Array, Array]:
    """`embed`, by the trunk of a stage, and the pooled input of the trunk, f[B, R, P, P, C']."""

    def whole(self, rois, valid):
      pooled = pool_batch(self.pool, features, rois, self.backbone.strides)
      pooled = scale_gradient(pooled, 1 / len(self.trunks))
      rows = self.trunks[stage](pooled, keys, valid.reshape(-1)), pooled
      return tuple(x.reshape(*rois.shape[:2], *x.shape[1:]) for x in rows)

    return whole(self, rois, valid) if keys is not None else in_chunks(self, whole, rois, valid, self.roi_chunk)

  @_at_precision
  def regions(self, batch: Batch, rois: Array) -> tuple[Array, Array]:
    """What heads see of given regions: rois f32[B, R, 4] -> trunk f32[B, R, C], pooled f32[B, R, P * P * C']."""
    features = self.backbone(self.normalise(batch))
    seen = self.pool_and_embed(features, rois, None, jnp.ones(rois.shape[:2], bool))
    return tuple(x.astype(jnp.float32).reshape(*rois.shape[:2], -1) for x in seen)

  def box_outputs(self, embedded: Array, pooled: Array, stage: int = 0) -> tuple[Array, ...]:
    """What `pool_and_embed` gives -> the box head's outputs, class_logits f32[B, R, K+1] the first of them."""
    if self.num_classes is None:
      raise ModelError("Detector.num_classes is not set: it comes with the data (Detector.with_data)")
    rows = [x.reshape(-1, *x.shape[2:]) for x in (embedded, pooled)]
    outputs = self.box_heads[stage](rows[0], self.num_classes, rows[1])
    return tuple(x.reshape(*embedded.shape[:2], *x.shape[1:]) for x in outputs)

  def predict(
    self,
    key: str,
    features: tuple[Array, ...],
    rois: Array,
    classes: Array,
    exists: Array,
    embedded: Array | None = None,
    train: bool = False,
  ) -> Array:
    """The outputs f32[B, R, ...] of one of the heads; 0 for the RoIs that do not exist.

    A head without a pool reads the trunk's features of the RoIs, `embedded` where they are at hand.

    rois: f32[B, R, 4]; classes: i32[B, R]; exists: bool[B, R].
    """
    if getattr(self, key).pool is None and embedded is None:
      embedded = self.embed(features, rois, None, exists)

    def run(self, rows, exists):
      head = getattr(self, key)
      if head.pool is None:
        pooled = embedded.reshape(-1, *embedded.shape[2:])[rows]
      else:
        pooled = pool_rows(head.pool, features, rois, rows, self.backbone.strides)
      return head(pooled, self.num_classes, classes.reshape(-1)[rows], exists if train else None)

    return over_existing(self, run, exists, train)

  def normalise(self, batch: Batch) -> Array:
    """Pixels in 0..255 to the backbone's statistics, zero beyond the image: f[B, H, W, 3] in `dtype`."""
    return normalise(batch, self.backbone, self.dtype)


def trainable(batch: Batch) -> GroundTruth:
  """The objects to train on: those of real images that are no crowds; the other rows are not valid."""
  truth = batch.truth
  return truth.replace(valid=truth.valid & ~truth.crowd & batch.valid[:, None])


def blank_batch(
  batch_size: int, canvas: tuple[int, int], max_objects: int = 8, heads: Sequence[ObjectHead] = ()
) -> Batch:
  """A batch of black images without objects and with as few proposals, for tracing shapes.

  Its ground truth has what the heads learn from.
  """
  shape = (batch_size, max_objects)
  truth = GroundTruth(
    boxes=jnp.zeros((*shape, 4)),
    classes=jnp.ones(shape, jnp.int32),
    crowd=jnp.zeros(shape, bool),
    difficult=jnp.zeros(shape, bool),
    valid=jnp.zeros(shape, bool),
    **{head.field: head.annotation(shape) for head in heads},
  )
  proposals = Proposals(truth.boxes, jnp.zeros(shape), truth.valid)
  return Batch(
    image=jnp.zeros((batch_size, *canvas, 3), jnp.uint8),
    image_size=jnp.tile(jnp.array(canvas), (batch_size, 1)),
    scale=jnp.ones((batch_size, 2)),
    image_id=jnp.arange(batch_size),
    valid=jnp.ones(batch_size, bool),
    truth=truth,
    proposals=proposals,
  )


def init_variables(model: Detector, key: Array, canvas: tuple[int, int]) -> dict:
  """Fresh variables of `model` ({'params', and 'batch_stats' where it has norms}); `canvas` only has to be legal."""
  # Hundreds of random draws, each run once: optimised less, they are the same bits in half the time (4.9 s instead of
  # 8.2 of a Mask R-CNN R50-FPN on 2 cores, nearly all of it compiling).
  options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
  return jax.jit(lambda key: _fresh(model, key, canvas), compiler_options=options)(key)


def variable_shapes(model: Detector, canvas: tuple[int, int]) -> dict:
  """Shapes and dtypes of what `init_variables` gives; nothing is computed."""
  return jax.eval_shape(lambda: _fresh(model, jax.random.key(0), canvas))


def _fresh(model: Detector, key: Array, canvas: tuple[int, int]) -> dict:
  return model.init(key, blank_batch(1, canvas), method="detect")


def num_parameters(model: Detector, canvas: tuple[int, int]) -> int:
  """How many numbers `params` holds; frozen batch norms have none there, all of theirs are statistics."""
  return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(model, canvas)["params"]))

"""What stands behind the pooling: trunks (shared layers over a pooled RoI) and heads (what is predicted from it).

A trunk is called with (rois f[R, P, P, C], keys, valid bool[R]): the keys [B], one for each image, whose rows follow
one another, are given in training alone; rows that are not valid enter no statistics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcnn_jax.models.backbones.resnet import Depth, Stage
from rcnn_jax.models.layers import Conv, Deconv, Dense, Norm, OwnLogits, norm
from rcnn_jax.models.pooling import Pool, RoiAlign
from rcnn_jax.ops import boxes, keypoints, losses, masks, nms, random
from rcnn_jax.ops.errors import ModelError
from rcnn_jax.ops.losses import BoxLoss
from rcnn_jax.types import MASK_SIDE, Array, Batch, Detections, GroundTruth, Proposals, RoiSamples

xavier = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
# How PyTorch's layers begin, which torchvision leaves as they are; boxes are learned faster from it.
pytorch = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class FcTrunk(nn.Module):
  """Fully connected layers over the flattened RoI: VGG's fc6 and fc7, or FPN's two of 1,024."""

  widths: tuple[int, ...] = (1024, 1024)
  dropout: float = 0.0
  initial: Literal["xavier", "pytorch"] = "xavier"  # weights: Detectron2's, or torchvision's
  # Of each layer that is two of this rank, None of one that is whole (Fast R-CNN, section 3.1; launch.truncate).
  ranks: tuple[int | None, ...] | None = None

  @nn.compact
  def __call__(self, rois: Array, keys: Array | None, valid: Array) -> Array:
    """rois: f[R, P, P, C] -> f[R, widths[-1]]; `keys` draw the dropout, without them nothing is dropped."""
    del valid
    x = rois.reshape(rois.shape[0], -1)
    ranks = (None,) * len(self.widths) if self.ranks is None else self.ranks
    kernel_init = xavier if self.initial == "xavier" else pytorch
    for i, (width, rank) in enumerate(zip(self.widths, ranks, strict=True), start=6):
      if rank is None:
        dense = Dense(width, kernel_init=kernel_init, name=f"fc{i}")
      else:
        dense = LowRankDense(width, rank, name=f"fc{i}")
      x = nn.relu(dense(x))
      if self.dropout and keys is not None:
        x = dropped_out(x, jax.vmap(random.named, (0, None))(keys, f"fc{i}"), self.dropout)
    return x


def dropped_out(x: Array, keys: Array, rate: float) -> Array:
  """x f[R, C] with a share `rate` of its numbers 0, the rest enlarged so that the mean stays.

  keys: [B], one for each image, of whose R / B rows the draws are: an image has the same ones anywhere in a batch.
  """
  kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, (len(x) // len(keys), x.shape[1])))(keys)
  return jnp.where(kept.reshape(x.shape), x / (1 - rate), 0)


class LowRankDense(nn.Module):
  """A fully connected layer whose matrix is the product of two."""

  features: int
  rank: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x: f[R, C] -> f[R, features]."""
    x = Dense(self.rank, use_bias=False, kernel_init=xavier, name="first")(x)
    return Dense(self.features, kernel_init=xavier, name="second")(x)


class ConvTrunk(nn.Module):
  """3×3 convolutions over each RoI, then fully connected layers (arXiv:1803.08494, section 5.3; 2111.11429)."""

  num_convs: int = 4
  channels: int = 256
  widths: tuple[int, ...] = (1024,)
  norm: Norm | None = "batch"  # after each convolution; None: biases instead

  @nn.compact
  def __call__(self, rois: Array, keys: Array | None, valid: Array) -> Array:
    """rois: f[R, P, P, C] -> f[R, widths[-1]]."""
    x = rois
    for i in range(1, self.num_convs + 1):
      x = nn.relu(convolution(x, self.channels, i, self.norm, keys is not None, valid))
    x = x.reshape(x.shape[0], -1)
    for i, width in enumerate(self.widths, start=1):
      x = nn.relu(Dense(width, kernel_init=xavier, name=f"fc{i}")(x))
    return x


def convolution(x: Array, channels: int, index: int, kind: Norm | None, train: bool, valid: Array | None) -> Array:
  """The module's 3×3 convolution of this index, normalised, or with biases where `kind` is None."""
  x = Conv(channels, kernel_size=3, use_bias=kind is None, name=f"conv{index}")(x)
  return x if kind is None else norm(kind, f"bn{index}")(x, train, valid)


class Res5Trunk(nn.Module):
  """A ResNet's fifth stage over each RoI: the C4 head (ResNet, appendix A), which boxes and masks can share."""

  depth: Depth = 50
  norm: Norm = "frozen"
  stride: int = 2
  stride_in_1x1: bool = False

  @nn.compact
  def __call__(self, rois: Array, keys: Array | None, valid: Array) -> Array:
    """rois: f[R, P, P, C] -> f[R, P', P', C'], P' = P / stride."""
    stage = Stage(self.depth, 4, self.stride, norm=self.norm, stride_in_1x1=self.stride_in_1x1, name="layer4")
    return stage(rois, keys is not None, valid)


@dataclasses.dataclass(frozen=True)
class SoftNms:
  """Overlapping detections lose some of their score instead of all (arXiv:1704.04503)."""

  decay: Literal["linear", "gaussian"] = "gaussian"  # linear: above an IoU of the head's nms_iou; the paper's: 0.3
  sigma: float = 0.5  # of the Gaussian decay
  score_threshold: float = 0.001  # of decayed scores


class BoxHead(nn.Module):
  """Classification over K + 1 classes and box regression (arXiv:1504.08083, section 2.3)."""

  delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
  class_agnostic: bool = False
  initial: Literal["gaussian", "pytorch"] = "gaussian"  # weights: the paper's and Detectron2's, or torchvision's
  regression_loss: BoxLoss = "smooth_l1"  # Detectron2's BOX_REG_LOSS_TYPE
  regression_weight: float = 1.0
  smooth_l1_beta: float = 1 / 9
  score_threshold: float = 0.05
  min_size: float = 1e-2
  nms_iou: float = 0.5
  soft_nms: SoftNms | None = None  # in place of NMS
  num_candidates: int = 2000  # boxes of all classes that enter NMS, by falling score
  max_detections: int = 100

  @nn.compact
  def __call__(self, x: Array, num_classes: int, pooled: Array | None = None) -> tuple[Array, Array]:
    """x: f[R, C] -> class_logits f32[R, K+1], box_deltas f32[R, K, 4] (f32[R, 1, 4] where class-agnostic).

    Of a trunk that keeps the cells of its RoIs, f[R, P, P, C], their mean is taken. `pooled`, the trunk's input,
    is for heads that need it.
    """
    x = x.mean(axis=(1, 2)) if x.ndim == 4 else x
    groups = 1 if self.class_agnostic else num_classes
    gaussians = nn.initializers.normal(0.01), nn.initializers.normal(0.001)
    of_classes, of_deltas = gaussians if self.initial == "gaussian" else (pytorch, pytorch)
    class_logits = Dense(num_classes + 1, kernel_init=of_classes, logits=True, name="classes")(x)
    deltas = Dense(4 * groups, kernel_init=of_deltas, logits=True, name="deltas")(x)
    return class_logits, deltas.reshape(-1, groups, 4)

  def losses(
    self, class_logits: Array, box_deltas: Array, samples: RoiSamples, truth: GroundTruth
  ) -> dict[str, Array]:
    """Multi-task loss over the batch's samples; both terms are divided by the number of samples.

    class_logits: f32[B, S, K+1]; box_deltas: f32[B, S, K, 4]; samples, truth: batched.
    """
    sums = jax.tree.map(jnp.sum, jax.vmap(self.sums)(class_logits, box_deltas, samples, truth))
    return {f"roi_{term}": losses.divide(sums[term], sums["num_samples"]) for term in ("class", "box")}

  def loss_of_each(self, class_logits: Array, box_deltas: Array, samples: RoiSamples, truth: GroundTruth) -> Array:
    """f32[B, S]: the multi-task loss of each sample; the arguments are those of `losses`."""

    def one(logits, deltas, sample, truth):
      row = jax.tree.map(lambda leaf: leaf[None], (logits, deltas, sample))
      sums = self.sums(*row, truth)
      return sums["class"] + sums["box"]

    return jax.vmap(jax.vmap(one, (0, 0, 0, None)))(class_logits, box_deltas, samples, truth)

  def sums(self, logits: Array, deltas: Array, samples: RoiSamples, truth: GroundTruth) -> dict[str, Array]:
    """One image's loss terms, not yet divided, and its number of samples; shapes as in `losses`, without B."""
    group = jnp.zeros_like(samples.classes) if self.class_agnostic else jnp.maximum(samples.classes - 1, 0)
    predicted = jnp.take_along_axis(deltas, group[:, None, None], axis=1)[:, 0]
    box = losses.box_regression(
      predicted,
      samples.boxes,
      truth.boxes[samples.matched],
      samples.valid & (samples.classes > 0),
      kind=self.regression_loss,
      beta=self.smooth_l1_beta,
      weights=self.delta_weights,
    )
    return {
      "class": losses.softmax_cross_entropy(logits, samples.classes, samples.valid),
      "box": self.regression_weight * box,
      "num_samples": jnp.sum(samples.valid),
    }

  def detections(self, class_logits: Array, box_deltas: Array, proposals: Proposals, batch: Batch) -> Detections:
    """Scores above the threshold, decoded with their class's deltas, clipped, NMS class by class, best D.

    class_logits: f32[B, N, K+1]; box_deltas: f32[B, N, K, 4]. Returns Detections [B, D].
    """

    def image(logits, deltas, proposals, image_size):
      decode = jax.vmap(lambda d: boxes.decode(d, proposals.boxes, self.delta_weights), 1, 1)
      return select(self, jax.nn.softmax(logits)[:, 1:], decode(deltas), proposals.valid, image_size, self.soft_nms)

    return jax.vmap(image)(class_logits, box_deltas, proposals, batch.image_size)


def select(
  head: nn.Module,
  scores: Array,
  decoded: Array,
  valid: Array,
  image_size: Array,
  soft_nms: SoftNms | None = None,
) -> Detections:
  """One image's detections: scores above the threshold, boxes clipped, NMS class by class, the best D.

  Args:
    head: has score_threshold, min_size, nms_iou, num_candidates and max_detections, as `BoxHead`.
    scores: f32[N, K].
    decoded: f32[N, K, 4], or f32[N, 1, 4] for one box of all classes, canvas pixels.
    valid: bool[N].
    image_size: (height, width), pixels.
    soft_nms: in place of NMS; the scores, 0 or more, have then decayed.
  """
  num_proposals, num_classes = scores.shape
  decoded = jnp.broadcast_to(decoded, (num_proposals, num_classes, 4)).reshape(-1, 4)
  decoded, scores = boxes.clip(decoded, image_size), scores.reshape(-1)
  classes = jnp.tile(jnp.arange(1, num_classes + 1, dtype=jnp.int32), num_proposals)
  sides = decoded[:, 2:] - decoded[:, :2]
  valid = jnp.repeat(valid, num_classes) & (scores > head.score_threshold)
  valid &= jnp.all(sides >= head.min_size, axis=-1)
  top = jax.lax.top_k(jnp.where(valid, scores, -jnp.inf), min(head.num_candidates, scores.shape[0]))[1]
  candidates = Detections(decoded[top], scores[top], classes[top], valid[top])
  rows = candidates.boxes, candidates.scores, candidates.valid
  options = dict(iou_threshold=head.nms_iou, max_output=head.max_detections, groups=candidates.classes)
  if soft_nms is None:
    index, kept = nms.nms(*rows, **options)
    scores = candidates.scores[index]
  else:
    index, scores, kept = nms.soft_nms(*rows, **options, **dataclasses.asdict(soft_nms))
  found = jax.tree.map(lambda leaf: leaf[index], candidates)
  return found.replace(scores=scores, valid=kept)


class MaskHead(nn.Module):
  """A small fully convolutional network that predicts a mask for each class (Mask R-CNN, section 3 and figure 4).

  Without a `pool` of its own it stands on the trunk's features, as in C4 (figure 4, left).
  """

  pool: Pool | None = RoiAlign(output_size=14)
  num_convs: int = 4
  channels: int = 256
  class_agnostic: bool = False
  norm: Norm | None = None  # after each convolution; None: biases instead
  # How a mask becomes pixels of the image: 'exact' at their centres (Detectron2's), or 'rounded' (torchvision's).
  pasting: Literal["exact", "rounded"] = "exact"

  key = "mask"
  field = "masks"

  @property
  def is_complete(self) -> bool:
    """True: it needs to know no more of the data than the number of classes."""
    return True

  def with_data(self, categories: Sequence[Any], keypoints: Any | None) -> MaskHead:
    """Itself."""
    return self

  def annotation(self, num_objects: Sequence[int]) -> Array:
    """Empty masks, u8[..., M, 112, 112]."""
    return jnp.zeros((*num_objects, MASK_SIDE, MASK_SIDE), jnp.uint8)

  @nn.compact
  def __call__(self, rois: Array, num_classes: int, classes: Array, norm_rows: Array | None) -> Array:
    """rois: f[R, P, P, C] -> mask_logits f32[R, 2P, 2P], each RoI's mask for its own class.

    classes: i32[R], 1..K; the masks of other classes are not computed.
    norm_rows: bool[R] in training, the RoIs that batch norm takes its statistics from; None in detection.
    """
    x = rois
    for i in range(1, self.num_convs + 1):
      x = nn.relu(convolution(x, self.channels, i, self.norm, norm_rows is not None, norm_rows))
    x = nn.relu(Deconv(self.channels, name="deconv")(x))
    # Logits begin near zero, as Detectron2's: drawn like the other layers', the first losses are in the hundreds.
    num_masks = 1 if self.class_agnostic else num_classes
    own = jnp.zeros_like(classes) if self.class_agnostic else jnp.maximum(classes - 1, 0)
    return OwnLogits(num_masks, kernel_init=nn.initializers.normal(0.001), name="masks")(x, own)

  def losses(self, mask_logits: Array, samples: RoiSamples, truth: GroundTruth) -> dict[str, Array]:
    """Binary cross-entropy on the mask of each RoI's own class, the mean over the cells of the foreground RoIs.

    mask_logits: f32[B, S, 2P, 2P], of each RoI's own class; samples, truth: batched. Raises ModelError where the
    truth has no masks.
    """
    if truth.masks is None:
      raise ModelError("the model has a mask head, but the batch has no masks: set Data.load_masks")
    size = mask_logits.shape[2]

    def image(logits, samples, truth):
      targets = masks.crop_targets(truth.masks, truth.boxes, samples.matched, samples.boxes, size=size)
      foreground = samples.valid & (samples.classes > 0)
      loss = losses.sigmoid_cross_entropy(logits, targets, foreground)
      return loss, size**2 * jnp.sum(foreground)

    loss, num_cells = jax.tree.map(jnp.sum, jax.vmap(image)(mask_logits, samples, truth))
    return {"roi_mask": losses.divide(loss, num_cells)}

  def detected(self, mask_logits: Array, found: Detections) -> Detections:
    """`found` with the probabilities of its masks; mask_logits: f32[B, D, 2P, 2P]."""
    return found.replace(masks=jnp.where(found.valid[..., None, None], jax.nn.sigmoid(mask_logits), 0))


class KeypointHead(nn.Module):
  """A fully convolutional network that predicts a heat map for each joint (Mask R-CNN, section 5)."""

  pool: Pool = RoiAlign(output_size=14)
  num_convs: int = 8
  channels: int = 512
  # Detectron2's NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS; without it, by all joints that the sampler may draw.
  normalise_by_visible: bool = True
  num_keypoints: int | None = None  # J; filled in from the data

  key = "keypoint"
  field = "keypoints"

  @property
  def is_complete(self) -> bool:
    """Whether it knows the number of joints."""
    return self.num_keypoints is not None

  def with_data(self, categories: Sequence[Any], keypoints: Any | None) -> KeypointHead:
    """The head for the data's KeypointNames; without them it stays as it is."""
    return self if keypoints is None else self.clone(num_keypoints=len(keypoints.names))

  def annotation(self, num_objects: Sequence[int]) -> Array:
    """Joints that are not labelled, f32[..., M, J, 3]."""
    return jnp.zeros((*num_objects, self.num_keypoints or 0, 3))

  @nn.compact
  def __call__(self, rois: Array, num_classes: int, classes: Array, norm_rows: Array | None) -> Array:
    """rois: f[R, P, P, C] -> keypoint_logits f32[R, 4P, 4P, J], of whichever class; it has no norms."""
    del num_classes, classes, norm_rows
    if self.num_keypoints is None:
      raise ModelError("KeypointHead.num_keypoints is not set: it comes with data that name their keypoints")
    x = rois
    for i in range(1, self.num_convs + 1):
      x = nn.relu(Conv(self.channels, kernel_size=3, name=f"conv{i}")(x))
    he_of_inputs = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    x = Deconv(self.num_keypoints, kernel_size=4, kernel_init=he_of_inputs, logits=True, name="deconv")(x)
    return jax.image.resize(x, (len(x), 2 * x.shape[1], 2 * x.shape[2], self.num_keypoints), "bilinear")

  def losses(self, keypoint_logits: Array, samples: RoiSamples, truth: GroundTruth) -> dict[str, Array]:
    """Softmax cross-entropy over the cells, the mean over the foreground's joints that are labelled and in the RoI.

    keypoint_logits: f32[B, S, Q, Q, J]; samples, truth: batched. Raises ModelError where the truth has no keypoints.
    """
    if truth.keypoints is None:
      raise ModelError("the model has a keypoint head, but the batch has no keypoints: set Data.load_keypoints")
    batch_size, num_rois, size, _, num_joints = keypoint_logits.shape

    def image(logits, samples, truth):
      cells, visible = keypoints.encode(truth.keypoints[samples.matched], samples.boxes, size=size)
      visible &= (samples.valid & (samples.classes > 0))[:, None]
      of_joint = jnp.moveaxis(logits, -1, 1).reshape(-1, size**2)
      loss = losses.softmax_cross_entropy(of_joint, cells.reshape(-1), visible.reshape(-1))
      return loss, jnp.sum(visible)

    loss, num_visible = jax.tree.map(jnp.sum, jax.vmap(image)(keypoint_logits, samples, truth))
    count = num_visible if self.normalise_by_visible else batch_size * num_rois * num_joints
    return {"roi_keypoint": losses.divide(loss, count)}

  def detected(self, keypoint_logits: Array, found: Detections) -> Detections:
    """`found` with the place and score of its joints; keypoint_logits: f32[B, D, Q, Q, J]."""
    return found.replace(keypoints=jax.vmap(keypoints.decode)(keypoint_logits, found.boxes))

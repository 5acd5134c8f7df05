"""Where proposals come from: a region proposal network, or the batch itself."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rcnn_jax.models.layers import Conv, normalise
from rcnn_jax.ops import anchors, assign, boxes, losses, nms, random
from rcnn_jax.ops.errors import ModelError
from rcnn_jax.ops.losses import BoxLoss
from rcnn_jax.types import Array, Batch, Proposals

normal = nn.initializers.normal


class ProposalError(ModelError):
  """A model that takes external proposals and is given none."""

  def __init__(self):
    super().__init__("the model takes external proposals: set data.proposals to folders of launch.prepare_data")


class External(nn.Module):
  """Proposals that came with the batch, as those of selective search (R-CNN, SPPnet, Fast R-CNN)."""

  @nn.compact
  def __call__(self, features: tuple[Array, ...], strides: tuple[int, ...], batch: Batch, key: Array | None):
    """Returns (batch.proposals, no losses); raises ProposalError where the batch carries none."""
    found = batch.proposals
    if found is None:
      raise ProposalError
    return found.replace(valid=found.valid & batch.valid[:, None]), {}  # rows that fill up a batch are no images


class Rpn(nn.Module):
  """Region proposal network (arXiv:1506.01497, section 3.1), on one feature level or on a pyramid's.

  Pairs are (train, eval). `anchor_sizes` holds one tuple of sides in canvas pixels for each level, each side at
  every one of `anchor_ratios` (height : width). All levels have equally many sides: the layers that predict for a
  cell are shared by the levels. The counts are an image's; `num_pre_nms` is also a level's. Where not said
  otherwise, the defaults are torchvision's.
  """

  anchor_sizes: tuple[tuple[float, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
  anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
  rounded_anchors: bool = True  # to whole pixels; Detectron2: False
  # Whether a level's anchors lie as many pixels apart as the canvas has for each of its cells, rounded down, and not
  # its stride (Detectron2). It is torchvision's: on a canvas of 800 pixels, P6 has 13 cells, 61 pixels apart, not 64.
  canvas_strides: bool = False
  channels: int | None = None  # of the 3×3 convolutions; None: as many as the features have
  num_convs: int = 1
  num_pre_nms: tuple[int, int] = (2000, 1000)
  num_post_nms: tuple[int, int] = (2000, 1000)
  nms_iou: float = 0.7
  min_size: float = 1e-3
  foreground_iou: float = 0.7
  background_iou: float = 0.3
  num_samples: int = 256
  foreground_fraction: float = 0.5
  regression_loss: BoxLoss = "smooth_l1"  # Detectron2's BOX_REG_LOSS_TYPE
  regression_weight: float = 1.0
  smooth_l1_beta: float = 1 / 9
  # Whether the losses are divided by `num_samples` an image (Detectron2), or by as many as there were to sample.
  fixed_normaliser: bool = False

  @nn.compact
  def __call__(self, features: tuple[Array, ...], strides: tuple[int, ...], batch: Batch, key: Array | None):
    """features: one f[B, h, w, C] a level. Returns (Proposals [B, N], loss terms); without a key, no losses.

    Raises ModelError unless each level has anchors, and each cell equally many.
    """
    self.check_anchors(len(features))
    logits, deltas = self.predict(features)
    grids = self.grids([feature.shape[1:3] for feature in features], strides, batch.image.shape[1:3])
    train = key is not None
    proposals = self.propose(jax.lax.stop_gradient(logits), jax.lax.stop_gradient(deltas), grids, batch, train)
    return proposals, self.losses(logits, deltas, grids, batch, key) if train else {}

  @nn.nowrap
  def check_anchors(self, num_levels: int) -> None:
    """Raises ModelError where the anchors' sizes do not fit a backbone of so many levels, or each other."""
    if num_levels != len(self.anchor_sizes):
      sizes = len(self.anchor_sizes)
      raise ModelError(f"Rpn has anchor sizes for {sizes} level(s), the backbone gives {num_levels}")
    counts = [len(sizes) for sizes in self.anchor_sizes]
    if len(set(counts)) > 1:
      each = ", ".join(f"level {level}: {count}" for level, count in enumerate(counts))
      raise ModelError(
        f"anchor_sizes of the Rpn has levels of different lengths ({each}): the levels share the layers that predict "
        "for a cell, so each needs equally many sizes"
      )
    every = [*self.anchor_ratios, *(size for sizes in self.anchor_sizes for size in sizes)]
    if not counts[0] or not self.anchor_ratios or min(every) <= 0:
      raise ModelError(
        f"the Rpn needs anchors, of sizes and ratios above 0, not {self.anchor_sizes} and {self.anchor_ratios}"
      )

  @nn.nowrap
  def grids(
    self, feature_sizes: Sequence[tuple[int, int]], strides: Sequence[int], canvas: tuple[int, int]
  ) -> list[np.ndarray]:
    """The anchors of each level, f32[A_l, 4] in canvas pixels; sizes are (height, width), the canvas' in pixels."""
    levels = []
    for cells, stride, sizes in zip(feature_sizes, strides, self.anchor_sizes):
      apart = tuple(np.floor_divide(canvas, cells)) if self.canvas_strides else stride
      levels.append(anchors.grid(cells, apart, sizes, self.anchor_ratios, rounded=self.rounded_anchors))
    return levels

  def predict(self, features: tuple[Array, ...]) -> tuple[list[Array], list[Array]]:
    """Objectness logits f32[B, A_l] and box deltas f32[B, A_l, 4] of each level; the head is shared by all."""
    per_cell = len(self.anchor_sizes[0]) * len(self.anchor_ratios)
    channels = self.channels or features[0].shape[-1]
    names = ["conv", *(f"conv{i}" for i in range(2, self.num_convs + 1))]
    convs = [Conv(channels, kernel_size=3, kernel_init=normal(0.01), name=name) for name in names]
    objectness = Conv(per_cell, kernel_init=normal(0.01), logits=True, name="objectness")
    regression = Conv(4 * per_cell, kernel_init=normal(0.01), logits=True, name="deltas")
    logits, deltas = [], []
    for feature in features:
      hidden = feature
      for conv in convs:
        hidden = nn.relu(conv(hidden))
      batch = hidden.shape[0]
      logits.append(objectness(hidden).reshape(batch, -1))
      deltas.append(regression(hidden).reshape(batch, -1, 4))
    return logits, deltas

  def propose(self, logits, deltas, grids, batch: Batch, train: bool) -> Proposals:
    """Best anchors of each level, decoded, clipped to the image, NMS level by level, best of all levels."""
    pre, post = (pair[0 if train else 1] for pair in (self.num_pre_nms, self.num_post_nms))

    def level(logits, deltas, grid, image_size):
      scores, top = jax.lax.top_k(logits, min(pre, logits.shape[0]))
      candidates = boxes.clip(boxes.decode(deltas[top], jnp.asarray(grid)[top]), image_size)
      sides = candidates[:, 2:] - candidates[:, :2]
      valid = jnp.all(sides >= self.min_size, axis=-1)
      index, kept = nms.nms(candidates, scores, valid, iou_threshold=self.nms_iou, max_output=min(post, top.shape[0]))
      return Proposals(candidates[index], scores[index], kept)

    def image(logits, deltas, image_size, valid):
      levels = [level(*inputs, image_size) for inputs in zip(logits, deltas, grids)]
      every = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *levels)
      ranked = jnp.where(every.valid, every.scores, -jnp.inf)
      top = jax.lax.top_k(ranked, min(post, ranked.shape[0]))[1]
      best = jax.tree.map(lambda leaf: leaf[top], every)
      return Proposals(best.boxes, jax.nn.sigmoid(best.scores), best.valid & valid)

    return jax.vmap(image)(logits, deltas, batch.image_size, batch.valid)

  def losses(self, logits, deltas, grids, batch: Batch, key: Array) -> dict[str, Array]:
    """Objectness and box regression over the sampled anchors (equation 1), both divided by one number."""
    grid = jnp.concatenate([jnp.asarray(level) for level in grids])
    logits, deltas = jnp.concatenate(logits, axis=1), jnp.concatenate(deltas, axis=1)
    keys = random.per_image(random.named(key, "rpn"), batch.image_id)

    def image(logits, deltas, truth, key, valid):
      matches = assign.match_anchors(
        grid,
        truth.boxes,
        truth.valid,
        foreground_iou=self.foreground_iou,
        background_iou=self.background_iou,
        anchor_valid=jnp.broadcast_to(valid, grid.shape[:1]),
      )
      samples = assign.sample(
        key,
        matches.foreground,
        matches.background,
        num_samples=self.num_samples,
        foreground_fraction=self.foreground_fraction,
      )
      index = samples.indices
      box = losses.box_regression(
        deltas[index],
        grid[index],
        truth.boxes[matches.matched[index]],
        samples.foreground,
        kind=self.regression_loss,
        beta=self.smooth_l1_beta,
      )
      return {
        "objectness": losses.sigmoid_cross_entropy(logits[index], samples.foreground, samples.valid),
        "box": self.regression_weight * box,
        "num_samples": self.num_samples * valid if self.fixed_normaliser else jnp.sum(samples.valid),
      }

    sums = jax.tree.map(jnp.sum, jax.vmap(image)(logits, deltas, batch.truth, keys, batch.valid))
    return {f"rpn_{term}": losses.divide(sums[term], sums["num_samples"]) for term in ("objectness", "box")}


class AlternatingRpn(nn.Module):
  """An RPN for 4-step alternating training (arXiv:1506.01497, section 3.2).

  Beside the RPN on the features that it shares with the detector stand `kept_backbone` and `kept_rpn`, frozen copies
  of what step 1 of the training has made (CopyParameters, in training/stages.py). Step 2 trains the detector, with
  `from_kept`, on the proposals of these two, while the shared backbone begins anew. Nothing else uses them.
  """

  rpn: Rpn
  kept_backbone: nn.Module  # like the detector's
  from_kept: bool = False

  def setup(self):
    self.kept_rpn = self.rpn.clone(parent=None)

  @property
  def num_post_nms(self) -> tuple[int, int]:
    """The RPN's."""
    return self.rpn.num_post_nms

  def __call__(self, features: tuple[Array, ...], strides: tuple[int, ...], batch: Batch, key: Array | None):
    """As `Rpn`; of the kept network there are no losses."""
    if self.from_kept or self.is_initializing():
      kept = self.kept_backbone(normalise(batch, self.kept_backbone, features[0].dtype))
      proposals, _ = self.kept_rpn(kept, strides, batch, key)
    return (proposals, {}) if self.from_kept else self.rpn(features, strides, batch, key)

"""R-CNN's head: a softmax to fine-tune by, linear SVMs to detect by, ridge regression to place the boxes by."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcnn_jax.models.heads import select
from rcnn_jax.models.layers import Dense
from rcnn_jax.ops import boxes, losses
from rcnn_jax.types import Array, Batch, Detections, GroundTruth, Proposals, RoiSamples

zeros = nn.initializers.zeros


class RcnnHead(nn.Module):
  """Softmax over K + 1 classes, and what the stages after it fit (arXiv:1311.2524, section 2.3 and appendix C).

  The stage `FitSvms` fills `svm/{kernel, bias, scale}`, `FitBoxRegression` fills `ridge/{kernel, bias}`; gradient
  descent leaves both alone. Until then all of them are 0: regions are scored by the softmax, and boxes stay where the
  proposals are. Scores of SVMs are decision values, those of the softmax probabilities.
  """

  scores: Literal["svm", "softmax"] = "svm"
  regression: Literal["ridge", "none"] = "ridge"
  score_threshold: float = -1.0
  min_size: float = 1e-2
  nms_iou: float = 0.3
  num_candidates: int = 2000  # boxes of all classes that enter NMS, by falling score
  max_detections: int = 100

  @nn.compact
  def __call__(self, x: Array, num_classes: int, pooled: Array) -> tuple[Array, Array, Array]:
    """What is said of each region.

    Args:
      x: f[R, C], the trunk's features, which the softmax and the SVMs see.
      num_classes: K.
      pooled: f[R, ...], what the trunk was given (R-CNN's pool5), which the ridge regression sees.

    Returns:
      class_logits f32[R, K+1], scores f32[R, K] and box_deltas f32[R, K, 4].
    """
    logits = Dense(num_classes + 1, kernel_init=nn.initializers.normal(0.01), logits=True, name="classes")(x)
    scores = jax.nn.softmax(logits)[:, 1:]
    fitted, decisions = Svms(name="svm")(x.astype(jnp.float32), num_classes)
    if self.scores == "svm":
      scores = jnp.where(fitted, decisions, scores)
    deltas = Ridge(name="ridge")(pooled.reshape(pooled.shape[0], -1).astype(jnp.float32), num_classes)
    return logits, scores, deltas if self.regression == "ridge" else jnp.zeros_like(deltas)

  def losses(
    self, class_logits: Array, scores: Array, box_deltas: Array, samples: RoiSamples, truth: GroundTruth
  ) -> dict[str, Array]:
    """The softmax's cross-entropy alone, over the number of samples: the other outputs are fitted afterwards.

    class_logits: f32[B, S, K+1]; samples: batched.
    """
    del scores, box_deltas, truth
    entropy = jax.vmap(losses.softmax_cross_entropy)(class_logits, samples.classes, samples.valid)
    return {"roi_class": losses.divide(jnp.sum(entropy), jnp.sum(samples.valid))}

  def detections(
    self, class_logits: Array, scores: Array, box_deltas: Array, proposals: Proposals, batch: Batch
  ) -> Detections:
    """Detections [B, D] by falling score; the arguments are what `__call__` returns and the proposals, batched."""
    del class_logits

    def image(scores, deltas, proposals, image_size):
      decoded = jax.vmap(lambda d: boxes.decode(d, proposals.boxes), 1, 1)(deltas)
      return select(self, scores, decoded, proposals.valid, image_size)

    return jax.vmap(image)(scores, box_deltas, proposals, batch.image_size)


class Svms(nn.Module):
  """One linear SVM a class, on features scaled as they were when it was fitted; its products are float32's own."""

  @nn.compact
  def __call__(self, x: Array, num_classes: int) -> tuple[Array, Array]:
    """x: f32[R, C] -> (whether the SVMs were fitted bool[], decision values f32[R, K])."""
    scale = self.param("scale", zeros, ())
    kernel = self.param("kernel", zeros, (x.shape[-1], num_classes))
    bias = self.param("bias", zeros, (num_classes,))
    return scale > 0, jnp.matmul(scale * x, kernel, precision="highest") + bias


class Ridge(nn.Module):
  """Linear regression of each class' box deltas; its products are float32's own."""

  @nn.compact
  def __call__(self, x: Array, num_classes: int) -> Array:
    """x: f32[R, C] -> f32[R, K, 4]."""
    kernel = self.param("kernel", zeros, (x.shape[-1], num_classes, 4))
    bias = self.param("bias", zeros, (num_classes, 4))
    return jnp.tensordot(x, kernel, 1, precision="highest") + bias

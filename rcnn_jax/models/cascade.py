"""Cascade R-CNN (arXiv:1712.00726): what its stages after the first differ in, and what passes between stages.

Each stage is trained on, and detects from, the boxes that the stage before it regressed. The stages' trunks and box
heads, and the order in which they are applied, are the Detector's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rcnn_jax.ops import assign, boxes
from rcnn_jax.ops.errors import ModelError
from rcnn_jax.types import Array, GroundTruth, RoiSamples


@dataclass(frozen=True)
class Refinement:
  """A stage after the first: a trunk and a box head like the first one's, for better boxes (section 4.1)."""

  foreground_iou: float = 0.6
  delta_weights: tuple[float, float, float, float] = (20.0, 20.0, 10.0, 10.0)  # finer than the stage before

  def samples(self, rois: Array, valid: Array, truth: GroundTruth) -> RoiSamples:
    """The regions of one image, matched anew but not drawn anew, as what this stage is trained on.

    Args:
      rois: f32[S, 4], canvas pixels; without any extent, they are not valid.
      valid: bool[S].
      truth: M objects.
    """
    valid = valid & (boxes.area(rois) > 0)
    matches = assign.match(
      boxes.iou(rois, truth.boxes),
      truth.valid,
      foreground_iou=self.foreground_iou,
      background_iou=self.foreground_iou,
      anchor_valid=valid,
    )
    all_of_them = assign.Samples(indices=jnp.arange(len(rois)), foreground=matches.foreground, valid=valid)
    return assign.targets(all_of_them, matches, rois, truth)


# The second and the third stage of the paper's cascade and of Detectron2's.
THREE_STAGES = (Refinement(), Refinement(0.7, (30.0, 30.0, 15.0, 15.0)))


def refined(
  box_deltas: Array, rois: Array, image_size: Array, delta_weights: tuple[float, float, float, float]
) -> Array:
  """The next stage's regions of one image, f32[N, 4] canvas pixels, clipped; no gradient passes through them.

  Args:
    box_deltas: f32[N, 1, 4], of all classes together.
    rois: f32[N, 4], what they were predicted from.
    image_size: (height, width), pixels.
    delta_weights: of the head that predicted them.

  Raises:
    ModelError: each class has deltas of its own.
  """
  if box_deltas.shape[1] != 1:
    raise ModelError("a cascade regresses one box for all classes: set box.class_agnostic")
  decoded = boxes.decode(box_deltas[:, 0], rois, delta_weights)
  return jax.lax.stop_gradient(boxes.clip(decoded, image_size))


def mean_logits(class_logits: Sequence[Array]) -> Array:
  """Logits f32[..., K+1] whose softmax is the mean of the softmaxes of the stages' logits, f32[..., K+1] each."""
  log_probabilities = jax.nn.log_softmax(jnp.stack(class_logits))
  return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(len(class_logits))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: Array, scale: float) -> Array:
  """x itself, its gradient multiplied by `scale`: shared features hear as much from all stages as from one."""
  del scale
  return x


scale_gradient.defvjp(lambda x, scale: (x, None), lambda scale, _, gradient: (scale * gradient,))

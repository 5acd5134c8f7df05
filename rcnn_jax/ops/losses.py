"""Masked losses. Each returns the SUM over the valid rows; the caller names what to divide by.

Rows that are not valid contribute neither to the value nor to the gradient, whatever stands in them: they are
replaced before the arithmetic, since 0 * NaN is NaN.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from rcnn_jax.ops import boxes
from rcnn_jax.ops.devices import across_devices

BoxLoss = Literal["smooth_l1", "giou", "diou", "ciou"]


def softmax_cross_entropy(logits: jax.Array, classes: jax.Array, valid: jax.Array) -> jax.Array:
  """f32[]: sum of -log softmax(logits)[class].

  Args:
    logits: f32[N, K + 1], any float type; the arithmetic is float32.
    classes: i32[N], 0..K.
    valid: bool[N].
  """
  logits = _only(valid, logits)
  target = jnp.arange(logits.shape[-1]) == _only(valid, classes)[..., None]
  log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  # A mask rather than a gather: its gradient is no scatter.
  loss = -jnp.where(target, log_probabilities, 0.0).sum(axis=-1)
  return _only(valid, loss).sum()


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array, valid: jax.Array) -> jax.Array:
  """f32[]: sum of the binary cross-entropy of sigmoid(logits).

  Args:
    logits: f32[N, ...].
    labels: of the same shape, 0..1 or bool.
    valid: bool[N] or of as many leading axes of the logits as wanted.
  """
  logits = _only(valid, logits).astype(jnp.float32)
  labels = _only(valid, labels).astype(jnp.float32)
  return _only(valid, jax.nn.softplus(logits) - logits * labels).sum()


def smooth_l1(predictions: jax.Array, targets: jax.Array, valid: jax.Array, *, beta: float = 1.0) -> jax.Array:
  """f32[]: sum of the smooth L1 distances (Fast R-CNN, equation 3).

  Args:
    predictions: f32[N, ...].
    targets: of the same shape.
    valid: bool[N] or of as many leading axes of the predictions as wanted.
    beta: where the parabola meets the line; 0 is the L1 distance. Fast R-CNN uses 1, torchvision's RPN 1/9.
  """
  difference = _only(valid, predictions).astype(jnp.float32) - _only(valid, targets).astype(jnp.float32)
  distance = jnp.abs(difference)
  if beta > 0:
    distance = jnp.where(distance < beta, 0.5 * difference**2 / beta, distance - 0.5 * beta)
  return distance.sum()


def box_regression(
  deltas: jax.Array,
  anchors: jax.Array,
  targets: jax.Array,
  valid: jax.Array,
  *,
  kind: BoxLoss,
  beta: float,
  weights: tuple[float, float, float, float] = (1, 1, 1, 1),
) -> jax.Array:
  """f32[]: sum of how far the boxes that deltas make of anchors are from their targets.

  'smooth_l1' compares deltas (four terms a box); the others compare the decoded boxes, 1 less their generalised,
  distance or complete IoU (arXiv:1902.09630, arXiv:1911.08287), as Detectron2's BOX_REG_LOSS_TYPE.

  Args:
    deltas: f32[N, 4].
    anchors: f32[N, 4], what the deltas are relative to.
    targets: f32[N, 4], boxes.
    valid: bool[N].
    kind: which loss.
    beta: of `smooth_l1`, the others have none.
    weights: of the deltas, as `boxes.encode`'s.
  """
  if kind == "smooth_l1":
    return smooth_l1(deltas, boxes.encode(targets, anchors, weights), valid, beta=beta)
  predicted = boxes.decode(_only(valid, deltas), _only(valid, anchors), weights)
  overlap = {"giou": boxes.giou, "diou": boxes.diou, "ciou": boxes.ciou}[kind]
  return _only(valid, 1 - overlap(predicted, _only(valid, targets))).sum()


def divide(total: jax.Array, count: jax.Array) -> jax.Array:
  """total / count, for a named count of samples, and 0 for a sum over nothing: the count is taken as at least 1.

  The count is that of all devices. Where each has a part of the batch (`shard_map`), so is the total: the sum of what
  the devices get is the loss of the batch.
  """
  return total / jnp.maximum(across_devices(jnp.asarray(count, jnp.float32)), 1.0)


def _only(valid: jax.Array, values: jax.Array) -> jax.Array:
  """The values, 0 where not valid; bool[N] masks whole rows of values [N, ...]."""
  mask = valid.reshape(valid.shape + (1,) * (values.ndim - valid.ndim))
  return jnp.where(mask, values, 0)

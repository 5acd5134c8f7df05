"""Training on the hardest RoIs: which they are, and that the detector is trained on these."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rcnn_jax.models.detector import RoiSampler, trainable
from rcnn_jax.models.protocols import Context
from rcnn_jax.ops import boxes as box_ops
from rcnn_jax.types import RoiSamples
from tests.small_detector import scene_batch, small_detector, variables

KEY = jax.random.key(3)


def test_the_hardest_are_those_of_the_highest_loss_less_their_near_duplicates_foreground_first():
  candidates = RoiSamples(
    boxes=jnp.float32(
      [[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [40, 0, 50, 10], [0, 20, 10, 30], [jnp.nan] * 4]
    ),
    classes=jnp.int32([0, 2, 1, 0, 0, 0]),
    matched=jnp.int32([0, 1, 2, 0, 0, 0]),
    valid=jnp.array([True, True, True, True, True, False]),
  )
  loss = jnp.float32([5, 4, 1, 2, 0.5, jnp.inf])  # the second lies in the first (IoU 0.9); the last is none
  hard = RoiSampler(num_samples=3, hard_nms_iou=0.7).hardest(candidates, loss)
  assert hard.boxes.tolist() == [[20, 0, 30, 10], [0, 0, 10, 10], [40, 0, 50, 10]]
  assert hard.classes.tolist() == [1, 0, 0] and hard.matched[0] == 2 and hard.valid.all()
  more = RoiSampler(num_samples=7, hard_nms_iou=0.95).hardest(candidates, loss)
  assert more.valid.tolist() == [True] * 5 + [False] * 2
  assert more.classes[:5].tolist() == [2, 1, 0, 0, 0]


def greedy(boxes, loss, valid, iou, count):
  """The rows of the highest losses, each overlapping none before it by more than `iou`."""
  overlap, kept = np.asarray(box_ops.iou(boxes, boxes)), []
  for row in sorted(np.flatnonzero(valid), key=lambda row: -loss[row]):
    if len(kept) < count and all(overlap[row, other] <= iou for other in kept):
      kept.append(row)
  return kept


def test_the_detector_is_trained_on_the_hardest_of_all_candidates():
  sampler = RoiSampler(num_samples=6, hard_nms_iou=0.7)
  usual = small_detector()
  model = usual.clone(sampler=sampler, roi_chunk=16)
  # Logits of some size, so that losses differ from RoI to RoI.
  fresh = jax.tree.map(lambda leaf: leaf, variables())
  fresh["params"]["box"]["classes"]["kernel"] = 100 * fresh["params"]["box"]["classes"]["kernel"]
  batch = scene_batch(0)

  def candidates(model, batch):
    batch = batch.replace(truth=trainable(batch))
    features = model.backbone(model.normalise(batch), Context(train=True))
    proposals, _ = model.proposer(features, model.backbone.strides, batch, KEY)
    every = jax.vmap(sampler.candidates)(proposals, batch.truth)
    outputs = model.box_outputs(*model.pool_and_embed(features, every.boxes, None, every.valid))
    return every, model.box.loss_of_each(*outputs, every, batch.truth)

  def total(variables):
    terms, _ = model.apply(variables, batch, KEY, method="losses", mutable=["batch_stats"])
    return sum(terms.values()), (terms, usual.apply(variables, batch, method=candidates))

  (_, (terms, (every, loss))), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(fresh)
  chosen = [greedy(*of_image, 0.7, 6) for of_image in zip(every.boxes, np.asarray(loss), every.valid)]
  assert all(len(rows) == 6 < valid.sum() for rows, valid in zip(chosen, every.valid))
  expected = np.mean([loss[image, row] for image, rows in enumerate(chosen) for row in rows])
  np.testing.assert_allclose(terms["roi_class"] + terms["roi_box"], expected, rtol=1e-4)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_loss_of_each_sums_to_the_loss():
  head = small_detector().box
  rng = np.random.default_rng(0)
  logits, deltas = rng.normal(size=(2, 5, 3)).astype(np.float32), rng.normal(size=(2, 5, 2, 4)).astype(np.float32)
  truth = trainable(scene_batch(0))
  samples = RoiSamples(
    boxes=np.tile(np.float32([5, 5, 30, 25]), (2, 5, 1)),
    classes=np.int32([[1, 2, 0, 0, 0], [2, 0, 0, 0, 0]]),
    matched=np.int32([[0, 1, 0, 0, 0], [2, 0, 0, 0, 0]]),
    valid=np.array([[True] * 5, [True] * 3 + [False] * 2]),
  )
  each = head.loss_of_each(logits, deltas, samples, truth)
  terms = head.losses(logits, deltas, samples, truth)
  np.testing.assert_allclose(each.sum() / 8, terms["roi_class"] + terms["roi_box"], rtol=1e-5)
  assert not each[1, 3:].any()

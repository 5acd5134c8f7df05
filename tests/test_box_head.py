"""The options of the heads that place boxes: how regression is scored in training, how overlaps are in detection."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rcnn_jax import experiment
from rcnn_jax.models.heads import BoxHead, FcTrunk, SoftNms, select
from rcnn_jax.ops import random
from rcnn_jax.types import GroundTruth, RoiSamples
from tests.small_detector import scene_batch, small_detector, variables

TRUTH = GroundTruth(
  boxes=np.float32([[[0, 0, 20, 10], [30, 30, 50, 40]]]),
  classes=np.int32([[1, 2]]),
  crowd=np.zeros((1, 2), bool),
  difficult=np.zeros((1, 2), bool),
  valid=np.ones((1, 2), bool),
)
# Two foreground RoIs, of which the first is exact and the second half of its object; background; padding.
SAMPLES = RoiSamples(
  boxes=np.float32([[[0, 0, 20, 10], [30, 30, 40, 40], [60, 0, 70, 10], [np.nan] * 4]]),
  classes=np.int32([[1, 2, 0, 0]]),
  matched=np.int32([[0, 1, 0, 0]]),
  valid=np.array([[True, True, True, False]]),
)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(
  "kind, expected",
  [
    # GIoU of a half is 1/2; the centres are 5 apart, the hull's squared diagonal is 500.
    ("giou", 1 / 2),
    ("diou", 1 / 2 + 25 / 500),
    # dx = 5 of 10, dw = log 2, of weights 10 and 5; L1.
    ("smooth_l1", 10 * 5 / 10 + 5 * np.log(2)),
  ],
)
def test_regression_losses_are_divided_by_the_number_of_samples(kind, expected, agnostic):
  head = BoxHead(regression_loss=kind, regression_weight=2.0, smooth_l1_beta=0.0, class_agnostic=agnostic)
  logits, deltas = np.zeros((1, 4, 3), np.float32), np.zeros((1, 4, 1 if agnostic else 2, 4), np.float32)
  terms, gradient = jax.value_and_grad(lambda d: head.losses(logits, d, SAMPLES, TRUTH)["roi_box"])(deltas)
  np.testing.assert_allclose(terms, 2 * expected / 3, rtol=1e-5)
  assert np.isfinite(gradient).all()
  assert not gradient[0, 2:].any()  # background and padding


@pytest.mark.parametrize(
  "of_trunk, of_heads, stds",
  [
    ("xavier", "gaussian", (1 / np.sqrt(490), 0.01, 0.001)),
    # PyTorch's layers: uniform up to 1 / sqrt(inputs), whose standard deviation is 1 / sqrt(3 * inputs).
    ("pytorch", "pytorch", (1 / np.sqrt(3 * 490), *(1 / np.sqrt(3 * 64),) * 2)),
  ],
)
def test_weights_begin_as_detectron2s_or_as_pytorchs(of_trunk, of_heads, stds):
  trunk, head = FcTrunk((64,), initial=of_trunk), BoxHead(initial=of_heads)
  rois = np.ones((2, 7, 7, 10), np.float32)
  first = trunk.init(jax.random.key(0), rois, None, np.ones(2, bool))["params"]["fc6"]["kernel"]
  rest = head.init(jax.random.key(1), np.ones((2, 64), np.float32), 20)["params"]
  drawn = first, rest["classes"]["kernel"], rest["deltas"]["kernel"]
  for kernel, std in zip(drawn, stds, strict=True):
    np.testing.assert_allclose(np.std(kernel), std, rtol=0.05)
    assert of_trunk != "pytorch" or np.abs(kernel).max() <= np.sqrt(3) * std


def test_dropout_belongs_to_the_image_and_not_to_its_place_in_the_batch():
  rois = np.random.default_rng(0).normal(size=(3, 5, 2, 2, 4)).astype(np.float32)
  trunk = FcTrunk((64, 32), dropout=0.5)
  keys, valid = random.per_image(jax.random.key(1), np.array([7, 3, 9])), np.ones(15, bool)
  variables = trunk.init(jax.random.key(0), rois.reshape(15, 2, 2, 4), None, valid)
  of = lambda order: trunk.apply(variables, rois[order].reshape(15, 2, 2, 4), keys[order], valid).reshape(3, 5, 32)
  order = np.array([2, 0, 1])
  np.testing.assert_allclose(of(order), of(np.arange(3))[order], rtol=1e-6)
  drawn = np.asarray(of(np.arange(3)) != 0)
  assert (drawn[0] != drawn[1]).any() and (drawn[:, 0] != drawn[:, 1]).any()  # images and RoIs draw their own


def test_dropout_is_the_same_on_one_device_and_on_three():
  trunk, rois = FcTrunk((64,), dropout=0.5), np.ones((6, 2, 2, 4), np.float32)
  keys, valid = random.per_image(jax.random.key(1), np.array([7, 3, 9])), np.ones(6, bool)
  variables = trunk.init(jax.random.key(0), rois, None, valid)
  divided = NamedSharding(Mesh(np.asarray(jax.devices()[:3]), ("data",)), PartitionSpec("data"))
  run = jax.jit(trunk.apply)
  alone = run(variables, rois, keys, valid)
  shared = run(variables, *jax.device_put((rois, keys, valid), divided))
  np.testing.assert_array_equal(alone != 0, shared != 0)
  np.testing.assert_allclose(alone, shared, rtol=1e-6)


@pytest.mark.long
def test_the_rpn_and_the_box_head_learn_by_overlap():
  usual = small_detector()
  model = usual.clone(
    proposer=usual.proposer.clone(regression_loss="giou"), box=usual.box.clone(regression_loss="ciou")
  )
  batch = scene_batch(0)
  batch = batch.replace(truth=batch.truth.replace(valid=batch.truth.valid & np.array([[True], [False]])))

  def total(variables):
    terms = model.apply(variables, batch, jax.random.key(0), method="losses")
    return sum(terms.values()), terms

  (_, terms), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(variables())
  # A box costs at least nothing and at most 2 by GIoU and 3 by CIoU; at most half of the samples are boxes.
  assert 0 < terms["rpn_box"] < 2 / 2 and 0 < terms["roi_box"] < 3 / 2
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  for name in ("proposer", "box"):
    assert np.asarray(gradient["params"][name]["deltas"]["kernel"]).any()


def test_soft_nms_keeps_what_nms_drops_at_a_lower_score_and_class_by_class():
  decoded = np.float32([[[0, 0, 20, 10]], [[0, 0, 20, 8]], [[30, 0, 40, 10]]])  # the first two: IoU 0.8
  scores = np.float32([[0.9, 0.0], [0.8, 0.3], [0.2, 0.0]])
  arguments = scores, decoded, np.ones(3, bool), np.int32([48, 64])
  head = BoxHead(nms_iou=0.3, max_detections=5)
  hard = select(head, *arguments)
  np.testing.assert_allclose(hard.scores[hard.valid], [0.9, 0.3, 0.2])
  soft = select(head, *arguments, SoftNms(decay="linear"))
  np.testing.assert_allclose(soft.scores[soft.valid], [0.9, 0.3, 0.2, 0.8 * 0.2], rtol=1e-5)
  np.testing.assert_array_equal(soft.classes[soft.valid], [1, 2, 1, 1])
  np.testing.assert_array_equal(soft.boxes[3], decoded[1, 0])
  fewer = select(head, *arguments, SoftNms(decay="linear", score_threshold=0.18))
  np.testing.assert_allclose(fewer.scores[fewer.valid], [0.9, 0.3, 0.2])


def test_soft_nms_is_written_down_with_its_head_and_absent_from_what_was_written_before_it():
  head = BoxHead(soft_nms=SoftNms(sigma=0.3))
  form = experiment.to_json(head)
  assert experiment.from_json(form) == head
  del form["soft_nms"]
  assert experiment.from_json(form) == BoxHead()

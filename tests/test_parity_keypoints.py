"""Keypoint R-CNN against torchvision's recorded answers: heat maps, the loss with its gradients, detections."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcnn_jax.data import transforms
from rcnn_jax.models.detector import Detector, blank_batch
from rcnn_jax.models.heads import KeypointHead
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.ops import keypoints
from rcnn_jax.weights import torchvision
from tests import filling
from tests.parity import filled_detector, needs_photographs, photographs, recorded, twins_of
from tests.test_parity_models import batch_of
from tests.test_parity_models import detector as with_masks


def test_joints_lie_in_the_same_cells():
  points, regions, logits = filling.heat_map_case()
  cells, valid = keypoints.encode(points, regions, size=logits.shape[1])
  answers = recorded("heat_maps")
  np.testing.assert_array_equal(valid, answers["valid"])
  np.testing.assert_array_equal(cells, answers["cells"])
  assert 10 < answers["valid"].sum() < 50


def test_joints_are_found_in_the_same_pixels():
  _, regions, logits = filling.heat_map_case()
  found = np.asarray(jax.jit(keypoints.decode)(logits, regions))
  answers = recorded("heat_maps")
  np.testing.assert_allclose(found[..., :2], answers["points"], rtol=0, atol=1e-3)
  np.testing.assert_allclose(found[..., 2], answers["scores"], rtol=0, atol=1e-4)


def detector() -> Detector:
  """The small Keypoint R-CNN over a ResNet-18-FPN."""
  channels = filling.KEYPOINT_CHANNELS
  pool, joints = RoiAlign(output_size=14, num_levels=4), filling.NUM_KEYPOINTS
  head = KeypointHead(pool, num_convs=len(channels), channels=channels[0], num_keypoints=joints)
  return with_masks().clone(heads=(head,))


@functools.cache
def variables() -> dict:
  """The detector's filled variables."""
  model = detector()
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), blank_batch(1, (64, 64)), method="detect"))
  return filled_detector(shapes, model)


@functools.cache
def losses_and_gradients() -> tuple[dict, dict]:
  """All terms, and the gradient of the keypoints' alone, by torchvision's names."""
  images, boxes, classes = filling.loss_case()
  batch = batch_of(images)
  truth = batch.truth.replace(
    boxes=jnp.array(boxes),
    classes=jnp.array(classes),
    valid=jnp.ones((2, 3), bool),
    keypoints=jnp.array(filling.loss_keypoints()),
  )

  def keypoint_loss(params):
    given = {"params": params, "batch_stats": variables()["batch_stats"]}
    terms = detector().apply(given, batch.replace(truth=truth), jax.random.key(0), method="losses")
    return terms["roi_keypoint"], terms

  gradients, terms = jax.jit(jax.grad(keypoint_loss, has_aux=True))(variables()["params"])
  return terms, torchvision.export({"params": gradients}, detector())


@pytest.mark.long
def test_losses_of_the_same_samples():
  terms, _ = losses_and_gradients()
  answers = recorded("keypoint_losses")
  np.testing.assert_allclose(terms["roi_keypoint"], answers["loss_keypoint"], rtol=1e-4)
  np.testing.assert_allclose(terms["roi_box"], answers["loss_box_reg"], rtol=1e-4)


def test_gradients_of_the_same_samples():
  _, gradients = losses_and_gradients()
  answers = recorded("keypoint_losses")
  expected = {k.removeprefix("gradient."): v for k, v in answers.items() if k.startswith("gradient.")}
  assert "roi_heads.keypoint_predictor.kps_score_lowres.weight" in expected
  for name, ours in gradients.items():
    if name not in expected:  # what stands beside the way to the keypoints
      assert not ours.any(), name
      continue
    theirs = expected[name]
    ours = filling.sample(name, ours, 60)
    if name == "roi_heads.keypoint_predictor.kps_score_lowres.bias":  # moves all cells alike: the softmax stays
      assert max(np.abs(ours).max(), np.abs(theirs).max()) < 1e-6
      continue
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs[1:]).max(), err_msg=name)


def resized(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """A photograph, resized in float32 as torchvision does, and original pixels per pixel of that: f32[4], xyxy."""
  rule = transforms.Resize(filling.DETECT_SIDES[:1], filling.DETECT_SIDES[1])
  size = transforms.resized_size(image.shape[:2], rule)
  ratio = np.float32(image.shape[:2]) / np.float32(size)
  return transforms.resize(image.astype(np.float32), size), np.tile(ratio[::-1], 2)


@functools.cache
def detect():
  """The compiled detection."""
  return jax.jit(lambda batch: detector().apply(variables(), batch, method="detect"))


def detections(images: list[np.ndarray], ratios: list[np.ndarray]) -> list[np.ndarray]:
  """f32[D, 6 + 3 * J] of each image: box, score, class, x and y of the joints, their scores; original pixels."""
  found = jax.tree.map(np.asarray, detect()(batch_of(images)))
  rows = []
  for i, ratio in enumerate(ratios):
    points = found.keypoints[i]
    xy = (points[..., :2] * ratio[:2]).reshape(len(points), -1)
    columns = [found.boxes[i] * ratio, found.scores[i][:, None], found.classes[i][:, None], xy, points[..., 2]]
    rows.append(np.concatenate(columns, axis=1)[found.valid[i]])
  return rows


@needs_photographs
@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.long), 4])
def test_keypoints_on_photographs(batch_size):
  distances, shortfalls, total = [], [], 0
  answers = recorded("keypoints_on_photographs")
  read = [resized(image) for image in photographs(answers, 4).values()]
  for first in range(0, len(read), batch_size):
    group = filling.COCO_IMAGES[first : first + batch_size]
    images, ratios = zip(*read[first : first + batch_size])
    for name, ours in zip(group, detections(list(images), list(ratios))):
      theirs = answers[f"{name}_batch{batch_size}"]
      twins = twins_of(ours[:, :6], theirs[:, :6])
      pairs = ours[twins[twins >= 0]], theirs[twins >= 0]
      joints = [rows[:, 6 : 6 + 2 * filling.NUM_KEYPOINTS].reshape(len(rows), -1, 2) for rows in pairs]
      distances.append(np.abs(joints[0] - joints[1]).max(-1).ravel())
      shortfalls.append(np.abs(pairs[0][:, -filling.NUM_KEYPOINTS :] - pairs[1][:, -filling.NUM_KEYPOINTS :]).ravel())
      total += len(theirs)
  distance, shortfall = np.concatenate(distances), np.concatenate(shortfalls)
  assert total > 100 and len(distance) >= 0.99 * total * filling.NUM_KEYPOINTS
  assert (distance <= 0.5).mean() >= 0.99
  assert (shortfall <= 1e-2).mean() >= 0.99

"""Rows that fill up a training batch change nothing: not the losses, not the gradients, on one device or several."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rcnn_jax.models.detector import RoiSampler, init_variables
from rcnn_jax.models.heads import MaskHead
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.optim import Constant
from rcnn_jax.training.stages import Sgd
from rcnn_jax.training.step import create_state, make_train_step
from rcnn_jax.types import Proposals
from tests.small_detector import CANVAS, RCNN, scene_batch, small_detector

KEY = jax.random.key(3)
MASKS = "hard examples, masks"
MODELS = {
  MASKS: small_detector(
    sampler=RoiSampler(num_samples=16, hard_nms_iou=0.7), heads=(MaskHead(pool=RoiAlign(output_size=4), num_convs=1),)
  ),
  "external proposals": RCNN,
}


def three_images():
  """Two images that are trained on and a third, with masks of the objects and one proposal beside each of these."""
  batch = scene_batch(5, batch_size=3)
  boxes = batch.truth.boxes + np.float32([-3, -2, 1, 2])
  proposals = Proposals(boxes, np.ones(boxes.shape[:2], np.float32), batch.truth.valid)
  masks = np.ones((*boxes.shape[:2], 112, 112), np.uint8)
  return batch.replace(truth=batch.truth.replace(masks=masks), proposals=proposals)


def short_and_filled():
  """A batch of two images, and the same filled up to four rows with a third one's, which are not valid."""
  whole = three_images()
  short = jax.tree.map(lambda leaf: leaf[:2], whole)
  filled = jax.tree.map(lambda leaf: leaf[[0, 1, 2, 2]], whole)
  return short, filled.replace(valid=np.array([True, True, False, False]))


# The step below has the losses of the other detector among its metrics.
@pytest.mark.parametrize("name", [pytest.param(MASKS, marks=pytest.mark.long), "external proposals"])
def test_the_losses_are_those_of_the_short_batch(name):
  model = MODELS[name]
  variables = init_variables(model, jax.random.key(0), CANVAS)
  losses = jax.jit(lambda batch: model.apply(variables, batch, KEY, method="losses"))
  short, filled = (losses(batch) for batch in short_and_filled())
  assert all(value > 0 for value in short.values())
  for term, value in short.items():
    np.testing.assert_allclose(filled[term], value, rtol=1e-5, err_msg=term)


def test_a_step_on_four_devices_two_of_which_have_no_image_is_the_step_of_the_short_batch():
  model, stage = MODELS[MASKS], Sgd(steps=1, schedule=Constant(0.1))
  variables = init_variables(model, jax.random.key(0), CANVAS)
  ended = []
  for batch, mesh in zip(short_and_filled(), (meshes.data_mesh(1), meshes.data_mesh(4))):
    step = make_train_step(model, stage, mesh, seed=0, num_steps=1)
    ended.append(jax.device_get(step(create_state(variables, stage, mesh), meshes.shard_batch(batch, mesh))))
  (short, metrics), (filled, of_filled) = ended
  assert metrics["grad_norm"] > 0
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), metrics, of_filled)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), short.params, filled.params)

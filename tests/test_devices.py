"""One device and eight compute the same training."""

from __future__ import annotations

import jax
import numpy as np
import tiny
from small_detector import CANVAS, scene_batch, small_detector

from rcnn_jax.aot import collectives
from rcnn_jax.evaluation import detect
from rcnn_jax.models.detector import init_variables
from rcnn_jax.models.heads import ConvTrunk, MaskHead
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.optim import Constant
from rcnn_jax.training.stages import Sgd
from rcnn_jax.training.step import create_state, make_train_step


def losses(num_devices: int, steps: int = 20) -> list[float]:
  exp, mesh = tiny.experiment(), meshes.data_mesh(num_devices)
  model, stage = tiny.model_of(exp).clone(norm=True), Sgd(steps=steps, schedule=Constant(0.5), clip_norm=1.0)
  state = create_state(model.init(jax.random.key(0), tiny.batch_of([0]), None, method="losses"), stage, mesh)
  train_step = make_train_step(model, stage, mesh, seed=0, num_steps=steps)
  batches, values = tiny.Loader(tiny.Data(canvases=((4, 8), (4, 8))), 0, steps), []
  for batch in batches:
    batch = meshes.shard_batch(batch, mesh)
    assert len(batch.image.sharding.device_set) == num_devices
    state, metrics = train_step(state, batch)
    values.append(float(metrics["loss"]))
  assert train_step._cache_size() == 1
  return values


def test_twenty_steps_on_one_device_and_on_eight():
  one, eight = losses(1), losses(8)
  np.testing.assert_allclose(one, eight, atol=1e-4)
  assert one[-1] < one[0]


# Everything that passes between images or devices: batch norm over RoIs, masks of the rows that exist, four losses.
DETECTOR = small_detector(
  trunk=ConvTrunk(num_convs=1, channels=8, widths=(16,)),
  heads=(MaskHead(RoiAlign(output_size=4), num_convs=1, channels=8),),
)
STAGE = Sgd(steps=1, schedule=Constant(0.1))


def batch_of_eight():
  batch = scene_batch(0, 8)
  masks = np.ones((*batch.truth.valid.shape, 112, 112), np.uint8)
  return batch.replace(truth=batch.truth.replace(masks=masks))


def compiled_step(num_devices):
  """(the compiled step of a detector on that many devices, its state, its batch)."""
  mesh = meshes.data_mesh(num_devices)
  state = create_state(init_variables(DETECTOR, jax.random.key(0), CANVAS), STAGE, mesh)
  batch = meshes.shard_batch(batch_of_eight(), mesh)
  return make_train_step(DETECTOR, STAGE, mesh, seed=0, num_steps=1).lower(state, batch).compile(), state, batch


def test_a_detectors_step_on_one_device_and_on_eight_and_what_the_eight_tell_each_other():
  steps = {count: compiled_step(count) for count in (1, 8)}
  told = collectives(steps[8][0].as_text())
  assert set(told) == {"all-reduce"}
  (one, one_metrics), (eight, eight_metrics) = (step(state, batch) for step, state, batch in steps.values())
  for name in one_metrics:
    np.testing.assert_allclose(one_metrics[name], eight_metrics[name], rtol=2e-5, err_msg=name)
  for a, b in zip(jax.tree.leaves((one.params, one.batch_stats)), jax.tree.leaves((eight.params, eight.batch_stats))):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  # Gradients once; means and variances of one batch norm of 8 channels forward and backward; some counts and terms.
  gradients = 4 * sum(leaf.size for leaf in jax.tree.leaves(one.params))
  assert gradients <= told["all-reduce"]["bytes"] <= gradients + 1000


def test_devices_detect_without_a_word_to_each_other():
  mesh = meshes.data_mesh(8)
  variables = init_variables(DETECTOR, jax.random.key(0), CANVAS)
  batch = meshes.shard_batch(batch_of_eight().replace(truth=None), mesh)
  program = detect._detect_step.lower(DETECTOR, meshes.replicate(variables, mesh), batch, mesh).compile()
  assert collectives(program.as_text()) == {}

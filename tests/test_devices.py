"""One device and eight compute the same training."""

from __future__ import annotations

import jax
import numpy as np
import tiny

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

"""The mesh of an experiment: no loss depends on it, and parameters lie where its rules say."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from rcnn_jax.experiment import FULLY_SHARDED, Experiment, Mesh, Sharding, from_json, to_json
from rcnn_jax.training import checkpoint, log, loop
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.optim import AdamW, Constant, TrainingError
from rcnn_jax.training.stages import Sgd
from rcnn_jax.training.step import create_state

BASE = tiny.experiment((Sgd(steps=6, schedule=Constant(0.5), ema=0.5, clip_norm=1.0),)).override(
  {"data.canvases": ((4, 8), (4, 8)), "model.backbone.features": 16, "model.norm": True}
)


def with_mesh(**settings) -> Experiment:
  return dataclasses.replace(BASE, mesh=Mesh(**settings))


def train(exp: Experiment, workdir) -> list[dict]:
  checkpoint.write_experiment(workdir, exp, tiny.CATEGORIES)
  loader = functools.partial(tiny.Loader, exp.data, exp.seed)
  loop.run(
    exp,
    workdir,
    tiny.model_of(exp),
    tiny.variables_of(exp),
    tiny.STEPS_PER_EPOCH,
    loader,
    evaluate=lambda variables, step: {"bbox/AP": float(variables["params"]["head"]["kernel"].sum())},
    log_every=1,
  )
  return log.rows(workdir)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> list[dict]:
  return train(with_mesh(data=1), tmp_path_factory.mktemp("one"))


MESHES = {
  "copied": {},
  "fully sharded": {"rules": FULLY_SHARDED},
  "sharded within, copied across": {"model": 4, "rules": (Sharding(".*", largest="model"),)},
  "by path": {"model": 2, "rules": (Sharding("head/kernel", ("model", None)), Sharding("backbone/.*", ("data",)))},
}


@pytest.mark.parametrize(
  "name", [name if name == "fully sharded" else pytest.param(name, marks=pytest.mark.long) for name in MESHES]
)
def test_losses_do_not_depend_on_the_mesh(name, one, tmp_path):
  rows = train(with_mesh(**MESHES[name]), tmp_path)
  assert [row["step"] for row in rows] == [row["step"] for row in one]
  for ours, theirs in zip(rows, one):
    for key in set(theirs) - {"images_per_s", "data_wait", "kind"}:
      np.testing.assert_allclose(ours[key], theirs[key], atol=1e-4, err_msg=f"step {ours['step']}: {key}")


@pytest.mark.long
def test_a_run_goes_on_with_another_mesh(one, tmp_path):
  train(with_mesh(rules=FULLY_SHARDED), tmp_path / "a")
  for step in checkpoint.saved_steps(tmp_path / "a")[1:]:
    (tmp_path / "a" / "checkpoints" / str(step)).rename(tmp_path / str(step))
  rows = train(with_mesh(data=2, model=2), tmp_path / "a")
  np.testing.assert_allclose([row["loss"] for row in rows[:-1]], [row["loss"] for row in one[:-1]], atol=1e-4)


@pytest.mark.parametrize("optimizer", [AdamW(), Sgd().optimizer], ids=["adamw", "momentum"])
def test_what_belongs_to_a_parameter_lies_where_that_does(optimizer):
  stage = Sgd(steps=2, optimizer=optimizer, ema=0.5, accumulate=2)
  mesh = meshes.make(Mesh())
  state = create_state(tiny.variables_of(BASE), stage, mesh, rules=FULLY_SHARDED)
  specs = {leaf.shape: leaf.sharding.spec for leaf in jax.tree.leaves(state)}
  # The longest side that 8 devices divide; the head's bias of 4 has none.
  assert specs[(12, 16)] == PartitionSpec(None, "data") and specs[(16, 4)] == PartitionSpec("data")
  assert specs[(4,)] == specs[()] == PartitionSpec()
  held = max(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state))
  assert held == 12 * 16 / 8


def test_a_mesh_is_a_value_that_is_written_down_and_may_change():
  exp = with_mesh(model=2, rules=FULLY_SHARDED)
  assert from_json(to_json(exp)) == exp
  assert exp.set(["mesh.model=4"]).mesh.model == 4


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"data": 9}, "mesh.data=9, mesh.model=1: 8 device"),
    ({"model": 3}, "mesh.data=None, mesh.model=3: 8 device"),
    ({"rules": (Sharding("neck/.*", largest="data"),)}, "mesh.rules that match no parameter: neck/.*"),
    ({"rules": (Sharding("head/.*", ("data",)),)}, "head/bias is \\(4,\\), which data=8 does not divide"),
    ({"rules": (Sharding("head/.*", ("rows",)),)}, "axes data and model"),
    ({"rules": (Sharding("head/.*"),)}, "exactly one of axes and largest"),
    ({"rules": (Sharding("head/bias", (None, "data")),)}, "head/bias has 1 dimensions, axes names 2"),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(settings, message, tmp_path):
  with pytest.raises(TrainingError, match=message):
    train(with_mesh(**settings), tmp_path)

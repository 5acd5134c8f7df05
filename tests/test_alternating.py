"""Alternating training: loss terms and model values of a stage, moves of parameters, and the four steps together."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import numpy as np
import pytest
import tiny

from rcnn_jax.experiment import Checkpoints, ExperimentError, from_json, to_json
from rcnn_jax.models.detector import init_variables, variable_shapes
from rcnn_jax.models.proposers import AlternatingRpn
from rcnn_jax.training import checkpoint, loop, moves
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.optim import Constant, Rule, TrainingError, flatten, matching
from rcnn_jax.training.run import check_losses, fitting, initial_variables
from rcnn_jax.training.stages import CopyParameters, ResetParameters, Sgd
from rcnn_jax.training.step import create_state, make_train_step
from tests.small_detector import CANVAS, SmallBackbone, compiled, scene_batch, small_detector

ONE = meshes.data_mesh(1)
RPN, ROI = ("rpn_objectness", "rpn_box"), ("roi_class", "roi_box")


def one_step(stage, model=None):
  model = model or tiny.model_of(tiny.experiment())
  variables = model.init(jax.random.key(0), tiny.batch_of([0]), None, method="losses")
  step = make_train_step(model, stage, ONE, seed=0, num_steps=1)
  return jax.device_get(step(create_state(variables, stage, ONE), tiny.batch_of(range(8))))


def test_a_stage_can_train_on_some_of_the_losses_alone():
  stage = Sgd(steps=1, schedule=Constant(0.5), losses=("size",))
  state, metrics = one_step(stage)
  assert (
    set(metrics) == {"loss", "loss/size", "lr", "grad_norm", "skipped"} and metrics["loss"] == metrics["loss/size"]
  )
  before = tiny.variables_of(tiny.experiment())["params"]
  np.testing.assert_array_equal(state.params["head"]["kernel"], before["head"]["kernel"])
  assert not np.array_equal(state.params["backbone"]["kernel"], before["backbone"]["kernel"])
  with pytest.raises(TrainingError, match="no loss area: it has class, size"):
    one_step(Sgd(steps=1, losses=("size", "area")))


def test_a_stage_can_change_values_of_the_model():
  stage = Sgd(steps=1, schedule=Constant(0.5), model=(("dropout", 0.0),))
  assert from_json(to_json(stage)) == stage
  changed, _ = one_step(stage)
  quiet, _ = one_step(dataclasses.replace(stage, model=()), tiny.model_of(tiny.experiment()).clone(dropout=0.0))
  jax.tree.map(np.testing.assert_array_equal, changed.params, quiet.params)
  with pytest.raises(ExperimentError, match="no path 'droput'"):
    one_step(Sgd(steps=1, model=(("droput", 0.0),)))


VARIABLES = {
  "params": {"a": {"w": np.float32([1, 2])}, "b": {"a": {"w": np.float32([3, 4])}, "w": np.float32([5])}},
  "batch_stats": {"a": {"mean": np.float32([6])}, "b": {"a": {"mean": np.float32([7])}}},
}


def test_parameters_are_copied_with_their_statistics():
  copied, count = moves.copy(CopyParameters("a", "b/a"), VARIABLES)
  assert count == 2
  flat = {path: leaf.tolist() for path, leaf in flatten(copied).items()}
  assert flat["params/b/a/w"] == [1, 2] and flat["batch_stats/b/a/mean"] == [6]
  assert flat["params/a/w"] == [1, 2] and flat["params/b/w"] == [5] and flat["batch_stats/a/mean"] == [6]
  for pair in (("a", "b"), ("b", "a"), ("c", "d"), ("a", "c")):
    with pytest.raises(TrainingError, match="not the same by name and shape"):
      moves.copy(CopyParameters(*pair), VARIABLES)


def test_parameters_begin_anew_with_their_statistics():
  initial = jax.tree.map(np.zeros_like, VARIABLES)
  moved, count = moves.reset(ResetParameters("a/.*"), VARIABLES, initial)
  assert count == 2
  flat = {path: leaf.tolist() for path, leaf in flatten(moved).items()}
  assert flat["params/a/w"] == [0, 0] and flat["batch_stats/a/mean"] == [0]
  assert flat["params/b/a/w"] == [3, 4] and flat["batch_stats/b/a/mean"] == [7]
  with pytest.raises(TrainingError, match="no parameter matches; they are named like a/w"):
    moves.reset(ResetParameters("w"), VARIABLES, initial)


def test_a_stage_that_does_not_fit_the_model_is_told_before_the_first_begins(tmp_path):
  good = Sgd(steps=1, losses=("size",))
  bad = {
    "parameters under the two paths": CopyParameters("backbone", "head"),
    "no parameter matches": ResetParameters("bakbone/.*"),
    "no path 'droput'": dataclasses.replace(good, model=(("droput", 0.0),)),
    "rules that match no parameter": dataclasses.replace(good, rules=(Rule("bakbone/.*"), Rule(".*"))),
  }
  for message, stage in bad.items():
    exp = tiny.experiment((good, stage))
    with pytest.raises((TrainingError, ExperimentError), match=message):
      loop.run(exp, str(tmp_path), tiny.model_of(exp), tiny.variables_of(exp), tiny.STEPS_PER_EPOCH, None, mesh=ONE)
  exp = dataclasses.replace(tiny.experiment((good,)), data=tiny.Data(canvases=(CANVAS,)))
  model = small_detector()
  variables = variable_shapes(model, CANVAS)
  with pytest.raises(TrainingError, match="the model has no loss size: it has roi_box, roi_class, rpn_"):
    check_losses(exp, model, variables)


def alternating_detector(**changes):
  usual = small_detector()
  return usual.clone(proposer=AlternatingRpn(usual.proposer, SmallBackbone(), **changes))


def test_proposals_of_the_kept_network_are_those_that_it_made_before():
  model, batch = alternating_detector(), scene_batch(1)
  variables = init_variables(model, jax.random.key(3), CANVAS)
  own = compiled("propose", model)(variables, batch)
  for stage in (
    CopyParameters("backbone", "proposer/kept_backbone"),
    CopyParameters("proposer/rpn", "proposer/kept_rpn"),
  ):
    variables, _ = moves.copy(stage, variables)
  for part in (variables["params"]["backbone"], variables["params"]["proposer"]["rpn"]):
    part |= jax.tree.map(lambda leaf: 2 * leaf + 1, part)
  kept = compiled("propose", alternating_detector(from_kept=True))(variables, batch)
  jax.tree.map(np.testing.assert_array_equal, kept, own)
  assert not np.array_equal(compiled("propose", model)(variables, batch).boxes, own.boxes)


HEADS = "(trunk|box)/.*"
SHARED, OWN, KEPT = "backbone/.*", "proposer/rpn/.*", "proposer/kept_.*"


def descent(losses, trained, **more):
  """Two steps that train the parameters of some patterns and no others."""
  rules = (*(Rule(pattern) for pattern in trained), Rule(".*", frozen=True))
  return Sgd(steps=2, schedule=Constant(0.05), losses=losses, rules=rules, **more)


STAGES = (
  descent(RPN, (SHARED, OWN)),
  CopyParameters("backbone", "proposer/kept_backbone"),
  CopyParameters("proposer/rpn", "proposer/kept_rpn"),
  ResetParameters(SHARED),
  descent(ROI, (SHARED, HEADS), model=(("proposer.from_kept", True),)),
  descent(RPN, (OWN,)),
  descent(ROI, (HEADS,)),
)
ENDS = {"begin": 0, "step 1": 2, "moved": 5, "step 2": 7, "step 3": 9, "step 4": 11}
CHANGED = {"step 1": (SHARED, OWN), "step 2": (SHARED, HEADS), "step 3": (OWN,), "step 4": (HEADS,)}


class Loader(tiny.Loader):
  def __next__(self):
    self.given += 1
    return scene_batch(self.given - 1)


def train(workdir):
  """The parameters after all stages, resumed where a checkpoint is there, and those in the beginning."""
  model = alternating_detector()
  experiment = dataclasses.replace(
    tiny.experiment(STAGES),
    model=model,
    data=tiny.Data(batch_size=(2, 2), canvases=(CANVAS,)),
    checkpoints=Checkpoints(every_steps=1, keep_last=20),
  )
  checkpoint.write_experiment(str(workdir), experiment, tiny.CATEGORIES)
  initial = initial_variables(experiment, model, None, None, pretrained=True)
  carry_out = fitting(experiment, None, str(workdir), model)
  loader = lambda steps: Loader(experiment.data, 0, steps)
  state = loop.run(experiment, str(workdir), model, initial, 10, loader, fit=carry_out, mesh=ONE, log_every=2)
  return flatten(jax.device_get(state.params)), flatten(jax.device_get(initial["params"]))


def saved(workdir, step):
  return flatten(jax.device_get(checkpoint.load_run(workdir, step).variables["params"]))


@pytest.mark.long
def test_each_step_changes_the_parameters_that_it_is_for_and_a_resumed_training_is_the_same(tmp_path, capsys):
  final, initial = train(tmp_path / "whole")
  after = {name: initial if step == 0 else saved(tmp_path / "whole", step) for name, step in ENDS.items()}
  for (_, before), (name, now) in zip(after.items(), list(after.items())[1:]):
    changed = {path for path in now if not np.array_equal(now[path], before[path])}
    if name == "moved":
      assert {path for path in changed if path.startswith("backbone")} and not any(
        "trunk" in path for path in changed
      )
    else:
      assert changed == {path for pattern in CHANGED[name] for path in matching(pattern, now)}, name
  for path, value in after["step 1"].items():
    kept = path.replace("backbone/", "proposer/kept_backbone/").replace("/rpn/", "/kept_rpn/")
    if kept != path and not path.startswith("proposer/kept"):
      np.testing.assert_array_equal(after["step 4"][kept], value)
  for path in matching(SHARED, initial):
    np.testing.assert_array_equal(after["moved"][path], initial[path])
    np.testing.assert_array_equal(after["step 4"][path], after["step 2"][path])
  for killed_after in (4, 8):  # between two moves, and within step 3
    later = shutil.ignore_patterns(*(str(step) for step in range(killed_after + 1, 12)))
    shutil.copytree(tmp_path / "whole", tmp_path / str(killed_after), ignore=later)
    resumed, _ = train(tmp_path / str(killed_after))
    assert f"resuming at step {killed_after} of 11" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, resumed, final)

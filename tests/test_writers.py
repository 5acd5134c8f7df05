"""Services that get a run's numbers: on request, never required, and the same run there when it goes on."""

from __future__ import annotations

import sys
import types

import pytest
import tiny

from launch.train import steps_of
from rcnn_jax.experiment import flatten
from rcnn_jax.files import read_json
from rcnn_jax.training import log, writers
from rcnn_jax.training.optim import TrainingError


class Told(list):
  """What a service is told, in order."""

  def note(self, name):
    return lambda *args, **kwargs: self.append((name, args, kwargs))


@pytest.fixture
def told(monkeypatch) -> Told:
  """Services that note what they are told, with the calls of the real ones that are used."""
  told = Told()

  def begin(*args, **kwargs):
    told.append(("init", args, kwargs))
    return types.SimpleNamespace(id="w1", log=told.note("log"), finish=told.note("finish"))

  wandb = types.SimpleNamespace(init=begin)
  started = types.SimpleNamespace(info=types.SimpleNamespace(run_id="m1"))
  mlflow = types.SimpleNamespace(
    set_experiment=told.note("set_experiment"),
    start_run=lambda **kwargs: told.append(("start_run", (), kwargs)) or started,
    log_params=told.note("log_params"),
    log_metric=told.note("log_metric"),
    end_run=told.note("end_run"),
  )
  trackio = types.SimpleNamespace(init=told.note("init"), log=told.note("log"), finish=told.note("finish"))
  for name, service in (("wandb", wandb), ("mlflow", mlflow), ("trackio", trackio)):
    monkeypatch.setitem(sys.modules, name, service)
  for variable in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
    monkeypatch.delenv(variable, raising=False)
  return told


def write(workdir, name: str) -> None:
  runlog = log.RunLog(workdir, 0, (name,), flatten(tiny.experiment()))
  runlog.write(1, "train", {"loss": 0.5, "lr": None})
  runlog.close()


SCALARS = {
  "wandb": ("log", ({"train/loss": 0.5},), {"step": 1}),
  "mlflow": ("log_metric", ("train/loss", 0.5), {"step": 1}),
  "trackio": ("log", ({"train/loss": 0.5},), {"step": 1}),
}


@pytest.mark.parametrize("name", list(writers.SERVICES))
def test_a_service_gets_what_tensorboard_gets_and_a_run_that_goes_on_is_the_same_run(name, told, tmp_path):
  workdir = tmp_path / "mine"
  workdir.mkdir()
  write(workdir, name)
  assert told[-2] == SCALARS[name] and told[-1][0] in ("finish", "end_run")
  known = read_json(workdir / "writers.json")
  assert known == {name: {"wandb": "w1", "mlflow": "m1", "trackio": "mine"}[name]}
  assert list((workdir / "tensorboard").iterdir())
  del told[:]
  write(workdir, name)
  begun = next(kwargs for call, _, kwargs in told if call in ("init", "start_run"))
  assert known[name] in begun.values()
  assert read_json(workdir / "writers.json") == known


def test_the_values_of_the_experiment_are_told(told, tmp_path):
  write(tmp_path, "wandb")
  (begun,) = [kwargs for call, _, kwargs in told if call == "init"]
  assert begun["config"]["stages.0.schedule.peak"] == 0.5 and begun["project"] == "rcnn-jax"


def test_a_service_that_is_not_there_is_told_before_anything_begins(monkeypatch):
  monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
  with pytest.raises(TrainingError, match="the writer trackio is not installed: pip install 'rcnn-jax.trackio.'"):
    writers.check(("trackio",))
  with pytest.raises(TrainingError, match="no writer 'tensorbord': there are wandb, mlflow, trackio"):
    writers.check(("tensorbord",))


def test_a_service_that_does_not_begin_is_one_line(monkeypatch, tmp_path):
  def refused(**_):
    raise OSError("no login:\nrun its login first")

  monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(init=refused))
  with pytest.raises(TrainingError, match="^the writer trackio cannot begin: no login: run its login first$"):
    write(tmp_path, "trackio")


def test_the_steps_of_a_trace_are_read_from_the_flag():
  assert steps_of("3:5") == (3, 5)
  for wrong in ("3", "5:3", "0:2", "a:b", "1:2:3", ":"):
    with pytest.raises(TrainingError, match=f"--profile={wrong}: expected FROM:TO"):
      steps_of(wrong)

"""A sweep: its trials and their names, the table, and the command that runs what is not finished."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import tiny

from rcnn_jax import experiment as experiments
from rcnn_jax import sweep as sweeps
from rcnn_jax.experiment import ExperimentError, diff, from_json, to_json
from rcnn_jax.sweep import Sweep, table
from rcnn_jax.training.optim import AdamW, Constant, Momentum

BASE = tiny.experiment()
ROOT = pathlib.Path(__file__).parents[1]


def changed(sweep: Sweep) -> dict[str, dict]:
  """What each trial changes in the base."""
  return {name: {path: new for path, _, new in diff(BASE, trial)} for name, trial in sweep.trials().items()}


def test_trials_are_the_grid_of_all_axes_with_all_seeds():
  sweep = Sweep(BASE, {"model.dropout": (0.25, 0.75), "data.batch_size.0": (4, 16)}, seeds=(1, 2))
  assert changed(sweep) == {
    "dropout=0.25/batch_size.0=4/seed=1": {"model.dropout": 0.25, "data.batch_size.0": 4, "seed": 1},
    "dropout=0.25/batch_size.0=4/seed=2": {"model.dropout": 0.25, "data.batch_size.0": 4, "seed": 2},
    "dropout=0.25/batch_size.0=16/seed=1": {"model.dropout": 0.25, "data.batch_size.0": 16, "seed": 1},
    "dropout=0.25/batch_size.0=16/seed=2": {"model.dropout": 0.25, "data.batch_size.0": 16, "seed": 2},
    "dropout=0.75/batch_size.0=4/seed=1": {"model.dropout": 0.75, "data.batch_size.0": 4, "seed": 1},
    "dropout=0.75/batch_size.0=4/seed=2": {"model.dropout": 0.75, "data.batch_size.0": 4, "seed": 2},
    "dropout=0.75/batch_size.0=16/seed=1": {"model.dropout": 0.75, "data.batch_size.0": 16, "seed": 1},
    "dropout=0.75/batch_size.0=16/seed=2": {"model.dropout": 0.75, "data.batch_size.0": 16, "seed": 2},
  }
  assert sweep.trainings() == sweep.trials()


def test_an_axis_with_a_name_changes_several_paths_together():
  both = {"stages.0.optimizer": AdamW(), "stages.0.schedule": Constant(0.001)}
  sweep = Sweep(BASE, {"optimizer": {"momentum": {}, "adamw": both}})
  assert changed(sweep) == {"optimizer=momentum/seed=0": {}, "optimizer=adamw/seed=0": both}


@pytest.mark.parametrize(
  "path, value, name",
  [
    ("model.norm", True, "norm=True"),
    ("stages.0.clip_norm", None, "clip_norm=None"),
    ("stages.0.schedule.peak", 1e-5, "peak=1e-05"),
    ("stages.0.optimizer", AdamW(), "optimizer=AdamW"),
    ("data.canvases", ((4, 8), (8, 4)), "canvases=4-8-8-4"),
    ("data.canvases.1.0", 12, "canvases.1.0=12"),
    ("name", "runs/../x y", "name=runs-..-x-y"),
  ],
)
def test_settings_are_named_by_the_last_name_of_their_path_and_the_value(path, value, name):
  assert list(Sweep(BASE, {path: (value,)}).trials()) == [f"{name}/seed=0"]


def test_without_axes_the_seeds_alone_are_the_trials():
  assert list(Sweep(BASE, {}, seeds=(0, 3)).trials()) == ["seed=0", "seed=3"]


def test_settings_that_share_a_training():
  sweep = Sweep(BASE, {"model.dropout": (0.0, 0.5)}, seeds=(0, 1), trained_once=True)
  assert {name: trial.model.dropout for name, trial in sweep.trials().items()} == {
    "dropout=0.0/seed=0": 0.0,
    "dropout=0.0/seed=1": 0.0,
    "dropout=0.5/seed=0": 0.5,
    "dropout=0.5/seed=1": 0.5,
  }
  assert sweep.trainings() == {"trained/seed=0": BASE, "trained/seed=1": BASE.override({"seed": 1})}


@pytest.mark.parametrize(
  "sweep, message",
  [
    (Sweep(BASE, {"model.drop": (0.1,)}), "no path 'model.drop'; nearest: model.dropout"),
    (
      Sweep(BASE, {"stages.0.optimizer": (Momentum(0.9), Momentum(0.5))}),
      "two settings are called optimizer=Momentum",
    ),
    (
      Sweep(BASE, {"stages.0.steps": (3,)}, trained_once=True),
      "stages.0.steps: the settings of this sweep share one",
    ),
  ],
)
def test_errors(sweep, message):
  with pytest.raises(ExperimentError, match=re.escape(message)):
    sweep.trials()


def test_the_table_has_mean_and_deviation_over_the_seeds_that_are_there():
  sweep = Sweep(BASE, {"model.dropout": (0.0, 0.5, 0.9)}, seeds=(0, 1, 2))
  results = {
    "dropout=0.0/seed=0": {"bbox/AP": 0.25, "bbox/AP50": None, "bbox/AP75": 0.1},
    "dropout=0.0/seed=1": {"bbox/AP": 0.5, "bbox/AP50": 0.75},
    "dropout=0.0/seed=2": {"bbox/AP": 0.75, "bbox/AP50": 0.25},
    "dropout=0.5/seed=2": {"bbox/AP": 0.125},
  }
  summary = sweep.summary(results)
  assert summary["dropout=0.0"]["bbox/AP"] == {"mean": 0.5, "sd": 0.25, "n": 3}
  assert summary["dropout=0.5"] == {"bbox/AP": {"mean": 0.125, "sd": None, "n": 1}}
  assert table(summary, {}).splitlines() == [
    "setting              bbox/AP        bbox/AP50  seeds",
    "-----------  ---------------  ---------------  -----",
    "dropout=0.0  0.5000 ± 0.2500  0.5000 ± 0.3536    2/3",
    "dropout=0.5           0.1250                -      1",
    "dropout=0.9                -                -      0",
  ]


RISING = {f"dropout={rate}/seed={seed}": {"bbox/AP": rate + seed} for rate in (0.0, 0.5) for seed in (1, 2, 3)}


def test_below_it_stand_the_differences_from_the_first_setting_with_their_intervals():
  sweep = Sweep(BASE, {"model.dropout": (0.0, 0.5, 0.9)}, seeds=(1, 2, 3))
  lines = table(sweep.summary(RISING), sweep.differences(RISING)).splitlines()
  assert lines[-5:] == [
    "",
    "over dropout=0.0                     bbox/AP",
    "----------------  --------------------------",
    "dropout=0.5       +0.5000 [-1.7670, +2.7670]",
    "dropout=0.9                                -",
  ]


def test_settings_that_share_a_training_are_compared_seed_by_seed():
  sweep = Sweep(BASE, {"model.dropout": (0.0, 0.5)}, seeds=(1, 2, 3), trained_once=True)
  results = RISING | {"dropout=0.5/seed=3": {"bbox/AP": 3.8}}
  found = sweep.differences(results)["dropout=0.5"]["bbox/AP"]
  assert found["low"] == pytest.approx(0.6 - 4.302653 * 0.1, rel=1e-6)  # of 0.5, 0.5 and 0.8, whose error is 0.1


@pytest.mark.parametrize("name", experiments.names("experiments.sweeps"))
def test_each_sweep_in_the_folder_has_trials_that_differ_and_can_be_written_down(name):
  sweep = sweeps.load(name)
  trials = list(sweep.trials().values())
  assert len(trials) > len(sweep.seeds)
  for number, trial in enumerate(trials):
    assert from_json(json.loads(json.dumps(to_json(trial)))) == trial
    assert trial not in trials[:number]


def test_units_need_nothing_of_each_other():
  sweep = Sweep(BASE, {"model.dropout": (0.0, 0.5)}, seeds=(0, 1))
  assert sweep.units() == (
    ("dropout=0.0/seed=0",),
    ("dropout=0.0/seed=1",),
    ("dropout=0.5/seed=0",),
    ("dropout=0.5/seed=1",),
  )
  assert dataclasses.replace(sweep, trained_once=True).units() == (
    ("trained/seed=0", "dropout=0.0/seed=0", "dropout=0.5/seed=0"),
    ("trained/seed=1", "dropout=0.0/seed=1", "dropout=0.5/seed=1"),
  )


# ------------------------------------------------------------------------------------------------- the command


FILE = """
from rcnn_jax.sweep import Sweep
from tests.small_experiment import on_shapes
sweep = Sweep(on_shapes({data!r}, steps=2), {axes}, trained_once={trained_once})
"""


def launched(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
  environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
  line = [sys.executable, "-m", "launch.sweep", f"--sweep={folder}/swept.py", f"--workdir={folder}/out", *arguments]
  return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.long
def test_trials_are_trained_and_settings_evaluated_from_one_training(tmp_path):
  data = str(tmp_path / "data")
  rates = '{"stages.0.schedule.peak": (0.01, 1e30)}'
  (tmp_path / "swept.py").write_text(FILE.format(data=data, axes=rates, trained_once=False))
  ended = launched(tmp_path)
  assert ended.returncode == 1
  assert "not finite" in ended.stdout and "1 of 2 failed: peak=1e+30/seed=0 (" in ended.stderr, ended.stderr
  assert re.search(r"peak=0.01 +0\.\d{4} .* 1\n", ended.stdout), ended.stdout
  counts = '{"model.box.max_detections": (1, 10)}'
  (tmp_path / "swept.py").write_text(FILE.format(data=data, axes=counts, trained_once=True))
  ended = launched(tmp_path)
  assert ended.returncode == 1
  assert "is the folder of another sweep: of stages.0.schedule.peak, and this one is of model.box.max" in ended.stderr
  shutil.rmtree(tmp_path / "out")
  ended = launched(tmp_path)
  assert ended.returncode == 0, ended.stderr
  assert ended.stdout.count("compiled train step") == 1
  found = [json.loads((tmp_path / f"out/max_detections={n}/seed=0/detections.json").read_text()) for n in (1, 10)]
  assert 0 < len(found[0]) <= 4 < len(found[1])

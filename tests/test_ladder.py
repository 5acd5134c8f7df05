"""The ladder: its table from runs, its trainings in processes, what is done again and what is not, failed rungs."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest
from PIL import Image
from test_voc import write_squares

from launch import apart
from launch import ladder as ladder_command
from launch.ladder import LadderError, Settings
from rcnn_jax import experiment as experiments
from rcnn_jax.data import prepare
from rcnn_jax.data.errors import DataError
from rcnn_jax.evaluation import ladder, plots, report
from rcnn_jax.evaluation.ladder import Rung
from rcnn_jax.experiment import Experiment, ExperimentError
from rcnn_jax.models import detector
from rcnn_jax.training import checkpoint
from rcnn_jax.training.checkpoint import CheckpointError

ROOT = pathlib.Path(__file__).parents[1]

RUNGS_FILE = """
import dataclasses
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.selective_search import SelectiveSearch
from rcnn_jax.data.transforms import Resize
from rcnn_jax.data.voc import VocFolder
from rcnn_jax.experiment import Evaluation, Experiment
from rcnn_jax.training.optim import Constant
from rcnn_jax.training.stages import FitBoxRegression, FitSvms, Sgd
from tests.small_detector import RCNN, small_detector

data = Data(VocFolder("voc", "train"), VocFolder("voc", "val"), Resize((48,), 64), ((48, 64),), batch_size=(2, 2))
with_proposals = dataclasses.replace(
  data,
  proposals=("proposals/train", "proposals/eval"),
  num_proposals=(30, 20),
  search=SelectiveSearch(width=None, base_k=50, min_side=4.0),
)
sgd, few = Sgd(steps=2, schedule=Constant(0.01)), Evaluation(pictures=1)
fits = (sgd, FitSvms(), FitBoxRegression())
slow = Experiment("slow", with_proposals, RCNN.clone(num_classes=None), fits, evaluation=few)
fast = Experiment("fast", data, small_detector(num_classes=None), (sgd,), evaluation=few)
"""


def rung(name, label, seconds, proposals, stages=(), **metrics):
  metrics = {"AP": 0.5, "AP50": 0.8, "VOC07 mAP": None} | metrics
  return Rung(name, label, 9, metrics, stages, 1234.5, proposals, (seconds, seconds, 2 * seconds), 1, 4321)


RUNGS = [
  rung("a", "R-CNN", 2.0, 0.25, (("+ SVMs", {"AP": 0.4, "AP50": 0.7, "VOC07 mAP": 0.71}),)),
  rung("b", "Faster R-CNN", 0.125, None, AP50=0.905),
]


def test_the_table_has_a_row_a_rung_and_a_row_a_stage():
  assert ladder.table(RUNGS).splitlines() == [
    "              AP, %  AP50, %  VOC07 mAP, %  training, s  proposals, s  network, s  image, s  passes  parameters",
    "------------  -----  -------  ------------  -----------  ------------  ----------  --------  ------  ----------",
    "R-CNN          50.0     80.0             -        1,234         0.250       2.000     2.250       1       4,321",
    "Faster R-CNN   50.0     90.5             -        1,234             -       0.125     0.125       1       4,321",
    "",
    "after          AP, %  AP50, %  VOC07 mAP, %",
    "-------------  -----  -------  ------------",
    "R-CNN, + SVMs   40.0     70.0          71.0",
  ]
  assert ladder.comparisons(RUNGS) == ["Faster R-CNN: 16.0 x R-CNN's speed, 18.0 x with proposals"]


def test_training_seconds_are_those_of_steps_and_fits(tmp_path):
  (tmp_path / "experiment.json").write_text(json.dumps({"experiment": {"data": {"batch_size": [2, 1]}}}))
  rows = [
    {"step": 20, "kind": "train", "images_per_s": 4.0},  # 20 steps of 2 images: 10 s
    {"step": 30, "kind": "train", "images_per_s": 2.0},  # 10 s
    {"step": 30, "kind": "eval", "bbox/AP": 0.1},
    {"step": 31, "kind": "fit", "seconds": 3.0, "features_seconds": 100.0},
    {"step": 32, "kind": "fit", "seconds": 4.0, "features_seconds": 100.0},  # the same features
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert report.training_seconds(report.read_run(tmp_path)) == 127.0


def test_names_in_the_figure_cover_neither_points_nor_each_other():
  points = [("R-CNN", 3.0, 0.8), ("SPPnet", 0.45, 0.8), ("Fast R-CNN", 0.4, 0.8), ("Faster R-CNN", 0.39, 0.81)]
  figure = plots.trade_off_figure(points, "title")
  axes = figure.axes[0]
  boxes = [text.get_window_extent() for text in axes.texts]
  places = axes.transData.transform([(x, 100 * y) for _, x, y in points])
  assert [text.get_text() for text in axes.texts] == [name for name, _, _ in points]
  assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
  assert not any(box.contains(*place) for box in boxes for place in places)


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
  """A folder to work in, with small images and the files of two rungs, slow.py and fast.py."""
  monkeypatch.chdir(tmp_path)
  write_squares(tmp_path / "voc")
  for name in ("slow", "fast"):
    (tmp_path / f"{name}.py").write_text(RUNGS_FILE + f"experiment = {name}\n")
  return tmp_path


def write_log(name: str, scores: dict[int, float]) -> Experiment:
  """A run directory of a rung with all but its parameters; scores by step."""
  experiment = experiments.load(f"{name}.py")
  checkpoint.write_experiment(f"ladder/{name}", experiment, experiment.data.train.open().categories)
  rows = [{"step": step, "kind": "eval", "bbox/AP": score, "bbox/AP50": score} for step, score in scores.items()]
  rows.append({"step": 2, "kind": "train", "images_per_s": 0.5})
  pathlib.Path(f"ladder/{name}/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return experiment


def write_run(name: str, scores: dict[int, float]) -> None:
  """A run directory of a rung as training leaves it, with parameters that are not trained."""
  model = write_log(name, scores).model.clone(num_classes=1)
  variables = detector.init_variables(model, jax.random.key(0), (48, 64))
  checkpoint.save_variables(f"ladder/{name}", variables, step=max(scores))


def make(*rungs: str, **changes) -> None:
  ladder_command.make(Settings(pathlib.Path("ladder"), rungs, timing_images=1, timing_repeats=2, **changes))


def written() -> dict:
  return json.loads(pathlib.Path("ladder/ladder.json").read_text())


def python(folder: pathlib.Path, script: str) -> str:
  """An executable that runs a shell script in Python's stead."""
  path = folder / "python"
  path.write_text(f"#!/bin/sh\n{script}\n")
  path.chmod(0o755)
  return str(path)


def test_finished_rungs_are_timed_once_and_a_failed_one_is_named(folder, monkeypatch, capsys):
  write_run("fast", {2: 0.75})
  monkeypatch.setattr(sys, "executable", python(folder, "echo one; echo 'error: no bed' >&2; exit 3"))
  with pytest.raises(
    LadderError, match="^1 of 2 rungs failed: slow: launch.prepare_data ended with 3: error: no bed$"
  ):
    make("slow.py", "fast.py")
  first, (row,) = written(), written()["rungs"]
  assert (row["name"], row["step"], row["metrics"]["AP50"], row["training_seconds"]) == ("fast", 2, 0.75, 8.0)
  assert (row["passes"], row["proposal_seconds"], row["stages"]) == (1, None, [])
  assert 0 < row["detection_seconds"][1] <= row["seconds"] <= row["detection_seconds"][2]
  assert Image.open("ladder/ladder.png").size == (960, 600)
  assert pathlib.Path("ladder/table.txt").read_text() in capsys.readouterr().out.replace("\n\nwritten", "\nwritten")
  monkeypatch.setattr(ladder_command, "timed", lambda *_: {"fast": [7.0, 7.0, 7.0]})
  make("fast.py")
  assert written() == first
  make("fast.py", time_again=True)
  assert written()["rungs"][0]["seconds"] == 7.0


def test_a_rung_of_crops_has_its_proposals_stages_and_passes(folder, monkeypatch):
  spec = experiments.load("slow.py").data
  for name, data in (("train", spec.train), ("eval", spec.eval)):
    source = data.open()
    find = prepare.searcher(data, source, spec.search, 0)
    prepare.prepare(folder / "proposals" / name, spec.search.settings(), data, source, find)
  write_run("slow", {2: 0.25, 3: 0.5, 4: 0.75})
  monkeypatch.setattr(ladder_command, "timed", lambda *_: {"slow": [2.0, 1.0, 3.0]})
  make("slow.py")
  (row,) = written()["rungs"]
  stages = [(stage["after"], stage["AP"]) for stage in row["stages"]]
  assert stages == [("softmax of the fine-tuned network", 0.25), ("+ SVMs", 0.5), ("+ box regression", 0.75)]
  assert row["passes"] == 20 and row["seconds"] == 2.0 + row["proposal_seconds"] > 2.0
  assert written()["proposals"]["proposals/eval"]["parameters"]["base_k"] == 50


def test_what_cannot_be_a_ladder_is_refused_before_anything_is_trained(folder):
  write_log("fast", {1: 0.5})
  with pytest.raises(ExperimentError, match="no experiment 'sppnet_bccd' in .* nearest: sppnet_squeezenet_bccd"):
    make("fast.py", "sppnet_bccd")
  with pytest.raises(LadderError, match="each once, not fast, fast"):
    make("fast.py", "fast.py")
  with pytest.raises(CheckpointError, match="fast holds another experiment: seed: 0 there, 1 asked for"):
    make("fast.py", assignments=("seed=1",))
  with pytest.raises(LadderError, match="ladder/fast is the directory of a run, not of a ladder"):
    ladder_command.make(Settings(pathlib.Path("ladder/fast"), ("fast.py",)))
  with apart.alone(pathlib.Path("ladder")):
    with pytest.raises(apart.BusyError, match="ladder: another process is at work on it"):
      make("fast.py")
  (folder / "voc").rename(folder / "gone")
  with pytest.raises(DataError, match="voc"):
    make("fast.py")
  assert not pathlib.Path("ladder/ladder.json").exists()


def start(folder: pathlib.Path, *options: str) -> subprocess.Popen:
  command = [sys.executable, "-m", "launch.ladder", "--workdir=ladder", "--rungs=slow.py,fast.py", *options]
  command += ["--timing_images=1", "--timing_repeats=1"]
  environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  return subprocess.Popen(
    command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


@pytest.mark.long
def test_the_whole_command_goes_on_after_sigterm(folder):
  process = start(folder)
  for line in process.stdout:
    if line.startswith("stage 2 of 3: FitSvms"):  # its features are still to be computed
      process.send_signal(signal.SIGTERM)
      break
  said, _ = process.communicate(timeout=600)
  assert process.returncode == os.EX_TEMPFAIL and "stopped by SIGTERM" in said
  process = start(folder)
  said, _ = process.communicate(timeout=600)
  assert process.returncode == 0, said
  assert "resuming at step 2 of 4" in said and "slow: proposals" not in said
  assert [row["name"] for row in written()["rungs"]] == ["slow", "fast"]
  assert len(written()["rungs"][0]["stages"]) == 3
  process = start(folder)
  said, _ = process.communicate(timeout=600)
  assert process.returncode == 0 and "slow: finished" in said and "fast: finished" in said
  assert not any(work in said for work in ("slow: training", "fast: training", "timing 2 rungs"))

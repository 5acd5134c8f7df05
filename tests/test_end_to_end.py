"""The real detector on the real engine: devices, killed trainings, compilations."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.optim import Constant
from rcnn_jax.training.stages import Sgd
from rcnn_jax.training.step import create_state, make_train_step
from tests.small_detector import scene_batch, small_detector, variables

ROOT = pathlib.Path(__file__).parents[1]


def losses_of_20_steps(num_devices: int) -> list[dict[str, float]]:
  mesh = meshes.data_mesh(num_devices)
  stage = Sgd(steps=20, schedule=Constant(0.01), clip_norm=10.0)
  step = make_train_step(small_detector(), stage, mesh, seed=0, num_steps=20)
  state = create_state(jax.tree.map(np.array, variables()), stage, mesh)
  rows = []
  for number in range(20):
    state, metrics = step(state, meshes.shard_batch(scene_batch(number, batch_size=8), mesh))
    rows.append({name: float(value) for name, value in metrics.items()})
  assert step._cache_size() == 1
  return rows


def test_one_and_eight_devices_give_the_same_losses():
  for number, (one, eight) in enumerate(zip(losses_of_20_steps(1), losses_of_20_steps(8))):
    for name in one:
      np.testing.assert_allclose(eight[name], one[name], rtol=1e-4, atol=1e-4, err_msg=f"step {number}: {name}")


EXPERIMENT = """
from rcnn_jax.experiment import Checkpoints, Evaluation
from tests.small_experiment import on_shapes
experiment = on_shapes(
  {data!r}, steps=24, num_train=24, num_eval=6,
  evaluation=Evaluation(every_steps=None), checkpoints=Checkpoints(every_steps=4),
)
"""


def start_training(folder: pathlib.Path, workdir: str) -> subprocess.Popen:
  environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  command = [
    sys.executable,
    "-m",
    "launch.train",
    f"--experiment={folder}/killed.py",
    f"--workdir={folder}/{workdir}",
  ]
  command += ["--log_every=1", f"--compilation_cache={folder}/compiled"]
  return subprocess.Popen(
    command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def finish(process: subprocess.Popen) -> str:
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  return output


def rows(folder: pathlib.Path, kind: str) -> list[dict]:
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  clock = {"images_per_s", "data_wait"}
  found = [json.loads(line) for line in lines]
  return [{k: v for k, v in row.items() if k not in clock} for row in found if row["kind"] == kind]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  folder = tmp_path_factory.mktemp("killed")
  (folder / "killed.py").write_text(EXPERIMENT.format(data=str(folder / "data")))
  output = finish(start_training(folder, "whole"))
  assert output.count("compiled train step") == 1
  return folder


def command(name: str, *arguments: str) -> subprocess.CompletedProcess:
  environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  line = [sys.executable, "-m", f"launch.{name}", *arguments]
  return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
  "name, arguments, message",
  [
    (
      "evaluate",
      (),
      "no class 'tests.small_detector:SmallBackbone': it is neither in rcnn_jax nor in a file named by",
    ),
    (
      "evaluate",
      ("--experiment={folder}/killed.py", "--set=model.backbone.channels=8"),
      "the weights do not fit: back",
    ),
    (
      "evaluate",
      ("--experiment={folder}/killed.py", "--checkpoint=7"),
      "has no checkpoint '7'; it has best, latest, 2",
    ),
    ("predict", ("--images={folder}/*.jpg", "--output={folder}/out"), "no file matches --images="),
    (
      "train",
      ("--experiment={folder}/killed.py", "--set=seed=1"),
      "holds another experiment: experiment.seed: 0 there",
    ),
    ("train", ("--experiment=killed",), "no experiment 'killed' in experiments/; nearest: "),
  ],
)
def test_bad_input_ends_with_one_line_that_names_it(undisturbed, name, arguments, message):
  folder = undisturbed
  ended = command(name, f"--workdir={folder}/whole", *(argument.format(folder=folder) for argument in arguments))
  assert ended.returncode == 1 and ended.stdout == ""
  assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1 and message in ended.stderr


def test_a_run_goes_on_where_its_data_have_moved_to_and_not_with_others(undisturbed):
  folder = undisturbed
  shutil.copytree(folder / "whole", folder / "of moved data")
  shutil.copytree(folder / "data", folder / "moved")
  options = [f"--experiment={folder}/killed.py", f"--workdir={folder}/of moved data", "--set=evaluation.pictures=3"]
  moved = [f"--set=data.{which}.data_dir={folder}/moved" for which in ("train", "eval")]
  ended = command("train", *options, *moved)
  assert ended.returncode == 0 and "resuming at step 24 of 24" in ended.stdout
  assert not ended.stderr
  form = json.loads((folder / "of moved data" / "experiment.json").read_text())
  assert form["experiment"]["data"]["train"]["data_dir"] == f"{folder}/moved"
  assert form["fingerprints"]["train"]["images"] == 24
  other = command("train", *options, *moved, "--set=data.train.split=eval")
  assert other.returncode == 1 and other.stderr.count("\n") == 1
  assert "data.train.split: 'train' there, 'eval' asked for" in other.stderr
  assert "what is there is not the same (24 images until now, 6 now" in other.stderr


def test_help_lists_the_options_that_commands_share():
  shown = command("evaluate", "--help").stdout
  assert all(f"--{name}:" in shown for name in ("workdir", "checkpoint", "experiment", "set", "outdir"))


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_training_killed_and_started_again_ends_as_one_that_was_not(undisturbed, how):
  folder, workdir = undisturbed, f"killed_by_{how.name}"
  process = start_training(folder, workdir)
  log = folder / workdir / "metrics.jsonl"
  deadline = time.time() + 240
  while time.time() < deadline and not (log.exists() and len(log.read_text().splitlines()) >= 9):
    time.sleep(0.01)
  process.send_signal(how)
  process.communicate(timeout=60)
  assert process.returncode != 0 and len(log.read_text().splitlines()) < 24
  assert "resuming at step" in finish(start_training(folder, workdir))
  assert rows(folder / workdir, "train") == rows(folder / "whole", "train")
  assert rows(folder / workdir, "eval") == rows(folder / "whole", "eval")
  detections = [(folder / name / "eval" / "24" / "detections.json").read_text() for name in (workdir, "whole")]
  assert detections[0] == detections[1]

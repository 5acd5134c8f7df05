"""Task files for SkyPilot: what is in them, that its own parser takes them, and what is said where it is absent."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

from rcnn_jax.sweeping import skypilot
from rcnn_jax.sweeping.resources import Resources
from rcnn_jax.sweeping.trials import SweepError

ROOT = pathlib.Path(__file__).parents[1]
UNITS = (("nms_iou=0.3/seed=0",), ("trained/seed=1", "nms_iou=0.3/seed=1"))
RESOURCES = Resources(
  accelerators="tpu-v6e-8", infra="gcp", bucket="gs://lab/sweeps", cpus=8, mounts=(("/data/coco", "gs://coco"),)
)


def parsed(paths: list[pathlib.Path], home: pathlib.Path) -> list[dict]:
  """What SkyPilot's parser makes of task files; skips where there is no SkyPilot."""
  if importlib.util.find_spec("sky"):
    python = sys.executable
  elif shutil.which("sky"):
    python = pathlib.Path(shutil.which("sky")).read_text().splitlines()[0].removeprefix("#!")
  else:
    pytest.skip("there is no SkyPilot here: pip install skypilot, in an environment of its own whose bin is in PATH")
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HOME": str(home)}
  command = [python, str(ROOT / "tests" / "parse_skypilot.py"), *map(str, paths)]
  ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
  assert ended.returncode == 0, ended.stderr
  return json.loads(ended.stdout.splitlines()[-1])


def test_a_task_runs_its_unit_of_trials_on_spot_machines_and_keeps_them_in_the_bucket():
  tasks = skypilot.tasks(UNITS, ["--sweep=nms"], "nms", RESOURCES)
  assert list(tasks) == ["nms-nms-iou-0-3-seed-0.yaml", "nms-trained-seed-1.yaml"]
  assert yaml.safe_load(tasks["nms-trained-seed-1.yaml"]) == {
    "name": "nms-trained-seed-1",
    "workdir": ".",
    "resources": {
      "accelerators": "tpu-v6e-8",
      "infra": "gcp",
      "use_spot": True,
      "cpus": "8+",
      "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]},
    },
    "file_mounts": {"/sweep": {"source": "gs://lab", "mode": "MOUNT_CACHED"}, "/data/coco": "gs://coco"},
    "setup": "pip install --constraint constraints.txt --editable .\n"
    "pip install --constraint constraints.txt 'jax[tpu]'\n",
    "run": "set -e\n"
    "python -m launch.sweep --sweep=nms --workdir=/sweep/sweeps/nms --trial=trained/seed=1 --distributed\n"
    "python -m launch.sweep --sweep=nms --workdir=/sweep/sweeps/nms --trial=nms_iou=0.3/seed=1 --distributed\n",
  }


def test_skypilot_takes_the_tasks_of_tpus_and_gpus(tmp_path):
  gpus = Resources(accelerators="A100:8", bucket="s3://lab", spot=False)
  files = skypilot.tasks(UNITS, ["--sweep=nms"], "tpu", RESOURCES) | skypilot.tasks(UNITS, [], "gpu", gpus)
  first, second, third, _ = parsed(skypilot.write(files, tmp_path), tmp_path)
  assert first["accelerators"] == second["accelerators"] == [{"tpu-v6e-8": 1}]
  assert first["spot"] == [True] and first["recovery"][0]["recover_on_exit_codes"] == [75]
  assert first["mounts"] == {"/sweep": "MOUNT_CACHED"}
  assert third["accelerators"] == [{"A100": 8}] and third["spot"] == [False]
  assert "--distributed" in first["run"] and "--distributed" not in third["run"]


@pytest.mark.parametrize(
  "resources, said",
  [
    (Resources(accelerators="A100:1"), "resources.bucket is not given: expected gs://NAME or s3://NAME"),
    (Resources(accelerators="A100:1", bucket="lab"), "resources.bucket is lab: expected gs://NAME"),
    (Resources(accelerators="A100:1", bucket="gs://lab", nodes=2), "resources.nodes is 2: with SkyPilot a trial has"),
    (Resources(bucket="gs://lab"), "resources.accelerators is not given: e.g. --resource=accelerators=A100:1"),
  ],
)
def test_what_a_task_cannot_do_without(resources, said):
  with pytest.raises(SweepError, match=said):
    skypilot.tasks(UNITS, [], "nms", resources)


@pytest.mark.parametrize(
  "script, said",
  [
    (None, "there is no `sky` here: pip install 'skypilot\\[gcp\\]'; the task files are written: "),
    (
      "echo 'No cloud access is set up. SkyPilot will not be able to do much.'",
      "no cloud has credentials here, see `sky",
    ),
    ("if [ $1 = jobs ]; then echo 'ValueError: no such region' >&2; exit 1; fi", "nms.yaml: ValueError: no such re"),
  ],
)
def test_without_skypilot_or_credentials_one_line_says_so(tmp_path, monkeypatch, script, said):
  monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if script else str(tmp_path))
  if script:
    (tmp_path / "sky").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "sky").chmod(0o755)
  with pytest.raises(SweepError, match=f"--executor=skypilot: {said}"):
    skypilot.launch(skypilot.write({"nms.yaml": "name: nms\n"}, tmp_path / "out"))

"""Sweeps on SLURM: what is asked of it, what is said where it is absent, and a sweep on a real one, here."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny

from rcnn_jax.sweep import Sweep
from rcnn_jax.sweeping import slurm, trials
from rcnn_jax.sweeping import status as statuses
from rcnn_jax.sweeping.resources import Resources
from rcnn_jax.sweeping.trials import SweepError

ROOT = pathlib.Path(__file__).parents[1]
HAS_SUBMITIT = importlib.util.find_spec("submitit") is not None


def test_resources_become_options_of_sbatch():
  whole = Resources(
    cpus=8, memory_gb=30.5, gpus=2, nodes=4, hours=1.5, partition="a100", account="lab", slurm=(("qos", "long"),)
  )
  assert slurm.parameters("sweep", whole, 5) == {
    "job_name": "sweep",
    "time": 90,
    "nodes": 4,
    "ntasks_per_node": 1,
    "cpus_per_task": 8,
    "gpus_per_node": 2,
    "mem": "31232M",
    "partition": "a100",
    "account": "lab",
    "signal_delay_s": 120,
    "array_parallelism": 5,
    "stderr_to_stdout": True,
    "additional_parameters": {"requeue": True, "qos": "long"},
  }
  assert slurm.parameters("sweep", Resources(), 1).keys().isdisjoint({"cpus_per_task", "gpus_per_node", "mem"})


def test_without_slurm_or_submitit_one_line_says_so(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(SweepError, match="--executor=slurm: there is no sbatch on this machine; start it where"):
    slurm.check()
  for name in ("sbatch", "srun"):
    (tmp_path / name).write_text("#!/bin/sh\n")
    (tmp_path / name).chmod(0o755)
  monkeypatch.setitem(sys.modules, "submitit", None)
  with pytest.raises(SweepError, match=r"--executor=slurm needs submitit: pip install 'rcnn-jax\[slurm\]'"):
    slurm.check()


@pytest.mark.skipif(not HAS_SUBMITIT, reason="submitit is not installed: pip install 'rcnn-jax[slurm]'")
def test_what_sbatch_refuses_is_one_line(tmp_path, monkeypatch):
  (tmp_path / "srun").write_text("#!/bin/sh\n")
  refusal = "echo 'sbatch: error: invalid partition specified: gone' >&2\necho 'sbatch: error: Batch job submission "
  (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{refusal}failed: Invalid partition name specified' >&2\nexit 1\n")
  for name in ("sbatch", "srun"):
    (tmp_path / name).chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
  sweep = Sweep(tiny.experiment(), {}, seeds=(0, 1))
  message = "--executor=slurm: sbatch: error: Batch job submission failed: Invalid partition name specified"
  with pytest.raises(SweepError, match=f"^{re.escape(message)}$"):
    slurm.submit(sweep.units(), lambda name: ["true"], tmp_path / "out", "sweep", Resources(), 2)
  assert not (tmp_path / "out" / "slurm.json").exists()


def test_the_queue_says_which_trials_it_has(tmp_path, monkeypatch):
  trials.write_json(tmp_path / "slurm.json", {"a": "7_0", "b": "7_1", "c": "7_2", "d": "6"})
  (tmp_path / "squeue").write_text("#!/bin/sh\necho '7_0 RUNNING'\necho '7_1 PENDING'\necho '9 RUNNING'\n")
  (tmp_path / "squeue").chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
  assert slurm.jobs(tmp_path) == {"a": "running", "b": "queued"}


# ------------------------------------------------------------------------------------------------ a real one, here

SWEPT = """
from rcnn_jax.experiment import Checkpoints
from rcnn_jax.models.pooling import RoiMaxPool
from rcnn_jax.sweep import Sweep
from rcnn_jax.sweeping.resources import Resources
from tests.small_experiment import on_shapes
base = on_shapes({data!r}, steps=60, checkpoints=Checkpoints(every_steps=5))
axes = {{"roi_op": {{"align": {{}}, "max_pool": {{"model.pool": RoiMaxPool(3)}}}}}}
sweep = Sweep(base, axes, seeds=(0, 1, 2), resources=Resources(cpus=1, hours=1.0))
"""


@pytest.fixture
def cluster(tmp_path):
  """The environment in which a SLURM of this machine alone is found."""
  absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=SBIN)]
  if absent:
    pytest.skip(f"no {', '.join(absent)} here: apt-get install slurm-wlm munge")
  if not HAS_SUBMITIT:
    pytest.skip("submitit is not installed: pip install 'rcnn-jax[slurm]'")
  if os.geteuid() != 0:
    pytest.skip("SLURM's daemons are started by root alone")
  folder = tmp_path / "slurm"
  try:
    subprocess.run([ROOT / "tests" / "slurm.sh", "start", folder, "2"], check=True)
    yield os.environ | {
      "SLURM_CONF": str(folder / "slurm.conf"),
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "",
      "PYTHONPATH": str(ROOT),
      "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
    }
  finally:
    subprocess.run([ROOT / "tests" / "slurm.sh", "stop", folder], check=False)


SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def until(condition, what: str, seconds: float = 900.0) -> None:
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, f"waited in vain for: {what}"
    time.sleep(0.2)


@pytest.mark.long
def test_a_sweep_in_which_one_trial_is_killed_one_preempted_and_one_fails(cluster, tmp_path):
  (tmp_path / "swept.py").write_text(SWEPT.format(data=str(tmp_path / "data")))
  out = tmp_path / "out"
  killed, preempted, failing = (out / name for name in ("roi_op=align/seed=0", "roi_op=align/seed=1", FAILING))
  failing.mkdir(parents=True)
  (failing / "checkpoints").write_text("a file in the place of a folder")
  line = [
    sys.executable,
    "-m",
    "launch.sweep",
    f"--sweep={tmp_path}/swept.py",
    f"--workdir={out}",
    "--executor=slurm",
  ]
  sweep = subprocess.Popen(
    [*line, "--follow"], cwd=ROOT, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  until(lambda: has_checkpoint(killed), "a checkpoint of the trial that is to be killed")
  os.kill(statuses.read(killed).pid, signal.SIGKILL)
  until(lambda: has_checkpoint(preempted), "a checkpoint of the trial that is to be preempted")
  job = json.loads((out / "slurm.json").read_text())["roi_op=align/seed=1"]
  subprocess.run(["scontrol", "requeue", job], env=cluster, check=True)  # as a preempting job does
  said, errors = sweep.communicate(timeout=1800)
  assert sweep.returncode == 1, errors
  assert errors.count("\n") == 1 and f"1 of 6 failed: {FAILING} ({failing}/checkpoints" in errors, errors
  assert "submitted as job" in said and "6 trials: " in said and "5 finished" in said, said
  for folder in (killed, preempted):
    assert statuses.read(folder).attempts == 2
    assert "resuming at step" in (folder / "output.log").read_text()
  assert re.search(r"roi_op=align +0\.\d{4} ± .* 3\n", said), said
  # Started again, it runs the failed trial alone.
  (failing / "checkpoints").unlink()
  again = subprocess.run([*line, "--follow"], cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=1800)
  assert again.returncode == 0, again.stderr
  assert re.search(r"submitted as job \d+: 1 of 6", again.stdout) and "6 trials: 6 finished" in again.stdout


@pytest.mark.long
def test_slurm_takes_the_recipe_of_several_nodes(cluster):
  recipe = ROOT / "launch" / "recipes" / "train.sbatch"
  asked = ["sbatch", "--test-only", "--nodes=1", recipe, "demo", "runs/demo"]
  ended = subprocess.run(asked, env=cluster, capture_output=True, text=True, timeout=60)
  assert ended.returncode == 0 and "to start at" in ended.stderr, ended.stderr
  ended = subprocess.run(["sbatch", "--test-only", "--nodes=9", recipe], env=cluster, capture_output=True, text=True)
  assert ended.returncode != 0  # this cluster has one node


FAILING = "roi_op=max_pool/seed=2"


def has_checkpoint(folder: pathlib.Path) -> bool:
  found = (folder / "checkpoints").glob("[0-9]*")
  return any(path.name.isdigit() for path in found) and statuses.read(folder).state == "running"

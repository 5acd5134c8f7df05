"""Trials on clouds, through SkyPilot: a task file for each, run as a managed job that survives its spot machine.

On the machine the project lies in the working directory and the bucket of the sweep under BUCKET; a trial that starts
anew on another machine finds its checkpoints there. https://docs.skypilot.co/en/latest/reference/yaml-spec.html
"""

from __future__ import annotations

import pathlib
import re
import shlex
import shutil
import subprocess
from typing import Any

import yaml

from rcnn_jax.files import write_text
from rcnn_jax.sweeping.resources import Resources
from rcnn_jax.sweeping.trials import SweepError, Units

BUCKET = "/sweep"
CHECK_S = 300


def tasks(units: Units, options: list[str], sweep: str, resources: Resources) -> dict[str, str]:
  """File name -> text of the task of each unit of trials.

  Args:
    units: what is to be done.
    options: of launch.sweep, that all trials share.
    sweep: the sweep's name.
    resources: of each trial.

  Raises:
    SweepError: no bucket, or no accelerators, are given, or several machines, whose processes would not find each
      other.
  """
  if not resources.bucket or not re.fullmatch(r"(gs|s3|r2|cos|nebius|https)://[^/]+(/.*)?", resources.bucket):
    said = resources.bucket or "not given"
    raise SweepError(f"resources.bucket is {said}: expected gs://NAME or s3://NAME, where SkyPilot keeps the trials")
  if not resources.accelerators:
    raise SweepError("resources.accelerators is not given: e.g. --resource=accelerators=A100:1, or tpu-v5e-8")
  if resources.nodes > 1:
    recipe = "a TPU slice is one node; launch/recipes/skypilot.yaml trains on several machines"
    raise SweepError(f"resources.nodes is {resources.nodes}: with SkyPilot a trial has one ({recipe})")
  return {f"{_name(sweep, unit)}.yaml": _text(_task(unit, options, sweep, resources)) for unit in units}


def _task(unit: tuple[str, ...], options: list[str], sweep: str, resources: Resources) -> dict[str, Any]:
  store, path = re.fullmatch(r"(\w+://[^/]+)/?(.*)", resources.bucket).groups()
  folder = "/".join(filter(None, (BUCKET, path, sweep)))
  distributed = ["--distributed"] if _is_tpu(resources) else []  # all hosts of a slice run the command
  commands = [
    shlex.join(["python", "-m", "launch.sweep", *options, f"--workdir={folder}", f"--trial={name}", *distributed])
    for name in unit
  ]
  machine = {
    "accelerators": resources.accelerators,
    "infra": resources.infra,
    "use_spot": resources.spot,
    "cpus": resources.cpus and f"{resources.cpus}+",
    "memory": resources.memory_gb and f"{resources.memory_gb:g}+",
    # A trial that was told to stop has saved, and is started again on another machine.
    "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]},
  }
  kind = "tpu" if _is_tpu(resources) else "cuda13"
  return {
    "name": _name(sweep, unit),
    "workdir": ".",
    "resources": {key: value for key, value in machine.items() if value is not None},
    "file_mounts": {BUCKET: {"source": store, "mode": "MOUNT_CACHED"}} | dict(resources.mounts),
    "setup": f"{resources.setup}\npip install --constraint constraints.txt 'jax[{kind}]'\n",
    "run": "set -e\n" + "\n".join(commands) + "\n",
  }


def _is_tpu(resources: Resources) -> bool:
  return resources.accelerators.lower().startswith("tpu")


def _name(sweep: str, unit: tuple[str, ...]) -> str:
  """A name that SkyPilot takes, e.g. 'nms-iou-bccd-nms-iou-0-3-seed-0'."""
  return re.sub(r"[^a-z0-9]+", "-", f"{sweep}-{unit[0]}".lower()).strip("-")


def _text(task: dict[str, Any]) -> str:
  """A task as YAML, its scripts line by line."""

  class Lines(yaml.SafeDumper):
    pass

  def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

  Lines.add_representer(str, text)
  return yaml.dump(task, Dumper=Lines, sort_keys=False, width=1000)


def write(files: dict[str, str], folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes task files into a folder; returns their paths."""
  for name, text in files.items():
    write_text(folder / name, text)
  return [folder / name for name in files]


def launch(paths: list[pathlib.Path]) -> None:
  """Hands task files to SkyPilot as managed jobs, of which each takes care of itself from then on.

  Raises:
    SweepError: SkyPilot is not there, has no credentials, or refuses a task.
  """
  written = f"the task files are written: {paths[0].parent}"
  if shutil.which("sky") is None:
    raise SweepError(f"--executor=skypilot: there is no `sky` here: pip install 'skypilot[gcp]'; {written}")
  print("sky check: which clouds have credentials here", flush=True)
  try:
    checked = subprocess.run(["sky", "check"], capture_output=True, text=True, check=False, timeout=CHECK_S)
  except subprocess.TimeoutExpired as error:
    raise SweepError(f"--executor=skypilot: `sky check` gives no answer in {CHECK_S} s; {written}") from error
  if checked.returncode or re.search(r"No (cloud|infra) (access|is enabled)", checked.stdout + checked.stderr):
    raise SweepError(f"--executor=skypilot: no cloud has credentials here, see `sky check`; {written}")
  for path in paths:
    done = subprocess.run(
      ["sky", "jobs", "launch", "--yes", "--detach-run", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
      lines = (done.stderr or done.stdout).strip().splitlines() or ["it gives no reason"]
      raise SweepError(f"--executor=skypilot: {path.name}: {lines[-1]}; {written}")
    print(f"{path.stem}: submitted", flush=True)

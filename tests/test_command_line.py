"""`rcnn-jax NAME` is `python -m launch.NAME`, for every command."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from launch.__main__ import commands

ROOT = pathlib.Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, "-m", "launch", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_every_command_is_known():
  page = (ROOT / "docs" / "commands.md").read_text()
  assert {"train", "evaluate", "predict", "sweep"} < set(commands())
  for name in set(commands()) - {"repeat_step"}:  # which a dump of a failed step names itself
    assert f"`{name} " in page, name


def test_a_command_is_run_by_its_name():
  ended = run("validate_data", "--no_such_flag=1")
  assert ended.returncode != 0 and "no_such_flag" in ended.stderr


def test_an_unknown_command_names_the_nearest():
  ended = run("trian")
  assert ended.returncode != 0 and "no command 'trian'; nearest: train" in ended.stderr
  assert run("--help").returncode == 0 and "train\n" in run("--help").stdout

"""Compiled programs are kept from one start of a command to the next."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = """
from launch import flags as launch_flags  # first, as in every command
import jax

def main(argv):
  events = []
  jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.jit(lambda x: x * 2 + 1)(3.0)
  print(sum(name.endswith("cache_hits") for name in events), jax.config.jax_compilation_cache_max_size)

launch_flags.run(main, lambda: None)
"""


def start(folder: pathlib.Path, *options: str, **environment: str) -> str:
  """What a command that compiles a program says: how many it found, and the bound on their bytes."""
  kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XDG_", "RCNN_JAX"))}
  # As a Python program with JAX leaves it.
  kept |= {"TF_CPP_MIN_LOG_LEVEL": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | environment
  path = folder / "command.py"
  path.write_text(COMMAND)
  words = [sys.executable, str(path), *options]
  ended = subprocess.run(words, cwd=folder, env=kept, capture_output=True, text=True, timeout=60)
  assert ended.returncode == 0, ended.stderr
  return ended.stdout + ended.stderr


def programs(folder: pathlib.Path) -> list[pathlib.Path]:
  return [path.relative_to(folder) for path in folder.rglob("*-cache")]


def test_a_program_is_found_again_in_the_users_cache_folder_and_a_cut_one_is_not_in_the_way(tmp_path):
  home = {"XDG_CACHE_HOME": str(tmp_path / "home")}
  assert start(tmp_path, **home) == f"0 {4 * 2**30}\n"
  (found,) = {path.parent for path in programs(tmp_path)}
  assert found.parts[:3] == ("home", "rcnn_jax", "compiled")
  cut = tmp_path / found / "jit_cut-cache"  # as a kill leaves it: without its time of use
  cut.write_bytes(b"half")
  assert start(tmp_path, **home) == f"1 {4 * 2**30}\n" and not cut.exists()


@pytest.mark.parametrize(
  ("options", "environment", "folder"),
  [
    (("--compilation_cache=a/b",), {"JAX_COMPILATION_CACHE_DIR": "theirs"}, "a/b"),
    ((), {"JAX_COMPILATION_CACHE_DIR": "theirs"}, "theirs"),
  ],
)
def test_the_users_own_folder_wins_and_has_no_bound(tmp_path, options, environment, folder):
  assert start(tmp_path, *options, **environment) == "0 -1\n"
  assert {str(path.parent) for path in programs(tmp_path)} == {folder}


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
  (tmp_path / "file").write_text("")
  said = start(tmp_path, XDG_CACHE_HOME=str(tmp_path / "file"))
  assert "0 -1\n" in said and said.count("\n") == 2
  assert f"warning: {tmp_path}/file/rcnn_jax/compiled/" in said and "not a directory: compiled programs are" in said

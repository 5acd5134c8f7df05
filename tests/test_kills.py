"""Thirty kills of real trainings, over all their stages: each ends with the metrics of one that nothing disturbed.

By SIGKILL, by SIGTERM, and by a disk that is full: a limit on the size of files, set from outside in the midst of it.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from test_voc import write_squares

from launch import ending

ROOT = pathlib.Path(__file__).parents[1]
SHARED = """
import dataclasses
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.selective_search import SelectiveSearch
from rcnn_jax.data.transforms import Resize
from rcnn_jax.data.voc import VocFolder
from rcnn_jax.experiment import Checkpoints, Evaluation, Experiment
from rcnn_jax.training.optim import Cosine
from rcnn_jax.training.stages import FitBoxRegression, FitSvms, Sgd
from tests.small_detector import RCNN, small_detector

data = Data(VocFolder("voc", "train"), VocFolder("voc", "val"), Resize((48,), 64), ((48, 64),), batch_size=(2, 2))
found = dataclasses.replace(data, proposals=("proposals/train", "proposals/eval"), num_proposals=(30, 20),
  search=SelectiveSearch(width=None, base_k=50, min_side=4.0))
stage = Sgd(steps=60, schedule=Cosine(0.01), ema=0.5)
settings = dict(evaluation=Evaluation(every_steps=20, pictures=1), checkpoints=Checkpoints(every_steps=3))
fits = (dataclasses.replace(stage, steps=6), FitSvms(), FitBoxRegression())
"""
DETECTOR = (
  'experiment = Experiment("detector", dataclasses.replace(data, workers=1), small_detector(num_classes=None),'
  " (stage,), **settings)\n"
)
RCNN = 'experiment = Experiment("rcnn", found, RCNN.clone(num_classes=None), fits, **settings)\n'
COMMANDS = {
  "detector": [["train", "--workdir={run}", "--log_every=1"]],
  "rcnn": [["prepare_data"], ["train", "--workdir={run}", "--log_every=1"]],
}
CLOCK = ("images_per_s", "data_wait", "seconds", "features_seconds")


class Command:
  """A command in a session of its own, and what it has said so far."""

  def __init__(self, folder: pathlib.Path, name: str, words: list[str], run: str):
    self.run = folder / run
    home = str(folder / "home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": home}
    self.mark = f"{folder}/{run}"
    environment |= {"KILLED_IN": self.mark}
    options = [word.format(run=self.run) for word in words[1:]]
    command = [sys.executable, "-m", f"launch.{words[0]}", f"--experiment={folder}/{name}.py", *options]
    self.process = subprocess.Popen(
      command,
      cwd=folder,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      start_new_session=True,
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it for what it puts behind
    )
    self.said, self.errors = b"", b""
    self._readers = [threading.Thread(target=self._read, args=(which,)) for which in ("stdout", "stderr")]
    for reader in self._readers:
      reader.start()

  def _read(self, which: str) -> None:
    stream, name = getattr(self.process, which), "said" if which == "stdout" else "errors"
    while chunk := os.read(stream.fileno(), 65536):
      setattr(self, name, getattr(self, name) + chunk)

  def lines(self) -> list[str]:
    """What it has said of errors; a bar of progress is none."""
    text = re.sub(r"[^\n\r]*(image/s|s/image)\]", "", self.errors.decode())
    return [line for line in re.split(r"[\n\r]", text) if line.strip()]

  def running(self) -> bool:
    return self.process.poll() is None

  def end(self, timeout: float = 1800) -> int:
    """Its exit status; nothing that it started is left."""
    status = self.process.wait(timeout)
    for reader in self._readers:
      reader.join(60)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and self._left():
      time.sleep(0.1)
    assert self._left() == [], "processes are left"
    return status

  def _left(self) -> list[str]:
    return [str(place) for place in self.places()]

  def places(self) -> list[pathlib.Path]:
    """/proc/NUMBER of each of its processes."""
    found = []
    for place in pathlib.Path("/proc").glob("[0-9]*"):
      try:
        if f"KILLED_IN={self.mark}\0".encode() in (place / "environ").read_bytes():
          found.append(place)
      except OSError:
        continue
    return found


def said(text: str) -> Callable[[Command], bool]:
  return lambda command: text.encode() in command.said


def there(pattern: str) -> Callable[[Command], bool]:
  return lambda command: any(command.run.glob(pattern)) or any(command.run.parent.glob(pattern))


# A stage -> how it is known that it has begun, and how many seconds it lasts at most.
STAGES = {
  "detector": {
    "start": (lambda command: True, 4.0),
    "compiling": (said("stage 1 of 1"), 4.0),
    "step": (said("step "), 0.5),
    "checkpoint": (there("checkpoints/*tmp*"), 0.05),
    "evaluation": (there("checkpoints/20"), 2.0),
  },
  "rcnn": {
    "proposals": (there("proposals/*unfinished*"), 1.0),
    "step": (said("stage 1 of 3"), 4.0),
    "features": (there("features/settings.json"), 1.0),
    "SVMs": (said("SVMs, round 1"), 0.5),
    "box regression": (said("stage 3 of 3"), 1.0),
  },
}


def kill(command: Command, how: str) -> None:
  if how == "full disk":
    resource.prlimit(command.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
  else:
    os.kill(command.process.pid, signal.Signals[how])


def disturbed(folder: pathlib.Path, name: str, run: str, stage: str, how: str, draw: random.Random) -> None:
  """Runs the commands until the stage has begun, and a random time longer; then ends them."""
  begun, seconds = STAGES[name][stage]
  for words in COMMANDS[name]:
    command = Command(folder, name, words, run)
    while command.running() and not begun(command):
      time.sleep(0.005)
    if command.running():
      time.sleep(draw.uniform(0, seconds))
      kill(command, how)
      status = command.end()
      told = command.lines()
      print(f"{name}, {stage}, {how}: status {status}; {told}")
      if how == "SIGKILL":
        assert status == -signal.SIGKILL or status == 0, told
      elif status == -signal.SIGTERM:  # before it had begun, or in a preparation
        assert how == "SIGTERM" and (stage == "proposals" or (stage == "start" and not told)), told
      elif status:
        assert len(told) == 1 and status == {"SIGTERM": os.EX_TEMPFAIL, "full disk": 1}[how], told
      return
    assert command.end() == 0, command.lines()
  pytest.fail(f"{stage} was over before it was seen")


def finished(folder: pathlib.Path, name: str, run: str) -> dict[str, object]:
  """What the commands have found once they are done: rows of the log, detections, proposals."""
  for words in COMMANDS[name]:
    command = Command(folder, name, words, run)
    assert command.end() == 0 and not command.lines(), command.lines()
  lines = (folder / run / "metrics.jsonl").read_text().splitlines()
  rows = [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]
  detections = {path.parent.name: path.read_bytes() for path in sorted((folder / run).glob("eval/*/detections.json"))}
  return {"rows": rows, "detections": detections}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("kills")
  write_squares(folder / "voc")
  for name, text in (("detector", DETECTOR), ("rcnn", RCNN)):
    (folder / f"{name}.py").write_text(SHARED + text)
  return folder


@pytest.fixture(scope="module")
def whole(folder) -> Callable[[str], dict]:
  """What an experiment finds that nothing disturbs."""
  return functools.cache(lambda name: finished(folder, name, f"{name}_whole"))


@pytest.mark.long
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "full disk"])
@pytest.mark.parametrize("name", list(STAGES))
def test_a_training_that_is_ended_in_every_stage_finds_what_one_does_that_is_not(whole, folder, name, how):
  run, draw = f"{name}_{how.replace(' ', '_')}", random.Random(f"{name} {how}")
  expected = whole(name)
  if (folder / "proposals").exists():  # to be found again
    os.rename(folder / "proposals", folder / f"proposals_{time.monotonic()}")
  for stage in STAGES[name]:
    disturbed(folder, name, run, stage, how, draw)
  found = finished(folder, name, run)
  assert found["rows"] == expected["rows"]
  assert found["detections"] == expected["detections"]


@pytest.mark.long
@pytest.mark.parametrize("stage", ["compiling", "step"])
def test_ctrl_c_ends_everything_within_seconds_and_leaves_no_process(folder, stage):
  (words,) = COMMANDS["detector"]
  command = Command(folder, "detector", words, f"interrupted_{stage}")
  begun, _ = STAGES["detector"][stage]
  while not begun(command):
    assert command.running(), command.lines()
    time.sleep(0.005)
  os.killpg(command.process.pid, signal.SIGINT)
  began = time.monotonic()
  assert command.end() == 130 and time.monotonic() - began < ending.PATIENCE_S + 5
  assert command.lines() in (["interrupted"], [])

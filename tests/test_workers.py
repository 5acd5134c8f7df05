"""Worker processes of the loader: the same batches, and none is left behind, however the command ends."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from absl import flags
from test_loader import assert_same, data, take, train

from rcnn_jax.data.errors import DataError
from rcnn_jax.data.transforms import ColorJitter

ROOT = pathlib.Path(__file__).parents[1]
# A command that trains without a model: it waits between its batches as one does.
COMMAND = """
import os, sys, time
from absl import app

def main(argv):
  from tests.test_loader import data, train
  batches = train(data(workers=2), num_steps=10**6)
  try:
    for batch in batches:
      print("batch", flush=True)
      time.sleep(0.05)
  finally:
    batches.close()

if __name__ == "__main__":
  app.run(main)
"""


@pytest.fixture(autouse=True, scope="module")
def parsed_flags() -> None:
  """grain's worker processes are started with absl's flags."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def in_session(session: int) -> list[int]:
  """The processes of a session that are alive."""
  found = []
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      state, *_, sid = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:  # it has just ended
      continue
    if int(sid) == session and state != "Z":
      found.append(int(folder.name))
  return found


@pytest.fixture
def command(tmp_path):
  """A command that has given out a batch, with its workers, in a session of its own."""
  script = tmp_path / "command.py"
  script.write_text(COMMAND)
  environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
  started = subprocess.Popen(
    [sys.executable, str(script)],
    stdout=subprocess.PIPE,
    stderr=(tmp_path / "stderr").open("w"),
    env=environment,
    cwd=ROOT,
    text=True,
    start_new_session=True,
  )
  yield started
  for process in in_session(started.pid):
    os.kill(process, signal.SIGKILL)


def wait_until_alone(session: int, seconds: float) -> list[int]:
  """The processes that are left after at most so many seconds."""
  until = time.monotonic() + seconds
  while in_session(session) and time.monotonic() < until:
    time.sleep(0.1)
  return in_session(session)


needs_proc = pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="there is no /proc to look in")


def ended(command, how: signal.Signals, group: bool) -> bool:
  """Whether the command ends of a signal within some seconds; JAX's garbage collection swallows a Ctrl-C at times."""
  for _ in range(3):
    (os.killpg if group else os.kill)(command.pid, how)
    try:
      return command.wait(timeout=10) != 0
    except subprocess.TimeoutExpired:
      pass
  return False


@needs_proc
@pytest.mark.parametrize(
  "how, group", [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGTERM, False), (signal.SIGKILL, False)]
)
def test_no_process_is_left(command, tmp_path, how, group):
  """Of a command that gets a signal, alone or with all its processes as from a terminal or a cluster's scheduler."""
  assert command.stdout.readline() == "batch\n"
  assert len(in_session(command.pid)) >= 3  # itself and two workers
  assert ended(command, how, group)
  assert wait_until_alone(command.pid, 10) == []
  assert "spawn_main" not in (tmp_path / "stderr").read_text()  # no worker's traceback


@needs_proc
def test_ctrl_c_while_workers_start_leaves_none_and_no_traceback_of_theirs(command, tmp_path):
  until = time.monotonic() + 60
  while len(in_session(command.pid)) < 4 and time.monotonic() < until:  # itself, two workers, their memory's tracker
    time.sleep(0.02)
  assert ended(command, signal.SIGINT, group=True)
  assert wait_until_alone(command.pid, 10) == []
  assert "spawn_main" not in (tmp_path / "stderr").read_text()


# ---- batches and errors -------------------------------------------------------------------------------------------


def test_batches_are_the_same_for_any_number_of_workers_and_threads():
  settings = data(augmentations=(ColorJitter(),), load_masks=True)
  expected = take(train(settings), 7)
  for values in ({"workers": 3}, {"read_threads": 1, "prefetch": 1}, {"read_threads": 4, "prefetch": 1}):
    batches = train(dataclasses.replace(settings, **values))
    for one, two in zip(expected, take(batches, 7), strict=True):
      assert_same(one, two)
    batches.close()


def test_a_worker_that_is_gone_is_told_in_a_line():
  batches = train(data(workers=1), num_steps=1000)
  next(batches)
  for process in multiprocessing.active_children():
    process.kill()
  with pytest.raises(DataError, match="a worker process of the loader is gone .*exit code -9"):
    take(batches, 100)
  batches.close()


def test_an_image_that_a_worker_cannot_read_is_one_line_of_the_command(tmp_path):
  script = tmp_path / "command.py"
  broken = COMMAND.replace("data(workers=2)", "data(train=Rectangles(broken=4), workers=2)")
  broken = broken.replace("import data, train", "import Rectangles, data, train").replace("app.run(main)", "run()")
  script.write_text(f"{broken[: broken.index('if __name__')]}{RUN}")
  environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
  ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=120)
  assert (ended.returncode, ended.stderr) == (1, "error: 4.png: not an image\n")


RUN = """
if __name__ == "__main__":
  from launch import flags
  flags.run(main, lambda: None)
"""


@pytest.mark.parametrize("name, value", [("workers", -1), ("read_threads", 0), ("prefetch", 0)])
def test_numbers_that_make_no_sense_are_refused(name, value):
  with pytest.raises(DataError, match=f"data.{name} is {value}"):
    train(data(**{name: value}))

"""The processes that encode masks: their answers, and that none is left behind, however the command ends."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rcnn_jax.evaluation.mask_workers import MaskWorkerError, MaskWorkers, default_workers
from rcnn_jax.evaluation.paste import run_lengths

ROOT = pathlib.Path(__file__).parents[1]
DRAW = np.random.default_rng(0)
MASKS = DRAW.random((7, 14, 14)).astype(np.float32)
BOXES = np.array([[3.0, 4.0, 30.0, 40.0]] * 7) + DRAW.random((7, 4))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_the_answers_come_in_the_order_of_the_questions(num_workers):
  with MaskWorkers(num_workers) as workers:
    asked = [workers.submit(MASKS[:n], BOXES[:n], (50 + n, 60), "exact") for n in range(8)]
    assert [one.result() for one in asked] == [run_lengths(MASKS[:n], BOXES[:n], (50 + n, 60)) for n in range(8)]


def test_no_process_is_started_without_a_mask():
  with MaskWorkers(2) as workers:
    assert workers.submit(MASKS[:0], BOXES[:0], (50, 60), "exact").result() == ()
    assert workers.processes == []


def test_there_is_a_worker_for_each_core_but_one():
  assert 1 <= default_workers() <= 8


def test_a_worker_that_is_killed_is_an_error_in_one_line():
  with MaskWorkers(1) as workers:
    workers.submit(MASKS, BOXES, (50, 60), "exact").result()
    workers.processes[0].kill()
    with pytest.raises(MaskWorkerError, match="a process that turns masks into run lengths ended with status -9"):
      workers.submit(MASKS, BOXES, (50, 60), "exact").result()


def test_closing_ends_the_workers_at_once_whatever_they_are_at():
  workers = MaskWorkers(2)
  many = np.repeat(MASKS, 500, axis=0), np.tile([0.0, 0.0, 2000.0, 2000.0], (3500, 1))
  for _ in range(4):
    workers.submit(*many, (2000, 2000), "exact")
  processes = workers.processes
  began = time.perf_counter()
  workers.close()
  assert time.perf_counter() - began < 5
  assert all(process.poll() is not None for process in processes)


COMMAND = """
import numpy as np, sys, time
from rcnn_jax.evaluation.mask_workers import MaskWorkers
with MaskWorkers(2) as workers:
  masks, boxes = np.ones((3, 14, 14), np.float32), np.tile([1.0, 2.0, 9.0, 9.0], (3, 1))
  for future in [workers.submit(masks, boxes, (20, 20), "exact") for _ in range(4)]:
    future.result()
  print(*(process.pid for process in workers.processes), flush=True)
  time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_workers_end_with_the_command(how):
  """On Ctrl-C, which reaches all processes of a terminal, and when the command alone is ended or killed."""
  command = subprocess.Popen(
    [sys.executable, "-c", COMMAND],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  workers = [int(number) for number in command.stdout.readline().split()]
  assert len(workers) == 2 and all(map(is_alive, workers))
  if how == signal.SIGINT:
    os.killpg(command.pid, how)
  else:
    command.send_signal(how)
  errors = command.communicate(timeout=20)[1]
  until = time.monotonic() + 10
  while any(map(is_alive, workers)) and time.monotonic() < until:
    time.sleep(0.05)
  assert not any(map(is_alive, workers))
  assert errors.count("Traceback") <= 1  # the command's own KeyboardInterrupt: the workers say nothing


def is_alive(process_id: int) -> bool:
  """Whether the process runs; one that has ended and that nobody has asked after does not."""
  try:
    status = pathlib.Path(f"/proc/{process_id}/stat").read_text()
  except FileNotFoundError:
    return False
  return status.rpartition(")")[2].split()[0] != "Z"

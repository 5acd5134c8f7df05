"""Processes that turn masks into run lengths while the device detects.

They are programs of their own (`python -m rcnn_jax.evaluation.mask_workers`) that import numpy alone: they start in a
tenth of a second and hold 30 MB, where a process of `multiprocessing` would load the command, JAX included. A worker
reads tasks from its standard input and ends when that ends: also when the command is killed.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import queue
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from rcnn_jax.evaluation import paste


class MaskWorkerError(RuntimeError):
  """A worker process ended before it answered."""


class MaskWorkers:
  """A pool; with 0 workers, masks are encoded where they are handed in."""

  def __init__(self, num_workers: int | None = None):
    """Starts nothing yet: `num_workers` (None: one for each core but one, at most 8) start with the first masks."""
    self._num_workers = default_workers() if num_workers is None else num_workers
    self._threads: ThreadPoolExecutor | None = None
    self._idle: queue.SimpleQueue = queue.SimpleQueue()
    self.processes: list[subprocess.Popen] = []

  def submit(self, masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], pasting: str) -> Future:
    """The run lengths of one image's masks, as `paste.run_lengths` gives them.

    The future raises MaskWorkerError where the worker was killed, by a want of memory, say.
    """
    if not self._num_workers or not len(masks):
      done = Future()
      done.set_result(paste.run_lengths(masks, boxes, size, pasting))
      return done
    if self._threads is None:
      self._start()
    return self._threads.submit(self._ask, (masks, boxes, size, pasting))

  def close(self) -> None:
    """Ends the workers, whatever they are at."""
    for process in self.processes:
      process.kill()
      process.wait()
    if self._threads is not None:
      self._threads.shutdown(cancel_futures=True)
    for process in self.processes:
      process.stdout.close()
      try:
        process.stdin.close()
      except BrokenPipeError:  # what was to be flushed has no reader any more
        pass
    self.processes, self._threads = [], None

  def __enter__(self) -> MaskWorkers:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _start(self) -> None:
    """One thread for each worker: it hands a task over and waits for the answer, so that no pipe runs full."""
    root = pathlib.Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    one_thread = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    for _ in range(self._num_workers):
      process = subprocess.Popen(
        [sys.executable, "-m", "rcnn_jax.evaluation.mask_workers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **one_thread, "PYTHONPATH": paths},
      )
      self.processes.append(process)
      self._idle.put(process)
    self._threads = ThreadPoolExecutor(self._num_workers, "masks")

  def _ask(self, task: tuple) -> tuple[bytes, ...]:
    process = self._idle.get()
    try:
      pickle.dump(task, process.stdin, pickle.HIGHEST_PROTOCOL)
      process.stdin.flush()
      return pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError) as error:
      status = process.wait()
      raise MaskWorkerError(f"a process that turns masks into run lengths ended with status {status}") from error
    finally:
      self._idle.put(process)


def default_workers() -> int:
  """One for each core that this process may use but one, which the detection loop needs; at least 1, at most 8."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  return min(max(cores - 1, 1), 8)


def _serve() -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the command ends us
  tasks, answers = sys.stdin.buffer, sys.stdout.buffer
  while True:
    try:
      task = pickle.load(tasks)
    except EOFError:
      return
    try:
      pickle.dump(paste.run_lengths(*task), answers)
      answers.flush()
    except BrokenPipeError:
      os._exit(0)  # the command is gone


if __name__ == "__main__":
  _serve()

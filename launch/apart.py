"""Commands in processes of their own, which the ladder and the sweeps train in: one that fails harms no other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

from rcnn_jax.training import preemption


class BusyError(RuntimeError):
  """A folder of runs that another process is at work on."""


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[IO]:
  """The lock on a folder of runs, which a process that works on it holds. Raises BusyError where another one does."""
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / "lock", "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise BusyError(f"{folder}: another process is at work on it") from error
    yield file


def run(lock: IO, command: str, *options: str) -> tuple[int, str]:
  """Runs `python -m launch.COMMAND OPTIONS`, its output shown as it comes; returns its exit status and last line.

  The process shares the lock, so that none begins beside it should this one be killed. Whatever ends this function
  early tells the process to stop, and waits until it has saved what it has.

  Raises:
    Stopped: upon SIGTERM or SIGUSR1.
  """
  words = [sys.executable, "-m", f"launch.{command}", *options]
  environment = os.environ | {"PYTHONUNBUFFERED": "1"}
  said = b""
  with preemption.stopping():
    process = subprocess.Popen(
      words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, pass_fds=(lock.fileno(),)
    )
    try:
      while chunk := os.read(process.stdout.fileno(), 65536):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        said = (said + chunk)[-65536:]
      status = process.wait()
    finally:
      process.terminate()
      process.communicate()
  lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
  return status, lines[-1] if lines else "no word"

"""What a trial says of itself while it runs and when it ends: `status.json` in its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import time
from collections.abc import Callable, Iterator

from rcnn_jax.files import FileError, read_json, write_json
from rcnn_jax.training.preemption import Stopped

PREEMPTED = (Stopped.exit_status, -signal.SIGTERM, -signal.SIGUSR1)  # exit statuses: told to stop, has saved
JOB = "SLURM_JOB_ID"


@dataclasses.dataclass(frozen=True)
class Status:
  """The last attempt at a trial."""

  state: str = "waiting"  # then running, and at its end finished, failed, preempted or interrupted
  reason: str = ""  # of a failure, in a line
  host: str = ""
  pid: int = 0
  job: str = ""  # SLURM's number of it
  attempts: int = 0
  num_steps: int | None = None  # of the whole training; None where nothing is trained
  began: float = 0.0  # seconds since 1970
  seconds: float = 0.0  # of all attempts that have ended with a word


def read(folder: pathlib.Path) -> Status:
  """The status of a trial; `waiting` where it has none that can be read."""
  try:
    return Status(**read_json(folder / "status.json"))
  except (OSError, FileError, TypeError):
    return Status()


def write(folder: pathlib.Path, status: Status) -> None:
  """Replaces the status of a trial."""
  write_json(folder / "status.json", dataclasses.asdict(status))


@contextlib.contextmanager
def recorded(
  folder: pathlib.Path, num_steps: Callable[[], int | None], reason_of: Callable[[BaseException], str]
) -> Iterator[None]:
  """Within, the trial is `running`; then it is what became of it, with the reason where that is an error.

  Args:
    folder: the trial's.
    num_steps: how long it is, asked once it is on its way.
    reason_of: an error in a line.
  """
  before = read(folder)
  began = time.time()
  status = dataclasses.replace(
    before,
    state="running",
    reason="",
    host=socket.gethostname(),
    pid=os.getpid(),
    job=os.environ.get(JOB, ""),
    attempts=before.attempts + 1,
    began=began,
  )
  write(folder, status)

  def end(state: str, reason: str = "") -> None:
    seconds = before.seconds + time.time() - began
    write(folder, dataclasses.replace(status, state=state, reason=reason, seconds=seconds))

  try:
    status = dataclasses.replace(status, num_steps=num_steps())
    write(folder, status)
    yield
  except BaseException as error:
    kinds = {Stopped: "preempted", KeyboardInterrupt: "interrupted"}
    end(kinds.get(type(error), "failed"), reason_of(error))
    raise
  end("finished")


def settle(folder: pathlib.Path, pid: int, exit_status: int, last_line: str) -> Status:
  """The status once the process of an attempt has ended; what it could not say itself is said for it."""
  status = read(folder)
  if status.pid == pid and status.state != "running":
    return status
  if exit_status in PREEMPTED:
    state, reason = "preempted", "told to stop"
  elif exit_status < 0:
    state, reason = "failed", f"killed by {signal.Signals(-exit_status).name}"
  else:
    state, reason = "failed", last_line.removeprefix("error: ")
  status = dataclasses.replace(status, state=state, reason=reason, pid=pid)
  write(folder, status)
  return status

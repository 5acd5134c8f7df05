"""One attempt at a trial: a process of its own that shares the claim, its output in `output.log`."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from rcnn_jax.sweeping import status as statuses
from rcnn_jax.sweeping.claim import claim
from rcnn_jax.sweeping.status import Status

TAIL = 65536  # bytes of output in which the last line is looked for


class Attempt:
  """A process at work on a trial."""

  def __init__(self, folder: pathlib.Path, process: subprocess.Popen, claimed: IO | None, begin: int):
    self.folder, self.process = folder, process
    self._claimed, self._shown = claimed, begin
    self._begin = begin

  def output(self) -> bytes:
    """What has been printed since this was last asked."""
    with open(self.folder / "output.log", "rb") as file:
      file.seek(self._shown)
      said = file.read()
    self._shown += len(said)
    return said

  def end(self) -> Status:
    """What became of the trial, once its process has ended; the claim is given up."""
    settled = statuses.settle(self.folder, self.process.pid, self.process.returncode, self._last_line())
    if self._claimed is not None:
      self._claimed.close()
    return settled

  def _last_line(self) -> str:
    path = self.folder / "output.log"
    with open(path, "rb") as file:
      file.seek(max(self._begin, path.stat().st_size - TAIL))
      lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a word"


def start(
  words: Sequence[str],
  folder: pathlib.Path,
  environment: Mapping[str, str] | None = None,
  cores: Sequence[int] = (),
  claims: bool = True,
  is_finished: Callable[[], bool] = lambda: False,
) -> Attempt | None:
  """Starts a command for a trial; None where another process is at work on it, or has finished it meanwhile.

  Args:
    words: the command, to which --claim=DESCRIPTOR is added: the trial is claimed already.
    folder: the trial's.
    environment: what is added to this process' own.
    cores: the numbers of those that the process may use; none: all.
    claims: whether the trial is claimed here; of several processes of one trial, the first one does.
    is_finished: asked once the trial is claimed.
  """
  claimed = claim(folder) if claims else None
  if claims and claimed is None:
    return None
  if is_finished():
    if claimed is not None:
      claimed.close()
    return None
  folder.mkdir(parents=True, exist_ok=True)
  shared = () if claimed is None else (claimed.fileno(),)
  with open(folder / "output.log", "ab") as output, _confined_to(cores):
    begin = output.tell()
    process = subprocess.Popen(
      [*words, f"--claim={shared[0] if shared else -1}"],
      stdin=subprocess.DEVNULL,
      stdout=output,
      stderr=subprocess.STDOUT,
      env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment or {}),
      pass_fds=shared,
    )
    return Attempt(folder, process, claimed, begin)


@contextlib.contextmanager
def _confined_to(cores: Sequence[int]) -> Iterator[None]:
  """Within, new processes run on these cores alone, and XLA has as many threads."""
  if not cores or not hasattr(os, "sched_setaffinity"):
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)

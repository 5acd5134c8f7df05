"""A trial belongs to one process at a time: workers on a shared folder take different ones.

The lock is the system's own (flock) on the file `claim` in the trial's folder. It goes with the processes that hold
it, however they end. On a file system without such locks trials are not protected, which is said.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import pathlib
import time
from collections.abc import Iterator
from typing import IO

logger = logging.getLogger(__name__)

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
TRIES = 5  # a look at a claim (`is_claimed`) holds it for an instant


class TrialBusy(RuntimeError):
  """A trial that another process is at work on."""

  exit_status = 73


def claim(folder: pathlib.Path) -> IO | None:
  """The open file that is the claim on a trial, until it is closed here and in all who share it; None: another's."""
  folder.mkdir(parents=True, exist_ok=True)
  file = open(folder / "claim", "a")
  for _ in range(TRIES):
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return file
    except BlockingIOError:
      time.sleep(0.05)
    except OSError as error:
      if error.errno not in WITHOUT_LOCKS:
        raise
      logger.warning("%s: no locks on this file system: nothing keeps two workers from one trial", folder)
      return file
  file.close()
  return None


@contextlib.contextmanager
def held(folder: pathlib.Path, by_starter: int | None = None) -> Iterator[None]:
  """Within, the trial is this process'; `by_starter`: whoever started it holds the claim. Raises TrialBusy."""
  claimed = claim(folder) if by_starter is None else None
  if by_starter is None and claimed is None:
    raise TrialBusy(f"{folder}: another process is at work on it")
  try:
    yield
  finally:
    if claimed is not None:
      claimed.close()


def is_claimed(folder: pathlib.Path) -> bool:
  """Whether some process is at work on a trial."""
  try:
    with open(folder / "claim") as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except FileNotFoundError:
    return False
  except OSError as error:
    return error.errno not in WITHOUT_LOCKS
  return False

"""What a training does when it is told to stop: by SIGTERM, or by SIGUSR1, with which SLURM gives notice.

Both mean the same: finish the step, save, and end with a status that asks to be started again. A second one ends the
process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax

NOTICES = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
  """The training was told to stop and has saved what it has; started again, it goes on from there."""

  exit_status = os.EX_TEMPFAIL  # 75, which asks a scheduler to put the job back into its queue


@contextlib.contextmanager
def stopping() -> Iterator[None]:
  """Within, the first notice raises Stopped at once: where nothing is lost but work that is done again."""
  with _handled(_raise_stopped):
    yield


@contextlib.contextmanager
def noting() -> Iterator[list[str]]:
  """Within, the first notice is noted, by its name, in the list that is given; to be followed between two steps."""
  noted: list[str] = []

  def note(number: int, frame: object) -> None:
    if noted:
      _end_by(number)
    noted.append(signal.Signals(number).name)

  with _handled(note):
    yield noted


def _raise_stopped(number: int, frame: object) -> None:
  for each in NOTICES:
    signal.signal(each, signal.SIG_DFL)
  raise Stopped(f"stopped by {signal.Signals(number).name}; start again to go on from there")


def _end_by(number: int) -> None:
  signal.signal(number, signal.SIG_DFL)
  os.kill(os.getpid(), number)


@contextlib.contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
  """Within, notices go to `handler`; in a thread that is not the main one, to which signals do not come, to none.

  With several processes JAX has a handler of its own for SIGTERM, which tells the others: SIGUSR1 is passed on to it.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  handlers = dict.fromkeys(NOTICES, handler)
  if jax.process_count() > 1:
    handlers = {signal.SIGUSR1: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
  previous = {number: signal.signal(number, each) for number, each in handlers.items()}
  try:
    yield
  finally:
    for number, before in previous.items():
      signal.signal(number, before)

"""Worker processes of the loader: how they are started and read, and that they end with the command, however it ends.

Ctrl-C in a terminal, and SIGTERM or SIGUSR1 from a cluster's scheduler, reach every process at once. A worker that dies
of them may hold a lock that its parent waits for, and leaves a traceback. So workers are born with these signals
blocked, in a thread that has them blocked, and the parent ends them: after SIGTERM when it has saved a checkpoint,
until which it may still wait for a batch. A parent that was killed ends nothing: its workers notice that it is gone.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

CHECK_S = 0.5  # seconds between two looks at whether the parent is still there
GRACE_S = 20.0  # seconds from SIGTERM to the end
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


class ReadApart(Iterator[Any]):
  """Another iterator, made and read in a thread to which neither Ctrl-C nor SIGTERM comes."""

  def __init__(self, make: Callable[[], Any]):
    """`make` gives the iterator, which has `close()`; whatever processes it starts inherit the blocked signals."""
    self._thread = concurrent.futures.ThreadPoolExecutor(1, initializer=_block_signals)
    self._inner = self._thread.submit(make).result()

  def __next__(self) -> Any:
    try:
      return self._thread.submit(next, self._inner).result()
    except StopIteration:
      raise StopIteration from None

  def close(self) -> None:
    """Waits for what is being read, and closes the other iterator."""
    self._thread.submit(self._inner.close).result()
    self._thread.shutdown()


def _block_signals() -> None:
  _start_tracker()  # which unblocks them when it starts
  signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _start_tracker() -> None:
  """The process that frees shared memory which nobody has freed: batches that were read ahead, when a loader ends.

  It does so at the end of the command, and need not warn of it.
  """
  quiet = "ignore:resource_tracker"
  sys.warnoptions.append(quiet)
  try:
    resource_tracker.ensure_running()
  finally:
    sys.warnoptions.remove(quiet)


def begin(index: int, count: int) -> None:
  """Called in each worker process, with its number and how many there are, before it decodes anything."""
  del index, count
  signal.signal(signal.SIGTERM, lambda *_: _end_later())
  signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
  threading.Thread(target=_end_with, args=(multiprocessing.parent_process().pid,), daemon=True).start()


def _end_later() -> None:
  timer = threading.Timer(GRACE_S, os._exit, (128 + signal.SIGTERM,))
  timer.daemon = True
  timer.start()


def _end_with(parent: int) -> None:
  while os.getppid() == parent:
    time.sleep(CHECK_S)
  os._exit(1)

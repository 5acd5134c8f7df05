"""Trials on this machine, some at a time, each in a process of its own."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import signal
import sys
import time
from collections.abc import Callable

from rcnn_jax.sweeping import status as statuses
from rcnn_jax.sweeping.attempt import Attempt
from rcnn_jax.sweeping.slots import Slot
from rcnn_jax.sweeping.trials import Units
from rcnn_jax.training import preemption
from rcnn_jax.training.preemption import Stopped

MAX_KILLED = 2  # a trial that the system has killed, for want of memory say, goes on as often as this
POLL_S = 0.1

Start = Callable[[str, Slot], Attempt | None]  # (name, its share of the machine) -> None: another worker is at it


@dataclasses.dataclass
class Work:
  """What is at work in a slot: the unit, what is left of it, and the attempt at `name`."""

  slot: Slot
  left: list[str]
  name: str
  attempt: Attempt


class Pool:
  """Runs units of trials in the slots of this machine; one failure stops nothing."""

  def __init__(self, workdir: pathlib.Path, slots: tuple[Slot, ...], start: Start, log_line: Callable[[str], None]):
    """`log_line` logs a line for each trial that begins or ends."""
    self.workdir, self.slots, self.start, self.log_line = workdir, slots, start, log_line
    self.failed: dict[str, str] = {}  # name -> the reason
    self.elsewhere: list[str] = []  # what other workers are at
    self._killed: collections.Counter[str] = collections.Counter()
    self._began = time.time()

  def run(self, units: Units, tick: Callable[[], None] = lambda: None, echo: bool = False) -> None:
    """Runs the units; `tick` is called all the while, and after each trial.

    Raises:
      Stopped: upon SIGTERM or SIGUSR1, or when one trial was told to stop; all have saved what they have.
    """
    waiting = collections.deque(list(unit) for unit in units)
    busy: dict[int, Work] = {}
    free = list(self.slots)
    with preemption.stopping():
      try:
        while waiting or busy:
          while free and waiting:
            self._begin(free, waiting, busy, waiting.popleft())
          for number, work in list(busy.items()):
            self._look(number, work, free, waiting, busy, echo)
          tick()
          time.sleep(POLL_S)
      except BaseException as error:
        _end([work.attempt for work in busy.values()], interrupted=isinstance(error, KeyboardInterrupt))
        raise

  def _begin(self, free: list[Slot], waiting: collections.deque, busy: dict, unit: list[str]) -> None:
    """Starts the first of a unit that can be started, in a free slot."""
    while unit:
      name = unit.pop(0)
      if self._has_failed_since(name):  # under another worker: once is enough
        self.elsewhere.append(name)
        continue
      slot = free.pop(0)
      begun = self.start(name, slot)
      if begun is not None:
        self.log_line(f"{name}: started")
        busy[id(slot)] = Work(slot, unit, name, begun)
        return
      free.append(slot)
      self.elsewhere.append(name)
      if name.startswith("trained/"):  # what shares it is for the worker that trains it
        self.elsewhere += unit
        return

  def _has_failed_since(self, name: str) -> bool:
    status = statuses.read(self.workdir / name)
    return status.state == "failed" and status.began >= self._began and not self._killed[name]

  def _look(self, number, work: Work, free: list, waiting: collections.deque, busy: dict, echo: bool) -> None:
    """Shows what the trial has printed, and goes on behind it when it has ended."""
    ended = work.attempt.process.poll() is not None
    if echo:
      sys.stdout.buffer.write(work.attempt.output())
      sys.stdout.buffer.flush()
    if not ended:
      return
    del busy[number]
    free.append(work.slot)
    status = work.attempt.end()
    code = work.attempt.process.returncode
    if code == 0:
      self.log_line(f"{work.name}: finished")
    elif status.state in ("preempted", "interrupted"):
      raise Stopped(f"stopped in trial {work.name}; start again to go on from there")
    elif code == -signal.SIGKILL and self._killed[work.name] < MAX_KILLED:
      self._killed[work.name] += 1
      self.log_line(f"{work.name}: {status.reason}; it goes on from its last checkpoint")
      waiting.append([work.name, *work.left])
      return
    else:
      self.failed[work.name] = status.reason
      self.log_line(f"{work.name}: failed: {status.reason}")
      if work.name.startswith("trained/"):
        self.failed |= dict.fromkeys(work.left, f"{work.name} failed")
        return
    if work.left:
      waiting.appendleft(work.left)


def _end(running: list[Attempt], interrupted: bool) -> None:
  """Tells all to stop, and waits until they have saved what they have."""
  for each in running:
    each.process.send_signal(signal.SIGINT if interrupted else signal.SIGTERM)
  for each in running:
    each.process.wait()
    each.end()

"""All trials of a sweep in one table: state, step, metric, time left. It reads files alone, so anyone may look on."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import IO

from rich import console as consoles
from rich import live
from rich.table import Table
from rich.text import Text

from rcnn_jax.experiment import Experiment
from rcnn_jax.files import FileError
from rcnn_jax.sweep import Sweep
from rcnn_jax.sweeping import status as statuses
from rcnn_jax.sweeping.claim import is_claimed
from rcnn_jax.sweeping.trials import Units, result_of
from rcnn_jax.training import log

EVERY_S = 2.0
COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "queued": "yellow", "preempted": "yellow"}
OVER = ("finished", "failed")
ALIVE = ("queued", "running")


@dataclasses.dataclass(frozen=True)
class Row:
  """How a trial stands."""

  name: str
  state: str  # waiting, queued, running, finished, failed, preempted, interrupted, killed
  step: int | None = None
  num_steps: int | None = None
  metric: float | None = None  # the first of the sweep's, at the last evaluation
  left_s: float | None = None  # of its steps
  note: str = ""  # the reason of a failure, else where it runs


class Follower:
  """Reads how the trials stand; those that are finished are read once."""

  def __init__(self, sweep: Sweep, workdir: pathlib.Path, units: Units):
    self.workdir, self.metric = workdir, sweep.metrics[0]
    runs = sweep.runs()
    self._runs = {name: runs[name] for unit in units for name in unit}
    self._finished: dict[str, Row] = {}

  def rows(self, jobs: Mapping[str, str] | None = None) -> list[Row]:
    """A row for each trial; `jobs` has the state of those that a scheduler knows: 'queued' or 'running'."""
    return [self._row(name, experiment, (jobs or {}).get(name)) for name, experiment in self._runs.items()]

  def _row(self, name: str, experiment: Experiment, job: str | None) -> Row:
    if name in self._finished:
      return self._finished[name]
    folder = self.workdir / name
    record = statuses.read(folder)
    metrics = result_of(folder, experiment)
    if metrics is not None:
      row = Row(name, "finished", record.num_steps, record.num_steps, metrics.get(self.metric))
      self._finished[name] = row
      return row
    step, metric, left = _progress(folder, self.metric, record.num_steps, experiment.data.batch_size[0])
    state = record.state
    if is_claimed(folder):
      state = "running"
    elif job is not None:  # its process is still to start, unless the file system has no locks
      state = "running" if job == state == "running" else "queued"
    elif state == "running":
      state = "killed"
    note = record.reason if state in ("failed", "preempted") else record.host if state == "running" else ""
    return Row(name, state, step, record.num_steps, metric, left if state == "running" else None, note)


def _progress(
  folder: pathlib.Path, metric: str, num_steps: int | None, batch_size: int
) -> tuple[int | None, float | None, float | None]:
  """(the last step in the log, the metric of the last evaluation, seconds that the rest of the steps take)."""
  try:
    rows = log.rows(folder)
  except (OSError, FileError):
    return None, None, None
  trained = [row for row in rows if row["kind"] == "train"]
  evaluated = [row[metric] for row in rows if row["kind"] == "eval" and row.get(metric) is not None]
  step = max((row["step"] for row in rows), default=None)
  pace = trained[-1].get("images_per_s") if trained else None
  left = (num_steps - step) * batch_size / pace if pace and num_steps is not None else None
  return step, evaluated[-1] if evaluated else None, left


def table(rows: list[Row], metric: str) -> Table:
  """The rows as a table, under a line that counts them."""
  counts = collections.Counter(row.state for row in rows)
  title = f"{len(rows)} trials: " + ", ".join(f"{count} {state}" for state, count in counts.items())
  shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
  shown.add_column("trial", overflow="fold")
  shown.add_column("state")
  shown.add_column("step", justify="right")
  shown.add_column(metric, justify="right")
  shown.add_column("left", justify="right")
  shown.add_column("", overflow="ellipsis", no_wrap=True, ratio=1)
  for row in rows:
    step = "" if row.step is None else f"{row.step}/{row.num_steps}" if row.num_steps else str(row.step)
    cells = (step, "" if row.metric is None else f"{row.metric:.4f}")
    left = "" if row.left_s is None else log.clock(row.left_s)
    state = Text(row.state, style=COLOURS.get(row.state, ""))
    shown.add_row(Text(row.name), state, *cells, left, Text(row.note))
  return shown


class View:
  """The table on a terminal, kept up to date; elsewhere it is printed whenever the state of a trial has changed."""

  def __init__(self, follower: Follower, jobs: Callable[[], Mapping[str, str]] = dict, file: IO | None = None):
    self._follower, self._jobs = follower, jobs
    self._console = consoles.Console(file=file, highlight=False)
    self._live = live.Live(console=self._console, auto_refresh=False, transient=False)
    self._next = 0.0
    self._states: list[str] = []

  def __enter__(self) -> View:
    if self._console.is_terminal:
      self._live.start()
    return self

  def __exit__(self, *_: object) -> None:
    if self._console.is_terminal:
      self.update(at_once=True)
      self._live.stop()

  def update(self, at_once: bool = False) -> list[Row] | None:
    """Reads and shows; None where the last time is not EVERY_S ago yet."""
    if time.monotonic() < self._next and not at_once:
      return None
    rows = self._follower.rows(self._jobs())
    self._next = time.monotonic() + EVERY_S
    shown = table(rows, self._follower.metric)
    if self._console.is_terminal:
      self._live.update(shown, refresh=True)
    elif [row.state for row in rows] != self._states:
      self._console.print(shown)
    self._states = [row.state for row in rows]
    return rows


def until_over(view: View, is_queued: bool) -> list[Row]:
  """Shows the trials until all have ended, and returns the rows.

  Where they are in a scheduler's queue, one that is neither there nor running has ended, as it may be; elsewhere
  somebody may still start it.
  """
  while True:
    rows = view.update()
    if rows is not None:
      going_on = [row for row in rows if (row.state in ALIVE if is_queued else row.state not in OVER)]
      if not going_on:
        return rows
    time.sleep(EVERY_S / 4)

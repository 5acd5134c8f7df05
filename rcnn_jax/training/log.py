"""What a training says about itself: metrics.jsonl, the writers' curves and one line of progress at a time."""

from __future__ import annotations

import json
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from rcnn_jax.files import FileError, naming, write_text
from rcnn_jax.training import writers


def rows(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a run's metrics.jsonl, in order; what a crash has cut short or left empty at its end is left out.

  Raises:
    FileError: a line before the end is no row.
  """
  path = pathlib.Path(workdir, "metrics.jsonl")
  lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []
  found = [_row(line) for line in lines if line]
  while found and found[-1] is None:
    found.pop()
  if None in found:
    raise FileError(f"{path}, row {found.index(None) + 1}: not a row as training writes it")
  return found


def _row(line: str) -> dict[str, Any] | None:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):
    return None
  is_row = isinstance(row, dict) and type(row.get("step")) is int and isinstance(row.get("kind"), str)
  return row if is_row and all(_is_number(value) for name, value in row.items() if name != "kind") else None


def _is_number(value: Any) -> bool:
  return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def best_step(workdir: str | pathlib.Path, metric: str, steps: list[int]) -> int | None:
  """Among `steps`, the one whose evaluation has the highest `metric`; None where none was evaluated."""
  scores = {row["step"]: row.get(metric) for row in rows(workdir) if row["kind"] == "eval"}
  scored = [step for step in steps if scores.get(step) is not None]
  return max(scored, key=scores.get, default=None)


def last_evaluation(workdir: str | pathlib.Path) -> dict[str, float | None]:
  """The metrics of a run's last evaluation; none where nothing was evaluated."""
  evaluated = [row for row in rows(workdir) if row["kind"] == "eval"]
  return {name: value for name, value in evaluated[-1].items() if name not in ("step", "kind")} if evaluated else {}


class RunLog:
  """Writes the rows of one run to metrics.jsonl and TensorBoard, in the first process only.

  Opened at the step that a run resumes from: rows of later steps, which will be computed again, are removed.
  `services` are names of writers.SERVICES, which get the experiment's `values` by path.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    resume_step: int,
    services: tuple[str, ...] = (),
    values: dict[str, Any] | None = None,
  ):
    self.active = jax.process_index() == 0
    if not self.active:
      return
    kept = [row for row in rows(workdir) if row["step"] <= resume_step]
    path = pathlib.Path(workdir, "metrics.jsonl")
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    self._file = path.open("a")
    self._writers = writers.opened(services, pathlib.Path(workdir), values or {}, resume_step)

  def write(self, step: int, kind: str, values: dict[str, float | None]) -> None:
    """Appends one row: {"step", "kind": 'train', 'fit' or 'eval', name: number or null ...}."""
    if not self.active:
      return
    values = {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
    with naming(self._file.name):
      self._file.write(json.dumps({"step": step, "kind": kind} | values) + "\n")
      self._file.flush()
    for name, value in values.items():
      if value is not None:
        for writer in self._writers:
          writer.add_scalar(f"{kind}/{name}", value, step)

  def line(self, text: str) -> None:
    """Prints a line for people, at once."""
    if self.active:
      print(text, flush=True)

  def close(self) -> None:
    """Flushes the file and the writers."""
    if self.active:
      self._file.close()
      for writer in self._writers:
        writer.close()


class Interval:
  """The steps since the last row: their metrics still on the device, and where their time went."""

  def __init__(self, values: list[dict[str, float]] | None = None):
    """`values`: the metrics of steps that belong to the row and were done before the run was resumed."""
    self._pending = []  # metrics on the device
    self._values = list(values or [])  # metrics on the host
    self._started = time.perf_counter()
    self._images = 0
    self._waited = 0.0
    self._excluded = 0.0

  def add(self, batch_size: int, metrics: dict[str, jax.Array]) -> None:
    """Notes a step that was dispatched."""
    self._pending.append(metrics)
    self._images += batch_size

  def wait_for_data(self, seconds: float) -> None:
    """Counts time in which the device may have had nothing to do, unless it is still busy with the last step."""
    if not self._pending or self._pending[-1]["loss"].is_ready():
      self._waited += seconds

  def exclude(self, seconds: float) -> None:
    """Takes time of compilation, evaluation or saving out of the rates."""
    self._excluded += seconds

  def values(self) -> list[dict[str, float]]:
    """Fetches the metrics of each step so far; the list is the caller's own, which may be written while steps go on."""
    self._values += [{name: float(value) for name, value in row.items()} for row in jax.device_get(self._pending)]
    self._pending = []
    return list(self._values)

  def summary(self) -> dict[str, float]:
    """Means over the steps that were not skipped, with images_per_s and data_wait (a share of the time).

    Where some were skipped, `skipped_steps` says how many.
    """
    values = self.values()
    elapsed = max(time.perf_counter() - self._started - self._excluded, 1e-9)
    sound = [each for each in values if not each.get("skipped")]
    names = [name for name in values[0] if name != "skipped"]
    means = {name: float(np.mean([each[name] for each in sound or values])) for name in names}
    if len(sound) < len(values):
      means["skipped_steps"] = float(len(values) - len(sound))
    rates = {"images_per_s": self._images / elapsed, "data_wait": min(self._waited / elapsed, 1.0)}
    return means | {"lr": values[-1]["lr"]} | rates


def progress_line(step: int, num_steps: int, values: dict[str, float], batch_size: int) -> str:
  """One line for people: the step, the losses, the speed, the share of time waiting for data, the time left."""
  terms = ", ".join(f"{name[5:]} {value:.4f}" for name, value in values.items() if name.startswith("loss/"))
  left = (num_steps - step) * batch_size / values["images_per_s"]
  return (
    f"step {step}/{num_steps} | loss {values['loss']:.4f} ({terms}) | lr {values['lr']:.3g} | "
    f"{values['images_per_s']:.1f} images/s | data wait {values['data_wait']:.0%} | {clock(left)} left"
  )


def clock(seconds: float) -> str:
  """Seconds as h:mm:ss."""
  minutes, seconds = divmod(round(seconds), 60)
  return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"

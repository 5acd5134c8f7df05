"""Losses and gradients that are not finite: logged with their images, and after too many in a row kept to be repeated.

The step itself finds them, on the device, and changes nothing (`step.make_train_step`). What is read here is of a step
that is done already, so that no device waits.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rcnn_jax import hosts
from rcnn_jax.experiment import override
from rcnn_jax.files import FileError, writing
from rcnn_jax.ops import random
from rcnn_jax.training import optim
from rcnn_jax.training.step import TrainState, loss_and_gradients
from rcnn_jax.types import Batch, GroundTruth, Proposals

FOLDER = "not_finite"  # of a run directory


class NotFinite(optim.TrainingError):
  """Too many steps in a row had a loss or a gradient that is not finite; `batch` is the last one's, of this process."""

  def __init__(self, message: str, step: int, batch: Any):
    super().__init__(message)
    self.step, self.batch = step, batch


class Watch:
  """Looks at every step as soon as it is done, and counts those that were skipped in a row."""

  def __init__(self, limit: int, streak: int, log_line: Callable[[str], None]):
    """`limit`: in a row, `streak`: of them so far, `log_line`: prints a line for people."""
    self.streak = streak
    self._limit, self._log_line = limit, log_line
    self._waiting: collections.deque = collections.deque()  # (step, batch, metrics on the device)

  def add(self, step: int, batch: Any, metrics: dict[str, jax.Array]) -> None:
    """Notes a step that was dispatched; waits for the one before, so that few batches are in flight."""
    self._waiting.append((step, batch, metrics))
    while len(self._waiting) > 1:
      self._look(*self._waiting.popleft())

  def flush(self) -> None:
    """Waits for all steps so far."""
    while self._waiting:
      self._look(*self._waiting.popleft())

  def _look(self, step: int, batch: Any, metrics: dict[str, jax.Array]) -> None:
    if not float(metrics["skipped"]):
      self.streak = 0
      return
    self.streak += 1
    values = {name: float(value) for name, value in jax.device_get(metrics).items() if name != "skipped"}
    ids = sum(hosts.gathered(np.asarray(batch.image_id).tolist()), [])
    summary = f"{fault(values)} at step {step}; image ids {ids}"
    if self.streak >= self._limit:
      raise NotFinite(f"{summary}: {self.streak} in a row", step, batch)
    self._log_line(f"{summary}: the step changes nothing")


def fault(values: dict[str, float]) -> str:
  """What is not finite among the metrics of a step, in words."""
  what = "gradient" if math.isfinite(values["loss"]) else "loss"
  terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
  return f"the {what} is not finite ({terms})"


def limit_of(experiment: Any, num_steps: int) -> int:
  """How many skipped steps in a row end a stage: `max_skipped_steps`, and never more than half of a short stage."""
  return min(experiment.max_skipped_steps, max(num_steps // 2, 1))


# ---------------------------------------------------------------------------------------------- repeating a step


@dataclasses.dataclass(frozen=True)
class Kept:
  """A step as it was kept: everything that its losses and gradients depend on beside the run's experiment."""

  step: int  # from 1
  stage: int  # its place among the stages
  params: dict
  batch_stats: dict
  batch: Batch


def keep(workdir: str | pathlib.Path, error: NotFinite, stage: int, state: TrainState) -> pathlib.Path:
  """Writes WORKDIR/not_finite/STEP.npz, in the first process; every process must call this."""
  shares = hosts.gathered(jax.tree.map(np.asarray, error.batch))
  batch = jax.tree.map(lambda *parts: np.concatenate(parts), *shares)
  variables = hosts.whole({"params": state.params, "batch_stats": state.batch_stats})
  path = pathlib.Path(workdir, FOLDER, f"{error.step}.npz")
  if jax.process_index() == 0:
    named = {jax.tree_util.keystr(at): leaf for at, leaf in jax.tree_util.tree_leaves_with_path(batch)}
    flat = optim.flatten(variables) | {f"batch{name}": leaf for name, leaf in named.items()}
    about = {"step": error.step, "stage": stage}
    packed = io.BytesIO()
    np.savez_compressed(packed, about=json.dumps(about), **flat)
    with writing(path) as file:
      file.write(packed.getbuffer())
  return path


def kept(workdir: str | pathlib.Path, step: int) -> Kept:
  """Reads what `keep` wrote; raises FileError where there is no such step."""
  path = pathlib.Path(workdir, FOLDER, f"{step}.npz")
  if not path.exists():
    there = sorted(int(each.stem) for each in path.parent.glob("*.npz"))
    raise FileError(f"{path}: no such step was kept; there are {', '.join(map(str, there)) or 'none'}")
  try:
    with np.load(path) as file:
      arrays = {name: file[name] for name in file.files}
    about = json.loads(str(arrays.pop("about")))
    parts = {name: arrays.pop(name) for name in list(arrays) if name.startswith("batch.")}
    variables = optim.unflatten(arrays)
    return Kept(about["step"], about["stage"], variables["params"], variables.get("batch_stats", {}), _batch(parts))
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise FileError(f"{path}: not a step as training keeps it: {error}") from error


def _batch(parts: dict[str, np.ndarray]) -> Batch:
  """From the leaves of a batch by their paths: 'batch.image', 'batch.truth.boxes' ..."""
  within = lambda prefix: {
    name.removeprefix(prefix): leaf
    for name, leaf in parts.items()
    if name.startswith(prefix) and "." not in name.removeprefix(prefix)
  }
  truth, proposals = GroundTruth(**within("batch.truth.")), within("batch.proposals.")
  return Batch(**within("batch."), truth=truth, proposals=Proposals(**proposals) if proposals else None)


def repeat(experiment: Any, model: Any, step: Kept) -> list[str]:
  """What is not finite in a step, in lines: loss terms, parameters, gradients, and each image alone."""
  stage = experiment.stages[step.stage]
  model = override(model, dict(stage.model))
  key = jax.random.fold_in(random.named(jax.random.key(experiment.seed), "train"), step.step - 1)
  compute = jax.jit(functools.partial(loss_and_gradients, model, stage))
  gradients, _, metrics = jax.device_get(compute(step.params, step.batch_stats, step.batch, key))
  lines = [f"{name} {float(value):.6g}" for name, value in metrics.items()]
  lines.append(_not_finite("parameters", optim.flatten(step.params)))
  lines.append(_not_finite("gradients", gradients))
  for row, image_id in enumerate(np.asarray(step.batch.image_id)):
    alone = jax.tree.map(lambda leaf: leaf[row : row + 1], step.batch)
    found, _, terms = jax.device_get(compute(step.params, step.batch_stats, alone, key))
    bad = [name for name, value in terms.items() if not np.isfinite(value)]
    bad = bad or [f"gradient of {name}" for name, value in found.items() if not np.isfinite(value).all()][:1]
    lines.append(f"image id {image_id} alone: {', '.join(bad) + ' not finite' if bad else 'finite'}")
  return lines


def _not_finite(what: str, leaves: dict[str, np.ndarray]) -> str:
  bad = [path for path, leaf in leaves.items() if not np.isfinite(leaf).all()]
  shown = ", ".join(bad[:8]) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
  return f"{what}: {len(bad)} of {len(leaves)} are not finite{': ' + shown if bad else ''}"

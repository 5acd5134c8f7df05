"""Where the numbers of a run go beside metrics.jsonl: TensorBoard, and on request services that are installed.

A writer has TensorBoard's own calls, `add_scalar(name, value, step)` and `close()`. A run that goes on writes into the
same run of the service, whose name there is kept in WORKDIR/writers.json.
"""

from __future__ import annotations

import importlib
import os
import pathlib
from typing import Any, Protocol

from rcnn_jax.files import read_json, write_json
from rcnn_jax.training.optim import TrainingError

PROJECT = "rcnn-jax"


class Writer(Protocol):
  """What every writer does."""

  def add_scalar(self, name: str, value: float, step: int) -> None:
    """Writes one number of one step."""

  def close(self) -> None:
    """Hands over what is not written yet."""


class Wandb:
  """Weights & Biases; WANDB_PROJECT, WANDB_MODE and its other variables count."""

  package = "wandb"

  def __init__(self, wandb: Any, workdir: pathlib.Path, values: dict[str, Any], known: str | None):
    project = {} if _set("WANDB_PROJECT") else {"project": PROJECT}
    self._run = wandb.init(
      **project, name=workdir.name, dir=str(workdir), config=values, id=known, resume="allow" if known else None
    )
    self.id = self._run.id

  def add_scalar(self, name: str, value: float, step: int) -> None:
    """As TensorBoard's."""
    self._run.log({name: value}, step=step)

  def close(self) -> None:
    """As TensorBoard's."""
    self._run.finish()


class Mlflow:
  """MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME count."""

  package = "mlflow"

  def __init__(self, mlflow: Any, workdir: pathlib.Path, values: dict[str, Any], known: str | None):
    if not (known or _set("MLFLOW_EXPERIMENT_NAME")):
      mlflow.set_experiment(PROJECT)
    self._mlflow = mlflow
    self.id = mlflow.start_run(run_id=known, run_name=None if known else workdir.name).info.run_id
    if not known:
      mlflow.log_params({path: str(value)[:500] for path, value in values.items()})

  def add_scalar(self, name: str, value: float, step: int) -> None:
    """As TensorBoard's."""
    self._mlflow.log_metric(name, value, step=step)

  def close(self) -> None:
    """As TensorBoard's."""
    self._mlflow.end_run()


class Trackio:
  """trackio, which keeps its numbers on this machine."""

  package = "trackio"

  def __init__(self, trackio: Any, workdir: pathlib.Path, values: dict[str, Any], known: str | None):
    self._trackio = trackio
    self.id = known or workdir.name
    config = {path: str(value) for path, value in values.items()}
    trackio.init(project=PROJECT, name=self.id, config=config, resume="allow")

  def add_scalar(self, name: str, value: float, step: int) -> None:
    """As TensorBoard's."""
    self._trackio.log({name: value}, step=step)

  def close(self) -> None:
    """As TensorBoard's."""
    self._trackio.finish()


SERVICES = {cls.package: cls for cls in (Wandb, Mlflow, Trackio)}


def check(names: tuple[str, ...]) -> None:
  """Raises TrainingError, before anything begins, for a service that is not known or not installed."""
  for name in names:
    _imported(name)


def opened(names: tuple[str, ...], workdir: pathlib.Path, values: dict[str, Any], resume_step: int) -> list[Writer]:
  """TensorBoard's writer and those of the services.

  Args:
    names: keys of SERVICES.
    workdir: the run directory.
    values: of the experiment, by path.
    resume_step: what TensorBoard holds of later steps is hidden.

  Raises:
    TrainingError: a service does not begin.
  """
  from tensorboardX import SummaryWriter

  writers: list[Writer] = [SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)]
  path = workdir / "writers.json"
  known = read_json(path) if path.exists() else {}
  for name in names:
    try:
      writer = SERVICES[name](_imported(name), workdir.resolve(), values, known.get(name))
    except Exception as error:  # no login, no server, no such store: whatever its library raises
      raise TrainingError(f"the writer {name} cannot begin: {' '.join(str(error).split())[:300]}") from error
    writers.append(writer)
    known[name] = writer.id
  if names:
    write_json(path, known)
  return writers


def _imported(name: str) -> Any:
  if name not in SERVICES:
    raise TrainingError(f"no writer {name!r}: there are {', '.join(SERVICES)}")
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise TrainingError(f"the writer {name} is not installed: pip install 'rcnn-jax[{name}]' ({error})") from error


def _set(variable: str) -> bool:
  return bool(os.environ.get(variable))

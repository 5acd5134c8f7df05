"""A run's directory: experiment.json and checkpoints/, written, resumed from, and read by evaluation and prediction.

A checkpoint is one Orbax step directory with the items `variables` (params, batch_stats, ema_params), `optimizer`
(step, opt_state, gradient_sum) and `host` (the state of the data iterator in each process, and the metrics of the
steps since the last row of metrics.jsonl).
"""

from __future__ import annotations

import base64
import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from rcnn_jax.experiment import Experiment, diff, from_json, to_json
from rcnn_jax.files import write_json
from rcnn_jax.training import log, optim
from rcnn_jax.training.step import TrainState


class CheckpointError(RuntimeError):
  """A run directory that cannot be used as asked."""


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained (or imported) model as its run directory holds it."""

  experiment: Experiment
  categories: tuple[Any, ...]  # in class order: class k is categories[k - 1]
  keypoints: Any | None
  variables: dict  # {'params', maybe 'batch_stats'}: the moving average where the run keeps one
  step: int


# ---------------------------------------------------------------------------------------------- experiment.json


def write_experiment(workdir: str, experiment: Experiment, categories: tuple, keypoints: Any | None = None) -> None:
  """Claims a run directory for an experiment and the names of its classes, or finds them there already.

  A directory in which nothing has been logged or saved yet holds nothing to protect: it is claimed anew.

  Args:
    workdir: the run's directory, made if need be.
    experiment: what is to be trained there.
    categories: the data's Category of each class, in class order.
    keypoints: the data's KeypointNames, None where it has none.

  Raises:
    CheckpointError: if the directory holds another experiment, with the paths that differ.
  """
  parts = {"experiment": experiment, "categories": tuple(categories), "keypoints": keypoints}
  form = {name: to_json(part, name) for name, part in parts.items()}
  path = pathlib.Path(workdir, "experiment.json")
  if _holds_training(workdir):
    present = {name: _complete(part) for name, part in json.loads(path.read_text()).items()}
    _refuse_another(path, present, form)
  elif jax.process_index() == 0:
    write_json(path, form, allow_nan=True)


def check_experiment(workdir: str, experiment: Experiment) -> None:
  """Raises CheckpointError where `write_experiment` would refuse the experiment, whatever its classes; no device."""
  if _holds_training(workdir):
    path = pathlib.Path(workdir, "experiment.json")
    _refuse_another(path, _complete(json.loads(path.read_text())["experiment"]), to_json(experiment))


def _holds_training(workdir: str) -> bool:
  """Whether something has been logged or saved in the directory of an experiment."""
  path = pathlib.Path(workdir, "experiment.json")
  return path.exists() and (latest_step(workdir) is not None or bool(log.rows(workdir)))


def _complete(form: Any) -> Any:
  """A JSON form with the fields that its classes have gained since it was written, at their defaults."""
  return to_json(from_json(form))


def _refuse_another(path: pathlib.Path, present: dict, asked: dict) -> None:
  differences = diff(present, asked)
  if differences:
    shown = "; ".join(f"{at}: {_short(a)} there, {_short(b)} asked for" for at, a, b in differences[:8])
    more = f"; and {len(differences) - 8} more" if len(differences) > 8 else ""
    raise CheckpointError(f"{path.parent} holds another experiment: {shown}{more}")


def _short(value: Any) -> str:
  text = value["class"].rpartition(":")[2] if isinstance(value, dict) and "class" in value else repr(value)
  return text if len(text) <= 60 else text[:57] + "..."


def read_experiment(workdir: str) -> tuple[Experiment, tuple, Any | None]:
  """(experiment, categories, keypoints) of a run directory."""
  path = pathlib.Path(workdir, "experiment.json")
  if not path.exists():
    raise CheckpointError(f"{workdir} is not a run directory: it has no experiment.json")
  form = json.loads(path.read_text())
  return tuple(from_json(form[name]) for name in ("experiment", "categories", "keypoints"))


# ---------------------------------------------------------------------------------------------- saving and resuming


@dataclasses.dataclass
class _KeepLastAndBest(checkpoint_managers.PreservationPolicy):
  """Keeps the last `keep_last` checkpoints and the one that metrics.jsonl tells to be the best."""

  workdir: str
  keep_last: int
  metric: str

  def should_preserve(self, checkpoints, *, context):
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*steps[-self.keep_last :], log.best_step(self.workdir, self.metric, steps)}
    return [step in kept for step in steps]


class CheckpointStore:
  """The checkpoints of a run that is being trained: written beside the training, each whole or not at all."""

  def __init__(self, workdir: str, *, keep_last: int = 2, metric: str = "bbox/AP"):
    policy = _KeepLastAndBest(str(workdir), max(keep_last, 1), metric)
    self._manager = ocp.CheckpointManager(
      _folder(workdir), options=ocp.CheckpointManagerOptions(preservation_policy=policy)
    )

  def latest_step(self) -> int | None:
    """The step of the last whole checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState, loader_state: Any, unlogged: list[dict[str, float]]) -> None:
    """Starts writing a checkpoint; the training goes on while it is written.

    Args:
      step: the number of steps that are done.
      state: after that step.
      loader_state: of this process' data iterator: plain JSON or bytes.
      unlogged: the metrics of the steps since the last row of metrics.jsonl.
    """
    variables, optimizer = _items(state)
    arguments = ocp.args.Composite(
      variables=ocp.args.StandardSave(variables),
      optimizer=ocp.args.StandardSave(optimizer),
      host=ocp.args.JsonSave({"loaders": _gathered(_encode(loader_state)), "unlogged": unlogged}),
    )
    self._manager.save(step, args=arguments, force=True)

  def restore(self, step: int, template: TrainState) -> tuple[TrainState, Any, list[dict[str, float]]]:
    """What `save` was given: the state (laid out like `template`), this process' loader state, unlogged metrics."""
    variables, optimizer = (jax.tree.map(_abstract, item) for item in _items(template))
    arguments = ocp.args.Composite(
      variables=ocp.args.StandardRestore(variables),
      optimizer=ocp.args.StandardRestore(optimizer),
      host=ocp.args.JsonRestore(),
    )
    restored = self._manager.restore(step, args=arguments)
    loaders = restored.host["loaders"]
    if len(loaders) != jax.process_count():
      raise CheckpointError(f"the run was trained by {len(loaders)} processes, now there are {jax.process_count()}")
    state = template.replace(**restored.variables, **restored.optimizer)
    return state, _decode(loaders[jax.process_index()]), restored.host["unlogged"]

  def reached_preemption(self, step: int) -> bool:
    """Whether the cluster has told some process to stop (all processes agree on the step)."""
    return self._manager.reached_preemption(step)

  def close(self) -> None:
    """Waits until what was saved is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


def save_variables(workdir: str, variables: dict, step: int = 0) -> None:
  """Writes variables that were imported rather than trained as the checkpoint of a run."""
  item = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {}), "ema_params": None}
  with ocp.CheckpointManager(_folder(workdir)) as manager:
    manager.save(step, args=ocp.args.Composite(variables=ocp.args.StandardSave(item)))


def _folder(workdir: str) -> pathlib.Path:
  return pathlib.Path(workdir).resolve() / "checkpoints"


def _items(state: TrainState) -> tuple[dict, dict]:
  variables = {"params": state.params, "batch_stats": state.batch_stats, "ema_params": state.ema_params}
  return variables, {"step": state.step, "opt_state": state.opt_state, "gradient_sum": state.gradient_sum}


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _encode(loader_state: Any) -> str:
  is_bytes = isinstance(loader_state, bytes)
  return json.dumps({"bytes": base64.b64encode(loader_state).decode()} if is_bytes else {"json": loader_state})


def _decode(text: str) -> Any:
  form = json.loads(text)
  return base64.b64decode(form["bytes"]) if "bytes" in form else form["json"]


def _gathered(text: str) -> list[str]:
  """The text of every process, by process index."""
  if jax.process_count() == 1:
    return [text]
  data = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(data)))
  padded = multihost_utils.process_allgather(np.pad(data, (0, lengths.max() - len(data))))
  return [row[:length].tobytes().decode() for row, length in zip(padded, lengths, strict=True)]


# ---------------------------------------------------------------------------------------------- reading a run


def load_run(workdir: str, which: str | int = "best") -> Run:
  """A run as evaluation, prediction and further training need it.

  Args:
    workdir: the run's directory.
    which: 'best' by the experiment's own metric (the latest where nothing was evaluated), 'latest', or a step.

  Raises:
    CheckpointError: if there is no such run or checkpoint.
  """
  experiment, categories, keypoints = read_experiment(workdir)
  step = _chosen_step(workdir, which, _steps(workdir), experiment.evaluation.keep_best)
  variables = _read_variables(_folder(workdir) / str(step) / "variables")
  return Run(experiment, categories, keypoints, variables, step)


def latest_step(workdir: str) -> int | None:
  """The step of the newest checkpoint in this directory; None where there is none."""
  return max(_steps(workdir), default=None)


def _steps(workdir: str) -> list[int]:
  folder = _folder(workdir)
  return sorted(ocp.utils.checkpoint_steps(folder)) if folder.exists() else []


def _chosen_step(workdir: str, which: str | int, steps: list[int], metric: str) -> int:
  if not steps:
    raise CheckpointError(f"{workdir} has no checkpoint yet")
  if which == "latest":
    return steps[-1]
  if which == "best":
    best = log.best_step(workdir, metric, steps)
    return steps[-1] if best is None else best
  if str(which).isdigit() and int(which) in steps:
    return int(which)
  raise CheckpointError(f"{workdir} has no checkpoint {which!r}; it has best, latest, {', '.join(map(str, steps))}")


def _read_variables(folder: pathlib.Path) -> dict:
  """The variables to evaluate with, on the default device whatever devices they were saved from."""
  handler, folder = ocp.PyTreeCheckpointHandler(), epath.Path(folder)
  as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder).tree)
  item = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
  params = item["params"] if item.get("ema_params") is None else item["ema_params"]
  variables = {"params": params} | ({"batch_stats": item["batch_stats"]} if item.get("batch_stats") else {})
  return jax.tree.map(jax.numpy.asarray, variables)


def take_params(variables: dict, source: dict, skip: str | None = None) -> dict:
  """`variables` with every leaf taken from those of another run.

  Args:
    variables: the fresh variables of the model to be trained.
    source: the variables of the other run.
    skip: a regular expression; leaves whose whole path ('box/class/kernel') matches it stay as they are.

  Raises:
    CheckpointError: for leaves that the other run lacks, or has in another shape, by name.
  """
  ours, theirs = optim.flatten(variables), optim.flatten(source)
  taken, faults = dict(ours), []
  names = {path: path.partition("/")[2] for path in ours}
  skipped = set(optim.matching(skip, names.values()) if skip else ())
  for path, name in names.items():
    if name in skipped:
      continue
    if path not in theirs:
      faults.append(f"{name} is missing")
    elif theirs[path].shape != ours[path].shape:
      faults.append(f"{name} is {theirs[path].shape}, the model has {ours[path].shape}")
    else:
      taken[path] = theirs[path]
  if faults:
    shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
    raise CheckpointError(f"the weights do not fit: {shown}")
  return optim.unflatten(taken)

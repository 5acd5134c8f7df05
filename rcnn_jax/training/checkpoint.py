"""A run's checkpoints: written, resumed from, and read by evaluation, prediction and further training.

A checkpoint is one Orbax step directory with the items `variables` (params, batch_stats, ema_params), `optimizer`
(step, opt_state, gradient_sum) and `host` (the state of the data iterator in each process, the metrics of the steps
since the last row of metrics.jsonl, and how many of the last steps were skipped in a row).
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from rcnn_jax import hosts
from rcnn_jax.experiment import Experiment
from rcnn_jax.files import is_plain, plain_path
from rcnn_jax.training import log, optim
from rcnn_jax.training.checksums import checksums, differing
from rcnn_jax.training.claim import (  # noqa: F401  (whoever works on a run's checkpoints has its experiment.json too)
  CheckpointError,
  check_experiment,
  folder_of_checkpoints,
  latest_step,
  read_experiment,
  saved_steps,
  write_experiment,
)
from rcnn_jax.training.step import TrainState

# What the system says where it cannot write or read, in the midst of what Orbax and TensorStore say.
OF_THE_SYSTEM = re.compile(
  "no space left on device|disk quota exceeded|file too large|read-only file system|permission denied|"
  "input/output error|too many open files|file name too long|is a directory|not a directory",
  re.IGNORECASE,
)


class DamagedError(CheckpointError):
  """A checkpoint that is there and is not what was saved."""


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained (or imported) model as its run directory holds it."""

  experiment: Experiment
  categories: tuple[Any, ...]  # in class order: class k is categories[k - 1]
  keypoints: Any | None
  variables: dict  # {'params', maybe 'batch_stats'}: the moving average where the run keeps one
  step: int


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
  """The checkpoints of a run that is being trained: written beside the training, each whole or not at all.

  Raises:
    CheckpointError: from every method, where something cannot be written or read.
  """

  def __init__(self, workdir: str, *, keep_last: int = 2, metric: str = "bbox/AP"):
    policy = _KeepLastAndBest(str(workdir), max(keep_last, 1), metric)
    self._workdir = workdir
    self._stack = contextlib.ExitStack()
    with _in_one_line(folder_of_checkpoints(workdir), "written"):
      folder = self._stack.enter_context(_plain_folder(workdir))
      self._manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(preservation_policy=policy))

  def steps(self) -> list[int]:
    """The steps of the checkpoints, rising."""
    return sorted(self._manager.all_steps())

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
      host=ocp.args.JsonSave(
        {
          "loaders": hosts.gathered(_encode(loader_state)),
          "unlogged": unlogged,
          "skipped": int(state.skipped),
          "checksums": {"variables": checksums(variables), "optimizer": checksums(optimizer)},
        }
      ),
    )
    with _in_one_line(folder_of_checkpoints(self._workdir) / str(step), "written"):
      self._manager.save(step, args=arguments, force=True)

  def restore(self, step: int, template: TrainState) -> tuple[TrainState, Any, list[dict[str, float]]]:
    """What `save` was given: the state (laid out like `template`), this process' loader state, unlogged metrics.

    Raises:
      DamagedError: the checkpoint cannot be read, or what is read is not what was saved; in every process.
    """
    error, restored = None, None
    try:
      restored = self._restore(step, template)
    except CheckpointError as raised:
      error = raised
    errors = [each for each in hosts.gathered(error) if each is not None]
    if errors:
      raise errors[0]
    loaders = restored.host["loaders"]
    if len(loaders) != jax.process_count():
      raise CheckpointError(f"the run was trained by {len(loaders)} processes, now there are {jax.process_count()}")
    skipped = np.int32(restored.host.get("skipped", 0))
    skipped = jax.make_array_from_callback((), template.skipped.sharding, lambda _: skipped)
    state = template.replace(**restored.variables, **restored.optimizer, skipped=skipped)
    return state, _decode(loaders[jax.process_index()]), restored.host["unlogged"]

  def _restore(self, step: int, template: TrainState) -> Any:
    variables, optimizer = (jax.tree.map(_abstract, item) for item in _items(template))
    arguments = ocp.args.Composite(
      variables=ocp.args.StandardRestore(variables),
      optimizer=ocp.args.StandardRestore(optimizer),
      host=ocp.args.JsonRestore(),
    )
    place = folder_of_checkpoints(self._workdir) / str(step)
    with _in_one_line(place, "read"):
      restored = self._manager.restore(step, args=arguments)
      restored.host["loaders"], restored.host["unlogged"]  # noqa: B018  (whether they are there)
      for item, expected in restored.host.get("checksums", {}).items():
        _check(place, getattr(restored, item), expected)
    return restored

  def put_aside(self, step: int) -> pathlib.Path:
    """Moves a damaged checkpoint out of the way, into WORKDIR/damaged; every process must call this."""
    place = folder_of_checkpoints(self._workdir)
    aside = place.with_name("damaged")
    with _in_one_line(place / str(step), "put aside"):
      if jax.process_index() == 0:
        aside.mkdir(exist_ok=True)
        shutil.rmtree(aside / str(step), ignore_errors=True)
        (place / str(step)).rename(aside / str(step))
      hosts.gathered(None)
      self._manager.reload()
    return aside / str(step)

  def reached_preemption(self, step: int) -> bool:
    """Whether the cluster has told some process to stop (all processes agree on the step)."""
    return self._manager.reached_preemption(step)

  def close(self) -> None:
    """Waits until what was saved is on disk."""
    with self._stack, _in_one_line(folder_of_checkpoints(self._workdir), "written"):
      try:
        self._manager.wait_until_finished()
      finally:
        self._manager.close()


def save_variables(workdir: str, variables: dict, step: int = 0) -> None:
  """Writes variables that were imported rather than trained as the checkpoint of a run; raises CheckpointError."""
  item = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {}), "ema_params": None}
  with _in_one_line(folder_of_checkpoints(workdir), "written"), _plain_folder(workdir) as folder:
    with ocp.CheckpointManager(folder) as manager:
      manager.save(step, args=ocp.args.Composite(variables=ocp.args.StandardSave(item)))


@contextlib.contextmanager
def _plain_folder(workdir: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """A path of the run's checkpoints that Orbax, which takes [ * ? for a pattern, can write and read."""
  folder = folder_of_checkpoints(workdir)
  if jax.process_count() > 1 and not is_plain(folder):
    raise CheckpointError(f"{workdir}: with several processes, a path must not have [ * ? or \\ in it")
  with plain_path(folder) as plain:
    yield plain


@contextlib.contextmanager
def _in_one_line(place: pathlib.Path, what: str) -> Iterator[None]:
  """Within, whatever is raised becomes a CheckpointError of this checkpoint; `what`: 'written' or 'read'."""
  try:
    yield
  except CheckpointError:
    raise
  except Exception as error:
    by_system = OF_THE_SYSTEM.search(str(error))
    if by_system:
      raise CheckpointError(f"{place}: {by_system[0].lower()}") from error
    why = "; ".join(str(error).split("\n"))[:200] or type(error).__name__
    kind = DamagedError if what == "read" else CheckpointError
    raise kind(f"{place}: the checkpoint cannot be {what}: {why}") from error


def _check(place: pathlib.Path, tree: Any, expected: dict[str, int]) -> None:
  wrong = differing(tree, expected)
  if wrong:
    raise DamagedError(
      f"{place}: the checkpoint is not what was saved: {len(wrong)} arrays differ, such as {wrong[0]}"
    )


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
  step = _chosen_step(workdir, which, saved_steps(workdir), experiment.evaluation.keep_best)
  with _in_one_line(folder_of_checkpoints(workdir) / str(step), "read"), _plain_folder(workdir) as folder:
    variables = _read_variables(folder / str(step))
  return Run(experiment, categories, keypoints, variables, step)


def _chosen_step(workdir: str, which: str | int, steps: list[int], metric: str) -> int:
  if not steps:
    raise CheckpointError(f"{workdir} has no checkpoint yet")
  if which == "latest":
    return steps[-1]
  if which == "best":
    best = log.best_step(workdir, metric, steps)
    return steps[-1] if best is None else best
  if str(which).isdecimal() and int(which) in steps:
    return int(which)
  raise CheckpointError(f"{workdir} has no checkpoint {which!r}; it has best, latest, {', '.join(map(str, steps))}")


def _read_variables(place: pathlib.Path) -> dict:
  """The variables to evaluate with, on the default device whatever devices they were saved from."""
  handler, folder = ocp.PyTreeCheckpointHandler(), epath.Path(place / "variables")
  as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder).tree)
  item = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
  host = place / "host" / "metadata"  # imported variables have none
  host_record = json.loads(host.read_text()) if host.exists() else {}
  _check(place, item, host_record.get("checksums", {}).get("variables", {}))
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

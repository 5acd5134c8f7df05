"""A run's directory and its experiment.json: who may train there, and what may have changed since it was written.

What decides nothing of what is trained may change from one start to the next: how fast data are read, when the model
is evaluated and saved, and where the data lie, as long as they are the same data by their fingerprints. The file then
holds the new values.
"""

from __future__ import annotations

import logging
import pathlib
from typing import Any

import jax
from orbax.checkpoint import utils as orbax_utils

from rcnn_jax.experiment import Experiment, ExperimentError, diff, from_json, to_json
from rcnn_jax.files import FileError, read_json, write_json
from rcnn_jax.training import log

logger = logging.getLogger(__name__)

# Paths of an experiment that no result depends on.
IDLE = (
  "name",
  "data.workers",
  "data.read_threads",
  "data.prefetch",
  "data.search",
  "data.batch_size.1",
  "evaluation.every_steps",
  "evaluation.every_epochs",
  "evaluation.keep_best",
  "evaluation.pictures",
  "checkpoints",
  "mesh",
  "max_skipped_steps",
)
# Paths that evaluation alone depends on: the training may go on, its numbers are others from there on.
EVALUATED = ("data.num_proposals.1", "evaluation")
# Where paths of files stand -> whose fingerprint tells whether they hold the same. Of the evaluation data alone, more
# than a path may change.
PLACES = {
  "data.train": "train",
  "data.proposals.0": "train",
  "data.eval": "eval",
  "data.proposals.1": "eval",
  "init.path": "init",
}
PARTS = ("experiment", "categories", "keypoints")


class CheckpointError(RuntimeError):
  """A run directory that cannot be used as asked."""


def folder_of_checkpoints(workdir: str | pathlib.Path) -> pathlib.Path:
  """Where the checkpoints of a run lie."""
  return pathlib.Path(workdir).resolve() / "checkpoints"


def saved_steps(workdir: str | pathlib.Path) -> list[int]:
  """The steps of a run's whole checkpoints, rising."""
  folder = folder_of_checkpoints(workdir)
  return sorted(orbax_utils.checkpoint_steps(folder)) if folder.is_dir() else []


def latest_step(workdir: str | pathlib.Path) -> int | None:
  """The step of the newest checkpoint in this directory; None where there is none."""
  return max(saved_steps(workdir), default=None)


def write_experiment(
  workdir: str | pathlib.Path,
  experiment: Experiment,
  categories: tuple,
  keypoints: Any | None = None,
  fingerprints: dict[str, Any] | None = None,
) -> None:
  """Claims a run directory for an experiment and the names of its classes, or finds them there already.

  A directory in which nothing has been logged or saved yet holds nothing to protect: it is claimed anew.

  Args:
    workdir: the run's directory, made if need be.
    experiment: what is to be trained there.
    categories: the data's Category of each class, in class order.
    keypoints: the data's KeypointNames, None where it has none.
    fingerprints: of the data for 'train' and for 'eval', and of the file of weights for 'init'.

  Raises:
    CheckpointError: the directory holds another experiment (with the paths that differ), or is none, or what is
      written there could not be read back.
  """
  parts = dict(zip(PARTS, (experiment, tuple(categories), keypoints), strict=True))
  form = {name: to_json(part, name) for name, part in parts.items()}
  form["fingerprints"] = {which: found for which, found in (fingerprints or {}).items() if found}
  path = _file(workdir)
  if _holds_training(workdir):
    present = _read(path)
    _compare(path.parent, present, form)
    began_with = {which: found for which, found in present["fingerprints"].items() if which != "eval"}
    form["fingerprints"] |= began_with
    if form == present:
      return
  if any(from_json(form[name], name) != part for name, part in parts.items()):
    raise CheckpointError(f"{workdir}: the experiment could not be read back from JSON as it is")
  if jax.process_index() == 0:
    write_json(path, form, allow_nan=True)


def check_experiment(workdir: str | pathlib.Path, experiment: Experiment) -> None:
  """Raises CheckpointError where `write_experiment` would refuse the experiment whatever its data; no device."""
  if _holds_training(workdir):
    path = _file(workdir)
    differences = diff(_read(path)["experiment"], to_json(experiment))
    refused = [each for each in differences if _kind(*each) == "other"]
    if refused:
      raise CheckpointError(_another(path.parent, refused))


def read_experiment(workdir: str | pathlib.Path) -> tuple[Experiment, tuple, Any | None]:
  """(experiment, categories, keypoints) of a run directory; raises CheckpointError for none or a damaged one."""
  path = _file(workdir)
  if not path.exists():
    raise CheckpointError(f"{workdir} is not a run directory: it has no experiment.json")
  form = _read(path)
  return tuple(from_json(form[name], name) for name in PARTS)


def same_results(a: Experiment, b: Experiment) -> bool:
  """Whether two experiments differ in nothing that a result depends on."""
  return all(_is_under(path, IDLE) for path, _, _ in diff(a, b))


def _file(workdir: str | pathlib.Path) -> pathlib.Path:
  if pathlib.Path(workdir).is_file():
    raise CheckpointError(f"{workdir} is a file, and no folder of a run")
  return pathlib.Path(workdir, "experiment.json")


def _holds_training(workdir: str | pathlib.Path) -> bool:
  """Whether something has been logged or saved in the directory of an experiment."""
  started = latest_step(workdir) is not None or bool(log.rows(workdir))
  if started and not _file(workdir).exists():
    raise CheckpointError(f"{workdir} has been trained in, but its experiment.json is gone")
  return started


def _read(path: pathlib.Path) -> dict[str, Any]:
  """The JSON form of a run, with the fields that its classes have gained since it was written at their defaults."""
  try:
    form = read_json(path)
  except FileError as error:
    raise CheckpointError(str(error)) from error
  missing = [name for name in PARTS if not isinstance(form, dict) or name not in form]
  if missing:
    raise CheckpointError(f"{path}: no {missing[0]!r} in it")
  try:
    parts = {name: from_json(form[name], name) for name in PARTS}
  except ExperimentError as error:
    raise CheckpointError(f"{path}: {error}") from error
  if not isinstance(parts["experiment"], Experiment):
    raise CheckpointError(f"{path}: 'experiment' is no Experiment")
  categories = parts["categories"]
  if not (isinstance(categories, tuple) and all(isinstance(getattr(each, "name", 0), str) for each in categories)):
    raise CheckpointError(f"{path}: 'categories' are no classes with names")
  fingerprints = form.get("fingerprints")
  return {name: to_json(part) for name, part in parts.items()} | {
    "fingerprints": fingerprints if isinstance(fingerprints, dict) else {}
  }


# ---------------------------------------------------------------------------------------------- what may change


def _compare(folder: pathlib.Path, present: dict[str, Any], asked: dict[str, Any]) -> None:
  """Raises CheckpointError for what may not change; warns of what changes the numbers that are logged."""
  differences = [each for name in PARTS for each in diff(present[name], asked[name], name)]
  same = {
    which: present["fingerprints"].get(which) == asked["fingerprints"].get(which) is not None
    for which in PLACES.values()
  }
  changed = [(_kind(*each), each) for each in differences]
  changed = [(kind, each) for kind, each in changed if kind != "idle" and not same.get(kind)]
  evaluated = [each for kind, each in changed if kind in ("eval", "evaluated")]
  refused = [each for _, each in changed if each not in evaluated]
  if refused:
    unknown = {_kind(*each) for each in refused} & same.keys()
    raise CheckpointError(_another(folder, refused) + _why(unknown, present, asked))
  for path, a, b in evaluated:
    logger.warning(
      "%s: %s until now, %s from here on: what is evaluated before and after is not comparable",
      path,
      _short(a),
      _short(b),
    )
  for which in ("train", "eval"):
    a, b = present["fingerprints"].get(which), asked["fingerprints"].get(which)
    if a and b and a != b and not any(_kind(*each) == which for each in differences):
      counts = _counts(a, b)
      logger.warning("%s: the data of data.%s are no longer those that the run began with%s", folder, which, counts)


def _kind(path: str, a: Any, b: Any) -> str:
  """What a change of one path means.

  Returns:
    'idle', 'evaluated' or 'other'; where it is the place of files, whose fingerprint tells if these are the same.
  """
  path = _in_experiment(path)
  if _is_under(path, IDLE):
    return "idle"
  if _is_under(path, EVALUATED):
    return "evaluated"
  which = next((which for place, which in PLACES.items() if _is_under(path, (place,))), "other")
  is_place = isinstance(a, str) and isinstance(b, str) and not path.endswith(".class")
  return which if is_place or which == "eval" else "other"


def _in_experiment(path: str) -> str:
  return path.removeprefix("experiment.")


def _is_under(path: str, places: tuple[str, ...]) -> bool:
  return any(path == place or path.startswith(f"{place}.") for place in places)


def _another(folder: pathlib.Path, differences: list[tuple[str, Any, Any]]) -> str:
  shown = "; ".join(f"{at}: {_short(a)} there, {_short(b)} asked for" for at, a, b in differences[:8])
  more = f"; and {len(differences) - 8} more" if len(differences) > 8 else ""
  return (
    f"{folder} holds another experiment: {shown}{more} "
    f"(to go on from its parameters, train in a new --workdir with --init_from={folder})"
  )


def _why(kinds: set[str], present: dict[str, Any], asked: dict[str, Any]) -> str:
  """Why paths of files were not taken for the same data in another place."""
  said = []
  for which in sorted(kinds):
    a, b = present["fingerprints"].get(which), asked["fingerprints"].get(which)
    if a is None:
      said.append("the run has kept nothing to tell by whether it is the same in another place")
    elif b is None:
      said.append("nothing is there")
    else:
      said.append(f"what is there is not the same{_counts(a, b)}")
  return "".join(f"; {each}" for each in dict.fromkeys(said))


def _counts(a: dict[str, Any], b: dict[str, Any]) -> str:
  units = [unit for unit in ("images", "objects", "bytes") if unit in a and unit in b]
  return f" ({', '.join(f'{a[unit]} {unit} until now, {b[unit]} now' for unit in units)})" if units else ""


def _short(value: Any) -> str:
  text = value["class"].rpartition(":")[2] if isinstance(value, dict) and "class" in value else repr(value)
  return text if len(text) <= 60 else text[:57] + "..."

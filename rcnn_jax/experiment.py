"""An experiment is a value: what it holds, how a path of it is overridden, how it is written to JSON and read back.

Linen modules are frozen dataclasses, so the model is its own configuration. Everything inside an `Experiment` is a
frozen dataclass, a Linen module, a tuple, a number, a string, a bool or None; nothing else belongs here, and neither
does anything that builds or trains.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import math
import os
import pathlib
import sys
import traceback
import types
import typing
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from rcnn_jax import older
from rcnn_jax.fields import ExperimentError, Text, checked, element_hint, field_hint, fields_of, shown

ABSENT = "<absent>"  # what `diff` shows for a path that one of the two does not have


@dataclasses.dataclass(frozen=True)
class Views:
  """How each image is looked at in evaluation and prediction (test-time augmentation): once, as a rule.

  Every short side is a view, and with `flip` its mirror image is one more. Detections of all views are merged by one
  more NMS, class by class (`evaluation.views`).
  """

  short_sides: tuple[int, ...] | None = None  # pixels; None: that of data.resize
  long_side: int | None = None  # which no long side exceeds; None: data.resize's, scaled as its short side is
  flip: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """When the model is evaluated while it trains, what is counted and drawn, and which checkpoint is the best."""

  every_steps: int | None = None  # None, and no `every_epochs` either: only after the last step
  every_epochs: float | None = None  # in the place of `every_steps`: epochs of the training set
  keep_best: str = "bbox/AP"  # a name of metrics.json; higher is better
  patience: int | None = None  # the training ends after so many evaluations in a row without a new best one
  losses: bool = False  # the losses on the evaluation data too, with the statistics that batch norms have kept
  max_detections: int = 100  # of an image and class, that COCO's metrics count
  pictures: int = 8  # of ground truth beside detections, evenly spaced over the images
  views: Views = Views()


@dataclasses.dataclass(frozen=True)
class Checkpoints:
  """How often the state of the training is saved; the best checkpoint is kept beside the last ones."""

  every_steps: int = 1000
  keep_last: int = 2


@dataclasses.dataclass(frozen=True)
class Sharding:
  """How the parameters whose whole path matches a regular expression are divided over the devices of the mesh.

  Their momentum and their moving average are divided as they are. Exactly one of `axes` and `largest` is given.
  """

  pattern: str  # matched against all of 'backbone/conv1/kernel'
  axes: tuple[str | None, ...] | None = None  # of the last dimensions: 'data', 'model' or None for one kept whole
  largest: str | None = None  # the axis that divides the largest dimension which it can; where there is none, copied


FULLY_SHARDED = (Sharding(".*", largest="data"),)  # parameters and optimiser state over all data devices (FSDP)


@dataclasses.dataclass(frozen=True)
class Mesh:
  """The devices, as data x model. Batches are divided over all of them; no result depends on any of this."""

  data: int | None = None  # None: as many as there are, by `model`
  model: int = 1
  rules: tuple[Sharding, ...] = ()  # the first that matches counts; parameters that none matches are copied


@dataclasses.dataclass(frozen=True)
class BackboneWeights:
  """The backbone starts from a file of pretrained weights, and with `trunk` VGG's fc6 and fc7 too."""

  path: str
  trunk: bool = False

  def load(self, variables: dict) -> dict:
    """Returns `variables` with these leaves taken from the file."""
    from rcnn_jax.weights import backbone

    return backbone.load(os.path.expanduser(self.path), variables, self.trunk)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything that decides what a training run computes."""

  name: str
  data: Any  # rcnn_jax.data's Data: the sources, the transforms, the canvases and the batch sizes
  model: nn.Module  # a Detector; what only the data knows (num_classes) is filled in when the two meet
  stages: tuple[Any, ...]  # the stages of the training, in order, e.g. (Sgd(...),)
  seed: int = 0
  evaluation: Evaluation = Evaluation()
  checkpoints: Checkpoints = Checkpoints()
  init: BackboneWeights | None = None
  mesh: Mesh = Mesh()
  max_skipped_steps: int = 3  # in a row, whose loss or gradient is not finite: the training stops

  def override(self, changes: dict[str, Any]) -> Experiment:
    """Returns the experiment with the values at some paths replaced.

    Args:
      changes: path -> value, e.g. {"model.proposer.nms_iou": 0.8, "stages.0.steps": 900}; applied in order.

    Raises:
      ExperimentError: for a path that is not there (names the nearest ones), or a value of another type.
    """
    return override(self, changes)

  def set(self, assignments: typing.Iterable[str]) -> Experiment:
    """`override` from the command line's `path=value` strings; the value is read by the type of its field."""
    changed = self
    for assignment in assignments:
      path, equals, text = assignment.partition("=")
      if not equals:
        raise ExperimentError(f"--set={shown(assignment)}: expected path=value")
      path = older.path(path.strip())
      changed = _replace(changed, path.split("."), Text(text.strip()), path, self)
    return changed


# ---------------------------------------------------------------------------------------------- walking the tree


def children(node: Any) -> dict[str, Any] | None:
  """The named parts of a dataclass, Linen module, tuple, list or dict; None for a leaf.

  The elements of a tuple are named by their `key`, those without one by their number.
  """
  if dataclasses.is_dataclass(node) and not isinstance(node, type):
    return {f.name: getattr(node, f.name) for f in fields_of(type(node))}
  if isinstance(node, (tuple, list)):
    return {getattr(value, "key", str(i)): value for i, value in enumerate(node)}
  if isinstance(node, dict):
    return {str(key): value for key, value in node.items()}
  return None


class ClassName(str):
  """The name of a dataclass, standing for the part of an experiment that is one."""


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
  """Every path of an experiment with its value, a dataclass' own path with its class' name, in order.

  A tuple of plain values is one value here, though its elements can be overridden one by one.
  """
  if not _holds_dataclass(node):
    return {prefix: node}
  flat = {prefix: ClassName(type(node).__name__)} if prefix and dataclasses.is_dataclass(node) else {}
  for name, part in children(node).items():
    flat |= flatten(part, f"{prefix}.{name}" if prefix else name)
  return flat


def _holds_dataclass(node: Any) -> bool:
  return dataclasses.is_dataclass(node) or any(_holds_dataclass(part) for part in (children(node) or {}).values())


def diff(a: Any, b: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
  """The paths at which two experiments (or two JSON forms) differ, as (path, value in a, value in b)."""
  parts_a, parts_b = children(a), children(b)
  sequences = isinstance(a, (tuple, list)) and (isinstance(b, (tuple, list)) and len(a) != len(b))
  if parts_a is None or parts_b is None or type(a) is not type(b) or sequences:
    return [] if a == b else [(prefix, a, b)]
  differences = []
  for name in {**parts_a, **parts_b}:
    path = f"{prefix}.{name}" if prefix else name
    differences += diff(parts_a.get(name, ABSENT), parts_b.get(name, ABSENT), path)
  return differences


# ---------------------------------------------------------------------------------------------- override by path


def _replace(node: Any, keys: list[str], value: Any, path: str, root: Any, hint: Any = Any) -> Any:
  if not keys:
    return checked(value, hint, path, node)
  parts = children(node)
  key = keys[0]
  if isinstance(node, tuple) and keys[1:] == [] and key.isidentifier():
    return _with_part(node, key, value, path, root)
  if parts is None or key not in parts:
    raise ExperimentError(_unknown_path(path, root))
  if isinstance(node, tuple):
    index = list(parts).index(key)
    new = _replace(node[index], keys[1:], value, path, root, element_hint(hint, index, len(node)))
    return node[:index] + (new,) + node[index + 1 :]
  new = _replace(parts[key], keys[1:], value, path, root, field_hint(type(node), key))
  try:
    return node.clone(**{key: new}) if isinstance(node, nn.Module) else dataclasses.replace(node, **{key: new})
  except (TypeError, ValueError) as error:  # a check of its own, when it is made
    raise ExperimentError(f"{path}: {error}") from error


def _with_part(node: tuple, key: str, value: Any, path: str, root: Any) -> tuple:
  """A tuple of parts that have keys, with the part of this key replaced, added behind the others, or (None) gone."""
  absent = value is None or isinstance(value, Text) and value.text in ("None", "null")
  if absent and key not in children(node):
    raise ExperimentError(_unknown_path(path, root))
  if not absent and getattr(value, "key", None) != key:
    kind = "" if isinstance(value, Text) else f" ({type(value).__name__})"
    said = shown(value.text if isinstance(value, Text) else value)
    raise ExperimentError(f"{path}: expected a part whose key is {key!r}, or None for none, got {said}{kind}")
  new = [] if absent else [value]
  index = list(children(node)).index(key) if key in children(node) else len(node)
  return (*node[:index], *new, *node[index + 1 :])


def override(node: Any, changes: dict[str, Any]) -> Any:
  """`Experiment.override` for any part of an experiment, the paths counted from there."""
  changed = node
  for path, value in changes.items():
    path = older.path(path)
    changed = _replace(changed, path.split("."), value, path, node)
  return changed


def _unknown_path(path: str, root: Any) -> str:
  """Says that a path is not there, and which of those that are there come nearest to it."""
  known = list(flatten(root))
  last = path.rpartition(".")[2]
  same_name = [p for p in known if p.rpartition(".")[2] == last]
  near = list(dict.fromkeys(same_name + difflib.get_close_matches(path, known, n=4, cutoff=0.6)))[:4]
  hint = f"; nearest: {', '.join(near)}" if near else f"; the top level has {', '.join(children(root))}"
  return f"the experiment has no path {shown(path)}{hint}"


# ---------------------------------------------------------------------------------------------- to and from JSON


def to_json(node: Any, path: str = "experiment") -> Any:
  """The JSON form of an experiment or of any part of it; `from_json` gives back an equal value.

  A dataclass is written {"class": "rcnn_jax.models.detector:Detector", field: ...}, a tuple as a list, a float that
  JSON has no word for as {"float": "inf"}.

  Raises:
    ExperimentError: for a value that has no such form (a function, a list, an array), with its path.
  """
  if isinstance(node, float) and not math.isfinite(node):
    return {"float": str(node)}
  if node is None or type(node) in (bool, int, float, str):
    return node
  if isinstance(node, tuple):
    return [to_json(value, f"{path}.{i}") for i, value in enumerate(node)]
  if dataclasses.is_dataclass(node) and not isinstance(node, type):
    form = {"class": f"{type(node).__module__}:{type(node).__qualname__}"}
    return form | {name: to_json(value, f"{path}.{name}") for name, value in children(node).items()}
  raise ExperimentError(f"{path}: {node!r} ({type(node).__name__}) is not a plain value and cannot be written down")


def from_json(form: Any, path: str = "experiment") -> Any:
  """The value that `to_json` wrote.

  A class is imported only from `rcnn_jax`; one from elsewhere must have been imported by the caller already, so that
  reading a file runs nobody else's code.

  Args:
    form: plain JSON values.
    path: of the value, for errors.

  Raises:
    ExperimentError: for a class or a field that is not there, and a value of another type than its field's.
  """
  if isinstance(form, list):
    return tuple(from_json(value, f"{path}.{index}") for index, value in enumerate(form))
  if not isinstance(form, dict):
    return form
  if set(form) == {"float"} and form["float"] in ("inf", "-inf", "nan"):
    return float(form["float"])
  form = older.form(form)
  cls = _class_named(form.get("class"), path)
  fields = {name: from_json(value, f"{path}.{name}") for name, value in form.items() if name != "class"}
  unknown = set(fields) - {f.name for f in fields_of(cls)}
  if unknown:
    names = (name if name.isidentifier() else shown(name) for name in sorted(unknown)[:4])
    raise ExperimentError(f"{path}: {form['class']} has no field {', '.join(names)}"[:400])
  read = {name: checked(value, field_hint(cls, name), f"{path}.{name}") for name, value in fields.items()}
  try:
    return cls(**read)
  except (TypeError, ValueError) as error:
    raise ExperimentError(f"{path}: {form['class']}: {error}") from error


def _class_named(reference: Any, path: str) -> type:
  module_name, _, class_name = reference.partition(":") if isinstance(reference, str) else ("", "", "")
  module = sys.modules.get(module_name)
  if module is None and module_name.startswith("rcnn_jax."):
    try:
      module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError):  # no such module, or no name of one
      module = None
  cls = getattr(module, class_name, None)
  if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
    raise ExperimentError(
      f"{path}: no class {shown(reference)}: it is neither in rcnn_jax nor in a file named by --experiment"
    )
  return cls


# ---------------------------------------------------------------------------------------------- experiment files


def load(name_or_path: str) -> Experiment:
  """The `experiment` of an experiment file, named by its name in `experiments/` or by the path of a .py file.

  Raises:
    ExperimentError: if there is no such file (names the nearest ones) or it defines no `experiment`.
  """
  return load_variable(name_or_path, "experiments", "experiment", Experiment)


def load_variable(name_or_path: str, package: str, variable: str, cls: type) -> Any:
  """The `variable` of type `cls` of a file in the folder of `package`, or of a .py file; raises as `load`."""
  if name_or_path.endswith(".py"):
    module = _module_at(pathlib.Path(name_or_path).expanduser())
  elif name_or_path in names(package):
    module = _imported(lambda: importlib.import_module(f"{package}.{name_or_path}"), f"{name_or_path}.py")
  else:
    near = ", ".join(difflib.get_close_matches(name_or_path, names(package), n=4, cutoff=0.4) or names(package))
    folder = package.replace(".", "/")
    raise ExperimentError(f"no {variable} {name_or_path!r} in {folder}/; nearest: {near or 'none'}")
  value = getattr(module, variable, None)
  if not isinstance(value, cls):
    raise ExperimentError(f"{module.__file__} defines no variable `{variable}` of type {cls.__name__}")
  return value


def names(package: str = "experiments") -> list[str]:
  """The names of the files in `experiments/`, or in the folder of another package."""
  spec = importlib.util.find_spec(package)
  folders = spec.submodule_search_locations if spec else []
  return sorted({p.stem for folder in folders for p in pathlib.Path(folder).glob("[!_]*.py")})


def _module_at(path: pathlib.Path) -> types.ModuleType:
  if not path.is_file():
    raise ExperimentError(f"no experiment file {path}")
  spec = importlib.util.spec_from_file_location(f"experiment_file.{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # where dataclasses and type hints look up the names of a class' module
  try:
    _imported(lambda: spec.loader.exec_module(module), str(path))
  except ExperimentError:
    del sys.modules[spec.name]
    raise
  return module


def _imported(run: Callable[[], Any], file: str) -> Any:
  """What `run` returns, which runs an experiment file; raises ExperimentError with the line at which that fails."""
  try:
    return run()
  except (Exception, SystemExit) as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename.endswith(file)]
    in_syntax = isinstance(error, SyntaxError) and (error.filename or "").endswith(file)
    line = error.lineno if in_syntax else (lines or [None])[-1]
    kind = "" if isinstance(error, ExperimentError) else f"{type(error).__name__}: "
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    raise ExperimentError(f"{file}{'' if line is None else f', line {line}'}: {kind}{said}") from error

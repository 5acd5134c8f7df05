"""What is to be compared, from run directories, sweeps or bare files: one truth, and the results of each variant.

Runs that differ in nothing but their seed are the seeds of one variant. Everything is checked before anything is
computed: variants that were not evaluated on the same images and objects are refused, with what differs.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rcnn_jax.data.source import Source
from rcnn_jax.evaluation import coco
from rcnn_jax.evaluation.compare import files
from rcnn_jax.evaluation.compare.files import ComparisonError
from rcnn_jax.evaluation.report import RunFiles, read_run
from rcnn_jax.evaluation.results import Results
from rcnn_jax.experiment import Experiment, diff, from_json
from rcnn_jax.files import read_json


@dataclasses.dataclass(frozen=True)
class Detector:
  """One trained detector, or one file of detections.

  Attributes:
    place: its run directory or file, for people.
    results: its detections, by the truth's ids.
    experiment: None for a bare file.
    run: what its run directory holds; None for a bare file.
    step: that was evaluated; None where nothing tells it.
  """

  place: str
  results: Results
  experiment: Experiment | None = None
  run: RunFiles | None = None
  step: int | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
  """One of the things compared, with a detector for each seed; `paired`: seeds are the same trainings for all."""

  name: str
  detectors: tuple[Detector, ...]
  paired: bool = False


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What is compared, the first variant being the base.

  Attributes:
    truth: in COCO's form (`coco.truth_dataset`).
    variants: in the order asked for.
    source: the evaluation data, for pictures; None for a bare file of truth.
    warnings: what is not as it should be and does not stop a comparison.
  """

  truth: dict
  variants: tuple[Variant, ...]
  source: Source | None
  warnings: tuple[str, ...] = ()


def read(
  runs: Sequence[str] = (),
  sweep: str | None = None,
  truth: str | None = None,
  detections: Sequence[str] = (),
  checkpoint: str = "latest",
) -> Inputs:
  """Reads what the flags of `launch.compare` name.

  Args:
    runs: run directories, [NAME=]DIR[@CHECKPOINT], and directories of ladders.
    sweep: the directory of a finished sweep.
    truth: a COCO annotation file.
    detections: COCO results files, NAME=FILE, of images of `truth`, or else of the runs' evaluation data.
    checkpoint: 'latest', 'best' or a step of each run.

  Raises:
    ComparisonError, EvaluationError, ExperimentError, FileError, DataError: in one line, what is wrong with what.
  """
  if truth and (runs or sweep):
    raise ComparisonError("--truth goes with --detections alone: runs and sweeps know their own evaluation data")
  if truth:
    data, ids = files.read_truth(pathlib.Path(truth)), {}
    source, variants, warnings = None, [], []
  else:
    variants = _sweep(pathlib.Path(sweep), checkpoint) if sweep else []
    named = [one for asked in runs for one in _named_runs(asked, checkpoint)]
    variants += _grouped(named)
    if not variants:
      raise ComparisonError("nothing to compare: give --runs, --sweep, or --truth with --detections")
    data, ids, source, warnings = _evaluation_data(variants)
    variants = [_with_results(variant, data, ids) for variant in variants]
  for asked in detections:
    name, _, path = asked.rpartition("=")
    found = files.read_detections(pathlib.Path(path), data, ids)
    variants.append(Variant(name or pathlib.Path(path).stem, (Detector(path, found),)))
  if len(variants) < 2:
    raise ComparisonError(f"only {variants[0].name if variants else 'nothing'} to compare: at least two are needed")
  return Inputs(data, tuple(_distinct(variants)), source, tuple(warnings + _absent_classes(variants, data)))


# ------------------------------------------------------------------------------------------------ runs and sweeps


def _named_runs(asked: str, checkpoint: str) -> list[tuple[str, Detector]]:
  """(name or "", run) of [NAME=]DIR[@CHECKPOINT]; the rungs of a ladder by their labels."""
  name, _, path = asked.rpartition("=")
  folder = pathlib.Path(path).expanduser()
  if not folder.exists() and "@" in path:
    path, _, checkpoint = path.rpartition("@")
    folder = pathlib.Path(path).expanduser()
    return [(name or f"{folder.resolve().name}@{checkpoint}", _run(folder, checkpoint))]
  if (folder / "ladder.json").is_file():
    rungs = _part(folder / "ladder.json", "rungs")
    return [(rung["label"], _run(folder / rung["name"], str(rung["step"]))) for rung in rungs]
  return [(name, _run(folder, checkpoint))]


def _run(workdir: pathlib.Path, checkpoint: str, experiment: Experiment | None = None) -> Detector:
  """A run whose detections are still to be read: `results` is the path of its file."""
  if not workdir.is_dir():
    raise ComparisonError(f"{workdir}: no such folder")
  if experiment is None:
    if not (workdir / "experiment.json").is_file():
      raise ComparisonError(f"{workdir} is no run directory: it has no experiment.json")
    form = read_json(workdir / "experiment.json")
    experiment = from_json(form.get("experiment", form))
  run = read_run(workdir) if (workdir / "experiment.json").is_file() else None
  steps = sorted(int(p.parent.name) for p in workdir.glob("eval/*/detections.json") if p.parent.name.isdigit())
  if not steps and (workdir / "detections.json").is_file():  # a trial that shares its training
    return Detector(str(workdir), workdir / "detections.json", experiment, run)
  if not steps:
    raise ComparisonError(f"{workdir} has no eval/STEP/detections.json: python -m launch.evaluate makes it")
  chosen = {"latest": steps[-1], "best": run.best if run else steps[-1]}.get(checkpoint, checkpoint)
  if str(chosen) not in map(str, steps):
    had = ", ".join(map(str, steps))
    raise ComparisonError(f"{workdir}: no detections of checkpoint {checkpoint!r}; there are those of step {had}")
  return Detector(str(workdir), workdir / "eval" / str(chosen) / "detections.json", experiment, run, int(chosen))


def _grouped(named: Sequence[tuple[str, Detector]]) -> list[Variant]:
  """Runs that differ in their seed alone, or that were given one name, put together."""
  groups: list[tuple[str, list[Detector]]] = []
  for name, one in named:
    for label, group in groups:
      same = label == name if name or label else _only_seed_differs(group[0].experiment, one.experiment)
      if same and one.experiment.seed not in [other.experiment.seed for other in group]:
        group.append(one)
        break
    else:
      groups.append((name, [one]))
  names = [name or group[0].experiment.name for name, group in groups]
  folders = [pathlib.Path(group[0].place).resolve().name for _, group in groups]
  chosen = [name if names.count(name) == 1 else folder for name, folder in zip(names, folders)]
  return [Variant(name, tuple(group)) for name, (_, group) in zip(chosen, groups)]


def _only_seed_differs(a: Experiment, b: Experiment) -> bool:
  return [path for path, *_ in diff(a, b)] == ["seed"]


def _sweep(workdir: pathlib.Path, checkpoint: str) -> list[Variant]:
  """The finished trials of a sweep, by setting."""
  if not (workdir / "sweep.json").is_file():
    raise ComparisonError(f"{workdir} holds no finished sweep: it has no sweep.json")
  settings: dict[str, list[Detector]] = {}
  for name in _part(workdir / "sweep.json", "trials"):
    experiment = from_json(_part(workdir / name / "trial.json", "experiment"))
    settings.setdefault(name.rpartition("seed=")[0].rstrip("/") or "base", []).append(
      _run(workdir / name, checkpoint, experiment)
    )
  shared = all(one.step is None for group in settings.values() for one in group)
  seeds = [[one.experiment.seed for one in group] for group in settings.values()]
  return [
    Variant(name, tuple(group), shared and all(s == seeds[0] for s in seeds)) for name, group in settings.items()
  ]


def _part(path: pathlib.Path, name: str) -> Any:
  """One value of a JSON file that a ladder or a sweep wrote."""
  form = read_json(path)
  if not isinstance(form, dict) or name not in form:
    raise ComparisonError(f"{path}: there is no {name!r} in it; was it written by something else?")
  return form[name]


def _distinct(variants: Sequence[Variant]) -> list[Variant]:
  """Each with a name of its own."""
  found: list[Variant] = []
  for variant in variants:
    name, number = variant.name, 1
    while name in [other.name for other in found]:
      number += 1
      name = f"{variant.name} ({number})"
    found.append(dataclasses.replace(variant, name=name))
  return found


# ------------------------------------------------------------------------------------------------ the truth


def _evaluation_data(variants: Sequence[Variant]) -> tuple[dict, dict[Any, int], Source, list[str]]:
  """The truth that all runs share, the image ids by those of its files, its source, and what is odd."""
  opened: list[tuple[Any, dict, str]] = []
  ids, source = {}, None
  for variant in variants:
    for one in variant.detectors:
      if any(one.experiment.data.eval == known for known, *_ in opened):
        continue
      data = one.experiment.data.eval.open()
      annotations = [data.annotations(index) for index in range(len(data))]
      truth = coco.truth_dataset(annotations, data.categories)
      if not opened:
        source = data
        ids = {a.image_id if a.file_id is None else a.file_id: a.image_id for a in annotations}
      else:
        files.check_same_truth(opened[0][1], truth, opened[0][2], one.place)
      opened.append((one.experiment.data.eval, truth, one.place))
  return opened[0][1], ids, source, []


def _with_results(variant: Variant, truth: dict, ids: Mapping[Any, int]) -> Variant:
  read_one = lambda one: dataclasses.replace(one, results=files.read_detections(one.results, truth, ids))
  return dataclasses.replace(variant, detectors=tuple(read_one(one) for one in variant.detectors))


def _absent_classes(variants: Sequence[Variant], truth: dict) -> list[str]:
  """Classes with objects that a variant never names."""
  there = {one["category_id"] for one in truth["annotations"]}
  names = {one["id"]: one["name"] for one in truth["categories"]}
  said = []
  for variant in variants:
    named = {int(k) for one in variant.detectors for k in set(one.results.category_ids.tolist())}
    if missing := [json.dumps(names[k], ensure_ascii=False) for k in names if k in there and k not in named]:
      shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
      said.append(f"{variant.name} finds no object of the class{'es' * (len(missing) > 1)} {shown}")
  return said

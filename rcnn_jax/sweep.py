"""A sweep is a value: an experiment, what is changed in it, and the seeds; the table over what its trials measured.

Nothing here trains or reads a file of results: `rcnn_jax.sweeping` and `launch.sweep` do.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

from rcnn_jax import experiment as experiments
from rcnn_jax.evaluation import seeds as over_seeds
from rcnn_jax.evaluation.tables import text_table
from rcnn_jax.experiment import Experiment, ExperimentError
from rcnn_jax.sweeping.resources import Resources

# What a training alone reads: changes there mean nothing to trials that share one.
TRAINING = ("seed", "stages", "init", "checkpoints", "data.train", "data.augmentations")


@dataclasses.dataclass(frozen=True)
class Sweep:
  """An ablation: every setting of the grid of all axes, with every seed.

  An axis is a path with its values, {"model.box.nms_iou": (0.3, 0.5)}, or a name with changes that go together,
  {"roi_op": {"align": {}, "max_pool": {"model.pool": RoiMaxPool(), "model.heads.mask.pool": RoiMaxPool(14)}}}.
  """

  base: Experiment
  axes: Mapping[str, tuple[Any, ...] | Mapping[Any, Mapping[str, Any]]]
  seeds: tuple[int, ...] = (0,)
  trained_once: bool = False  # the axes change only what detects: the base is trained, by seed, for all settings
  metrics: tuple[str, ...] = ("bbox/AP", "bbox/AP50", "segm/AP")  # names of metrics.json, for the table
  resources: Resources = Resources()  # of each trial, where a cluster asks for them

  def settings(self) -> dict[str, dict[str, Any]]:
    """name -> the changes {path: value} of each setting; names are paths like 'nms_iou=0.3/score_threshold=0.05'.

    Raises:
      ExperimentError: for two settings of one name, and for a change of the training that all settings share.
    """
    settings = {}
    for point in itertools.product(*(_options(axis, options) for axis, options in self.axes.items())):
      name = "/".join(label for label, _ in point)
      if name in settings:
        raise ExperimentError(f"two settings are called {name}: give the axis names, {{name: {{path: value}}}}")
      settings[name] = {path: value for _, changes in point for path, value in changes.items()}
      if self.trained_once:
        _refuse_training(settings[name])
    return settings

  def trials(self) -> dict[str, Experiment]:
    """name -> experiment of each setting with each seed, e.g. 'nms_iou=0.3/seed=0'; the seed varies fastest."""
    settings = {name: self.base.override(changes) for name, changes in self.settings().items()}
    return {
      trial_name(setting, seed): experiment.override({"seed": seed})
      for setting, experiment in settings.items()
      for seed in self.seeds
    }

  def trainings(self) -> dict[str, Experiment]:
    """name -> experiment of what is to be trained: the trials, or what they share."""
    if not self.trained_once:
      return self.trials()
    return {trial_name("trained", seed): self.base.override({"seed": seed}) for seed in self.seeds}

  def runs(self) -> dict[str, Experiment]:
    """name -> experiment of everything that is run: the trainings, then what is evaluated from them."""
    return self.trainings() | self.trials()

  def units(self) -> tuple[tuple[str, ...], ...]:
    """The names of `runs` in units that need nothing of each other: a trial, or a training and all that share it."""
    if not self.trained_once:
      return tuple((name,) for name in self.trials())
    settings = self.settings()
    return tuple(
      (trial_name("trained", seed), *(trial_name(setting, seed) for setting in settings)) for seed in self.seeds
    )

  def summary(self, results: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, dict[str, Any]]]:
    """setting -> metric -> {mean, sd, n} over the seeds; sd is that of a sample, None for a single one.

    Args:
      results: trial -> its metrics; trials may be missing, and metrics be None.
    """
    return {
      setting: {metric: over_seeds.spread(values) for metric, values in found.items() if values}
      for setting, found in self._values(results).items()
    }

  def differences(self, results: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, dict[str, Any]]]:
    """setting -> metric -> {mean, low, high}: how far each lies above the first setting, with a 95 % interval.

    Settings that share their trainings are compared seed by seed, others as independent samples.
    """
    (_, base), *others = self._values(results).items()
    found = {}
    for setting, values in others:
      cells = {metric: over_seeds.difference(values[metric], base[metric], self.trained_once) for metric in values}
      found[setting] = {metric: cell for metric, cell in cells.items() if cell}
    return found

  def _values(self, results: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, dict[int, float]]]:
    """setting -> metric -> {seed: value} of what was measured."""
    found = {}
    for setting in self.settings():
      rows = {seed: results.get(trial_name(setting, seed), {}) for seed in self.seeds}
      found[setting] = {
        metric: {seed: row[metric] for seed, row in rows.items() if row.get(metric) is not None}
        for metric in self.metrics
      }
    return found


def trial_name(setting: str, seed: int) -> str:
  """The name of a trial, which is its folder in the sweep's."""
  return f"{setting}/seed={seed}" if setting else f"seed={seed}"


def table(summary: Mapping[str, Mapping[str, Any]], differences: Mapping[str, Mapping[str, Any]]) -> str:
  """The text of a summary: a line a setting, mean ± sd of each metric that was measured, and the number of seeds.

  Below it stand the differences from the first setting, [low, high] where there are seeds to tell it by.
  """
  metrics = list(dict.fromkeys(metric for found in summary.values() for metric in found))
  header, rows = ["setting", *metrics, "seeds"], []
  for setting, found in summary.items():
    counts = sorted({cell["n"] for cell in found.values()})
    cells = [_mean(found.get(metric)) for metric in metrics]
    rows.append([setting or "base", *cells, "/".join(map(str, counts)) or "0"])
  text = text_table(header, rows)
  if any(differences.values()):
    rows = [
      [setting, *(_difference(found.get(metric)) for metric in metrics)] for setting, found in differences.items()
    ]
    text += "\n\n" + text_table([f"over {next(iter(summary))}", *metrics], rows)
  return text


def load(name_or_path: str) -> Sweep:
  """The `sweep` of a file in experiments/sweeps/, named by its name, or of a .py file.

  Raises:
    ExperimentError: if there is no such file, or it defines no `sweep`.
  """
  return experiments.load_variable(name_or_path, "experiments.sweeps", "sweep", Sweep)


def _options(axis: str, options: Any) -> list[tuple[str, dict[str, Any]]]:
  """The settings of one axis: (label, changes) each."""
  if isinstance(options, Mapping):
    return [(f"{axis}={label}", dict(changes)) for label, changes in options.items()]
  name = re.search(r"[^.]*(\.\d+)*$", axis)[0]  # of a path, with the places in a tuple that follow its last name
  return [(f"{name}={_text(value)}", {axis: value}) for value in options]


def _text(value: Any) -> str:
  """A value as a part of a folder's name."""
  shown = type(value).__name__ if dataclasses.is_dataclass(value) else str(value)
  return re.sub(r"[^\w.+-]+", "-", shown).strip("-")


def _refuse_training(changes: Mapping[str, Any]) -> None:
  for path in changes:
    if any(path == part or path.startswith(f"{part}.") for part in TRAINING):
      raise ExperimentError(f"{path}: the settings of this sweep share one training (trained_once), this changes it")


def _mean(found: Mapping[str, Any] | None) -> str:
  if found is None:
    return "-"
  return f"{found['mean']:.4f}" + ("" if found["sd"] is None else f" ± {found['sd']:.4f}")


def _difference(found: Mapping[str, Any] | None) -> str:
  if found is None:
    return "-"
  interval = "" if found["low"] is None else f" [{found['low']:+.4f}, {found['high']:+.4f}]"
  return f"{found['mean']:+.4f}{interval}"

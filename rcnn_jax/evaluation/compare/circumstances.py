"""What differs between the variants: the values of their experiments, and what should be alike and is not."""

from __future__ import annotations

from collections.abc import Sequence

from rcnn_jax.evaluation import report
from rcnn_jax.evaluation.compare.inputs import Detector, Inputs
from rcnn_jax.experiment import diff, flatten, to_json

LONGEST = 60  # characters of a value


def value_rows(inputs: Inputs) -> tuple[list[str], list[list[str]]]:
  """Each path at which experiments differ, with the value of every variant: (header, rows); seeds are left out.

  Variants without an experiment show a dash.
  """
  firsts = [variant.detectors[0].experiment for variant in inputs.variants]
  base = next((one for one in firsts if one is not None), None)
  paths = []
  for other in firsts:
    if other is not None:
      paths += [path for path, *_ in diff(base, other) if path not in ("seed", "name")]
  flat = [{} if one is None else {"": one, **flatten(one)} for one in firsts]
  rows = []
  for path in dict.fromkeys(paths):
    rows.append([path, *("–" if not values else _short(_at(values, path)) for values in flat)])
  return ["path", *(variant.name for variant in inputs.variants)], rows


def _at(values: dict, path: str) -> object:
  """The value at a path; of a path within a tuple, the element."""
  if path in values:
    return values[path]
  head, _, last = path.rpartition(".")
  if last.isdigit() and isinstance(values.get(head), tuple) and int(last) < len(values[head]):
    return values[head][int(last)]
  return "not there"


def _short(value: object) -> str:
  text = str(value)
  return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def warnings(inputs: Inputs) -> list[str]:
  """What makes a comparison weaker than it looks: other training data, budgets, counts of detections, views, seeds."""
  said = list(inputs.warnings)
  ways = [
    ("were trained on different data", lambda one: str(to_json(one.experiment.data.train))),
    ("were trained for different numbers of steps", lambda one: one.step if one.run else None),
    ("count different numbers of detections an image", lambda one: one.experiment.evaluation.max_detections),
    ("look at each image by different views", lambda one: str(to_json(one.experiment.evaluation.views))),
    ("started from different weights", lambda one: str(to_json(one.experiment.init))),
  ]
  known = [(variant.name, variant.detectors[0]) for variant in inputs.variants if variant.detectors[0].experiment]
  for what, read in ways:
    values = {name: read(one) for name, one in known}
    values = {name: value for name, value in values.items() if value is not None}
    if len(set(values.values())) > 1:
      said.append(f"{_among(list(values))} {what}{_numbers(values)}")
  if bare := [variant.name for variant in inputs.variants if variant.detectors[0].experiment is None]:
    said.append(f"of {', '.join(bare)} nothing but the detections is known: neither data nor settings were checked")
  counts = {variant.name: len(variant.detectors) for variant in inputs.variants}
  if min(counts.values()) < 2:
    single = ", ".join(name for name, count in counts.items() if count < 2)
    said.append(f"of {single} there is one seed: how much another training would differ is not in the intervals")
  said.append("runs do not record versions or devices of their trainings: that these are alike was not checked")
  return said


def _among(names: Sequence[str]) -> str:
  return ", ".join(names[:-1]) + f" and {names[-1]}"


def _numbers(values: dict) -> str:
  if not all(isinstance(value, int) for value in values.values()):
    return ""
  return " (" + ", ".join(f"{value:,}" for value in values.values()) + ")"


def training_curves(inputs: Inputs, metric: str) -> tuple[dict, dict]:
  """({name: [(step, AP)]}, {name: [(hours, AP)]}) of each training that was evaluated; `name#2` is another seed."""
  steps, hours = {}, {}
  for variant in inputs.variants:
    for number, one in enumerate(variant.detectors, start=1):
      if one.run is None:
        continue
      name = variant.name if number == 1 else f"{variant.name}#{number}"
      found = [
        (step, row[metric]) for step, row in sorted(one.run.evaluations.items()) if row.get(metric) is not None
      ]
      if found:
        steps[name] = found
        seconds = [(seconds_until(one, step) / 3600, value) for step, value in found]
        if any(time for time, _ in seconds):
          hours[name] = seconds
  return steps, hours


def seconds_until(one: Detector, step: int) -> float:
  """Of the training until a step, evaluations left out."""
  rows = [row for row in one.run.train if row["step"] <= step]
  fits = [row for row in one.run.fits if row["step"] <= step]
  if not (rows or fits) or not one.run.settings:
    return 0.0
  part = report.RunFiles(one.run.workdir, one.run.settings, rows, fits, {}, one.run.keep_best)
  return report.training_seconds(part)

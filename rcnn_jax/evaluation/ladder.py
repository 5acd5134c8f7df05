"""The ladder's table: one row a rung, from its run directory and what was timed.

Nothing that trains, detects or takes time may live here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rcnn_jax.evaluation.report import RunFiles
from rcnn_jax.evaluation.tables import text_table

METRICS = {"AP": "bbox/AP", "AP50": "bbox/AP50", "VOC07 mAP": "voc/mAP_11pt"}


@dataclasses.dataclass(frozen=True)
class Rung:
  """What the table says of one finished run.

  Attributes:
    name: of its experiment.
    label: for people.
    step: the last one, whose evaluation and time count.
    metrics: AP, AP50 and VOC07 mAP (11 points) in 0..1, by these names; None where nothing was to be found.
    stages: (what the stage brought, metrics after it) for a training of several stages.
    training_seconds: see `report.training_seconds`.
    proposal_seconds: of one test image, by the processor's clock; None where the network makes its own.
    detection_seconds: (median, least, most) of one test image, from the batch on the device to its detections.
    passes: how often the network runs on an image.
    parameters: how many.
  """

  name: str
  label: str
  step: int
  metrics: Mapping[str, float | None]
  stages: tuple[tuple[str, Mapping[str, float | None]], ...]
  training_seconds: float
  proposal_seconds: float | None
  detection_seconds: tuple[float, float, float]
  passes: int
  parameters: int

  @property
  def seconds(self) -> float:
    """Of one test image, proposals included."""
    return self.detection_seconds[0] + (self.proposal_seconds or 0.0)


def metrics_at(run: RunFiles, step: int) -> dict[str, float | None]:
  """The metrics of the table after a step that was evaluated."""
  return {name: run.evaluations[step].get(key) for name, key in METRICS.items()}


def table(rungs: Sequence[Rung]) -> str:
  """The rungs, one below the other; then, where there are any, the stages of their trainings."""
  header = [
    "",
    *(f"{name}, %" for name in METRICS),
    "training, s",
    "proposals, s",
    "network, s",
    "image, s",
    "passes",
  ]
  rows = [
    [
      rung.label,
      *_percents(rung.metrics),
      f"{rung.training_seconds:,.0f}",
      "-" if rung.proposal_seconds is None else f"{rung.proposal_seconds:.3f}",
      f"{rung.detection_seconds[0]:.3f}",
      f"{rung.seconds:.3f}",
      str(rung.passes),
      f"{rung.parameters:,}",
    ]
    for rung in rungs
  ]
  text = text_table([*header, "parameters"], rows)
  stages = [[f"{rung.label}, {what}", *_percents(after)] for rung in rungs for what, after in rung.stages]
  if stages:
    text += "\n\n" + text_table(["after", *(f"{name}, %" for name in METRICS)], stages)
  return text


def comparisons(rungs: Sequence[Rung]) -> list[str]:
  """How many times faster each rung is than the first, without and with its proposals."""
  first = rungs[0]
  return [
    f"{rung.label}: {first.detection_seconds[0] / rung.detection_seconds[0]:.1f} x {first.label}'s speed, "
    f"{first.seconds / rung.seconds:.1f} x with proposals"
    for rung in rungs[1:]
  ]


def as_json(rung: Rung) -> dict[str, Any]:
  """The rung as plain JSON values."""
  stages = [{"after": what, **after} for what, after in rung.stages]
  return {**dataclasses.asdict(rung), "stages": stages, "seconds": rung.seconds}


def _percents(metrics: Mapping[str, float | None]) -> list[str]:
  return ["-" if metrics[name] is None else f"{100 * metrics[name]:.1f}" for name in METRICS]

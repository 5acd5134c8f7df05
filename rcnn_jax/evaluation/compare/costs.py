"""What a variant costs: time, parameters, FLOPs, memory and training, from its run or measured here in turns."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rcnn_jax.evaluation.compare.circumstances import seconds_until
from rcnn_jax.evaluation.compare.comparison import Compared
from rcnn_jax.evaluation.compare.inputs import Detector, Inputs
from rcnn_jax.evaluation.compare.tables import shown_value
from rcnn_jax.files import read_json
from rcnn_jax.types import Batch

if TYPE_CHECKING:
  from rcnn_jax.training.checkpoint import Run


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one variant; what is not known is None.

  Attributes:
    seconds: of one test image, median; `spread` (least, most) of the repeats.
    parameters: how many; flops: of detection in one image; memory: bytes of that program's inputs and temporaries.
    training_seconds: steps and fits, as the run logged them.
    circumstances: how the seconds were measured.
  """

  seconds: float | None = None
  spread: tuple[float, float] | None = None
  parameters: int | None = None
  flops: float | None = None
  memory: int | None = None
  training_seconds: float | None = None
  circumstances: str = ""


def of_ladder(folder: pathlib.Path) -> dict[str, Cost]:
  """What a ladder's ladder.json says of its rungs, by their labels: measured there, in turns, proposals included."""
  if not (folder / "ladder.json").is_file():
    return {}
  form = read_json(folder / "ladder.json")
  where = form["timing"]["environment"]
  text = f"seconds an image, proposals included: {where['device']}, {where['cores']} cores, {where['date']}"
  return {
    rung["label"]: Cost(
      seconds=rung["seconds"],
      spread=tuple(value + (rung["proposal_seconds"] or 0.0) for value in rung["detection_seconds"][1:]),
      parameters=rung["parameters"],
      training_seconds=rung["training_seconds"],
      circumstances=text,
    )
    for rung in form["rungs"]
  }


def from_runs(inputs: Inputs) -> dict[str, Cost]:
  """What the runs of the first seeds tell without running anything."""
  return {v.name: _from_run(v.detectors[0], inputs) for v in inputs.variants if v.detectors[0].experiment is not None}


def _from_run(one: Detector, inputs: Inputs) -> Cost:
  known = one.run is not None and one.step is not None
  seconds = seconds_until(one, one.step) if known else None
  return Cost(parameters=_parameters(one, inputs), training_seconds=seconds or None)


def _parameters(one: Detector, inputs: Inputs) -> int | None:
  from rcnn_jax.data import pipeline
  from rcnn_jax.models import detector

  if inputs.source is None:
    return None
  model = one.experiment.model.with_data(inputs.source.categories, inputs.source.keypoints)
  return detector.num_parameters(model, pipeline.example_canvas(one.experiment.data))


def measured(inputs: Inputs, num_images: int = 4, repeats: int = 5) -> dict[str, Cost]:
  """The runs' costs with detection timed in turns on some test images, batch 1, and its program's FLOPs and memory.

  Variants without a run directory or checkpoint keep what is known.
  """
  import numpy as np

  from rcnn_jax import timing
  from rcnn_jax.data import loader
  from rcnn_jax.training import checkpoint

  known, contestants = from_runs(inputs), {}
  for variant in inputs.variants:
    one = variant.detectors[0]
    steps = checkpoint.saved_steps(one.place) if one.run is not None else []
    if not steps:
      continue
    run = checkpoint.load_run(one.place, one.step if one.step in steps else "latest")
    data = dataclasses.replace(run.experiment.data, load_masks=False, load_keypoints=False)
    batches = loader.eval_batches(data, inputs.source, batch_size=1)
    places = np.unique(np.linspace(0, len(batches) - 1, num_images).round().astype(int))
    drawn = [next(batches.start(int(place))) for place in places]
    contestants[variant.name] = timing.detection(run, drawn)
    known[variant.name] = dataclasses.replace(known[variant.name], **_program(run, drawn[0]))
  where = timing.environment()
  text = (
    f"seconds an image: batch 1, median of {repeats} passes over {num_images} test images, variants in turns, "
    f"stored proposals not counted; {where['device']}, {where['cores']} cores, jax {where['jax']}, {where['date']}"
  )
  for name, seconds in timing.alternate(contestants, repeats).items():
    spread = (min(seconds), max(seconds))
    known[name] = dataclasses.replace(
      known[name], seconds=statistics.median(seconds), spread=spread, circumstances=text
    )
  return known


def _program(run: Run, batch: Batch) -> dict[str, float | int | None]:
  """FLOPs and bytes of the program that detects in one image, by the compiler's count."""
  import jax

  from rcnn_jax import timing

  model = run.experiment.model.with_data(run.categories, run.keypoints)
  detect = jax.jit(lambda variables, batch: model.apply(variables, batch, method="detect"))
  facts = timing.compile_timed(detect, run.variables, batch.replace(truth=None))[1]
  flops, memory = facts.get("GFLOP"), facts.get("program_memory_MiB")
  return {"flops": flops and 1e9 * flops, "memory": memory and int(memory * 2**20)}


def cost_rows(compared: Compared, costs: Mapping[str, Cost]) -> tuple[list[str], list[list[str]]]:
  """A row a variant, a column for what is known of any: (header, rows)."""
  columns = {
    "s an image": lambda c: c.seconds and f"{c.seconds:.3f}",
    "least to most": lambda c: c.spread and f"{c.spread[0]:.3f} to {c.spread[1]:.3f}",
    "parameters": lambda c: c.parameters and f"{c.parameters:,}",
    "GFLOP an image": lambda c: c.flops and f"{c.flops / 1e9:,.1f}",
    "memory, MiB": lambda c: c.memory and f"{c.memory / 2**20:,.0f}",
    "training, s": lambda c: c.training_seconds and f"{c.training_seconds:,.0f}",
  }
  columns = {name: read for name, read in columns.items() if any(read(cost) for cost in costs.values())}
  if not columns:
    return [], []
  rows = [
    [
      variant,
      shown_value(compared, variant, "AP"),
      *(read(costs.get(variant, Cost())) or "–" for read in columns.values()),
    ]
    for variant in compared.numbers
  ]
  return ["variant", "AP, %", *columns], rows

"""What a step costs against how much there is to do: one setting changed at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax

from rcnn_jax.benchmarks import step
from rcnn_jax.benchmarks.step import Settings
from rcnn_jax.data import pipeline
from rcnn_jax.experiment import Experiment

# (the experiment, its batch size, the settings) of one measurement.
Point = tuple[Experiment, int, Settings]


def proposals(experiment: Experiment, batch_size: int, settings: Settings) -> Iterator[tuple[int, Point]]:
  """Proposals of an image that an RPN hands on; nothing where there is none."""
  if not hasattr(experiment.model.proposer, "num_post_nms"):
    return
  most = experiment.model.proposer.num_post_nms
  for share in (16, 4, 1):
    fewer = tuple(max(1, count // share) for count in most)
    yield fewer[1], (experiment.override({"model.proposer.num_post_nms": fewer}), batch_size, settings)


def foreground(experiment: Experiment, batch_size: int, settings: Settings) -> Iterator[tuple[int, Point]]:
  """Objects of an image, each with one RoI that is foreground; as many are found in detection."""
  for count in (4, 16, 64):
    yield count, (experiment, batch_size, dataclasses.replace(settings, num_objects=count, num_found=count))


def objects(experiment: Experiment, batch_size: int, settings: Settings) -> Iterator[tuple[int, Point]]:
  """Rows for objects of an image, most of which hold none."""
  for count in (25, 100, 400):
    yield count, (experiment.override({"data.max_objects": count}), batch_size, settings)


def size(experiment: Experiment, batch_size: int, settings: Settings) -> Iterator[tuple[str, Point]]:
  """The canvas: half of each side, and the whole."""
  height, width = pipeline.example_canvas(experiment.data)
  for canvas in ((height // 64 * 32 or height, width // 64 * 32 or width), (height, width)):
    changed = experiment.override({"data.canvases": (canvas,)})
    yield "x".join(map(str, canvas)), (changed, batch_size, settings)


def batch(experiment: Experiment, batch_size: int, settings: Settings) -> Iterator[tuple[int, Point]]:
  """Images in a batch."""
  for count in sorted({1, batch_size, 2 * batch_size}):
    yield count, (experiment, count, settings)


def devices(experiment: Experiment, batch_size: int, settings: Settings) -> Iterator[tuple[int, Point]]:
  """Devices that train, each with the whole batch size; detection runs on one."""
  count = 1
  while count <= len(jax.devices()):
    yield count, (experiment, count * batch_size, dataclasses.replace(settings, num_devices=count))
    count *= 2


AXES = {axis.__name__: axis for axis in (proposals, foreground, objects, size, batch, devices)}


def measure(
  experiment: Experiment, batch_size: int, settings: Settings, axes: list[str], report: Callable[[dict], None]
) -> list[dict]:
  """A row for each setting of each axis: {'axis', 'value', 'train': summary, 'detect': summary}.

  report: is given each row as soon as it is there.
  """
  rows = []
  for name in axes:
    for value, (changed, count, how) in AXES[name](experiment, batch_size, settings):
      found = {what: step.measured(what, changed, count, how) for what in ("train", "detect")}
      rows.append({"axis": name, "value": value} | found)
      report(rows[-1])
  return rows

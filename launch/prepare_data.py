"""Finds the region proposals of an experiment's data sets, once, and tells how much of the objects they cover.

    python -m launch.prepare_data --experiment=NAME_OR_FILE [--proposals=fast|quality --output=DIR --width=500 ...]
    python -m launch.prepare_data --proposals=rpn --workdir=RUN --output=DIR

Selective search needs no model; 'rpn' takes those of a trained run. The settings of the search are the experiment's
data.search, but for those that an option names. Writes DIR/train and DIR/eval, by default the folders that the
experiment's data.proposals names, each with settings.json, the proposals as memory-mapped arrays, and their recall in
recall.json and recall.txt. Killed and started again, it goes on where it was.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import zlib
from typing import Any

import jax
import numpy as np
from absl import app, flags

from launch import flags as launch_flags
from rcnn_jax import experiment
from rcnn_jax.data import prepare, proposals
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.proposals import StoredProposals
from rcnn_jax.data.selective_search import SelectiveSearch
from rcnn_jax.data.source import Source
from rcnn_jax.files import write_json, write_text

FLAGS = flags.FLAGS
IOUS, COUNTS = (0.5, 0.7), (100, 300, 1000, 2000)


def define_flags() -> None:
  """Defines the options of this command."""
  flags.DEFINE_enum("proposals", None, ["fast", "quality", "rpn"], "Selective search's mode, or a run's RPN.")
  flags.DEFINE_string("experiment", None, "Name or file of an experiment: its training and evaluation data.")
  launch_flags.define_set()
  launch_flags.define_path("output", "Folder in which train/ and eval/ are written.")
  launch_flags.define_path("workdir", "With --proposals=rpn: the run directory.")
  flags.DEFINE_string("checkpoint", "best", "With --proposals=rpn: best, latest or a step.")
  flags.DEFINE_integer("width", None, "Pixels to which an image is resized for the search; 0: its own.", 0)
  flags.DEFINE_integer("base_k", None, "First scale of the graph segmentation, and the step to the next.", 1)
  flags.DEFINE_float("min_side", None, "Least side of a box, pixels of the resized image.", 0.0)
  flags.DEFINE_integer("max_boxes", None, "The most boxes of an image.", 1)
  flags.DEFINE_enum("first", None, ["large", "small"], "Which boxes the order begins with, but for chance.")
  flags.DEFINE_integer("seed", None, "Of the order's random numbers.", 0)
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  flags.DEFINE_integer("processes", cores, "That search at the same time; 0: none but this one.", 0)


def main(argv: list[str]) -> None:
  """Prepares the training data, then the evaluation data."""
  del argv
  if (FLAGS.proposals == "rpn") != (FLAGS.workdir is not None):
    raise app.UsageError("--workdir goes with --proposals=rpn, and with nothing else")
  if FLAGS.proposals == "rpn":
    run = launch_flags.chosen_run()
    for folder, spec, source in data_sets(run.experiment.data):
      prepare_one(folder, rpn_settings(run), spec, source, rpn_finder(run, source))
    return
  if FLAGS.experiment is None:
    raise app.UsageError("--experiment is missing")
  data = experiment.load(FLAGS.experiment).set(FLAGS.set).data
  search = chosen_search(data)
  for folder, spec, source in data_sets(data):
    find = prepare.searcher(spec, source, search, FLAGS.processes)
    prepare_one(folder, search.settings(), spec, source, find)


def data_sets(data: Data) -> list[tuple[pathlib.Path, Any, Source]]:
  """(folder to be written, spec, opened data set), for training and for evaluation."""
  if FLAGS.output is not None:
    folders = (pathlib.Path(FLAGS.output, "train"), pathlib.Path(FLAGS.output, "eval"))
  elif data.proposals is not None:
    folders = tuple(pathlib.Path(folder).expanduser() for folder in data.proposals)
  else:
    raise app.UsageError("--output is missing, and the experiment names no folders either (data.proposals)")
  return [(folder, spec, spec.open()) for folder, spec in zip(folders, (data.train, data.eval))]


def chosen_search(data: Data) -> SelectiveSearch:
  """The experiment's selective search, with what the flags say otherwise."""
  if FLAGS.proposals is None and data.search is None:
    raise app.UsageError("name what is to be prepared, --proposals=fast, quality or rpn: the data have no search")
  names = ("width", "base_k", "min_side", "max_boxes", "first", "seed")
  asked = {"mode": FLAGS.proposals} | {name: getattr(FLAGS, name) for name in names}
  asked = {name: value for name, value in asked.items() if value is not None}
  if asked.get("width") == 0:
    asked["width"] = None
  return dataclasses.replace(data.search or SelectiveSearch(), **asked)


def rpn_settings(run: Any) -> dict[str, Any]:
  """What the proposals of a run's model are stored with; the checksum is that of all its parameters."""
  crc = 0
  for leaf in jax.tree.leaves(run.variables["params"]):
    crc = zlib.crc32(np.asarray(leaf).tobytes(), crc)
  _, num_proposals = run.experiment.model.proposer.num_post_nms
  parameters = {"experiment": run.experiment.name, "step": run.step, "crc32": crc, "max_boxes": num_proposals}
  return {"method": "rpn", "parameters": parameters}


def rpn_finder(run: Any, source: Source) -> prepare.Find:
  """The proposals of a run's model in an opened data set."""
  from rcnn_jax.evaluation import propose

  model = run.experiment.model.with_data(run.categories, run.keypoints)
  return propose.finder(model, run.variables, run.experiment.data, source)


def prepare_one(
  folder: pathlib.Path, settings: dict[str, Any], spec: Any, source: Source, find: prepare.Find
) -> None:
  """Prepares one data set; writes and prints how good its proposals are."""
  report = measured(prepare.prepare(folder, settings, spec, source, find), source)
  write_json(folder / "recall.json", report)
  table = table_of(report)
  write_text(folder / "recall.txt", table + "\n")
  print(f"{folder}\n{table}")


def measured(stored: StoredProposals, source: Source) -> dict[str, Any]:
  """Recall by IoU and number of proposals, and what they cost, as plain JSON values."""
  rows, num_objects = proposals.recall(stored, source, IOUS, COUNTS)
  counts = np.diff(stored.arrays["offsets"])
  return {
    "num_images": len(source),
    "num_objects": num_objects,
    "boxes_per_image": float(counts.mean()),
    "fewest_boxes": int(counts.min()),
    "most_boxes": int(counts.max()),
    "seconds_per_image": float(stored.arrays["seconds"].mean()),
    "recall": {str(iou): dict(zip(map(str, COUNTS), row)) for iou, row in zip(IOUS, rows)},
  }


def table_of(report: dict[str, Any]) -> str:
  """The report for people."""
  percent = lambda value: "     -" if value is None else f"{100 * value:6.1f}"
  lines = [
    f"{report['num_images']} images, {report['num_objects']} objects; {report['boxes_per_image']:.0f} boxes an image "
    f"({report['fewest_boxes']} to {report['most_boxes']}), {report['seconds_per_image']:.2f} s an image",
    "recall, %, of the best " + "".join(f"{count:>6}" for count in COUNTS),
  ]
  for iou, row in report["recall"].items():
    lines.append(f"  at IoU {iou}           " + "".join(percent(value) for value in row.values()))
  return "\n".join(lines)


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

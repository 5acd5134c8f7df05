"""Evaluates a checkpoint of a run on the run's evaluation data, or on others by --set.

    python -m launch.evaluate --workdir=DIR [--checkpoint=best|latest|STEP] [--set=path=value ...]

Prints the tables and writes DIR/eval/STEP/{metrics.json,detections.json,pictures/} and DIR/report.html.
"""

from __future__ import annotations

import pathlib

from absl import flags

from launch import flags as launch_flags
from rcnn_jax.evaluation import evaluate, report
from rcnn_jax.evaluation.limits import warn_of_few_detections
from rcnn_jax.evaluation.tiles import Tiles
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.checkpoint import Run

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the options of this command."""
  launch_flags.define_run()
  flags.DEFINE_integer("tile", None, "Look at each image by overlapping square tiles of so many pixels.", 1)
  flags.DEFINE_float(
    "overlap", 0.2, "With --tile: the share of a tile's side that neighbours have in common.", 0.0, 0.9
  )
  launch_flags.define_path("outdir", "Where to write instead of WORKDIR/eval/STEP, e.g. with --set of other data.")


def main(argv: list[str]) -> None:
  """Evaluates, and writes the report anew if the results are the run's own."""
  del argv
  run = launch_flags.chosen_run()
  outdir = pathlib.Path(FLAGS.outdir or pathlib.Path(FLAGS.workdir, "eval", str(run.step)))
  evaluate_run(run, outdir, None if FLAGS.tile is None else Tiles(FLAGS.tile, FLAGS.overlap))
  print(f"step {run.step}; written to {outdir}")
  if not FLAGS.outdir:
    print(f"report: {report.write_report(FLAGS.workdir)}")


def evaluate_run(run: Run, outdir: pathlib.Path, tiles: Tiles | None = None) -> dict[str, float | None]:
  """The metrics of a run's variables on its experiment's evaluation data; writes the files into `outdir`."""
  experiment = run.experiment
  source = experiment.data.eval.open()
  evaluate.check_categories(run.categories, source.categories)
  warn_of_few_detections(experiment.model, experiment.evaluation, source)
  model = experiment.model.with_data(run.categories, run.keypoints)
  mesh = meshes.data_mesh()
  settings = experiment.evaluation
  return evaluate.evaluate(model, run.variables, experiment.data, source, outdir, settings, mesh, tiles)


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

"""Evaluates a checkpoint of a run on the run's evaluation data, or on others by --set.

    python -m launch.evaluate --workdir=DIR [--checkpoint=best|latest|STEP] [--set=path=value ...]

Prints the tables and writes DIR/eval/STEP/{metrics.json,detections.json,pictures/} and DIR/report.html.
"""

from __future__ import annotations

import pathlib

from absl import flags

from launch import flags as launch_flags
from rcnn_jax.evaluation import evaluate, report
from rcnn_jax.evaluation.detect import EvaluationError
from rcnn_jax.training import checkpoint
from rcnn_jax.training import mesh as meshes

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the options of this command."""
  flags.DEFINE_string("workdir", None, "The run directory.", required=True)
  flags.DEFINE_string("checkpoint", "best", "best, latest or a step.")
  flags.DEFINE_string("outdir", None, "Where to write instead of WORKDIR/eval/STEP, e.g. with --set of other data.")
  launch_flags.define_set()


def main(argv: list[str]) -> None:
  """Evaluates, and writes the report anew if the results are the run's own."""
  del argv
  run = checkpoint.load_run(FLAGS.workdir, FLAGS.checkpoint)
  experiment = run.experiment.set(FLAGS.set)
  source = experiment.data.eval.open()
  check_categories(run.categories, source.categories)
  model = experiment.model.clone(num_classes=len(run.categories))
  outdir = pathlib.Path(FLAGS.outdir or pathlib.Path(FLAGS.workdir, "eval", str(run.step)))
  evaluate.evaluate(
    model,
    run.variables,
    experiment.data,
    source,
    outdir,
    mesh=meshes.data_mesh(),
    pictures=experiment.evaluation.pictures,
    max_detections=experiment.evaluation.max_detections,
  )
  print(f"step {run.step}; written to {outdir}")
  if not FLAGS.outdir:
    print(f"report: {report.write_report(FLAGS.workdir)}")


def check_categories(trained: tuple, evaluated: tuple) -> None:
  """Raises EvaluationError unless the classes that a model was trained on are those it is to be evaluated on."""
  for number, (ours, theirs) in enumerate(zip(trained, evaluated), start=1):
    if (ours.id, ours.name) != (theirs.id, theirs.name):
      raise EvaluationError(
        f"class {number} of the model is {ours.name!r} (id {ours.id}), of the data {theirs.name!r} (id {theirs.id})"
      )
  if len(trained) != len(evaluated):
    raise EvaluationError(f"the model has {len(trained)} classes, the data have {len(evaluated)}")


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

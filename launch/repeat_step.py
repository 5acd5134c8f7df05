"""Repeats a step whose loss or gradient was not finite, and says which terms, gradients and images are to blame.

python -m launch.repeat_step --workdir=DIR --step=N
"""

from __future__ import annotations

from absl import flags

from launch import flags as launch_flags
from rcnn_jax import experiment as experiments
from rcnn_jax.training import checkpoint, soundness

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the options of this command."""
  launch_flags.define_path("workdir", "The run directory.", required=True)
  flags.DEFINE_integer("step", None, "The step, as the training printed it.", 1, required=True)
  flags.DEFINE_string("experiment", None, "The run's experiment file, if that defines classes of its own.")


def main(argv: list[str]) -> None:
  """Prints what is not finite."""
  del argv
  if FLAGS.experiment:
    experiments.load(FLAGS.experiment)
  experiment, categories, keypoints = checkpoint.read_experiment(FLAGS.workdir)
  model = experiment.model.with_data(categories, keypoints)
  print("\n".join(soundness.repeat(experiment, model, soundness.kept(FLAGS.workdir, FLAGS.step))))


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

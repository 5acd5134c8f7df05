"""Trains an experiment in a run directory, and goes on with it when it is there already.

python -m launch.train --experiment=NAME_OR_FILE --workdir=DIR [--set=path=value ...]
"""

from __future__ import annotations

import jax
from absl import flags

from launch import flags as launch_flags
from rcnn_jax.training import checkpoint
from rcnn_jax.training.run import train

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the options of this command."""
  launch_flags.define_experiment()
  launch_flags.define_path("workdir", "The run directory.")
  launch_flags.define_path("init_from", "Start from another run's parameters: DIR, DIR@latest or DIR@STEP.")
  flags.DEFINE_string("init_from_skip", None, "Regular expression of the parameters that --init_from leaves alone.")
  flags.DEFINE_integer("log_every", 20, "Steps between two lines of progress.", lower_bound=1)
  flags.DEFINE_bool("distributed", False, "One of several processes of a cluster: call jax.distributed.initialize().")


def main(argv: list[str]) -> None:
  """Trains, evaluates and writes the report."""
  del argv
  experiment = launch_flags.chosen_experiment()
  if not FLAGS.workdir:
    raise checkpoint.CheckpointError("--workdir=DIR is missing")
  if FLAGS.distributed:
    jax.distributed.initialize()
  train(
    experiment, FLAGS.workdir, init_from=FLAGS.init_from, skip=FLAGS.init_from_skip, log_every=FLAGS.log_every
  )


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

"""Trains an experiment in a run directory, and goes on with it when it is there already.

python -m launch.train --experiment=NAME_OR_FILE --workdir=DIR [--set=path=value ...]
"""

from __future__ import annotations

import logging

import jax
from absl import flags

from launch import flags as launch_flags
from rcnn_jax.training import checkpoint
from rcnn_jax.training.optim import TrainingError
from rcnn_jax.training.run import train

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the options of this command."""
  launch_flags.define_experiment()
  launch_flags.define_path("workdir", "The run directory.")
  launch_flags.define_path("init_from", "Start from another run's parameters: DIR, DIR@latest or DIR@STEP.")
  flags.DEFINE_string("init_from_skip", None, "Regular expression of the parameters that --init_from leaves alone.")
  flags.DEFINE_integer("log_every", 20, "Steps between two lines of progress.", lower_bound=1)
  flags.DEFINE_string("profile", None, "FROM:TO, the steps of which a trace is written into DIR/tensorboard.")
  flags.DEFINE_list("writers", [], "Where the numbers go beside TensorBoard: wandb, mlflow, trackio.")
  flags.DEFINE_bool("distributed", False, "One of several processes; a cluster that JAX knows (SLURM, ...) is found.")
  flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process, where no cluster is found.")
  flags.DEFINE_integer("num_processes", None, "How many processes there are, with --coordinator_address.", 1)
  flags.DEFINE_integer("process_index", None, "Which of them this is, from 0, with --coordinator_address.", 0)


def main(argv: list[str]) -> None:
  """Trains, evaluates and writes the report."""
  del argv
  experiment = launch_flags.chosen_experiment()
  if not FLAGS.workdir:
    raise checkpoint.CheckpointError("--workdir=DIR is missing")
  if FLAGS.distributed:
    join()
  train(
    experiment,
    FLAGS.workdir,
    init_from=FLAGS.init_from,
    skip=FLAGS.init_from_skip,
    log_every=FLAGS.log_every,
    profile=steps_of(FLAGS.profile) if FLAGS.profile else None,
    services=tuple(FLAGS.writers),
  )


def steps_of(text: str) -> tuple[int, int]:
  """(3, 5) of '3:5'; raises TrainingError for anything else."""
  parts = text.split(":")
  if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
    raise TrainingError(f"--profile={text}: expected FROM:TO, two steps from 1, such as 10:12")
  return int(parts[0]), int(parts[1])


def join() -> None:
  """Becomes one of several processes, of which the first alone talks; raises TrainingError where none are found."""
  by_hand = (FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_index)
  if None in by_hand and any(value is not None for value in by_hand):
    raise TrainingError("--coordinator_address, --num_processes and --process_index are given together or not at all")
  try:
    jax.distributed.initialize(*by_hand)
  except (ValueError, RuntimeError) as error:
    raise TrainingError(
      f"--distributed: {str(error).splitlines()[0]} (where no cluster is found, give --coordinator_address=HOST:PORT, "
      "--num_processes and --process_index)"
    ) from error
  if jax.process_index() > 0:
    logging.getLogger("rcnn_jax").setLevel(logging.ERROR)


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

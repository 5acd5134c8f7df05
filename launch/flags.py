"""What the commands share: the flags that choose an experiment, and how a command ends on bad input."""

from __future__ import annotations

import sys
from collections.abc import Callable

from absl import app, flags, logging

from rcnn_jax import experiment as experiments
from rcnn_jax.experiment import Experiment

FLAGS = flags.FLAGS


def define_experiment() -> None:
  """Defines --experiment, --set and --print_experiment."""
  flags.DEFINE_string("experiment", None, "Name of a file in experiments/, or the path of a .py file.", required=True)
  define_set()
  flags.DEFINE_bool("print_experiment", False, "Print every path of the experiment with its value, and exit.")


def define_set() -> None:
  """Defines --set alone, for commands that take the experiment from a run directory."""
  flags.DEFINE_multi_string("set", [], "path=value: override one value of the experiment; may be repeated.")


def chosen_experiment() -> Experiment:
  """The experiment that the flags ask for, overrides applied. With --print_experiment, prints it and exits."""
  experiment = experiments.load(FLAGS.experiment).set(FLAGS.set)
  if FLAGS.print_experiment:
    print(describe(experiment))
    sys.exit(0)
  return experiment


def describe(experiment: Experiment) -> str:
  """One line `path = value` for each path; a part of the experiment is shown by the name of its class."""
  shown = experiments.flatten(experiment)
  return "\n".join(
    f"{path} = {value if isinstance(value, experiments.ClassName) else repr(value)}" for path, value in shown.items()
  )


def run(main: Callable[[list[str]], None], define_flags: Callable[[], None]) -> None:
  """Runs a command under absl; what the project itself raises becomes one line on stderr and a non-zero exit.

  Flags are defined here rather than at import, so that one command may import another.
  """

  def guarded(argv: list[str]) -> None:
    if not FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)  # the libraries' own remarks drown the progress lines
    if len(argv) > 1:
      _end(f"unexpected argument {argv[1]!r}; every option is --name=value", 2)
    try:
      main(argv)
    except Exception as error:
      ours = type(error).__module__.startswith(("rcnn_jax.", "launch.", "__main__"))
      if not (ours or isinstance(error, FileNotFoundError)):
        raise
      _end(str(error), getattr(error, "exit_status", 1))

  define_flags()
  app.run(guarded)


def _end(reason: str, status: int) -> None:
  print(reason if status >= 128 else f"error: {reason}", file=sys.stderr, flush=True)
  sys.exit(status)

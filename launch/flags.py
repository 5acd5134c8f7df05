"""What the commands share: the flags that choose an experiment, and how a command ends on bad input."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from launch import compilation_cache, ending
from rcnn_jax import experiment as experiments
from rcnn_jax import ranges
from rcnn_jax.experiment import Experiment

FLAGS = flags.FLAGS


class _PathParser(flags.ArgumentParser):
  """Takes the path of a file or folder, with `~` for the home folder wherever the shell has left it."""

  syntactic_help = "a path"

  def parse(self, argument: str) -> str:
    """The path with `~` or `~user` at its beginning replaced."""
    if not argument:
      raise ValueError("nothing stands behind '='")
    return os.path.expanduser(argument)


def define_path(name: str, help_text: str, required: bool = False) -> None:
  """Defines a flag for the path of a file or folder, None where it is not given."""
  flags.DEFINE(_PathParser(), name, None, help_text, required=required)


def define_experiment(required: bool = True) -> None:
  """Defines --experiment, --set and --print_experiment."""
  help_text = "Name of a file in experiments/, or the path of a .py file."
  flags.DEFINE_string("experiment", None, help_text, required=required)
  define_set()
  flags.DEFINE_bool(
    "print_experiment",
    False,
    "Print every path of the experiment with its value and the number of parameters, and exit.",
  )


def define_run() -> None:
  """Defines --workdir, --checkpoint, --experiment and --set, for commands that work on a run."""
  define_path("workdir", "The run directory.", required=True)
  flags.DEFINE_string("checkpoint", "best", "best, latest or a step.")
  flags.DEFINE_string("experiment", None, "The run's experiment file, if that defines classes of its own.")
  define_set()


def define_set() -> None:
  """Defines --set alone, for commands that take the experiment from a run directory."""
  flags.DEFINE_multi_string("set", [], "path=value, e.g. --set=data.workers=4: one value of the experiment changed.")


def chosen_experiment() -> Experiment:
  """The experiment that the flags ask for, overrides applied. With --print_experiment, prints it and exits."""
  experiment = experiments.load(FLAGS.experiment).set(FLAGS.set)
  ranges.check(experiment)
  if FLAGS.print_experiment:
    print(f"{describe(experiment)}\n{parameters(experiment)}")
    sys.exit(0)
  return experiment


def chosen_run() -> Any:
  """The `training.checkpoint` Run that the flags ask for, overrides applied to its experiment.

  Raises:
    CheckpointError: there is no such run, or with the overrides its variables do not fit the model.
  """
  from rcnn_jax.training import checkpoint

  if FLAGS.experiment:
    experiments.load(FLAGS.experiment)  # whoever names the file lets it run: its classes are known from here on
  run = checkpoint.load_run(FLAGS.workdir, FLAGS.checkpoint)
  experiment = run.experiment.set(FLAGS.set)
  ranges.check(experiment)
  return with_experiment(run, experiment)


def with_experiment(run: Any, experiment: Experiment) -> Any:
  """The `training.checkpoint` Run with another experiment; raises CheckpointError unless its variables fit that."""
  from rcnn_jax.data import pipeline
  from rcnn_jax.models import detector
  from rcnn_jax.training import checkpoint

  model = experiment.model.with_data(run.categories, run.keypoints)
  canvas = pipeline.example_canvas(experiment.data)
  asked_for = detector.variable_shapes(model, canvas)
  checkpoint.take_params(asked_for, run.variables)
  return dataclasses.replace(run, experiment=experiment)


def describe(experiment: Experiment) -> str:
  """One line `path = value` for each path; a part of the experiment is shown by the name of its class."""
  shown = experiments.flatten(experiment)
  return "\n".join(
    f"{path} = {value if isinstance(value, experiments.ClassName) else repr(value)}" for path, value in shown.items()
  )


def parameters(experiment: Experiment) -> str:
  """How many parameters the model has, in a line."""
  from rcnn_jax.data import pipeline
  from rcnn_jax.models import detector

  model = experiment.model
  if not model.is_complete:
    return "parameters: as many as the data's classes ask for; --set=model.num_classes=K counts those for K"
  return f"parameters: {detector.num_parameters(model, pipeline.example_canvas(experiment.data)):,}"


def run(main: Callable[[list[str]], None], define_flags: Callable[[], None], keep_programs: bool = True) -> None:
  """Runs a command under absl; whatever it raises becomes one line on stderr and a non-zero exit.

  Flags are defined here rather than at import, so that one command may import another. With --debug, the traceback
  is shown. Compiled programs are kept for the next start, unless the command is one that measures compiling.
  """

  def guarded(argv: list[str]) -> None:
    _set_up_logging()
    in_threads = [] if FLAGS.debug else ending.without_tracebacks()
    ending.hear_signals()
    if len(argv) > 1:
      _end(f"unexpected argument {argv[1]!r}; every option is --name=value", 2)
    try:
      if keep_programs:
        compilation_cache.keep(FLAGS.compilation_cache)
      main(argv)
      sys.stdout.flush()
      for error in in_threads:
        print(f"warning: in the background: {ending.reason_of(error, _folder())}", file=sys.stderr)
    except (Exception, KeyboardInterrupt) as error:
      if FLAGS.debug:
        raise
      reason, status = ending.reason_of(error, _folder()), ending.status_of(error)
      ending.silence(error)
      _end(reason, status)

  flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
  if keep_programs:
    help_text = (
      "Folder in which compiled programs are kept; by default one in the user's cache folder, at most 4 GiB."
    )
    define_path("compilation_cache", help_text)
  define_flags()
  for flag in FLAGS.get_flags_for_module(__name__):
    FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # so that --help lists it beside the command's own
  app.run(guarded, flags_parser=_parsed)


def _folder() -> str | None:
  """Where the command writes, as far as its flags say."""
  named = (FLAGS[name].value for name in ("output", "outdir", "workdir") if name in FLAGS)
  return next(filter(None, named), None)


def _parsed(argv: list[str]) -> list[str]:
  """What the command line holds beside flags; ends the command where a flag is unknown or its value does not fit."""
  try:
    return FLAGS(argv)
  except flags.Error as error:
    _end(str(error), 1)


def _set_up_logging() -> None:
  """The project's warnings as plain lines on stderr; of the libraries nothing, unless --verbosity or --debug ask.

  What libraries log of an error, in whole tracebacks, they raise as well.
  """
  if not FLAGS["verbosity"].present:
    absl_logging.set_verbosity(absl_logging.ERROR if FLAGS.debug else absl_logging.FATAL)
  handler = logging.StreamHandler(sys.stderr)
  handler.setFormatter(logging.Formatter("warning: %(message)s"))
  project = logging.getLogger("rcnn_jax")
  project.addHandler(handler)
  project.setLevel(logging.WARNING)
  project.propagate = False


def _end(reason: str, status: int) -> None:
  if reason:
    print(reason if status >= 128 else f"error: {reason}", file=sys.stderr, flush=True)
  sys.exit(status)

"""Runs a sweep: its trials one after another, each in a process of its own, and one table at the end.

    python -m launch.sweep --sweep=NAME_OR_FILE --workdir=DIR [--dry_run] [--set=path=value ...]

Each trial has its folder, e.g. DIR/nms_iou=0.3/seed=0. Started again, the sweep runs only what is missing, has failed
or was stopped. DIR/sweep.json holds the metrics of every trial, their mean and standard deviation over the seeds, and
the differences from the first setting with 95 % intervals. Where the settings change only what detects
(`trained_once`), what they share is trained in DIR/trained/seed=N: a finished run of the same experiment, linked
there, is taken for it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
import signal
from collections.abc import Callable
from typing import IO, Any

from absl import flags

from launch import apart, evaluate, train
from launch import flags as launch_flags
from rcnn_jax import sweep as sweeps
from rcnn_jax.experiment import Experiment, ExperimentError, diff, from_json, to_json
from rcnn_jax.files import FileError, read_json, write_json
from rcnn_jax.sweep import Sweep
from rcnn_jax.training import checkpoint, log, loop
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.claim import same_results

FLAGS = flags.FLAGS
logger = logging.getLogger(f"rcnn_jax.{__name__}")  # whose warnings are shown


class SweepError(RuntimeError):
  """A sweep with trials that failed."""


def define_flags() -> None:
  """Defines the options of this command."""
  flags.DEFINE_string(
    "sweep", None, "Name of a file in experiments/sweeps/, or the path of a .py file.", required=True
  )
  launch_flags.define_path("workdir", "The directory of all trials.", required=True)
  flags.DEFINE_bool("dry_run", False, "Say what would be run and what is finished, and exit.")
  flags.DEFINE_string("trial", None, "Run this one alone, in this process.")
  launch_flags.define_set()


def main(argv: list[str]) -> None:
  """Runs what is not finished, or one trial alone."""
  del argv
  sweep = sweeps.load(FLAGS.sweep)
  sweep = dataclasses.replace(sweep, base=sweep.base.set(FLAGS.set))
  workdir = pathlib.Path(FLAGS.workdir)
  if FLAGS.dry_run:
    print(outlook(sweep, workdir))
  elif FLAGS.trial:
    run_one(sweep, workdir, FLAGS.trial)
  else:
    with apart.alone(workdir) as lock:
      run_all(sweep, workdir, functools.partial(run_apart, lock))


def run_all(sweep: Sweep, workdir: pathlib.Path, start: Callable[[str], int]) -> None:
  """Runs what is not finished, one after another; writes sweep.json after each, prints the table.

  Args:
    sweep: whose trainings come first, then what is evaluated from them.
    workdir: the directory of all trials.
    start: the name of a trial -> the exit status of its process.

  Raises:
    SweepError: something failed; the rest has been run.
    Stopped: a trial was told to stop.
  """
  runs = sweep.trainings() | sweep.trials()
  failed = []
  for number, (name, experiment) in enumerate(runs.items(), start=1):
    if result_of(workdir / name, experiment) is not None:
      continue
    print(f"[{number}/{len(runs)}] {name}", flush=True)
    status = start(name)
    if status in (loop.Stopped.exit_status, -signal.SIGTERM):
      raise loop.Stopped(f"stopped in trial {name}; start again to go on from there")
    failed += [name] if status else []
    write_summary(sweep, workdir)
  written = write_summary(sweep, workdir)
  print(f"\n{sweeps.table(written['settings'], written['differences'])}")
  if failed:
    raise SweepError(f"{len(failed)} of {len(runs)} failed: {', '.join(failed)}; start again to run these alone")


def run_apart(lock: IO, name: str) -> int:
  """The exit status of this command run for one trial."""
  changes = (f"--set={change}" for change in FLAGS.set)
  options = (f"--sweep={FLAGS.sweep}", f"--workdir={FLAGS.workdir}", f"--trial={name}", *changes)
  return apart.run(lock, "sweep", *options)[0]


def run_one(sweep: Sweep, workdir: pathlib.Path, name: str) -> None:
  """Trains one trial, or evaluates it from the training that it shares; its trial.json says that it is finished."""
  trainings, trials = sweep.trainings(), sweep.trials()
  if name not in trainings | trials:
    raise ExperimentError(f"the sweep has no trial {name!r}; it has {', '.join(trainings | trials)}")
  folder = workdir / name
  if name in trainings:
    experiment = trainings[name]
    train.train(experiment, str(folder), meshes.data_mesh())
    last = [row for row in log.rows(folder) if row["kind"] == "eval"][-1]
    metrics = {name: value for name, value in last.items() if name not in ("step", "kind")}
  else:
    experiment = trials[name]
    shared = checkpoint.load_run(str(workdir / sweeps.trial_name("trained", experiment.seed)), "latest")
    metrics = evaluate.evaluate_run(launch_flags.with_experiment(shared, experiment), folder)
  write_json(folder / "trial.json", {"experiment": to_json(experiment), "metrics": metrics}, allow_nan=True)


def result_of(folder: pathlib.Path, experiment: Experiment) -> dict[str, float | None] | None:
  """The metrics of a trial; None unless it was finished with this very experiment.

  What no result depends on may be different. A file that cannot be read is named in a warning, and counts for none.
  """
  path = folder / "trial.json"
  if not path.exists():
    return None
  try:
    result = read_json(path)
    metrics, trained = result["metrics"], from_json(result["experiment"])
    return metrics if isinstance(metrics, dict) and same_results(trained, experiment) else None
  except ExperimentError:  # written before its values were what they are now
    return None
  except (FileError, KeyError, TypeError) as error:
    logger.warning("%s: no result of a trial (%s); it is done again", path, error)
    return None


def write_summary(sweep: Sweep, workdir: pathlib.Path) -> dict[str, Any]:
  """Writes sweep.json; returns it: the summary, the differences and the trials that are finished."""
  results = {name: result_of(workdir / name, experiment) for name, experiment in sweep.trials().items()}
  finished = {name: metrics for name, metrics in results.items() if metrics is not None}
  written = {"settings": sweep.summary(finished), "differences": sweep.differences(finished), "trials": finished}
  write_json(workdir / "sweep.json", written)
  return written


def outlook(sweep: Sweep, workdir: pathlib.Path) -> str:
  """A line for each training and trial: finished or to run, and what it changes in the base."""
  lines = []
  for name, experiment in (sweep.trainings() | sweep.trials()).items():
    state = "to run" if result_of(workdir / name, experiment) is None else "finished"
    changes = ", ".join(f"{path}={value}" for path, _, value in diff(sweep.base, experiment))
    lines.append(f"{state:<8}  {name}  {changes}".rstrip())
  return "\n".join(lines)


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

"""Runs a sweep: its trials on this machine, on SLURM or on clouds, and one table over them.

    python -m launch.sweep --sweep=NAME_OR_FILE --workdir=DIR [--executor=local|slurm|skypilot] [--dry_run] [--follow]

Each trial has its folder, e.g. DIR/nms_iou=0.3/seed=0, and a process of its own. Started again, the sweep runs only
what is missing, has failed or was stopped; several of these commands on one shared folder take different trials.
DIR/sweep.json holds the metrics of every trial, their mean and standard deviation over the seeds, and the differences
from the first setting with 95 % intervals; DIR/compare/index.html is the page of launch.compare over them. Where the
settings change only what detects (`trained_once`), what they share is trained in DIR/trained/seed=N: a finished run
of the same experiment, linked there, is taken for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable

import jax
from absl import flags

from launch import ending, evaluate
from launch import flags as launch_flags
from rcnn_jax import ranges
from rcnn_jax import sweep as sweeps
from rcnn_jax.evaluation.compare.end import end
from rcnn_jax.experiment import ExperimentError
from rcnn_jax.sweep import Sweep
from rcnn_jax.sweeping import attempt, follow, resources, skypilot, slots, slurm, trials
from rcnn_jax.sweeping import claim as claims
from rcnn_jax.sweeping import status as statuses
from rcnn_jax.sweeping.local import Pool
from rcnn_jax.sweeping.slots import Slot
from rcnn_jax.sweeping.trials import SweepError, Units
from rcnn_jax.training import checkpoint, preemption
from rcnn_jax.training.log import clock
from rcnn_jax.training.run import train

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the options of this command."""
  flags.DEFINE_string(
    "sweep", None, "Name of a file in experiments/sweeps/, or the path of a .py file.", required=True
  )
  launch_flags.define_path("workdir", "The directory of all trials.", required=True)
  flags.DEFINE_enum("executor", None, ["local", "slurm", "skypilot"], "Where the trials run; by default here.")
  flags.DEFINE_integer("at_once", None, "Trials that run at the same time; here by default one.", lower_bound=1)
  flags.DEFINE_multi_string("resource", [], "NAME=VALUE, e.g. gpus=8: one value of the sweep's resources changed.")
  flags.DEFINE_string("shard", None, "I/N: the I-th of N parts of the trials alone, for N machines.")
  flags.DEFINE_bool("follow", False, "Show all trials in one table; without --executor, look on and run nothing.")
  flags.DEFINE_bool("dry_run", False, "Say what would be run, what is finished and how long it takes, and exit.")
  flags.DEFINE_string("trial", None, "Run this one alone, in this process.")
  flags.DEFINE_integer("claim", None, "The descriptor of the trial's claim, which whoever starts this process holds.")
  flags.DEFINE_bool("distributed", False, "With --trial: one of several processes of a cluster.")
  launch_flags.define_set()


def main(argv: list[str]) -> None:
  """Runs what is not finished, or one trial alone."""
  del argv
  sweep = chosen_sweep()
  workdir = pathlib.Path(FLAGS.workdir)
  units = trials.shard(sweep.units(), FLAGS.shard)
  if FLAGS.trial:
    run_one(sweep, workdir, FLAGS.trial)
  elif FLAGS.executor == "skypilot":
    run_on_skypilot(sweep, workdir, units)
  elif FLAGS.dry_run:
    print(trials.outlook(sweep, workdir, units, FLAGS.at_once or 1))
  elif FLAGS.follow and FLAGS.executor is None:
    look_on(sweep, workdir, units)
  elif FLAGS.executor == "slurm":
    run_on_slurm(sweep, workdir, units)
  else:
    trials.enter(sweep, workdir)
    run_here(sweep, workdir, units)


def chosen_sweep() -> Sweep:
  """The sweep that the flags ask for, its trials checked as far as that needs no data."""
  sweep = sweeps.load(FLAGS.sweep)
  sweep = dataclasses.replace(
    sweep,
    base=sweep.base.set(FLAGS.set),
    resources=resources.changed(sweep.resources, FLAGS.resource),
  )
  for experiment in sweep.runs().values():
    ranges.check(experiment)
  return sweep


# -------------------------------------------------------------------------------------------------------- one trial


def run_one(sweep: Sweep, workdir: pathlib.Path, name: str) -> None:
  """Trains one trial, or evaluates it from the training that it shares; its trial.json says that it is finished."""
  runs, trainings = sweep.runs(), sweep.trainings()
  if name not in runs:
    raise ExperimentError(f"the sweep has no trial {name!r}; it has {', '.join(runs)}")
  if FLAGS.distributed:
    jax.distributed.initialize()
  folder = workdir / name
  if trials.result_of(folder, runs[name]) is not None:
    print(f"{name} is finished: {folder / 'trial.json'}")
    return
  length = functools.partial(trials.num_steps, runs[name]) if name in trainings else lambda: None
  with preemption.stopping(), claims.held(folder, FLAGS.claim):
    reason_of = functools.partial(ending.reason_of, folder=str(folder))
    recorded = statuses.recorded(folder, length, reason_of) if jax.process_index() == 0 else contextlib.nullcontext()
    with recorded:
      if name in trainings:
        metrics = train(runs[name], folder)
      else:
        shared = checkpoint.load_run(str(workdir / sweeps.trial_name("trained", runs[name].seed)), "latest")
        metrics = evaluate.evaluate_run(launch_flags.with_experiment(shared, runs[name]), folder)
      if jax.process_index() == 0:
        trials.write_result(folder, runs[name], metrics)


def words(name: str) -> list[str]:
  """This command for one trial, as it can be run from another folder."""
  changes = (f"--set={change}" for change in FLAGS.set)
  sweep = os.path.abspath(FLAGS.sweep) if FLAGS.sweep.endswith(".py") else FLAGS.sweep
  options = (f"--sweep={sweep}", f"--workdir={os.path.abspath(FLAGS.workdir)}", f"--trial={name}", *changes)
  cache = [f"--compilation_cache={FLAGS.compilation_cache}"] if FLAGS.compilation_cache else []
  return [sys.executable, "-m", "launch.sweep", *options, *cache]


# ------------------------------------------------------------------------------------------------- on this machine


def run_here(sweep: Sweep, workdir: pathlib.Path, units: Units) -> None:
  """Runs what is not finished, `--at_once` at a time; writes sweep.json after each, prints the table.

  Raises:
    SweepError: something failed; the rest has been run.
    Stopped: a trial was told to stop.
  """
  at_once = FLAGS.at_once or 1
  shares = slots.slots(at_once, slots.my_cores(), slots.my_gpus(), slots.my_tpus() if at_once > 1 else 0)
  left = trials.to_do(sweep, workdir, units)
  report = progress(sum(map(len, left)))
  pool = Pool(
    workdir, shares, functools.partial(start, sweep, workdir), (lambda line: None) if FLAGS.follow else report
  )
  if FLAGS.follow:
    with follow.View(follow.Follower(sweep, workdir, units)) as view:
      pool.run(left, tick=view.update)
  else:
    pool.run(left, echo=at_once == 1)
  conclude(sweep, workdir, units, pool.failed, pool.elsewhere)


def start(sweep: Sweep, workdir: pathlib.Path, name: str, slot: Slot) -> attempt.Attempt | None:
  """Starts a trial in its share of the machine; None where another worker is at it, or has finished it meanwhile."""
  folder, experiment = workdir / name, sweep.runs()[name]
  finished = lambda: trials.result_of(folder, experiment) is not None
  return attempt.start(words(name), folder, slot.environment, slot.cores, is_finished=finished)


def progress(number: int) -> Callable[[str], None]:
  """A function that prints what begins and what ends, with the time since now."""
  began = time.time()
  print(f"{number} to run", flush=True)
  return lambda line: print(f"[{clock(time.time() - began)}] {line}", flush=True)


def conclude(sweep: Sweep, workdir: pathlib.Path, units: Units, failed: dict[str, str], elsewhere: list[str]) -> None:
  """Writes sweep.json and prints the table; raises SweepError with the trials that failed and their reasons."""
  written = trials.write_summary(sweep, workdir)
  print(f"\n{sweeps.table(written['settings'], written['differences'])}")
  runs = sweep.runs()
  still = [name for name in elsewhere if trials.result_of(workdir / name, runs[name]) is None]
  if still:
    print(f"other workers are at {', '.join(still)}")
  elif not failed and written["differences"]:
    print(end(workdir / "compare", sweep=str(workdir)), flush=True)
  if failed:
    reasons = "; ".join(f"{name} ({reason})" for name, reason in failed.items())
    total = sum(map(len, units))
    raise SweepError(f"{len(failed)} of {total} failed: {reasons}; start again to run these alone")


# ----------------------------------------------------------------------------------------------------------- on SLURM


def run_on_slurm(sweep: Sweep, workdir: pathlib.Path, units: Units) -> None:
  """Submits what is neither finished nor in SLURM's hands already; with --follow, shows the trials until the end."""
  slurm.check()
  trials.enter(sweep, workdir)
  submitted = slurm.jobs(workdir)
  left = tuple(unit for unit in trials.to_do(sweep, workdir, units) if not any(name in submitted for name in unit))
  if left:
    name = pathlib.Path(FLAGS.sweep).stem
    jobs = slurm.submit(left, words, workdir, name, sweep.resources, FLAGS.at_once or len(left))
    print(f"submitted as job {next(iter(jobs.values())).partition('_')[0]}: {len(left)} of {len(units)}", flush=True)
  else:
    print("nothing to submit: all is finished or submitted already", flush=True)
  if FLAGS.follow:
    look_on(sweep, workdir, units)


# -------------------------------------------------------------------------------------------------------- on SkyPilot


def run_on_skypilot(sweep: Sweep, workdir: pathlib.Path, units: Units) -> None:
  """Writes a task file for each unit of trials and launches it as a managed job; with --dry_run, prints the files."""
  name = pathlib.Path(FLAGS.sweep).stem
  options = [f"--sweep={FLAGS.sweep}", *(f"--set={change}" for change in FLAGS.set)]
  files = skypilot.tasks(units, options, name, sweep.resources)
  if FLAGS.dry_run:
    print("---\n".join(f"# {file}\n{text}" for file, text in files.items()), end="")
    return
  trials.enter(sweep, workdir)
  skypilot.launch(skypilot.write(files, workdir / "skypilot"))


# ------------------------------------------------------------------------------------------------------------ looking


def look_on(sweep: Sweep, workdir: pathlib.Path, units: Units) -> None:
  """Shows the trials until all have ended, then the table; Ctrl-C leaves, and harms none of them.

  Raises:
    SweepError: some have failed; with their reasons.
  """
  if not workdir.is_dir():
    raise SweepError(f"{workdir}: no sweep has been started there; --executor=local starts it here")
  follower = follow.Follower(sweep, workdir, units)
  with follow.View(follower, functools.partial(slurm.jobs, workdir)) as view:
    try:
      rows = follow.until_over(view, is_queued=(workdir / "slurm.json").exists())
    except KeyboardInterrupt:
      rows = None
  if rows is None:
    print("left; the trials go on, and --follow shows them again")
    return
  unfinished = {row.name: row.note or row.state for row in rows if row.state != "finished"}
  conclude(sweep, workdir, units, unfinished, [])


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

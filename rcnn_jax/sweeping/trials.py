"""The trials of a sweep in its folder: which are finished, what is to be done, and the table over them."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from rcnn_jax.experiment import Experiment, ExperimentError, diff, from_json, to_json
from rcnn_jax.files import FileError, read_json, write_json
from rcnn_jax.sweep import Sweep
from rcnn_jax.sweeping import status as statuses
from rcnn_jax.training.claim import IDLE, same_results
from rcnn_jax.training.log import clock

logger = logging.getLogger(__name__)

Units = tuple[tuple[str, ...], ...]  # as Sweep.units


class SweepError(RuntimeError):
  """A sweep that cannot be run as asked, or that has trials that failed."""


# ---------------------------------------------------------------------------------------------- the sweep's folder


def enter(sweep: Sweep, workdir: pathlib.Path) -> None:
  """Writes down, in `plan.json`, which sweep's folder this is; more values and more seeds may be added to it later.

  Raises:
    SweepError: the folder is that of another sweep: of other axes, or with other values under the same names.
  """
  path = workdir / "plan.json"
  runs = sweep.runs()
  plan = {"axes": sorted(sweep.axes), "runs": {name: to_json(run) for name, run in runs.items()}}
  with locked(workdir):
    if path.exists():
      known = read_json(path)
      _compare(workdir, known, plan["axes"], runs)
      plan["runs"] = known["runs"] | plan["runs"]
    write_json(path, plan, allow_nan=True)


def _compare(workdir: pathlib.Path, known: dict[str, Any], axes: list[str], runs: dict[str, Experiment]) -> None:
  another = f"{workdir} is the folder of another sweep: "
  if known["axes"] != axes:
    there, here = (", ".join(each) or "no axis" for each in (known["axes"], axes))
    raise SweepError(f"{another}of {there}, and this one is of {here}; choose another --workdir")
  for name in known["runs"].keys() & runs.keys():
    try:
      present = from_json(known["runs"][name])  # a value that was not there yet has its default
    except ExperimentError:  # written before its values were what they are now: the training has the last word
      continue
    for path, there, here in diff(present, runs[name]):
      if not any(path == idle or path.startswith(f"{idle}.") for idle in IDLE):
        values = f"{path} is {_short(there)} there and {_short(here)} here"
        raise SweepError(f"{another}of {name}, {values}; choose another --workdir")


def _short(value: Any) -> str:
  said = repr(value)
  return said if len(said) <= 60 else f"{said[:57]}..."


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Within, no other worker writes the sweep's own files."""
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / "lock", "w") as file:
    with contextlib.suppress(OSError):  # no locks on this file system
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


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


def write_result(folder: pathlib.Path, experiment: Experiment, metrics: dict[str, float | None]) -> None:
  """Writes trial.json, by which a trial is finished."""
  write_json(folder / "trial.json", {"experiment": to_json(experiment), "metrics": metrics}, allow_nan=True)


def write_summary(sweep: Sweep, workdir: pathlib.Path) -> dict[str, Any]:
  """Writes sweep.json; returns it: the summary, the differences and the trials that are finished."""
  with locked(workdir):
    results = {name: result_of(workdir / name, experiment) for name, experiment in sweep.trials().items()}
    finished = {name: metrics for name, metrics in results.items() if metrics is not None}
    written = {"settings": sweep.summary(finished), "differences": sweep.differences(finished), "trials": finished}
    write_json(workdir / "sweep.json", written)
  return written


# ----------------------------------------------------------------------------------------------- what is to be done


def shard(units: Units, text: str | None) -> Units:
  """Those of the units that belong to the part 'i/n', every n-th from the i-th on; all of them for None.

  Raises:
    SweepError: no 1 <= i <= n.
  """
  if text is None:
    return units
  found = re.fullmatch(r"(\d+)/(\d+)", text)
  part, parts = map(int, found.groups()) if found else (0, 0)
  if not 1 <= part <= parts:
    raise SweepError(f"--shard={text}: expected I/N with 1 <= I <= N, e.g. 1/3, 2/3 and 3/3 on three machines")
  return units[part - 1 :: parts]


def to_do(sweep: Sweep, workdir: pathlib.Path, units: Units) -> Units:
  """What is not finished of the units."""
  runs = sweep.runs()
  left = (tuple(name for name in unit if result_of(workdir / name, runs[name]) is None) for unit in units)
  return tuple(unit for unit in left if unit)


def num_steps(experiment: Experiment) -> int:
  """The steps of a training; its data are opened where lengths are in epochs. Raises what opening them raises."""
  from rcnn_jax.data import loader
  from rcnn_jax.training import loop

  stages = experiment.stages
  in_epochs = any(getattr(stage, "epochs", None) is not None for stage in stages)
  epoch = loader.training_epoch(experiment.data, experiment.data.train.open()).num_steps if in_epochs else 1
  return loop.plan(stages, epoch)[-1].last


def outlook(sweep: Sweep, workdir: pathlib.Path, units: Units, at_once: int = 1) -> str:
  """What would be run: a line for each training and trial, with its steps and what it changes, and the time it takes.

  The time is that of the finished trials, a step, on the machines where they ran.
  """
  runs, trainings = sweep.runs(), sweep.trainings()
  lengths = _lengths({name: trainings[name] for unit in units for name in unit if name in trainings})
  lines, pace, left, unfinished = [], [], 0, 0
  for name in (name for unit in units for name in unit):
    finished = result_of(workdir / name, runs[name]) is not None
    record = statuses.read(workdir / name)
    changes = ", ".join(f"{path}={value}" for path, _, value in diff(sweep.base, runs[name]))
    steps = lengths.get(name)
    length = f"{steps} steps" if steps else "its data are not there" if name in lengths else "evaluated"
    lines.append(f"{'finished' if finished else 'to run':<8}  {name}  {length}  {changes}".rstrip())
    if finished and steps and record.seconds:
      pace.append(record.seconds / steps)
    if not finished:
      left, unfinished = left + (steps or 0), unfinished + 1
  lines.append(f"{unfinished} of {len(lines)} to run, {left} steps" + _time(pace, left, at_once))
  return "\n".join(lines)


def _time(pace: list[float], left: int, at_once: int) -> str:
  if not left:
    return ""
  if not pace:
    return "; how long they take is known once one has finished"
  mean = sum(pace) / len(pace)
  by = f"{len(pace)} finished, {mean:.3g} s a step with start and evaluation"
  return f": about {clock(left * mean / at_once)}, {at_once} at a time (by {by})"


def _lengths(trainings: dict[str, Experiment]) -> dict[str, int | None]:
  """name -> steps, None where the data cannot be opened; data of the same values are opened once."""
  known: list[tuple[Any, Any, int | None]] = []
  found = {}
  for name, experiment in trainings.items():
    same = [steps for data, stages, steps in known if data == experiment.data and stages == experiment.stages]
    if same:
      found[name] = same[0]
      continue
    try:
      found[name] = num_steps(experiment)
    except (RuntimeError, ValueError, OSError) as error:
      logger.warning("%s: %s", name, error)
      found[name] = None
    known.append((experiment.data, experiment.stages, found[name]))
  return found

"""Trains the generations of the R-CNN family, one after the other, and lays them side by side in one table.

    python -m launch.ladder --workdir=runs/ladder [--rungs=NAME_OR_FILE,...] [--set=path=value ...]

Each rung is an experiment. It gets the proposals that it needs (launch.prepare_data), is trained in a process of its
own (launch.train) in WORKDIR/NAME, and evaluated there; then the finished ones are timed in turns, one test image at
a time, the clock running from the batch on the device to its detections. WORKDIR gets table.txt, ladder.json,
ladder.png and compare/index.html (launch.compare). Started again, the command goes on where it was: what is finished
is neither trained nor, unless a rung has changed, timed again. A rung that fails is reported, the others go on.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import sys
import zlib
from collections.abc import Callable
from typing import IO, Any

import jax
import numpy as np
from absl import flags

from launch import apart
from launch import flags as launch_flags
from rcnn_jax import experiment as experiments
from rcnn_jax import ranges, timing
from rcnn_jax.data import loader
from rcnn_jax.data.source import Source
from rcnn_jax.evaluation import ladder, plots, report
from rcnn_jax.evaluation.compare.costs import of_ladder
from rcnn_jax.evaluation.compare.end import end
from rcnn_jax.evaluation.ladder import Rung
from rcnn_jax.experiment import Experiment
from rcnn_jax.files import FileError, read_json, write_json, write_text
from rcnn_jax.models.backbones.scales import Scales
from rcnn_jax.models.crops import CropNetwork
from rcnn_jax.training import checkpoint, loop
from rcnn_jax.training.stages import FitBoxRegression, FitSvms

FLAGS = flags.FLAGS
RUNGS = {
  "rcnn_squeezenet_bccd": "R-CNN",
  "sppnet_squeezenet_bccd": "SPPnet",
  "fast_rcnn_squeezenet_bccd": "Fast R-CNN",
  "faster_rcnn_squeezenet_roipool_bccd": "Faster R-CNN",
  "mask_rcnn_boxes_squeezenet_fpn_bccd": "Mask R-CNN without masks",
}
BROUGHT = {FitSvms: "+ SVMs", FitBoxRegression: "+ box regression"}


class LadderError(RuntimeError):
  """A ladder that cannot be climbed as asked, or of which a rung failed."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the flags say."""

  workdir: pathlib.Path
  rungs: tuple[str, ...]  # names or files of experiments
  assignments: tuple[str, ...] = ()  # path=value, for each of them
  timing_images: int = 8
  timing_repeats: int = 5
  time_again: bool = False


@dataclasses.dataclass(frozen=True)
class Climb:
  """A rung that is to be climbed.

  Attributes:
    options: by which the other commands know its experiment.
    label: for people.
    experiment: which it is.
    source: its opened evaluation data.
    spans: the stages of its training.
    workdir: its run directory.
  """

  options: tuple[str, ...]
  label: str
  experiment: Experiment
  source: Source
  spans: tuple[loop.Span, ...]
  workdir: str

  @property
  def num_steps(self) -> int:
    """Of the whole training."""
    return self.spans[-1].last

  def finished(self) -> bool:
    """Whether it is trained to its end and evaluated there."""
    if checkpoint.latest_step(self.workdir) != self.num_steps:
      return False
    return self.num_steps in report.read_run(pathlib.Path(self.workdir)).evaluations

  def signature(self) -> list:
    """What a timing holds for."""
    form = json.dumps(experiments.to_json(self.experiment), sort_keys=True)
    return [self.experiment.name, self.num_steps, zlib.crc32(form.encode())]


def define_flags() -> None:
  """Defines the options of this command."""
  usual = {field.name: field.default for field in dataclasses.fields(Settings)}
  launch_flags.define_path("workdir", "Folder of the ladder, with a run directory for each rung.", required=True)
  flags.DEFINE_list("rungs", list(RUNGS), "Experiments, names or files, that make up the table, in its order.")
  launch_flags.define_set()
  flags.DEFINE_integer(
    "timing_images", usual["timing_images"], "Test images, evenly spaced, that each rung is timed on.", 1
  )
  flags.DEFINE_integer(
    "timing_repeats", usual["timing_repeats"], "Timed passes over them, after one that is not counted.", 1
  )
  flags.DEFINE_bool("time_again", False, "Time the rungs although nothing has changed since they were timed.")


def main(argv: list[str]) -> None:
  """Reads the flags."""
  del argv
  make(
    Settings(
      pathlib.Path(FLAGS.workdir),
      tuple(FLAGS.rungs),
      tuple(FLAGS.set),
      FLAGS.timing_images,
      FLAGS.timing_repeats,
      FLAGS.time_again,
    )
  )


def make(settings: Settings) -> None:
  """Brings every rung to its end, writes and prints the table.

  Raises:
    LadderError: for a folder that cannot hold it, and at the end for rungs that failed.
    BusyError: another process is at work on this ladder.
    Stopped: upon SIGTERM, what was trained until then being saved.
  """
  if (settings.workdir / "experiment.json").exists():
    raise LadderError(f"{settings.workdir} is the directory of a run, not of a ladder: name another --workdir")
  climbs = [planned(asked, settings) for asked in settings.rungs]
  names = [each.experiment.name for each in climbs]
  if not climbs or len(set(names)) < len(names):
    raise LadderError(f"--rungs must name experiments, each once, not {', '.join(names) or 'none'}")
  with apart.alone(settings.workdir) as lock:
    failures = {each.experiment.name: reason for each in climbs if (reason := carried_out(each, lock))}
    finished = [each for each in climbs if each.experiment.name not in failures]
    if finished:
      write(finished, settings)
  if failures:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
    raise LadderError(f"{len(failures)} of {len(climbs)} rungs failed: {reasons}")


def planned(asked: str, settings: Settings) -> Climb:
  """The rung, its data opened, its run directory found to be free or its own; no device is touched."""
  experiment = experiments.load(asked).set(settings.assignments)
  ranges.check(experiment)
  folder = str(settings.workdir / experiment.name)
  checkpoint.check_experiment(folder, experiment)
  epoch = loader.training_epoch(experiment.data, experiment.data.train.open())
  spans = loop.plan(experiment.stages, epoch.num_steps)
  options = (f"--experiment={asked}", *(f"--set={assignment}" for assignment in settings.assignments))
  label = RUNGS.get(asked, experiment.name)
  return Climb(options, label, experiment, experiment.data.eval.open(), spans, folder)


# ---------------------------------------------------------------------------------------------- training


def carried_out(climb: Climb, lock: IO) -> str | None:
  """Brings a rung to its end; returns why it failed where it did."""
  if climb.finished():
    print(f"{climb.label}: finished, in {climb.workdir}", flush=True)
    return None
  folders = climb.experiment.data.proposals or ()
  if not all(pathlib.Path(folder).expanduser().exists() for folder in folders):
    print(f"{climb.label}: proposals", flush=True)
    if reason := failure(climb, lock, "prepare_data"):
      return reason
  print(f"{climb.label}: training, in {climb.workdir}", flush=True)
  reason = failure(climb, lock, "train", f"--workdir={climb.workdir}")
  return reason or (None if climb.finished() else "it ended before its last evaluation")


def failure(climb: Climb, lock: IO, command: str, *options: str) -> str | None:
  """Runs one of the commands for a rung; returns its last line where it failed."""
  status, last = apart.run(lock, command, *climb.options, *options)
  return None if status == 0 else f"launch.{command} ended with {status}: {last}"


# ---------------------------------------------------------------------------------------------- timing, writing


def write(climbs: list[Climb], settings: Settings) -> None:
  """Times the finished rungs if need be; writes and prints what there is to say of them."""
  workdir, path = settings.workdir, settings.workdir / "ladder.json"
  times = timing_of(climbs, past_timing(path), settings)
  rungs = [described(climb, times["seconds"][climb.experiment.name]) for climb in climbs]
  text = "\n".join([ladder.table(rungs), "", *ladder.comparisons(rungs), *circumstances(times)])
  written = {"rungs": [ladder.as_json(rung) for rung in rungs], "proposals": settings_of(climbs), "timing": times}
  write_json(path, written)
  write_text(workdir / "table.txt", text + "\n")
  points = [(rung.label, rung.seconds, rung.metrics["AP50"] or 0.0) for rung in rungs]
  plots.trade_off_figure(points, "What each generation brought").savefig(workdir / "ladder.png")
  print(f"\n{text}\n\nwritten: {workdir}/table.txt, ladder.json, ladder.png", flush=True)
  if len(rungs) > 1:
    print(end(workdir / "compare", [str(workdir)], costs=of_ladder(workdir)), flush=True)


def past_timing(path: pathlib.Path) -> dict[str, Any]:
  """The timing that an earlier ladder.json holds; nothing where there is none, or none that could be read."""
  try:
    written = read_json(path) if path.exists() else {}
    return dict(written.get("timing", {}))
  except (FileError, AttributeError, TypeError, ValueError) as error:
    print(f"warning: {path}: no ladder ({error}); the rungs are timed again", file=sys.stderr)
    return {}


def timing_of(climbs: list[Climb], past: dict[str, Any], settings: Settings) -> dict[str, Any]:
  """The times of the rungs, and what they were taken with: the past ones where these hold still."""
  wanted = {
    "rungs": [climb.signature() for climb in climbs],
    "images": settings.timing_images,
    "repeats": settings.timing_repeats,
  }
  if wanted.items() <= past.items() and not settings.time_again:
    return past
  return wanted | {"environment": timing.environment(), "seconds": timed(climbs, settings)}


def circumstances(times: dict[str, Any]) -> list[str]:
  """Two lines below the table: what the times are, and where they were taken."""
  where = times["environment"]
  return [
    f"network: batch 1, median of {times['repeats']} passes over {times['images']} test images, rungs in turns; "
    "proposals: mean over the test images, one core; training: steps and fits, without evaluations",
    f"{where['device']}, {where['cores']} cores, jax {where['jax']}, flax {where['flax']}, Python {where['python']}, "
    f"{where['date']}",
  ]


def timed(climbs: list[Climb], settings: Settings) -> dict[str, list[float]]:
  """Seconds of one image, [median, least, most] of the repeats of each rung, which take turns."""
  print(f"timing {len(climbs)} rungs", flush=True)
  repeats = {climb.experiment.name: detection(climb, settings.timing_images) for climb in climbs}
  seconds = timing.alternate(repeats, settings.timing_repeats)
  return {name: [statistics.median(each), min(each), max(each)] for name, each in seconds.items()}


def detection(climb: Climb, num_images: int) -> Callable[[], float]:
  """A function that detects in some test images, one at a time, and returns the mean seconds of an image."""
  run = checkpoint.load_run(climb.workdir, "latest")
  data = dataclasses.replace(run.experiment.data, load_masks=False, load_keypoints=False)
  batches = loader.eval_batches(data, climb.source, batch_size=1)
  places = np.unique(np.linspace(0, len(batches) - 1, num_images).round().astype(int))
  return timing.detection(run, [next(batches.start(int(place))) for place in places])


def described(climb: Climb, seconds: list[float]) -> Rung:
  """The row of a finished rung that was timed."""
  files = report.read_run(pathlib.Path(climb.workdir))
  run = checkpoint.load_run(climb.workdir, "latest")
  stored = loader.open_proposals(climb.experiment.data, climb.source, 1)
  return Rung(
    name=climb.experiment.name,
    label=climb.label,
    step=climb.num_steps,
    metrics=ladder.metrics_at(files, climb.num_steps),
    stages=stages_of(climb, files),
    training_seconds=report.training_seconds(files),
    proposal_seconds=None if stored is None else float(stored.arrays["seconds"].mean()),
    detection_seconds=tuple(seconds),
    passes=passes(climb.experiment),
    parameters=sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"])),
  )


def stages_of(climb: Climb, files: report.RunFiles) -> tuple[tuple[str, dict[str, float | None]], ...]:
  """(what it brought, the metrics behind it) of each stage of a training with fits."""
  if not any(type(span.stage) in BROUGHT for span in climb.spans):
    return ()
  return tuple(
    (BROUGHT.get(type(span.stage), "softmax of the fine-tuned network"), ladder.metrics_at(files, span.last))
    for span in climb.spans
    if span.last in files.evaluations
  )


def passes(experiment: Experiment) -> int:
  """How often the network runs on a test image."""
  model = experiment.model
  if isinstance(model.pool, CropNetwork):
    return experiment.data.num_proposals[1]
  return len(model.backbone.scales) if isinstance(model.backbone, Scales) else 1


def settings_of(climbs: list[Climb]) -> dict[str, Any]:
  """The settings of the test proposals, by folder."""
  found = [loader.open_proposals(climb.experiment.data, climb.source, 1) for climb in climbs]
  return {stored.folder: stored.settings for stored in found if stored is not None}


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

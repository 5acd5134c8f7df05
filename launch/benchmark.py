"""Times this project on synthetic inputs, beside torchvision in the same run.

    python -m launch.benchmark --experiment=NAME_OR_FILE [--peer=torchvision --peer_python=VENV/bin/python]
    python -m launch.benchmark --suite=ops|startup|scaling|gpu [--peer=…] [--output=FILE.json]
    python -m launch.benchmark --suite=input --coco_images=DIR --coco_annotations=FILE [--referee]

Repeats alternate between this project and the peer, so that a machine whose speed drifts changes both alike; the
medians and their ratio are what to quote. The peer trains the layers that the experiment trains, and neither resizes
images nor pastes masks, which are not in our step either. Needs nothing beyond jax, flax, optax, numpy and absl.

`step` times an experiment's train step and detection; `ops` single operations; `startup` what comes before the first
step; `scaling` the step against how much there is to do; `gpu` the whole table for one accelerator in under nine
minutes; `input` what a data set costs before and beside the device. See docs/speed.md and docs/input.md.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from absl import app, flags

from launch import flags as launch_flags
from rcnn_jax import timing
from rcnn_jax.benchmarks import accelerator, ops, scaling, startup, step, tables
from rcnn_jax.benchmarks import peer as peers
from rcnn_jax.experiment import Experiment
from rcnn_jax.files import write_json

FLAGS = flags.FLAGS
SUITES = ("step", "ops", "startup", "scaling", "gpu", "input")


def define_flags() -> None:
  """Defines the options of this command."""
  usual = step.Settings()
  flags.DEFINE_enum("suite", "step", SUITES, "What is measured.")
  launch_flags.define_experiment(required=False)
  flags.DEFINE_integer("batch_size", None, "Images in a batch; by default the experiment's (train, eval) pair.", 1)
  flags.DEFINE_integer(
    "num_classes", usual.num_classes, "Object classes, where the experiment leaves them to its data."
  )
  flags.DEFINE_integer("num_objects", usual.num_objects, "Objects of each synthetic image, and RoIs of foreground.")
  found_help = "Detections an image: the score threshold is set so that there are as many."
  flags.DEFINE_integer("num_found", None, found_help, lower_bound=1)
  flags.DEFINE_integer("repeats", usual.repeats, "Timed repeats of each, after one that is not counted.", 1)
  flags.DEFINE_integer("iterations", usual.iterations, "Steps in a repeat.", lower_bound=1)
  flags.DEFINE_enum("peer", None, ["torchvision"], "Measure this too, in turns with ours.")
  launch_flags.define_path("peer_python", "The Python that has the peer installed.")
  flags.DEFINE_bool("peer_best", None, "The peer's fastest form of several; by default on an accelerator.")
  flags.DEFINE_list("canvas", ["320", "320"], "Of --suite=ops: height and width of the image.")
  flags.DEFINE_list("axes", list(scaling.AXES), "Of --suite=scaling: what is changed.")
  flags.DEFINE_integer("budget", 500, "Of --suite=gpu: seconds after which no further step is begun.", lower_bound=1)
  launch_flags.define_path("coco_images", "Of --suite=input: a folder of images; tests/large_coco.py makes one.")
  launch_flags.define_path("coco_annotations", "Of --suite=input: the COCO annotation file of --coco_images.")
  flags.DEFINE_bool("referee", False, "Of --suite=input: let pycocotools compute the AP too, which takes minutes.")
  launch_flags.define_path("output", "Write the numbers to this JSON file, as they come.")


def main(argv: list[str]) -> None:
  """Measures, prints a table, writes --output."""
  del argv
  if FLAGS.peer:  # on one GPU, JAX would leave the peer a quarter of its memory
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  suites = {
    "step": step_report,
    "ops": ops_report,
    "startup": startup_report,
    "scaling": scaling_report,
    "gpu": accelerator_report,
    "input": input_report,
  }
  suites[FLAGS.suite]({"command": command(), "environment": timing.environment()})


def command() -> str:
  """What was typed, for the record."""
  return " ".join(["python -m launch.benchmark", *sys.argv[1:]])


def keep(report: dict) -> None:
  """Writes what there is so far to --output."""
  if FLAGS.output:
    write_json(pathlib.Path(FLAGS.output), report)


def settings() -> step.Settings:
  """What the flags say."""
  return step.Settings(FLAGS.num_classes, FLAGS.num_objects, FLAGS.num_found, FLAGS.repeats, FLAGS.iterations)


def chosen() -> Experiment:
  """The experiment that the flags ask for, as it is timed."""
  if not FLAGS.experiment:
    raise app.UsageError("--experiment is needed, or --suite=ops, gpu or input")
  return step.timed(launch_flags.chosen_experiment())


def batch_sizes(experiment: Experiment) -> tuple[int, int]:
  """Of training and of detection."""
  return (FLAGS.batch_size, FLAGS.batch_size) if FLAGS.batch_size else tuple(experiment.data.batch_size)


def peer_of(experiment: Experiment, sizes: tuple[int, int], steps: Sequence[str] = ("train", "detect")) -> peers.Peer:
  """The peer, with the same detector, for these steps."""
  best = timing.is_accelerated() if FLAGS.peer_best is None else FLAGS.peer_best
  return peers.Peer(FLAGS.peer_python, peers.request(experiment, sizes, settings(), steps) | {"best": best})


def step_report(report: dict) -> None:
  """Train step and detection of an experiment."""
  experiment = chosen()
  sizes = batch_sizes(experiment)
  peer = peer_of(experiment, sizes) if FLAGS.peer else None
  for what, size in zip(("train", "detect"), sizes):
    measure_peer = (lambda what=what: peer.measure(what)) if peer else None
    report[what] = step.measured(what, experiment, size, settings(), measure_peer)
    keep(report)
  if peer:
    report["environment"]["peer"] = peer.close()
  report["peak_memory_MiB"] = timing.peak_memory()
  keep(report)
  print(tables.of_steps(experiment.name, report))


def ops_report(report: dict) -> None:
  """Single operations."""
  if len(FLAGS.canvas) != 2 or not all(side.isdecimal() and int(side) >= 64 for side in FLAGS.canvas):
    raise app.UsageError(f"--canvas={','.join(FLAGS.canvas)}: expected a height and a width of at least 64 pixels")
  report["ops"] = measured_ops(report, tuple(map(int, FLAGS.canvas)))
  keep(report)
  print(tables.of_ops(report))


def measured_ops(report: dict, canvas: tuple[int, int]) -> dict:
  """Each operation at a size; what the peer says of itself goes to the report's environment."""
  cases = ops.cases(canvas)
  if not FLAGS.peer:
    return ops.measure(cases, FLAGS.repeats, FLAGS.iterations)
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "inputs.npz")
    ops.save(cases, path)
    peer = peers.Peer(FLAGS.peer_python, {"ops": path, "canvas": canvas, "iterations": FLAGS.iterations})
    found = ops.measure(cases, FLAGS.repeats, FLAGS.iterations, peer.measure)
    report["environment"]["peer"] = peer.close()
  return found


def startup_report(report: dict) -> None:
  """What comes before the first step."""
  experiment = chosen()
  report["startup"] = startup.measure(experiment, FLAGS.experiment, batch_sizes(experiment)[0], FLAGS.num_classes)
  keep(report)
  print(f"{experiment.name} on {report['environment']['device']}, jax {report['environment']['jax']}")
  print(startup.table(report["startup"]))


def scaling_report(report: dict) -> None:
  """The step against how much there is to do."""
  unknown = [axis for axis in FLAGS.axes if axis not in scaling.AXES]
  if unknown:
    raise app.UsageError(f"--axes={','.join(unknown)}: known are {', '.join(scaling.AXES)}")
  experiment, report["scaling"] = chosen(), []

  def write_row(row: dict) -> None:
    report["scaling"].append(row)
    keep(report)
    print(tables.of_scaling(row), flush=True)

  scaling.measure(experiment, batch_sizes(experiment)[0], settings(), FLAGS.axes, write_row)


def accelerator_report(report: dict) -> None:
  """Steps of the published detectors at full size (or of --experiment alone), then the operations."""
  if FLAGS.experiment:
    sizes = zip(("train", "detect"), batch_sizes(chosen()))
    asked = [accelerator.Row(chosen(), what, size) for what, size in sizes]
  else:
    asked = [dataclasses.replace(row, experiment=step.timed(row.experiment)) for row in accelerator.rows()]
  report["steps"] = []

  def write_row(row: dict) -> None:
    report["steps"].append(row)
    keep(report)
    print(tables.of_row(row), flush=True)

  make_peer = None
  if FLAGS.peer:
    make_peer = lambda row: peer_of(row.experiment, (row.batch_size, row.batch_size), [row.what])
  accelerator.measure(asked, settings(), FLAGS.budget, write_row, make_peer)
  report["ops"] = measured_ops(
    report, asked[0].experiment.data.canvases[0] if FLAGS.experiment else accelerator.CANVAS
  )
  report["peak_memory_MiB"] = timing.peak_memory()
  keep(report)
  print(tables.of_ops(report))


def input_report(report: dict) -> None:
  """What a data set costs before and beside the device."""
  from launch import benchmark_input

  if not FLAGS.coco_images or not FLAGS.coco_annotations:
    raise app.UsageError("--suite=input needs --coco_images and --coco_annotations")
  report["input"] = benchmark_input.measure(FLAGS.coco_images, FLAGS.coco_annotations, FLAGS.repeats, FLAGS.referee)
  keep(report)
  print(f"{FLAGS.coco_annotations} on {report['environment']['cores']} cores")
  print(benchmark_input.table(report["input"]))


if __name__ == "__main__":
  launch_flags.run(main, define_flags, keep_programs=False)

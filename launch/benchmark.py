"""Times an experiment's train step and detection on synthetic batches, beside torchvision's in the same run.

    python -m launch.benchmark --experiment=NAME_OR_FILE [--peer=torchvision --peer_python=VENV/bin/python]
    python -m launch.benchmark --suite=input --coco_images=DIR --coco_annotations=FILE [--referee]

Repeats alternate between this project and the peer, so that a machine whose speed drifts changes both alike; the
medians and their ratio are what to quote. The peer trains the layers that the experiment trains, and neither resizes
images nor pastes masks, which are not in our step either. Needs nothing beyond jax, flax, optax, numpy and absl.

The suite `input` measures what a data set costs before and beside the device: see `launch.benchmark_input`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import app, flags

from launch import flags as launch_flags
from rcnn_jax import timing
from rcnn_jax.data import pipeline
from rcnn_jax.experiment import Experiment
from rcnn_jax.models.detector import Detector, init_variables
from rcnn_jax.synthetic import num_keypoints, sized_model, synthetic_batch
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training import optim
from rcnn_jax.training import step as steps
from rcnn_jax.types import Batch

FLAGS = flags.FLAGS


class BenchmarkError(RuntimeError):
  """A peer that cannot be run."""


def define_flags() -> None:
  """Defines the options of this command."""
  flags.DEFINE_enum("suite", "step", ["step", "input"], "What is measured: steps on the device, or the data's path.")
  launch_flags.define_experiment(required=False)
  flags.DEFINE_integer("batch_size", None, "Images in a batch; by default the experiment's (train, eval) pair.")
  flags.DEFINE_integer("num_classes", 80, "Object classes, where the experiment leaves them to its data.")
  flags.DEFINE_integer("num_objects", 16, "Objects in each synthetic image, and RoIs that are foreground.")
  flags.DEFINE_integer(
    "num_found", None, "Detections an image: the score threshold is set so that there are as many.", lower_bound=1
  )
  flags.DEFINE_integer(
    "repeats", 5, "Timed repeats of each measurement, after one that is not counted.", lower_bound=1
  )
  flags.DEFINE_integer("iterations", 3, "Steps in a repeat.", lower_bound=1)
  flags.DEFINE_enum("peer", None, ["torchvision"], "Measure this too, in turns with ours.")
  launch_flags.define_path("peer_python", "The Python that has the peer installed.")
  launch_flags.define_path("coco_images", "Of --suite=input: a folder of images; tests/large_coco.py makes one.")
  launch_flags.define_path("coco_annotations", "Of --suite=input: the COCO annotation file of --coco_images.")
  flags.DEFINE_bool("referee", False, "Of --suite=input: let pycocotools compute the AP too, which takes minutes.")
  launch_flags.define_path("output", "Write the numbers to this JSON file.")


def main(argv: list[str]) -> None:
  """Measures, prints a table, writes --output."""
  del argv
  if FLAGS.suite == "input":
    report = input_report()
  else:
    report = step_report()
  if FLAGS.output:
    with open(FLAGS.output, "w") as file:
      json.dump(report, file, indent=1)


def input_report() -> dict:
  """Measures what a data set costs, prints the table, and returns the numbers."""
  from launch import benchmark_input

  if not FLAGS.coco_images or not FLAGS.coco_annotations:
    raise app.UsageError("--suite=input needs --coco_images and --coco_annotations")
  found = benchmark_input.measure(FLAGS.coco_images, FLAGS.coco_annotations, FLAGS.repeats, FLAGS.referee)
  report = {"command": command(), "environment": timing.environment(), "input": found}
  print(f"{FLAGS.coco_annotations} on {report['environment']['cores']} cores")
  print(benchmark_input.table(found))
  return report


def command() -> str:
  """What was typed, for the record."""
  return " ".join(["python -m launch.benchmark", *sys.argv[1:]])


def step_report() -> dict:
  """Measures train step and detection, prints the table, and returns the numbers."""
  if not FLAGS.experiment:
    raise app.UsageError("--experiment is needed, or --suite=input")
  experiment = timed(launch_flags.chosen_experiment())
  sizes = (FLAGS.batch_size, FLAGS.batch_size) if FLAGS.batch_size else tuple(experiment.data.batch_size)
  peer = Peer(experiment, sizes) if FLAGS.peer else None
  report = {"command": command(), "environment": timing.environment()}
  for name, prepare, size in (("train", prepare_train, sizes[0]), ("detect", prepare_detect, sizes[1])):
    repeat, compiled = prepare(experiment, drawn(experiment, size))
    contestants = {"ours": repeat} | ({"peer": lambda name=name: peer.measure(name)} if peer else {})
    report[name] = compiled | timing.summary(timing.alternate(contestants, FLAGS.repeats), FLAGS.iterations, size)
  if peer:
    report["environment"]["peer"] = peer.close()
  report["peak_memory_MiB"] = timing.peak_memory()
  print(table(experiment.name, report))
  return report


def timed(experiment: Experiment) -> Experiment:
  """The experiment, but for RoIs, of which the objects' own boxes alone are foreground.

  What masks and keypoints cost depends on the foreground, and of random proposals it would be as random.
  """
  sampler = dataclasses.replace(experiment.model.sampler, foreground_iou=0.99)
  return dataclasses.replace(experiment, model=experiment.model.clone(sampler=sampler))


def prepare_train(experiment: Experiment, batch: Batch) -> tuple[Callable[[], float], dict]:
  """(a function that times one repeat of train steps, what compiling them told)."""
  model, variables = prepared_model(experiment)
  mesh = meshes.data_mesh()
  # Steps without a move: random weights that learn soon propose something else, or nothing.
  stage = dataclasses.replace(experiment.stages[0], schedule=optim.Constant(0.0))
  step = steps.make_train_step(model, stage, mesh, seed=0, num_steps=10_000)
  held = {"state": steps.create_state(variables, stage, mesh)}
  batch = meshes.shard_batch(batch, mesh)
  compiled, told = timing.compile_timed(step, held["state"], batch)

  def repeat() -> float:
    began = time.perf_counter()
    for _ in range(FLAGS.iterations):
      held["state"], metrics = compiled(held["state"], batch)
    jax.block_until_ready((held["state"], metrics))
    return time.perf_counter() - began

  return repeat, told


def prepare_detect(experiment: Experiment, batch: Batch) -> tuple[Callable[[], float], dict]:
  """(a function that times one repeat of detections, what compiling them told)."""
  model, variables = prepared_model(experiment)
  batch, variables = jax.device_put((batch, variables))
  if FLAGS.num_found is not None:
    model = model.clone(box=model.box.clone(score_threshold=threshold(model, variables, batch, FLAGS.num_found)))
  detect = jax.jit(lambda variables, batch: model.apply(variables, batch, method="detect"))
  compiled, told = timing.compile_timed(detect, variables, batch)
  propose = jax.jit(lambda variables, batch: model.apply(variables, batch, method="propose"))
  told["proposals"] = float(propose(variables, batch).valid.sum(1).mean())
  told["detections"] = float(compiled(variables, batch).valid.sum(1).mean())

  def repeat() -> float:
    began = time.perf_counter()
    for _ in range(FLAGS.iterations):
      found = compiled(variables, batch)
    jax.block_until_ready(found)
    return time.perf_counter() - began

  return repeat, told


def threshold(model: Detector, variables: dict, batch: Batch, num_found: int) -> float:
  """The score above which a model finds `num_found` objects an image, over the images of a batch."""
  all_scores = model.clone(box=model.box.clone(score_threshold=0.0))
  found = jax.jit(lambda variables, batch: all_scores.apply(variables, batch, method="detect"))(variables, batch)
  scores = np.sort(np.asarray(found.scores)[np.asarray(found.valid)])[::-1]
  last = scores[min(num_found * len(batch.valid), len(scores)) - 1]
  return float(np.nextafter(last, np.float32(0)))


def prepared_model(experiment: Experiment) -> tuple[Detector, dict]:
  """The experiment's model with a number of classes (and of joints), and fresh variables of it."""
  model = sized_model(experiment, FLAGS.num_classes)
  return model, init_variables(model, jax.random.key(0), pipeline.example_canvas(experiment.data))


def drawn(experiment: Experiment, batch_size: int) -> Batch:
  """A synthetic batch with as many objects as the flags say."""
  return synthetic_batch(experiment, batch_size, num_objects=FLAGS.num_objects, num_classes=FLAGS.num_classes)


class Peer:
  """A process of another Python that answers 'train' or 'detect' with the seconds of one repeat."""

  def __init__(self, experiment: Experiment, sizes: tuple[int, int]):
    if not FLAGS.peer_python:
      raise BenchmarkError("--peer needs --peer_python, the Python in which torch and torchvision are installed")
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torchvision_peer.py")
    try:
      self.process = subprocess.Popen(
        [FLAGS.peer_python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
      )
    except OSError as error:
      raise BenchmarkError(f"--peer_python={FLAGS.peer_python}: {error.strerror}") from error
    self.versions = self._ask(peer_request(experiment, sizes))

  def measure(self, what: str) -> float:
    return self._ask({"measure": what})["seconds"]

  def close(self) -> dict:
    self.process.stdin.close()
    self.process.wait()
    return self.versions

  def _ask(self, request: dict) -> dict:
    try:
      self.process.stdin.write(json.dumps(request) + "\n")
      self.process.stdin.flush()
    except BrokenPipeError:
      pass  # it has ended; what it said before is read
    answer = self.process.stdout.readline()
    if not answer:
      raise BenchmarkError("the peer ended without an answer; what it said stands above")
    answer = json.loads(answer)
    if "error" in answer:
      raise BenchmarkError(f"the peer cannot be measured: {answer['error']}")
    return answer


def peer_request(experiment: Experiment, sizes: tuple[int, int]) -> dict:
  """What the peer needs to build the same detector."""
  from rcnn_jax.experiment import to_json

  return {
    "model": to_json(experiment.model),
    "num_classes": sized_model(experiment, FLAGS.num_classes).num_classes,
    "canvas": pipeline.example_canvas(experiment.data),
    "batch_size": sizes,
    "num_objects": FLAGS.num_objects,
    "num_found": FLAGS.num_found,
    "num_keypoints": num_keypoints(experiment.model),
    "frozen": frozen_parts(experiment),
    "iterations": FLAGS.iterations,
  }


def frozen_parts(experiment: Experiment) -> list[str]:
  """The parts of the network, 'backbone/bottom_up/conv1', none of whose parameters the first stage trains.

  Raises:
    BenchmarkError: of a part some parameters are frozen and others are not.
  """
  model = sized_model(experiment, FLAGS.num_classes)
  canvas = pipeline.example_canvas(experiment.data)
  params = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), canvas))["params"]
  parts: dict[str, set[bool]] = {}
  for path, rule in optim.resolve(experiment.stages[0].rules, params).items():
    depth = 3 if path.startswith("backbone/bottom_up/") else 2
    parts.setdefault("/".join(path.split("/")[:depth]), set()).add(rule.frozen)
  mixed = [part for part, frozen in parts.items() if len(frozen) > 1]
  if mixed:
    raise BenchmarkError(f"the peer cannot freeze some parameters of {', '.join(mixed)} and train others")
  return [part for part, frozen in parts.items() if frozen == {True}]


def table(name: str, report: dict) -> str:
  """The report for people."""
  lines = [f"{name} on {report['environment']['device']}, jax {report['environment']['jax']}"]
  for what in ("train", "detect"):
    found = report[what]
    notes = [f"compile {found['compile_s']:.1f} s"]
    if "GFLOP" in found:
      notes.append(f"{found['GFLOP']:.1f} GFLOP")
    if "program_memory_MiB" in found:
      notes.append(f"{found['program_memory_MiB']:.0f} MiB")
    if "proposals" in found:
      notes.append(f"an image has {found['proposals']:.0f} proposals, {found['detections']:.0f} detections")
    for who in ("ours", "peer"):
      if who in found:
        row = found[who]
        text = f"  {what:<7}{who:<5}{row['s']:9.4f} s {row['images_per_s']:9.2f} images/s"
        text += f"   {row['s_min']:.4f} to {row['s_max']:.4f} s"
        lines.append(f"{text}   {', '.join(notes)}" if who == "ours" else text)
    if "ratio" in found:
      ratio = found["ratio"]
      lines.append(f"  {what:<7}ours / peer {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
  if "proposals" in report["environment"].get("peer", {}):
    peer = report["environment"]["peer"]
    lines.append(f"  an image of the peer has {peer['proposals']:.0f} proposals, {peer['detections']:.0f} detections")
  lines.append(f"  peak memory {report['peak_memory_MiB']:.0f} MiB")
  return "\n".join(lines)


if __name__ == "__main__":
  launch_flags.run(main, define_flags, keep_programs=False)

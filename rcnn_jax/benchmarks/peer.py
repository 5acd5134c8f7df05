"""torchvision, in a process of another Python (`launch/torchvision_peer.py`), as the other contestant."""

from __future__ import annotations

import json
import pathlib
import subprocess
from collections.abc import Sequence

from rcnn_jax.benchmarks.step import Settings
from rcnn_jax.data import pipeline
from rcnn_jax.experiment import Experiment
from rcnn_jax.models.detector import variable_shapes
from rcnn_jax.synthetic import num_keypoints, sized_model
from rcnn_jax.training import optim

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "torchvision_peer.py"


class BenchmarkError(RuntimeError):
  """What cannot be measured: a peer that does not run, a suite that asks for something else."""


class Peer:
  """A process that answers the name of what it was asked for with the seconds of one repeat."""

  def __init__(self, python: str | None, request: dict):
    if not python:
      raise BenchmarkError("--peer needs --peer_python, the Python in which torch and torchvision are installed")
    try:
      self.process = subprocess.Popen([python, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    except OSError as error:
      raise BenchmarkError(f"--peer_python={python}: {error.strerror}") from error
    self.versions = self._ask(request)

  def measure(self, what: str) -> float:
    """Seconds of one repeat."""
    return self._ask({"measure": what})["seconds"]

  def close(self) -> dict:
    """Ends the process; returns what it said of itself."""
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


def request(
  experiment: Experiment, sizes: tuple[int, int], settings: Settings, steps: Sequence[str] = ("train", "detect")
) -> dict:
  """What the peer needs to build the same detector, and which of its steps will be measured."""
  from rcnn_jax.experiment import to_json

  return {
    "model": to_json(experiment.model),
    "num_classes": sized_model(experiment, settings.num_classes).num_classes,
    "canvas": pipeline.example_canvas(experiment.data),
    "batch_size": sizes,
    "steps": list(steps),
    "num_objects": settings.num_objects,
    "num_found": settings.num_found,
    "num_keypoints": num_keypoints(experiment.model),
    "frozen": frozen_parts(experiment, settings.num_classes),
    "iterations": settings.iterations,
  }


def frozen_parts(experiment: Experiment, num_classes: int) -> list[str]:
  """The parts of the network, 'backbone/bottom_up/conv1', none of whose parameters the first stage trains.

  Raises:
    BenchmarkError: of a part some parameters are frozen and others are not.
  """
  model = sized_model(experiment, num_classes)
  canvas = pipeline.example_canvas(experiment.data)
  params = variable_shapes(model, canvas)["params"]
  parts: dict[str, set[bool]] = {}
  for path, rule in optim.resolve(experiment.stages[0].rules, params).items():
    depth = 3 if path.startswith("backbone/bottom_up/") else 2
    parts.setdefault("/".join(path.split("/")[:depth]), set()).add(rule.frozen)
  mixed = [part for part, frozen in parts.items() if len(frozen) > 1]
  if mixed:
    raise BenchmarkError(f"the peer cannot freeze some parameters of {', '.join(mixed)} and train others")
  return [part for part, frozen in parts.items() if frozen == {True}]

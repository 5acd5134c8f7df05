"""The train step and detection of an experiment, timed on a synthetic batch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from rcnn_jax import timing
from rcnn_jax.data import pipeline
from rcnn_jax.experiment import Experiment
from rcnn_jax.models.detector import Detector, init_variables
from rcnn_jax.synthetic import sized_model, synthetic_batch
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training import optim
from rcnn_jax.training import step as steps
from rcnn_jax.types import Batch

Repeat = Callable[[], float]  # seconds of one repeat


@dataclasses.dataclass(frozen=True)
class Settings:
  """How there is something to do, and how often it is done."""

  num_classes: int = 80  # where the experiment leaves them to its data
  num_objects: int = 16  # of an image, and RoIs that are foreground
  num_found: int | None = None  # detections an image; None: by the experiment's threshold
  repeats: int = 5
  iterations: int = 3  # steps in a repeat
  num_devices: int | None = None  # that train; None: all


def timed(experiment: Experiment) -> Experiment:
  """The experiment, but for RoIs, of which the objects' own boxes alone are foreground.

  What masks and keypoints cost depends on the foreground, and of random proposals it would be as random.
  """
  sampler = dataclasses.replace(experiment.model.sampler, foreground_iou=0.99)
  return dataclasses.replace(experiment, model=experiment.model.clone(sampler=sampler))


def prepared(what: str, experiment: Experiment, batch_size: int, settings: Settings) -> tuple[Repeat, dict]:
  """(a function that times one repeat of 'train' or 'detect', what is known of the compiled program)."""
  sizes = {"num_objects": settings.num_objects, "num_classes": settings.num_classes}
  batch = synthetic_batch(experiment, batch_size, **sizes)
  model = sized_model(experiment, settings.num_classes)
  variables = init_variables(model, jax.random.key(0), pipeline.example_canvas(experiment.data))
  if what == "train":
    return _training(experiment, model, variables, batch, settings)
  return _detection(model, variables, batch, settings)


def measured(
  what: str, experiment: Experiment, batch_size: int, settings: Settings, peer: Repeat | None = None
) -> dict:
  """What is known of the program, and `timing.summary` of our times and, in turns, of a peer's where there is one."""
  repeat, facts = prepared(what, experiment, batch_size, settings)
  contestants = {"ours": repeat} | ({"peer": peer} if peer else {})
  seconds = timing.alternate(contestants, settings.repeats)
  return facts | {"batch_size": batch_size} | timing.summary(seconds, settings.iterations, batch_size)


def _training(experiment, model, variables, batch, settings) -> tuple[Repeat, dict]:
  mesh = meshes.data_mesh(settings.num_devices)
  # Steps without a move: random weights that learn soon propose something else, or nothing.
  stage = dataclasses.replace(experiment.stages[0], schedule=optim.Constant(0.0))
  step = steps.make_train_step(model, stage, mesh, seed=0, num_steps=10_000)
  held = {"state": steps.create_state(variables, stage, mesh)}
  batch = meshes.shard_batch(batch, mesh)
  compiled, facts = timing.compile_timed(step, held["state"], batch)

  def repeat() -> float:
    began = time.perf_counter()
    for _ in range(settings.iterations):
      held["state"], metrics = compiled(held["state"], batch)
    jax.block_until_ready((held["state"], metrics))
    return time.perf_counter() - began

  return repeat, facts


def _detection(model, variables, batch, settings) -> tuple[Repeat, dict]:
  batch, variables = jax.device_put((batch.replace(truth=None), variables))
  if settings.num_found is not None:
    found_at = threshold(model, variables, batch, settings.num_found)
    model = model.clone(box=model.box.clone(score_threshold=found_at))
  detect = jax.jit(lambda variables, batch: model.apply(variables, batch, method="detect"))
  compiled, facts = timing.compile_timed(detect, variables, batch)
  propose = jax.jit(lambda variables, batch: model.apply(variables, batch, method="propose"))
  facts["proposals"] = float(propose(variables, batch).valid.sum(1).mean())
  facts["detections"] = float(compiled(variables, batch).valid.sum(1).mean())
  return timing.repeated(compiled, variables, batch, iterations=settings.iterations), facts


def threshold(model: Detector, variables: dict, batch: Batch, num_found: int) -> float:
  """The score above which a model finds `num_found` objects an image, over the images of a batch."""
  all_scores = model.clone(box=model.box.clone(score_threshold=0.0))
  found = jax.jit(lambda variables, batch: all_scores.apply(variables, batch, method="detect"))(variables, batch)
  scores = np.sort(np.asarray(found.scores)[np.asarray(found.valid)])[::-1]
  last = scores[min(num_found * len(batch.valid), len(scores)) - 1]
  return float(np.nextafter(last, np.float32(0)))

"""A whole experiment that trains in seconds: a small detector on drawn shapes. Files that tests write use it."""

from __future__ import annotations

import dataclasses

from experiments.demo import experiment as demo
from rcnn_jax.data.shapes import Shapes
from rcnn_jax.experiment import Checkpoints, Evaluation, Experiment
from rcnn_jax.training.optim import Cosine
from rcnn_jax.training.stages import Sgd
from tests.small_detector import small_detector


def on_shapes(
  data_dir: str,
  *,
  steps: int,
  num_train: int = 8,
  num_eval: int = 4,
  evaluation: Evaluation = Evaluation(pictures=0),
  checkpoints: Checkpoints = Checkpoints(),
) -> Experiment:
  """Four images of 64 x 64 a step; the shapes are drawn into `data_dir` once."""
  shapes = {"data_dir": data_dir, "side": 64, "num_train": num_train, "num_eval": num_eval}
  data = dataclasses.replace(
    demo.data,
    train=Shapes(split="train", **shapes),
    eval=Shapes(split="eval", **shapes),
    canvases=((64, 64),),
    batch_size=(4, 4),
    load_masks=False,
  )
  return dataclasses.replace(
    demo,
    name="small",
    model=small_detector(num_classes=None),
    stages=(Sgd(steps=steps, schedule=Cosine(0.01)),),
    data=data,
    evaluation=evaluation,
    checkpoints=checkpoints,
  )

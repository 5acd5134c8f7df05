"""rcnn-jax: the R-CNN family in JAX and Flax, under one engine."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
  import os

  from rcnn_jax.experiment import Experiment

__version__ = "0.1.0"


def train(experiment: Experiment, workdir: str | os.PathLike, **options: typing.Any) -> dict[str, float | None]:
  """`training.run.train`: trains an experiment in a run directory and returns the metrics of its last evaluation."""
  from rcnn_jax.training import run  # where it is needed: models and the step of training need jax and flax alone

  return run.train(experiment, workdir, **options)

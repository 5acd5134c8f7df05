"""Truncated SVD of a trained detector's fully connected layers (Fast R-CNN, section 3.1).

A layer of u inputs and v outputs becomes two, without a bias between them: its best approximation of rank t, with
t (u + v) weights in place of u v.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from rcnn_jax.experiment import Experiment
from rcnn_jax.models.heads import FcTrunk
from rcnn_jax.weights.errors import WeightsError

Ranks = Sequence[int | None]  # one for each layer of the trunk; None leaves a layer whole
TRUNK = r"params/trunk(?:s_\d+)?"  # of a cascade each stage has one


def truncated_experiment(experiment: Experiment, ranks: Ranks) -> Experiment:
  """The experiment whose trunk has layers of these ranks.

  Raises:
    WeightsError: the trunk is not made of as many fully connected layers, or they are truncated already.
  """
  trunk = experiment.model.trunk
  if not isinstance(trunk, FcTrunk):
    raise WeightsError(
      f"only the layers of an FcTrunk are truncated, and the model's trunk is {type(trunk).__name__}"
    )
  if trunk.ranks is not None:
    raise WeightsError(f"the trunk's layers are truncated already, to the ranks {trunk.ranks}")
  if len(ranks) != len(trunk.widths):
    raise WeightsError(f"{len(ranks)} ranks for the trunk's {len(trunk.widths)} layers")
  return experiment.override({"model.trunk.ranks": tuple(ranks)})


def truncate(variables: dict, ranks: Ranks) -> dict:
  """The variables of a detector, with its trunk's layers fc6, fc7 ... at these ranks.

  Raises:
    WeightsError: a rank below 1, or above that of its layer's matrix; it names the layer.
  """
  flat = traverse_util.flatten_dict(variables, sep="/")
  for number, rank in enumerate(ranks, start=6):
    for layer in [path for path in flat if re.fullmatch(rf"{TRUNK}/fc{number}/kernel", path) and rank is not None]:
      layer = layer.removesuffix("/kernel")
      first, second = factors(flat.pop(f"{layer}/kernel"), rank, layer.removeprefix("params/"))
      flat[f"{layer}/first/kernel"] = first
      flat[f"{layer}/second/kernel"] = second
      flat[f"{layer}/second/bias"] = flat.pop(f"{layer}/bias")
  return traverse_util.unflatten_dict(flat, sep="/")


def factors(kernel: Any, rank: int, name: str) -> tuple[np.ndarray, np.ndarray]:
  """f32[u, t], f32[t, v]: their product is the matrix of rank t that is nearest to the kernel f32[u, v]."""
  kernel = np.asarray(kernel, np.float32)
  if not 1 <= rank <= min(kernel.shape):
    inputs, outputs = kernel.shape
    raise WeightsError(
      f"{name}: a rank of {rank}, and its matrix of {inputs} x {outputs} has 1 to {min(kernel.shape)}"
    )
  left, values, right = np.linalg.svd(kernel, full_matrices=False)
  return left[:, :rank] * values[:rank], right[:rank]

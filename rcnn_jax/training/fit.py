"""The stages that are fits: from the features of all training regions to the parameters of `RcnnHead`."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from rcnn_jax.ops import boxes
from rcnn_jax.training import features, optim, ridge, svm
from rcnn_jax.training.stages import FitBoxRegression, FitSvms

LogLine = Callable[[str], None]
Numbers = dict[str, float]  # of a row of metrics.jsonl


def fit(
  stage: FitSvms | FitBoxRegression,
  model: nn.Module,
  variables: dict,
  regions: features.Regions,
  folder: pathlib.Path,
  log_line: LogLine,
) -> tuple[dict, Numbers]:
  """The variables with the head's SVMs or ridge regression fitted, and what is to be logged of it.

  Among the numbers are the seconds that the fit took, and features_seconds, which fits that share them share.

  Args:
    stage: which, and how.
    model: a Detector with an RcnnHead and external proposals.
    variables: of the model.
    regions: the training data.
    folder: where features are kept; fits with the same network share them.
    log_line: prints a line for people.

  Raises:
    TrainingError: for a model with another head.
  """
  if "svm" not in variables["params"]["box"]:
    raise optim.TrainingError(f"{type(stage).__name__} needs box=RcnnHead(...), not {type(model.box).__name__}")
  stored = features.cache(folder, model, variables, regions, log_line)
  began, flat = time.perf_counter(), optim.flatten(variables)
  fitter = fit_svms if isinstance(stage, FitSvms) else fit_boxes
  fitted, numbers = fitter(stage, stored, model.num_classes, log_line)
  for path, value in fitted.items():
    assert flat[path].shape == np.shape(value), path
    flat[path] = jnp.asarray(value, jnp.float32)
  times = {"seconds": time.perf_counter() - began, "features_seconds": stored.seconds()}
  return optim.unflatten(flat), numbers | times


def fit_svms(stage: FitSvms, stored: features.Cache, num_classes: int, log_line: LogLine) -> tuple[dict, Numbers]:
  """The leaves of `params/box/svm`."""
  scale = stage.norm / max(_mean_norm(rows.features for rows in stored.rows()), 1e-6)
  svms, numbers = svm.mine(stored.rows, num_classes, stage, scale, log_line)
  lacking = np.flatnonzero(svms.bias == svm.NEVER) + 1
  if len(lacking):
    log_line(f"SVMs: no object of class {', '.join(map(str, lacking))} to learn from: it will not be detected")
  leaves = {"kernel": svms.kernel, "bias": svms.bias, "scale": np.float32(scale)}
  return {f"params/box/svm/{name}": value for name, value in leaves.items()}, numbers


def fit_boxes(
  stage: FitBoxRegression, stored: features.Cache, num_classes: int, log_line: LogLine
) -> tuple[dict, Numbers]:
  """The leaves of `params/box/ridge`."""
  scale = stage.norm / max(_mean_norm(pairs.pooled for pairs in stored.pairs()), 1e-6)
  fits = []
  for k in range(num_classes):
    try:
      fits.append(ridge.fit(*_pairs_of(stage, stored, k, scale), stage.penalty))
    except ridge.Singular as error:
      log_line(f"box regression: class {k + 1} keeps its boxes where the proposals are: {error}")
      fits.append(None)
  size = next(stored.pairs()).pooled.shape[1]
  nothing = ridge.Fit(np.zeros((size, 4)), np.zeros(4), 0, 0.0)
  whole = [each or nothing for each in fits]
  num_pairs = sum(each.num_rows for each in whole)
  residual = sum(each.residual * each.num_rows for each in whole) / max(num_pairs, 1)
  log_line(f"box regression: {num_pairs:,} pairs, mean squared residual {residual:.4g}")
  leaves = {
    "kernel": np.stack([scale * each.kernel for each in whole], axis=1),
    "bias": np.stack([each.bias for each in whole]),
  }
  numbers = {"pairs": num_pairs, "residual": residual, "classes_fitted": sum(each is not None for each in fits)}
  return {f"params/box/ridge/{name}": value for name, value in leaves.items()}, numbers


def _pairs_of(stage: FitBoxRegression, stored: features.Cache, k: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
  """Scaled features f32[P, C] and deltas f32[P, 4] of the pairs of class k + 1."""
  rows = [np.flatnonzero(pairs.overlaps[:, k] > stage.min_iou) for pairs in stored.pairs()]
  total = sum(map(len, rows))
  every = max(total / (stage.max_pairs or total or 1), 1.0)
  pooled, proposals, objects, first = [], [], [], 0
  for pairs, here in zip(stored.pairs(), rows):
    number = first + np.arange(len(here))
    first += len(here)
    here = here[np.floor((number + 1) / every) > np.floor(number / every)]
    pooled.append(scale * pairs.pooled[here])
    proposals.append(pairs.boxes[here])
    objects.append(pairs.targets[here, k])
  deltas = boxes.encode(*(jnp.asarray(np.concatenate(each)) for each in (objects, proposals)))
  return np.concatenate(pooled), np.asarray(deltas)


def _mean_norm(chunks) -> float:
  """The mean Euclidean norm of the rows of all chunks; 0 where there are none."""
  total, count = 0.0, 0
  for rows in chunks:
    total += float(np.linalg.norm(rows, axis=1).sum(dtype=np.float64))
    count += len(rows)
  return total / max(count, 1)

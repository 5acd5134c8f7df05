"""Optimal localisation recall precision error (Oksuz et al., arXiv:2011.10772, sections 4 and 5), and its parts.

LRP at a score threshold is the mean over hits, false detections and missed objects of the error of each, where a hit
has (1 - IoU) / (1 - 0.5) and the others 1; the optimal one is the least over all thresholds, class by class. Here
every score is tried; the authors' code tries a hundred thresholds, and finds errors that are a little larger.
"""

from __future__ import annotations

import numpy as np

from rcnn_jax.evaluation.compare.average_precision import mean_over_classes
from rcnn_jax.evaluation.compare.matching import Matches

MIN_IOU = 0.5
NAMES = ("oLRP", "oLRP Loc", "oLRP FP", "oLRP FN")
_BLOCK = 64  # weightings at a time


def optimal_lrp(matches: Matches, weights: np.ndarray) -> dict[str, np.ndarray]:
  """{name: f64[R]} of NAMES: the error, and at the optimum the mean 1 - IoU of hits, 1 - precision and 1 - recall.

  Means over the classes that have objects; a part that a class has not (no hit) is left out of its mean. Smaller is
  better.

  Args:
    matches: whose first threshold is 0.5.
    weights: [R, I] integers, how often each image counts.
  """
  starts, columns = matches.starts(), np.ascontiguousarray(np.asarray(weights, np.int32).T)
  found = np.full((columns.shape[1], len(NAMES), len(matches.class_names)), np.nan)
  for k in range(len(matches.class_names)):
    rows = np.arange(starts[k], starts[k + 1])
    rows = rows[~matches.ignored[0, 0, rows]]
    for start in range(0, columns.shape[1], _BLOCK):
      block = columns[:, start : start + _BLOCK]
      found[start : start + _BLOCK, :, k] = _of_class(matches, rows, matches.num_objects[0, k] @ block, block)
  return dict(zip(NAMES, mean_over_classes(found).T))


def _of_class(matches: Matches, rows: np.ndarray, total: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """f64[R, 4] of one class."""
  nothing = np.where((total > 0)[:, None], [1.0, np.nan, np.nan, 1.0], np.nan)
  places = np.flatnonzero(matches.hit[0, 0, rows])
  if not len(places):
    return nothing
  seen = np.cumsum(weights[matches.images[rows]], 0)[places]
  of_hits = weights[matches.images[rows[places]]]
  hits = np.cumsum(of_hits, 0)
  away = np.cumsum(of_hits * (1.0 - matches.overlap[rows[places]])[:, None], 0)
  errors = (away / (1.0 - MIN_IOU) + seen - hits + total - hits) / np.maximum(seen + total - hits, 1)
  best = errors.argmin(0), np.arange(errors.shape[1])
  hit, least = np.maximum(hits[best], 1), errors[best]
  parts = [least, away[best] / hit, 1 - hits[best] / np.maximum(seen[best], 1), 1 - hits[best] / np.maximum(total, 1)]
  return np.where(((total > 0) & (least < 1))[:, None], np.stack(parts, 1), nothing)

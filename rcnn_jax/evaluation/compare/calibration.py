"""Whether a score is what it seems: of the detections with score 0.8, do four in five hit?

The detection ECE (Küppers et al., CVPR workshops 2020, equation 4, over scores alone): detections of all classes fall
into bins of equal width by score; the mean over bins, by their number of detections, of |precision - mean score|. A
detection is right if it is matched at IoU 0.5; ignored ones do not count. It depends on how many detections of low
score a detector keeps, so it is compared between detectors that keep the same.
"""

from __future__ import annotations

import numpy as np

from rcnn_jax.evaluation.compare.matching import Matches

BINS = 10


def reliability(matches: Matches, weights: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Number of detections, share of hits and mean score in each bin: three f64[R, bins]; NaN in empty bins.

  Args:
    matches: whose first threshold is 0.5; scores in 0..1.
    weights: [R, I] integers, how often each image counts.
    bins: of equal width.
  """
  rows = np.flatnonzero(~matches.ignored[0, 0])
  scores = np.clip(matches.scores[rows], 0.0, 1.0)
  places = matches.images[rows].astype(np.int64) * bins + np.minimum((scores * bins).astype(int), bins - 1)
  shape = (len(matches.image_ids), bins)
  sums = [
    np.bincount(places, of, shape[0] * bins).reshape(shape)
    for of in (np.ones(len(rows)), matches.hit[0, 0, rows].astype(float), scores)
  ]
  count, hits, total = (np.asarray(weights, np.float64) @ of for of in sums)
  share = lambda of: np.divide(of, count, out=np.full(count.shape, np.nan), where=count > 0)
  return count, share(hits), share(total)


def detection_ece(matches: Matches, weights: np.ndarray, bins: int = BINS) -> np.ndarray:
  """f64[R], 0..1; NaN without detections."""
  count, precision, score = reliability(matches, weights, bins)
  gaps = np.where(count > 0, np.abs(precision - score), 0.0) * count
  total = count.sum(1)
  return np.divide(gaps.sum(1), total, out=np.full(total.shape, np.nan), where=total > 0)

"""Average precision of matched detections, for many weightings of the images at once.

A weight says how often an image counts. All ones give pycocotools' AP; the numbers that a draw with replacement has
for each image give the AP of that resampled data set, equal to that of pycocotools on copies of the images (tested).
The matches are made once: a weighting only changes cumulative sums.

Only hits are looked at, for between two of them precision falls and recall stands still. How many detections count
before a hit is read from one cumulative sum over all detections in the range of areas, corrected by the few whose
state depends on the threshold. So a threshold costs what its objects cost, and not what the detections do.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rcnn_jax.evaluation.compare.matching import Matches

RECALLS = np.linspace(0.0, 1.0, 101)  # pycocotools' recall thresholds
# Of the AP of each range; those of areas are COCO's.
NAMES = {"small": "APs", "medium": "APm", "large": "APl", "tall": "AP tall", "square": "AP square", "wide": "AP wide"}
_BLOCK = 64  # weightings at a time, so that the sums of most classes stay within the processor's caches


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
  """AP over 101 recalls (cocodataset.org, "Detection Evaluation").

  Args:
    matches: of one detector.
    weights: [R, I] integers >= 0: how often each image counts, in each of R weightings.

  Returns:
    f64[R, A, T, K] in 0..1; NaN where a class has no object that counts.
  """
  return _by_class(matches, weights, _area_under, ())


def precision_curves(matches: Matches, weights: np.ndarray, threshold: int = 0) -> np.ndarray:
  """f64[R, K, 101]: precision at RECALLS, over all areas, of the threshold at this place; NaN without objects."""
  part = dataclasses.replace(
    matches,
    ranges=matches.ranges[:1],
    thresholds=matches.thresholds[threshold : threshold + 1],
    hit=matches.hit[:1, threshold : threshold + 1],
    ignored=matches.ignored[:1, threshold : threshold + 1],
  )
  return _by_class(part, weights, _at_recalls, (len(RECALLS),))[:, 0, 0]


def mean_over_classes(values: np.ndarray) -> np.ndarray:
  """The mean over the last axis of the classes that have objects; NaN where none has."""
  there = ~np.isnan(values)
  total = np.where(there, values, 0.0).sum(-1)
  return np.divide(total, there.sum(-1), out=np.full(total.shape, np.nan), where=there.any(-1))


def summary(values: np.ndarray, matches: Matches) -> dict[str, np.ndarray]:
  """{name: f64[R]} of AP, AP50, AP75, the ranges' (NAMES) and AP/<class>, from the AP of `average_precision`.

  Names are those of metrics.json. What pycocotools gives as -1 is NaN; ranges and thresholds that are not there have
  no name.
  """
  places = {round(100 * threshold): n for n, threshold in enumerate(matches.thresholds)}
  found = {"AP": _mean(values[:, 0])}
  found |= {f"AP{t}": _mean(values[:, 0, places[t]]) for t in (50, 75) if t in places}
  found |= {NAMES[name]: _mean(values[:, n]) for n, name in enumerate(matches.ranges) if n}
  return found | {f"AP/{name}": _mean(values[:, 0, :, k]) for k, name in enumerate(matches.class_names)}


def _mean(values: np.ndarray) -> np.ndarray:
  return mean_over_classes(values.reshape(len(values), -1))


def _by_class(matches: Matches, weights: np.ndarray, measure: Callable, shape: tuple[int, ...]) -> np.ndarray:
  """f64[R, A, T, K, *shape]: the measure of each class, on all cores; numpy's loops run beside each other."""
  starts = matches.starts()
  columns = np.ascontiguousarray(np.asarray(weights, np.int32).T)
  ranked = [_Ranked.of(matches, k, slice(starts[k], starts[k + 1])) for k in range(len(matches.class_names))]
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    found = list(pool.map(lambda one: one.measured(columns, measure, shape), ranked))
  return np.stack(found, 3) if found else np.full((len(weights), *matches.hit.shape[:2], 0, *shape), np.nan)


@dataclasses.dataclass(frozen=True)
class _Ranked:
  """The detections of one class, by falling score, and its objects.

  Attributes:
    images: i32[D]; num_objects: [A, I].
    inside: by range of areas, the places of the detections in it.
    hits: by range and threshold, the places of the detections that are hits.
    before: by range and threshold, how many of `inside` stand up to each hit.
    amends: by range and threshold, (places, signs, how many of them stand up to each hit): detections that count
      although they are outside (they hit an object inside), +1, or do not count although they are inside, -1.
  """

  images: np.ndarray
  num_objects: np.ndarray
  inside: Sequence[np.ndarray]
  hits: Sequence[Sequence[np.ndarray]]
  before: Sequence[Sequence[np.ndarray]]
  amends: Sequence[Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]]

  @classmethod
  def of(cls, matches: Matches, k: int, rows: slice) -> _Ranked:
    inside, hits, before, amends = [], [], [], []
    for a in range(len(matches.ranges)):
      within = matches.inside[a, rows]
      counted = ~matches.ignored[a, :, rows]
      inside.append(np.flatnonzero(within))
      hits.append([np.flatnonzero(row) for row in matches.hit[a, :, rows] & counted])
      before.append([np.searchsorted(inside[a], places, "right") for places in hits[a]])
      changed = [np.flatnonzero(row != within) for row in counted]
      signs = [np.where(within[places], -1, 1).astype(np.int32) for places in changed]
      amends.append([(c, s, np.searchsorted(c, h, "right")) for c, s, h in zip(changed, signs, hits[a])])
    return cls(matches.images[rows], matches.num_objects[:, k], inside, hits, before, amends)

  def measured(self, columns: np.ndarray, measure: Callable, shape: tuple[int, ...]) -> np.ndarray:
    """f64[R, A, T, *shape]: `measure` of the places of recall and the precision at each hit."""
    found = np.full((columns.shape[1], len(self.inside), len(self.hits[0]), *shape), np.nan)
    for start in range(0, columns.shape[1], _BLOCK):
      block = columns[:, start : start + _BLOCK]
      weights = block[self.images]
      for a, inside in enumerate(self.inside):
        total = self.num_objects[a] @ block
        there = total > 0
        if not there.any():
          continue
        seen = _cumulative(weights[inside] if len(inside) < len(weights) else weights)
        for t in range(len(self.hits[a])):
          places, precision = self._at_hits(a, t, weights, seen, np.maximum(total, 1))
          found[start : start + _BLOCK, a, t][there] = measure(places, precision)[there]
    return found

  def _at_hits(self, a: int, t: int, weights: np.ndarray, seen: np.ndarray, total: np.ndarray):
    """How many of RECALLS are reached at each hit, i64[H, R]; the best precision there or later, f64[H, R]."""
    hits = np.cumsum(weights[self.hits[a][t]], 0)
    counted = seen[self.before[a][t]]
    changed, signs, before = self.amends[a][t]
    if len(changed):
      counted = counted + _cumulative(weights[changed] * signs[:, None])[before]
    precision = hits / (counted + np.spacing(1))
    np.maximum.accumulate(precision[::-1], 0, out=precision[::-1])
    return _places_of(hits / total), precision


def _cumulative(values: np.ndarray) -> np.ndarray:
  """Sums of the first 0, 1, ..., D rows."""
  sums = np.zeros((len(values) + 1, values.shape[1]), np.int32)
  np.cumsum(values, 0, out=sums[1:])
  return sums


def _places_of(recall: np.ndarray) -> np.ndarray:
  """How many of RECALLS are at most each recall."""
  near = (recall * 100 + 1e-9).astype(np.int32)
  return near + (RECALLS[near] <= recall)


def _area_under(places: np.ndarray, precision: np.ndarray) -> np.ndarray:
  steps = np.diff(places, axis=0, prepend=np.int32(0))
  return np.einsum("hr,hr->r", precision, steps) / len(RECALLS)


def _at_recalls(places: np.ndarray, precision: np.ndarray) -> np.ndarray:
  curves = np.zeros((places.shape[1], len(RECALLS)))
  steps = np.diff(places, axis=0, prepend=np.int32(0))
  for column, curve in enumerate(curves):
    reached = np.repeat(precision[:, column], steps[:, column])
    curve[: len(reached)] = reached
  return curves

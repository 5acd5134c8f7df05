"""Why AP is lost: the error types of TIDE and what each would bring (Bolya et al., arXiv:2008.08115, section 2).

Every false detection (unmatched at IoU 0.5) has one type, by its overlaps with the objects that count:
  Cls   overlaps an object of another class by at least 0.5;
  Loc   overlaps an object of its own class by 0.1 to 0.5;
  Both  overlaps an object of another class by 0.1 to 0.5;
  Dupe  overlaps an object of its own class by at least 0.5, which a better detection has;
  Bkg   overlaps no object by more than 0.1.
An object that nobody found is Miss, unless a Cls or Loc error could have found it. The gain of a type is AP50 with
its errors mended less AP50 as it is: the best Cls or Loc error of an object becomes a hit, the others and those of
objects that are found go; Both, Dupe and Bkg go; missed objects are not counted. FP takes all false detections away,
FN all objects that were not found. Gains do not add up. A class none of whose objects was found keeps AP 0
when they are not counted, as in the authors' code.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rcnn_jax.evaluation.compare.average_precision import average_precision, mean_over_classes
from rcnn_jax.evaluation.compare.matching import Matches, Objects, objects_of, overlap_table
from rcnn_jax.evaluation.results import Results

FOREGROUND, BACKGROUND = 0.5, 0.1
TYPES = ("Cls", "Loc", "Both", "Dupe", "Bkg")
CLS, LOC, BOTH, DUPE, BKG = range(len(TYPES))
HIT, IGNORED = -1, -2


@dataclasses.dataclass(frozen=True)
class Errors:
  """What is wrong with each detection and object.

  Attributes:
    types: i8[D], a place in TYPES, HIT or IGNORED, by the rows of the matches.
    objects: i32[D]: the object that a Cls or Loc error could have found, a row of the annotations; else -1.
    found: bool[G]: whether an object is hit; missed: bool[G]: whether it is Miss.
    data: the objects.
  """

  types: np.ndarray
  objects: np.ndarray
  found: np.ndarray
  missed: np.ndarray
  data: Objects


def classify(truth: dict, results: Results, matches: Matches) -> Errors:
  """The type of every error, from the matches at IoU 0.5 (their first threshold) over all areas."""
  data = objects_of(truth, matches.kind)
  types = np.where(matches.ignored[0, 0], IGNORED, np.where(matches.hit[0, 0], HIT, BKG)).astype(np.int8)
  meant = np.full(len(types), -1, np.int32)
  found = np.zeros(len(data.images), bool)
  found[matches.objects[matches.hit[0, 0]]] = True
  wrong = np.flatnonzero(types == BKG)
  wrong = wrong[np.argsort(matches.images[wrong], kind="stable")]
  there = np.flatnonzero(~data.ignored)
  there = there[np.argsort(data.images[there], kind="stable")]
  for image in np.intersect1d(matches.images[wrong], data.images[there]):
    rows = wrong[slice(*np.searchsorted(matches.images[wrong], [image, image + 1]))]
    objects = there[slice(*np.searchsorted(data.images[there], [image, image + 1]))]
    table = overlap_table(results, matches.rows[rows], data, objects, matches.kind)
    same = matches.classes[rows][:, None] == data.classes[objects]
    types[rows], columns = _types(np.where(same, table, 0.0), np.where(same, 0.0, table))
    meant[rows] = np.where(columns >= 0, objects[columns], -1)
  usable = np.zeros(len(found), bool)
  usable[meant[meant >= 0]] = True
  return Errors(types, meant, found, ~found & ~usable & ~data.ignored, data)


def _types(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The type of each false detection, i8[D], and the column of the object that it could have found or -1.

  Args:
    own: f64[D, G], the overlap with objects of its own class; other: with those of others; 0 for the rest.
  """
  best_own, best_other = own.max(1), other.max(1)
  loc = (best_own >= BACKGROUND) & (best_own < FOREGROUND)
  cls = ~loc & (best_other >= FOREGROUND)
  dupe = ~loc & ~cls & (best_own >= FOREGROUND)
  far = np.maximum(best_own, best_other) <= BACKGROUND
  types = np.select([loc, cls, dupe, far], [LOC, CLS, DUPE, BKG], BOTH).astype(np.int8)
  return types, np.where(loc, own.argmax(1), np.where(cls, other.argmax(1), -1))


def gains(matches: Matches, errors: Errors, weights: np.ndarray) -> dict[str, np.ndarray]:
  """{"Cls": f64[R], ...}: what mending each type, all false detections (FP) or all misses (FN) would bring to AP50.

  Args:
    matches: as given to `classify`.
    errors: of `classify`.
    weights: [R, I] integers, how often each image counts.
  """
  plain = dataclasses.replace(
    matches,
    thresholds=matches.thresholds[:1],
    ranges=matches.ranges[:1],
    hit=matches.hit[:1, :1],
    ignored=matches.ignored[:1, :1],
    inside=matches.inside[:1],
    num_objects=matches.num_objects[:1],
  )
  before = average_precision(plain, weights)[:, 0, 0]
  base = mean_over_classes(before)

  def score(mended: Matches) -> np.ndarray:
    after = average_precision(mended, weights)[:, 0, 0]
    return mean_over_classes(np.where(np.isnan(after) & ~np.isnan(before), 0.0, after))

  best = _best(matches, errors)
  found = {name: score(_mended(plain, errors, n, best)) - base for n, name in enumerate(TYPES)}
  found["Miss"] = score(_without_objects(plain, errors.data, errors.missed)) - base
  found["FP"] = score(_kept(plain, errors.types < 0)) - base
  found["FN"] = score(_without_objects(plain, errors.data, ~errors.found & ~errors.data.ignored)) - base
  return found


def counts(errors: Errors) -> dict[str, int]:
  """How many errors there are of each type."""
  return {name: int((errors.types == n).sum()) for n, name in enumerate(TYPES)} | {"Miss": int(errors.missed.sum())}


def _best(matches: Matches, errors: Errors) -> np.ndarray:
  """bool[D]: the best Cls or Loc error of an object that was not found."""
  rows = np.flatnonzero(errors.objects >= 0)
  rows = rows[~errors.found[errors.objects[rows]]]
  rows = rows[np.lexsort((-matches.scores[rows], errors.objects[rows]))]
  first = np.ones(len(rows), bool)
  first[1:] = errors.objects[rows][1:] != errors.objects[rows][:-1]
  best = np.zeros(len(errors.types), bool)
  best[rows[first]] = True
  return best


def _mended(plain: Matches, errors: Errors, kind: int, best: np.ndarray) -> Matches:
  """Without the errors of a type, but for those that become hits."""
  mended = (errors.types == kind) & best
  hit = plain.hit.copy()
  hit[:, :, mended] = True
  classes = plain.classes.copy()
  classes[mended] = errors.data.classes[errors.objects[mended]]
  return _kept(dataclasses.replace(plain, hit=hit, classes=classes), (errors.types != kind) | mended)


def _kept(matches: Matches, kept: np.ndarray) -> Matches:
  """Some of the detections, in order again."""
  rows = np.flatnonzero(kept)
  rows = rows[np.lexsort((matches.images[rows], -matches.scores[rows], matches.classes[rows]))]
  columns = {
    name: getattr(matches, name)[rows] for name in ("images", "classes", "scores", "rows", "objects", "overlap")
  }
  tables = {name: getattr(matches, name)[..., rows] for name in ("hit", "ignored", "inside")}
  return dataclasses.replace(matches, **columns, **tables)


def _without_objects(matches: Matches, data: Objects, gone: np.ndarray) -> Matches:
  num_objects = matches.num_objects.copy()
  np.subtract.at(num_objects[0], (data.classes[gone], data.images[gone]), 1)
  return dataclasses.replace(matches, num_objects=num_objects)


def confusion(matches: Matches, errors: Errors, min_score: float) -> np.ndarray:
  """i64[K + 1, K + 1]: objects by class (rows) and what they were taken for (columns); the last ones are background.

  Only detections of at least this score count. An object that is not hit was taken for the class of its best Cls
  error, if it has one; a false detection of no object stands in the last row.
  """
  num, counted = len(matches.class_names), matches.scores >= min_score
  table = np.zeros((num + 1, num + 1), np.int64)
  taken = np.where(errors.data.ignored, -1, num)  # by object
  rows = np.flatnonzero(counted & (errors.types == CLS))
  rows = rows[np.argsort(matches.scores[rows], kind="stable")]
  taken[errors.objects[rows]] = matches.classes[rows]  # the best one comes last
  hits = np.flatnonzero(counted & (errors.types == HIT))
  taken[matches.objects[hits]] = matches.classes[hits]
  there = taken >= 0
  np.add.at(table, (errors.data.classes[there], taken[there]), 1)
  beside = counted & (errors.types >= 0) & (errors.types != CLS)
  np.add.at(table, (num, matches.classes[beside]), 1)
  return table

"""The comparison itself: every number of every detector with its draws, and every difference from the first variant.

A number is f64[1 + R]: on all images, then on each draw of them. All that is said of AP, of errors and of calibration
is made of such numbers, so that each of them has an interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rcnn_jax.evaluation.compare import bootstrap, calibration, lrp, tide
from rcnn_jax.evaluation.compare.average_precision import average_precision, mean_over_classes, summary
from rcnn_jax.evaluation.compare.bootstrap import Difference
from rcnn_jax.evaluation.compare.inputs import Inputs
from rcnn_jax.evaluation.compare.matching import Matches, match
from rcnn_jax.evaluation.compare.tide import Errors

Numbers = Mapping[str, np.ndarray]  # name -> f64[1 + R]
EFFECT = 0.005  # 0.5 AP, which the line on power asks for


@dataclasses.dataclass(frozen=True)
class Compared:
  """All detectors of one kind of output.

  Attributes:
    kind: of `matching.KINDS`.
    matches: by variant, of each of its detectors; errors and numbers likewise.
    differences: variant -> name -> how far it lies above the base, for all but the base.
    adjusted: variant -> name -> p by Holm's correction: of a summary number over the variants, of a class' AP over
      variants and classes.
  """

  kind: str
  matches: Mapping[str, Sequence[Matches]]
  errors: Mapping[str, Sequence[Errors]]
  numbers: Mapping[str, Sequence[Numbers]]
  differences: Mapping[str, Mapping[str, Difference]]
  adjusted: Mapping[str, Mapping[str, float | None]]

  @property
  def names(self) -> list[str]:
    """Of all numbers, in their order."""
    return list(next(iter(self.numbers.values()))[0])

  def values(self, variant: str, name: str) -> np.ndarray:
    """f64[S, 1 + R] of a number, by detector."""
    return np.stack([one[name] for one in self.numbers[variant]])


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What was found, by kind; `num_images` and `resamples` are those of the bootstrap."""

  kinds: Mapping[str, Compared]
  num_images: int
  resamples: int
  max_detections: int


def compare(
  inputs: Inputs,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
  max_detections: int | None = None,
  report: Callable[[str], None] = lambda line: None,
) -> Comparison:
  """Compares every variant with the first one.

  Args:
    inputs: what is compared.
    resamples: R, draws of images.
    seed: of the draws.
    max_detections: counted in each image and class; None for what the runs' evaluations count.
    report: called with a line on what is being done.
  """
  max_detections = max_detections or counted(inputs)
  counts = bootstrap.draws(len(inputs.truth["images"]), resamples, seed)
  found = {}
  for kind in kinds_of(inputs):
    matches, errors, numbers = {}, {}, {}
    for variant in inputs.variants:
      report(f"{kind}: {variant.name}")
      matches[variant.name] = [match(inputs.truth, one.results, kind, max_detections) for one in variant.detectors]
      parts = list(zip(variant.detectors, matches[variant.name]))
      errors[variant.name] = [tide.classify(inputs.truth, one.results, matched) for one, matched in parts]
      parts = zip(matches[variant.name], errors[variant.name])
      numbers[variant.name] = [numbers_of(matched, wrong, counts) for matched, wrong in parts]
    differences = _differences(inputs, numbers)
    found[kind] = Compared(kind, matches, errors, numbers, differences, _adjusted(differences))
  return Comparison(found, len(inputs.truth["images"]), resamples, max_detections)


def counted(inputs: Inputs) -> int:
  """Detections of an image and class that the runs' own evaluations count; COCO's 100 where there are none."""
  experiments = [one.experiment for variant in inputs.variants for one in variant.detectors if one.experiment]
  return max((one.evaluation.max_detections for one in experiments), default=100)


def kinds_of(inputs: Inputs) -> list[str]:
  """The kinds that the truth and every detector have; where there are masks, boundary AP too."""
  needed = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
  results = [one.results for variant in inputs.variants for one in variant.detectors]
  kinds = [
    kind
    for kind, key in needed.items()
    if all(key in one for one in inputs.truth["annotations"]) and all(kind in one.kinds for one in results)
  ]
  return [part for kind in kinds for part in ((kind, "boundary") if kind == "segm" else (kind,))]


def numbers_of(matches: Matches, errors: Errors, counts: np.ndarray) -> dict[str, np.ndarray]:
  """Every number of a detector: AP, AP by crowding, the gains of TIDE (`TIDE Cls`), LRP and its parts, and ECE."""
  found = summary(average_precision(matches, counts), matches) | by_crowding(matches, counts)
  if matches.kind == "boundary":
    return found
  found |= {f"TIDE {name}": value for name, value in tide.gains(matches, errors, counts).items()}
  return found | lrp.optimal_lrp(matches, counts) | {"ECE": calibration.detection_ece(matches, counts)}


def by_crowding(matches: Matches, counts: np.ndarray) -> dict[str, np.ndarray]:
  """AP on the images with at most the median number of objects, and on those with more."""
  objects = matches.num_objects[0].sum(0)
  middle = int(np.median(objects[objects > 0])) if objects.any() else 0
  part = dataclasses.replace(matches, ranges=matches.ranges[:1], hit=matches.hit[:1], ignored=matches.ignored[:1])
  if not (objects > middle).any():
    return {}
  groups = {f"AP, at most {middle} objects": objects <= middle, f"AP, more than {middle} objects": objects > middle}
  values = {name: average_precision(part, counts * there) for name, there in groups.items()}
  return {name: mean_over_classes(of.reshape(len(of), -1)) for name, of in values.items()}


def _differences(inputs: Inputs, numbers: dict[str, list[Numbers]]) -> dict[str, dict[str, Difference]]:
  base, *others = inputs.variants
  stacked = lambda variant, name: np.stack([one[name] for one in numbers[variant]])
  differences = {}
  for variant in others:
    paired = variant.paired and base.paired
    differences[variant.name] = {
      name: bootstrap.difference(
        stacked(variant.name, name), stacked(base.name, name), len(inputs.truth["images"]), paired
      )
      for name in numbers[base.name][0]
    }
  return differences


def _adjusted(differences: Mapping[str, Mapping[str, Difference]]) -> dict[str, dict[str, float | None]]:
  """p by Holm's correction; a family is a summary number over all variants, or the classes of all variants."""
  families: dict[str, dict[Any, float | None]] = {}
  for variant, found in differences.items():
    for name, one in found.items():
      families.setdefault("AP/" if name.startswith("AP/") else name, {})[variant, name] = one.both.p
  corrected = {key: p for family in families.values() for key, p in bootstrap.holm(family).items()}
  return {variant: {name: corrected[variant, name] for name in found} for variant, found in differences.items()}

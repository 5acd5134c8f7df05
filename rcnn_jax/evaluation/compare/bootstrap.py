"""How sure a difference between two detectors is, by images and by seeds.

Two things vary. *Images*: the test set is a sample, and other images would have given another difference. *Seeds*: a
training is a draw, and another one would have given another detector. Both are estimated here, shown and combined.

Images: a paired bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8, 13 and 16).
Images are drawn with replacement, the same for both detectors, and AP is computed anew of each draw. What the draws'
differences do around the difference that was found, this one is taken to do around the true one: the 95 % interval is
the difference plus or minus the 95 % quantile of |draw - found|, and p is the share of draws that lie at least as far
from it as 0 does, (1 + k) / (1 + R). So p < 0.05 where the interval leaves 0 out, up to one draw.

Seeds: Student's t of paired seeds, or Welch's of independent ones (`evaluation.seeds`).

Assumptions: images are independent draws of one population (frames of a video are not, nor are crops of one image);
both detectors saw the same images; the draws' spread stands for the population's, which a few dozen images do not
give.
The sum of both variances counts the part that a seed and an image have in common twice: intervals are a little wide.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A difference, and how sure it is.

  Attributes:
    value: as found.
    low, high: of the 95 % interval; None where nothing tells it.
    p: of the null hypothesis that there is no difference, two-sided; None likewise.
    sd: the standard error.
  """

  value: float
  low: float | None
  high: float | None
  p: float | None
  sd: float | None


@dataclasses.dataclass(frozen=True)
class Difference:
  """How far one setting lies above another, by each source of variance alone, and by both.

  Attributes:
    images: of the mean over the seeds, by the bootstrap.
    seeds: by t, on these very images; None unless there are seeds to tell it by.
    both: what is to be believed: `images` where there is no spread over seeds.
    num_seeds: of the setting and of the base.
  """

  images: Estimate
  seeds: Estimate | None
  both: Estimate
  num_seeds: tuple[int, int]


def draws(num_images: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
  """i32[1 + R, I]: how often each image counts: once in the first row, then in each draw with replacement."""
  drawn = np.random.default_rng(seed).multinomial(num_images, np.full(num_images, 1 / max(num_images, 1)), resamples)
  return np.concatenate([np.ones((1, num_images), np.int32), drawn.astype(np.int32)])


def by_images(values: np.ndarray) -> Estimate:
  """The estimate from f64[1 + R] values: of all images, then of the draws. Draws that are NaN are left out."""
  value, drawn = float(values[0]), values[1:][~np.isnan(values[1:])]
  if math.isnan(value) or len(drawn) < 2:
    return Estimate(value, None, None, None, None)
  away = np.abs(drawn - value)
  half = float(np.quantile(away, CONFIDENCE))
  p = (1 + int((away >= abs(value)).sum())) / (1 + len(drawn))
  return Estimate(value, value - half, value + half, p, float(drawn.std(ddof=1)))


def difference(ours: np.ndarray, base: np.ndarray, num_images: int, paired: bool = False) -> Difference:
  """How far a setting lies above the base.

  Args:
    ours: f64[S, 1 + R], a metric of each seed's detector: on all images, then of the draws.
    base: f64[S', 1 + R], likewise, of the same draws.
    num_images: that were drawn from.
    paired: whether seed s is the same training for both (S = S').
  """
  images = by_images(ours.mean(0) - base.mean(0))
  samples = [ours[:, 0] - base[:, 0]] if paired else [ours[:, 0], base[:, 0]]
  seeds, both = None, images
  if min(map(len, samples)) > 1 and images.sd is not None:
    parts = [(float(np.var(sample, ddof=1)) / len(sample), len(sample) - 1) for sample in samples]
    if sum(part for part, _ in parts) > 0:
      seeds = _by_t(images.value, parts)
      both = _by_t(images.value, [*parts, (images.sd**2, num_images - 1)])
  return Difference(images, seeds, both, (len(ours), len(base)))


def _by_t(value: float, parts: Sequence[tuple[float, int]]) -> Estimate:
  """By Student's t, of variances that add up, each with its degrees of freedom (Satterthwaite, 1946)."""
  total = sum(part for part, _ in parts)
  freedom = total**2 / sum(part**2 / max(of, 1) for part, of in parts)
  error = math.sqrt(total)
  half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
  p = float(2 * stats.t.sf(abs(value) / error, freedom))
  return Estimate(value, value - half, value + half, p, error)


def holm(values: Mapping[str, float | None]) -> dict[str, float | None]:
  """p values corrected for their number (Holm, 1979): the chance of a single false one among them stays below 5 %.

  The smallest of m is multiplied by m, the next one by m - 1, and so on; none falls below the one before.
  """
  known = sorted((p, name) for name, p in values.items() if p is not None)
  corrected, least = dict(values), 0.0
  for place, (p, name) in enumerate(known):
    least = max(least, min(1.0, p * (len(known) - place)))
    corrected[name] = least
  return corrected


def images_needed(sd: float, num_images: int, effect: float, power: float = POWER) -> int:
  """How many images would show a difference of `effect` (0.005 is 0.5 AP) with this power at the 5 % level.

  By the normal approximation: the standard error falls with the root of the number of images.
  """
  return math.ceil(num_images * (sd / _detectable(effect, power)) ** 2)


def seeds_needed(found: Difference, effect: float, power: float = POWER) -> int | None:
  """How many seeds of each would show it on these images; None where no number would, or none is known."""
  if found.seeds is None or found.images.sd is None:
    return None
  left = _detectable(effect, power) ** 2 - found.images.sd**2
  if left <= 0:
    return None
  return max(2, math.ceil(min(found.num_seeds) * found.seeds.sd**2 / left))


def _detectable(effect: float, power: float) -> float:
  """The standard error with which an effect is found with this power, two-sided, at the level of the intervals."""
  return effect / float(stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(power))

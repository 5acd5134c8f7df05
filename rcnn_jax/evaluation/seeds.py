"""What several seeds say of a number: its mean and spread; how far two settings differ, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from scipy import stats

CONFIDENCE = 0.95  # of the intervals


def spread(values: Mapping[int, float]) -> dict[str, float | None]:
  """{mean, sd, n} over the seeds of `values`, {seed: value}; sd is that of a sample, None for a single one."""
  found = list(values.values())
  sd = statistics.stdev(found) if len(found) > 1 else None
  return {"mean": statistics.fmean(found), "sd": sd, "n": len(found)}


def difference(
  values: Mapping[int, float], base: Mapping[int, float], paired: bool
) -> dict[str, float | None] | None:
  """{mean, low, high}: how far `values` lie above `base`, and the 95 % confidence interval of it.

  Args:
    values: {seed: value} of one setting.
    base: of the one that it is compared with.
    paired: whether a seed's training is the same for both. Then the seeds that both have are compared one by one
      (Student's t); else they are independent samples, whose variances may differ (Welch's t).

  Returns:
    None where there is nothing to compare; low and high are None where there is no spread to judge the mean by: for
    a single seed, and for values that are all alike.
  """
  if paired:
    samples = [[values[seed] - base[seed] for seed in values if seed in base]]
  else:
    samples = [list(values.values()), [-value for value in base.values()]]
  if not all(samples):
    return None
  found = {"mean": sum(statistics.fmean(sample) for sample in samples), "low": None, "high": None}
  if min(map(len, samples)) > 1 and (error := _standard_error(samples)):
    low, high = stats.t.interval(CONFIDENCE, _degrees_of_freedom(samples), found["mean"], error)
    found |= {"low": float(low), "high": float(high)}
  return found


def _standard_error(samples: list[list[float]]) -> float:
  """Of the sum of the samples' means."""
  return math.sqrt(sum(statistics.variance(sample) / len(sample) for sample in samples))


def _degrees_of_freedom(samples: list[list[float]]) -> float:
  """Welch's and Satterthwaite's; n - 1 of a single sample."""
  parts = [(statistics.variance(sample) / len(sample), len(sample) - 1) for sample in samples]
  return sum(part for part, _ in parts) ** 2 / sum(part**2 / freedom for part, freedom in parts)

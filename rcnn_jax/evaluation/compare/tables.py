"""The numbers of a comparison as rows: for the page, a Markdown table, a CSV and a JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rcnn_jax.evaluation.compare import bootstrap
from rcnn_jax.evaluation.compare.bootstrap import Difference, Estimate
from rcnn_jax.evaluation.compare.comparison import EFFECT, Compared, Comparison

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SMALLER_IS_BETTER = ("oLRP", "ECE", "TIDE")


def cell(compared: Compared, variant: str, name: str) -> dict[str, Any]:
  """Of one number: its mean and sd over the detectors, and the 95 % interval over images; None for what is not."""
  values = compared.values(variant, name)
  estimate = bootstrap.by_images(values.mean(0))
  sd = float(values[:, 0].std(ddof=1)) if len(values) > 1 else None
  return plain({"mean": estimate.value, "sd": sd, "seeds": len(values), "low": estimate.low, "high": estimate.high})


def shown_value(compared: Compared, variant: str, name: str) -> str:
  """In percent: mean, ± sd over seeds."""
  found = cell(compared, variant, name)
  if found["mean"] is None:
    return "–"
  return f"{100 * found['mean']:.1f}" + (f" ± {100 * found['sd']:.1f}" if found["sd"] is not None else "")


def shown_interval(low: float | None, high: float | None, sign: str = "+") -> str:
  """In percent."""
  return "" if low is None else f"[{points(low, sign)}, {points(high, sign)}]"


def points(value: float, sign: str = "+") -> str:
  """A fraction as percentage points; no zero has a sign."""
  text = f"{100 * value:{sign}.1f}"
  return "0.0" if float(text) == 0 else text


def shown_difference(one: Estimate) -> str:
  """In percent, with its interval."""
  return "–" if math.isnan(one.value) else f"{points(one.value)} {shown_interval(one.low, one.high)}".strip()


def shown_p(p: float | None) -> str:
  """To two figures."""
  return "–" if p is None else "1" if p > 0.995 else f"{p:.2g}" if p >= 0.001 else "< 0.001"


def told_p(p: float | None) -> str:
  """Within a sentence."""
  return f"p {shown_p(p)}" if p is not None and p < 0.001 else f"p = {shown_p(p)}"


def verdict(name: str, one: Difference, adjusted: float | None) -> str:
  """What a reader may say of it at the 5 % level."""
  if adjusted is None or math.isnan(one.both.value):
    return "cannot be told"
  if adjusted >= 1 - bootstrap.CONFIDENCE:
    return "no difference shown"
  better = (one.both.value > 0) != name.startswith(SMALLER_IS_BETTER)
  return "better" if better else "worse"


def headline_rows(compared: Compared, name: str) -> tuple[list[str], list[list[str]]]:
  """Every variant with one number: (header, rows)."""
  header = ["variant", f"{name}, %", "95 % over images", "over the first", "p (Holm)", "verdict", "seeds"]
  rows = []
  for variant in compared.numbers:
    found = cell(compared, variant, name)
    row = [variant, shown_value(compared, variant, name), shown_interval(found["low"], found["high"], "")]
    if variant in compared.differences:
      one, p = compared.differences[variant][name], compared.adjusted[variant][name]
      row += [shown_difference(one.both), shown_p(p), verdict(name, one, p)]
    else:
      row += ["", "", "the base"]
    rows.append([*row, str(found["seeds"])])
  return header, rows


def number_rows(compared: Compared, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
  """A row for each number, columns for each variant and its difference: (header, rows)."""
  base, *others = compared.numbers
  header = ["", base, *(text for one in others for text in (one, "difference", "p (Holm)"))]
  rows = []
  for name in names:
    row = [name.removeprefix("AP/"), shown_value(compared, base, name)]
    for variant in others:
      one, p = compared.differences[variant][name], compared.adjusted[variant][name]
      row += [shown_value(compared, variant, name), shown_difference(one.both), shown_p(p)]
    if any(text != "–" for text in row[1:]):
      rows.append(row)
  return header, rows


def variance_rows(compared: Compared, name: str) -> tuple[list[str], list[list[str]]]:
  """Where the uncertainty of each difference comes from: (header, rows)."""
  header = ["variant", "images alone", "p", "seeds alone", "p", "both", "p", "seeds"]
  rows = []
  for variant, found in compared.differences.items():
    one = found[name]
    cells = []
    for part in (one.images, one.seeds, one.both):
      cells += ["–", "–"] if part is None else [shown_difference(part), shown_p(part.p)]
    rows.append([variant, *cells, f"{one.num_seeds[0]} and {one.num_seeds[1]}"])
  return header, rows


def power_lines(compared: Compared, comparison: Comparison, name: str = "AP") -> list[str]:
  """For each variant, how many images or seeds would show a difference of EFFECT."""
  lines = []
  for variant, found in compared.differences.items():
    one = found[name]
    if not one.images.sd:
      continue
    images = bootstrap.images_needed(one.images.sd, comparison.num_images, EFFECT)
    effect = f"a difference of {100 * EFFECT:g} {name} (80 % power, 5 % level)"
    if images <= comparison.num_images:
      text = (
        f"{variant}: these {comparison.num_images:,} images suffice to show {effect} between these very trainings"
      )
    else:
      text = (
        f"{variant}: {images:,} images like these {comparison.num_images:,} would show {effect} between trainings"
      )
    if one.seeds is not None:
      seeds = bootstrap.seeds_needed(one, EFFECT)
      text += (
        "; no number of seeds shows it on these alone" if seeds is None else f"; {seeds} seeds of each do on these"
      )
    lines.append(text + ".")
  return lines


def markdown(comparison: Comparison) -> str:
  """Summary numbers of every kind as Markdown tables."""
  parts = []
  for kind, compared in comparison.kinds.items():
    names = [name for name in SUMMARY if name in compared.names]
    header, rows = number_rows(compared, names)
    escape = lambda row: "| " + " | ".join(text.replace("|", "\\|") for text in row) + " |"
    parts.append("\n".join([escape([f"{kind}, %", *header[1:]]), "|---" * len(header) + "|", *map(escape, rows)]))
  return "\n\n".join(parts) + "\n"


def as_csv(comparison: Comparison) -> str:
  """A row for each kind, variant and number."""
  out = io.StringIO()
  names = ["kind", "variant", "number", "mean", "sd", "seeds", "low", "high", "difference", "difference_low"]
  names += ["difference_high", "p", "p_holm", "standard_error_images", "standard_error_seeds"]
  writer = csv.DictWriter(out, names, lineterminator="\n")
  writer.writeheader()
  for kind, compared in comparison.kinds.items():
    for variant in compared.numbers:
      for name in compared.names:
        row = {"kind": kind, "variant": variant, "number": name, **cell(compared, variant, name)}
        if variant in compared.differences:
          one = compared.differences[variant][name]
          row |= plain(
            {"difference": one.both.value, "difference_low": one.both.low, "difference_high": one.both.high}
          )
          row |= {"p": one.both.p, "p_holm": compared.adjusted[variant][name], "standard_error_images": one.images.sd}
          row |= {"standard_error_seeds": one.seeds and one.seeds.sd}
        writer.writerow(row)
  return out.getvalue()


def as_json(comparison: Comparison) -> dict[str, Any]:
  """Everything as plain values; None where there is no number."""
  kinds = {}
  for kind, compared in comparison.kinds.items():
    numbers = {v: {name: cell(compared, v, name) for name in compared.names} for v in compared.numbers}
    differences = {
      variant: {
        name: dataclasses.asdict(one) | {"p_holm": compared.adjusted[variant][name]} for name, one in found.items()
      }
      for variant, found in compared.differences.items()
    }
    kinds[kind] = {"numbers": numbers, "differences": plain(differences)}
  found = {"images": comparison.num_images, "resamples": comparison.resamples}
  return found | {"max_detections": comparison.max_detections, "kinds": kinds}


def plain(form: Any) -> Any:
  """The value with None for every NaN."""
  if isinstance(form, dict):
    return {name: plain(value) for name, value in form.items()}
  if isinstance(form, (list, tuple)):
    return [plain(value) for value in form]
  if isinstance(form, (float, np.floating)):
    return None if math.isnan(form) else float(form)
  return form

"""The plots of a comparison. Each returns a matplotlib figure, in the look of `evaluation.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rcnn_jax.evaluation import lettering
from rcnn_jax.evaluation.compare import calibration
from rcnn_jax.evaluation.compare.average_precision import RECALLS, precision_curves
from rcnn_jax.evaluation.compare.comparison import Compared
from rcnn_jax.evaluation.plots import COLOURS, GRID, INK, QUIET, new_axes, with_legend

BAND_DRAWS = 200  # of images, for the bands around curves


def differences_figure(compared: Compared, names: Sequence[str], title: str) -> Figure:
  """Each difference from the base with its 95 % interval, a row for each number, a colour for each variant."""
  base = next(iter(compared.numbers))
  figure, axes = new_axes(title, f"over {lettering.writable(base)}, percentage points", "")
  variants = list(compared.differences)
  names = [name for name in names if any(compared.differences[v][name].both.low is not None for v in variants)]
  figure.set_size_inches(6.4, max(2.2, 1.1 + 0.28 * len(names) * max(1, 0.6 * len(variants))))
  axes.axvline(0, color=QUIET, linewidth=1)
  for n, variant in enumerate(variants):
    rows = [(y, compared.differences[variant][name].both) for y, name in enumerate(names)]
    rows = [(y, one) for y, one in rows if one.low is not None]
    places = [y + (n - (len(variants) - 1) / 2) * 0.7 / len(variants) for y, _ in rows]
    middle = np.array([100 * one.value for _, one in rows])
    half = np.array([100 * (one.high - one.low) / 2 for _, one in rows])
    colour = COLOURS[(n + 1) % len(COLOURS)]
    axes.errorbar(middle, places, xerr=half, fmt="o", color=colour, label=_label(variant), capsize=3, markersize=5)
  axes.set_yticks(range(len(names)), [lettering.writable(name.removeprefix("AP/")) for name in names])
  axes.invert_yaxis()
  return with_legend(figure, axes, len(variants) if len(variants) > 1 else 0)


def curves_figure(compared: Compared, counts: np.ndarray) -> Figure:
  """Precision over recall at the lowest threshold, mean over classes, of the first seed, with bootstrap bands."""
  what = "OKS" if compared.kind == "keypoints" else "IoU"
  figure, axes = new_axes(f"{compared.kind}: precision and recall, {what} 0.5", "recall", "precision")
  for n, (variant, matches) in enumerate(compared.matches.items()):
    curves = precision_curves(matches[0], counts[: 1 + BAND_DRAWS])
    there = ~np.isnan(curves).all(2)
    total = np.where(there[..., None], curves, 0.0).sum(1)
    mean = total / np.maximum(there.sum(1), 1)[:, None]
    low, high = np.quantile(mean[1:], [0.025, 0.975], axis=0) if len(mean) > 2 else (mean[0], mean[0])
    colour = COLOURS[n % len(COLOURS)]
    axes.fill_between(RECALLS, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(RECALLS, mean[0], color=colour, linewidth=1.8, label=_label(variant))
  axes.set_xlim(0, 1)
  axes.set_ylim(0, 1.02)
  return with_legend(figure, axes, len(compared.matches))


def errors_figure(compared: Compared, types: Sequence[str]) -> Figure:
  """What mending each type of error would bring, with 95 % intervals over images."""
  figure, axes = new_axes(f"{compared.kind}: AP50 lost to each type of error", "", "AP50, points")
  width = 0.8 / len(compared.numbers)
  for n, variant in enumerate(compared.numbers):
    values = [100 * compared.values(variant, f"TIDE {name}").mean(0) for name in types]
    found = np.array([value[0] for value in values])
    spread = np.array([np.nanquantile(np.abs(v[1:] - v[0]), 0.95) if len(v) > 2 else 0.0 for v in values])
    places = np.arange(len(types)) + (n - (len(compared.numbers) - 1) / 2) * width
    colour = COLOURS[n % len(COLOURS)]
    axes.bar(places, found, 0.9 * width, color=colour, label=_label(variant), yerr=spread, ecolor=INK, capsize=2)
  axes.set_xticks(range(len(types)), types)
  axes.set_ylim(bottom=0)
  return with_legend(figure, axes, len(compared.numbers))


def reliability_figure(compared: Compared) -> Figure:
  """Share of hits over the mean score in each bin, of the first seed; the diagonal is a perfect score."""
  figure, axes = new_axes(f"{compared.kind}: is a score what it says?", "score", "share of hits, IoU 0.5")
  axes.plot([0, 1], [0, 1], color=GRID, linewidth=1.5)
  for n, (variant, matches) in enumerate(compared.matches.items()):
    count, hits, scores = (
      row[0] for row in calibration.reliability(matches[0], np.ones((1, len(matches[0].image_ids))))
    )
    there = count > 0
    axes.plot(scores[there], hits[there], "-o", color=COLOURS[n % len(COLOURS)], label=_label(variant), markersize=4)
  axes.set_xlim(0, 1)
  axes.set_ylim(0, 1.02)
  return with_legend(figure, axes, len(compared.matches))


def training_figure(curves: Mapping[str, Sequence[tuple[float, float]]], title: str, x: str, y: str) -> Figure:
  """Points (x, AP in 0..1) of each variant's trainings, joined; one name may have several lines, `name#2`, ..."""
  figure, axes = new_axes(title, x, y)
  axes.xaxis.set_major_locator(MaxNLocator(6))
  names = list(dict.fromkeys(name.partition("#")[0] for name in curves))
  for name, points in curves.items():
    variant = name.partition("#")[0]
    places, values = zip(*points)
    label = _label(variant) if variant == name else None
    colour = COLOURS[names.index(variant) % len(COLOURS)]
    axes.plot(places, 100 * np.array(values), "-o", color=colour, label=label, linewidth=1.6, markersize=4)
  axes.set_ylim(bottom=0)
  return with_legend(figure, axes, len(names))


def pareto_figure(points: Sequence[tuple[str, float, float, float, float]], title: str, x: str) -> Figure:
  """(name, cost, value, low, high) in 0..1, over a logarithmic axis of cost; the front is joined."""
  figure, axes = new_axes(title, x, "AP, %")
  axes.set_xscale("log")
  for n, (name, cost, value, low, high) in enumerate(points):
    bar = [[100 * (value - low)], [100 * (high - value)]]
    colour = COLOURS[n % len(COLOURS)]
    axes.errorbar([cost], [100 * value], yerr=bar, fmt="o", color=colour, label=_label(name), capsize=3)
  best = front([(cost, value) for _, cost, value, *_ in points])
  axes.plot(*zip(*[(points[n][1], 100 * points[n][2]) for n in best]), color=QUIET, linewidth=1, zorder=0)
  costs = [cost for _, cost, *_ in points]
  axes.set_xlim(min(costs) / 1.6, max(costs) * 1.6)
  axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
  axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
  axes.tick_params(which="minor", colors=QUIET, length=0)
  return with_legend(figure, axes, len(points))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
  """Places of the points (cost, value) than which none is both cheaper and better, by rising cost."""
  order = sorted(range(len(points)), key=lambda n: (points[n][0], -points[n][1]))
  best, chosen = -np.inf, []
  for n in order:
    if points[n][1] > best:
      chosen.append(n)
      best = points[n][1]
  return chosen


def confusion_figure(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
  """Objects by row and what they were taken for by column; the last ones are the background.

  Args:
    matrix: [K + 1, K + 1] counts.
    names: K of them; beyond ROOM only the colours tell.
  """
  figure, axes = new_axes(title, "taken for", "object")
  shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
  axes.grid(False)
  if len(names) <= ROOM:
    labels = [*(lettering.writable(name) for name in names), "background"]
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    for (row, column), count in np.ndenumerate(matrix):
      colour = "white" if shares[row, column] > 0.5 else INK
      axes.text(column, row, f"{int(count)}", ha="center", va="center", color=colour, fontsize=9)
  return figure


ROOM = 12  # classes whose names and counts are written into a confusion matrix


def _label(name: str) -> str:
  """A name that a legend shows: those that begin with an underscore are left out by matplotlib."""
  name = lettering.writable(name)
  return f" {name}" if name.startswith("_") else name

"""The plots of a run: losses and metrics over steps, precision over recall; and of a ladder of runs, AP over time.

Each returns a matplotlib figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from rcnn_jax.evaluation import lettering

COLOURS = ("#2563eb", "#e11d48", "#059669", "#d97706", "#7c3aed", "#0891b2", "#db2777", "#65a30d")
INK, QUIET, GRID = "#1f2937", "#6b7280", "#e5e7eb"
SMOOTHED_FROM = 40  # points, from which a curve is drawn through a running mean


def loss_figure(rows: Sequence[Mapping[str, float]]) -> Figure:
  """The total loss and its terms over steps, from the train rows of metrics.jsonl; long curves also smoothed."""
  figure, axes = new_axes("Training loss", "step", "loss")
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  names = ["loss", *sorted({name for row in rows for name in row if name.startswith("loss/")})]
  for n, name in enumerate(names):
    steps, values = _series(rows, name)
    label = "total" if name == "loss" else name.removeprefix("loss/")
    _line(axes, steps, values, label, COLOURS[n % len(COLOURS)], 2.2 if name == "loss" else 1.3)
  return with_legend(figure, axes, len(names))


def metric_figure(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> Figure:
  """Metrics over steps, percent, from rows that each hold `step` and some of the metrics in 0..1."""
  figure, axes = new_axes("Evaluation", "step", "%")
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  for n, name in enumerate(names):
    steps, values = _series(rows, name)
    axes.plot(steps, 100 * values, "-o", color=COLOURS[n % len(COLOURS)], label=name, linewidth=2, markersize=5)
  axes.set_ylim(bottom=0)
  return with_legend(figure, axes, len(names))


def precision_recall_figure(curves: Mapping[str, Sequence[float]], kind: str) -> Figure:
  """Precision over recall at IoU (keypoints: OKS) 0.5, by class name; of many classes only their mean is coloured."""
  figure, axes = new_axes(
    f"{kind}: precision and recall, {'OKS' if kind == 'keypoints' else 'IoU'} 0.5", "recall", "precision"
  )
  recall, few = np.linspace(0.0, 1.0, 101), len(curves) <= len(COLOURS)
  for n, (name, precision) in enumerate(curves.items()):
    color = COLOURS[n % len(COLOURS)] if few else GRID
    axes.plot(recall, precision, color=color, label=_shown(name) if few else None, linewidth=1.6 if few else 0.8)
  if not few:
    mean = np.mean(list(curves.values()), axis=0)
    axes.plot(recall, mean, color=COLOURS[0], linewidth=2.4, label="mean over classes")
  axes.set_xlim(0, 1)
  axes.set_ylim(0, 1.02)
  return with_legend(figure, axes, len(curves) if few else 1)


def trade_off_figure(points: Sequence[tuple[str, float, float]], title: str) -> Figure:
  """Labelled points (name, seconds an image, AP50 in 0..1), joined in their order, over a logarithmic time axis."""
  figure, axes = new_axes(title, "seconds an image at test time, proposals included", "box AP50, %")
  seconds, values = [x for _, x, _ in points], [100 * y for _, _, y in points]
  axes.set_xscale("log")
  axes.set_xlim(min(seconds) / 2, max(seconds) * 2)
  axes.margins(y=0.25)
  axes.plot(seconds, values, color=GRID, linewidth=1.5, zorder=1)
  axes.scatter(seconds, values, s=60, c=[COLOURS[n % len(COLOURS)] for n in range(len(points))], zorder=2)
  axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
  axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
  axes.tick_params(which="minor", colors=QUIET, length=0)
  _label(figure, axes, [name for name, _, _ in points], list(zip(seconds, values)))
  return figure


def _label(figure: Figure, axes, names: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
  """Writes the name beside each point, where it covers neither a point nor a name."""
  figure.draw_without_rendering()  # which lays the axes out: from here on places are known in pixels
  taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in axes.transData.transform(points)]
  for name, point in zip(names, points):
    for offset, side in (((0, 8), "center"), ((0, -17), "center"), ((9, -4), "left"), ((-9, -4), "right")):
      text = _annotation(axes, name, point, offset, ha=side, in_layout=False)
      extent = text.get_window_extent()
      if axes.bbox.count_contains(extent.corners()) == 4 and not extent.count_overlaps(taken):
        break
      text.remove()
    else:
      text = _annotation(axes, name, point, (0, 8), ha="center")
    taken.append(text.get_window_extent())


def _annotation(axes, name: str, point: tuple[float, float], offset: tuple[float, float], **options):
  """The name as it is: in a font that has its characters, dollars being dollars."""
  return axes.annotate(
    lettering.writable(name),
    point,
    offset,
    textcoords="offset points",
    color=INK,
    fontsize=9,
    parse_math=False,
    fontfamily=lettering.families([name]),
    **options,
  )


def _shown(name: str) -> str:
  """A name that can be drawn; matplotlib's legend leaves those out that begin with an underscore."""
  name = lettering.writable(name)
  return f" {name}" if name.startswith("_") else name


def new_axes(title: str, x: str, y: str):
  figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
  axes = figure.add_subplot()
  axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold")
  axes.set_xlabel(x, color=QUIET)
  axes.set_ylabel(y, color=QUIET)
  axes.grid(color=GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(colors=QUIET, length=0)
  axes.spines[:].set_visible(False)
  return figure, axes


def _series(rows: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
  present = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
  steps, values = zip(*present) if present else ((), ())
  return np.asarray(steps, np.float64), np.asarray(values, np.float64)


def _line(axes, steps: np.ndarray, values: np.ndarray, label: str, color: str, width: float) -> None:
  if len(values) < SMOOTHED_FROM:
    axes.plot(steps, values, "-o", color=color, label=label, linewidth=width, markersize=3)
    return
  axes.plot(steps, values, color=color, alpha=0.22, linewidth=0.8)
  window = max(3, len(values) // 40)
  # Every mean is over values that are there: at the ends the window is shorter.
  totals = np.convolve(values, np.ones(window), "same") / np.convolve(np.ones_like(values), np.ones(window), "same")
  axes.plot(steps, totals, color=color, label=label, linewidth=width)


def with_legend(figure: Figure, axes, num_lines: int) -> Figure:
  if num_lines:
    legend = axes.legend(frameon=False, labelcolor=INK, fontsize=9, ncols=1 if num_lines <= 6 else 2)
    texts = legend.get_texts()
    fonts = lettering.families([text.get_text() for text in texts])
    for text in texts:
      text.set(parse_math=False, fontfamily=fonts)
  return figure

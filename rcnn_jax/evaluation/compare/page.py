"""The page of a comparison: one file that works offline, with the plots, the tables and the numbers beside it.

`write` is all that a command needs. OUTPUT gets index.html, table.md, numbers.csv, comparison.json and plots/*.png.
"""

from __future__ import annotations

import dataclasses
import html
import importlib.metadata
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from rcnn_jax.evaluation import page
from rcnn_jax.evaluation.compare import bootstrap, circumstances, figures, pictures, tables, tide
from rcnn_jax.evaluation.compare.comparison import Compared, Comparison
from rcnn_jax.evaluation.compare.costs import Cost, cost_rows
from rcnn_jax.evaluation.compare.files import ComparisonError
from rcnn_jax.evaluation.compare.inputs import Inputs
from rcnn_jax.files import write_text, writing

TITLES = {"bbox": "boxes", "segm": "masks", "boundary": "masks by boundary", "keypoints": "keypoints"}
FILES = ("index.html", "table.md", "numbers.csv", "comparison.json")
PACKAGES = ("rcnn-jax", "numpy", "scipy", "pycocotools", "hotcoco")
MARK = "rcnn-jax comparison"

STYLE = """<style>
:root { color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --quiet: #9ca3af; --line: #374151; --paper: #1b2130; --ground: #10141f; --accent: #7aa2ff; }
  img { background: #fff; }
}
nav a { color: var(--accent); margin-right: 14px; white-space: nowrap; }
nav { margin: 14px 0 0; }
th[data-sort] { cursor: pointer; }
th[data-sort]:hover, th[data-sort]:focus { color: var(--accent); }
td, th { white-space: nowrap; }
th { white-space: normal; overflow-wrap: break-word; min-width: 5.5em; }
th:first-child { min-width: 7em; }
ul.notes { margin-top: 10px !important; }
table.settings td { white-space: normal; overflow-wrap: anywhere; min-width: 7em; }
ul.notes { margin: 0; padding-left: 20px; }
.shot { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 10px;
        padding: 12px 4px; border-bottom: 1px solid var(--line); scroll-margin: 12px; }
.shot:focus { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 6px; }
.shot h3 { grid-column: 1 / -1; margin: 0; font-size: 15px; overflow-wrap: anywhere; }
.shot figure { margin: 0; }
figcaption { font-size: 13px; color: var(--quiet); }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin: 0 6px 0 14px; }
@media (max-width: 600px) { main { padding: 20px 10px 40px; } section { padding: 12px; } h1 { font-size: 24px; } }
</style>"""

SCRIPT = """<script>
for (const table of document.querySelectorAll('table')) {
  const heads = [...table.querySelectorAll('thead th')], body = table.tBodies[0];
  if (!body || body.rows.length < 3) continue;
  heads.forEach((head, n) => {
    if (!head.textContent) return;
    head.dataset.sort = ''; head.tabIndex = 0; head.setAttribute('role', 'button');
    head.title = 'sort by this column';
    const sort = () => {
      const down = head.dataset.sort !== 'down';
      heads.forEach(other => { if ('sort' in other.dataset) other.dataset.sort = ''; });
      head.dataset.sort = down ? 'down' : 'up';
      const value = row => { const text = row.cells[n].textContent.replace('−', '-').replace(/,/g, '');
        const number = parseFloat(text.replace('<', '')); return isNaN(number) ? text : number; };
      const rank = v => typeof v === 'number' ? 0 : 1;
      [...body.rows].sort((a, b) => {
        const x = value(a), y = value(b), kinds = rank(x) - rank(y);
        return kinds || (x < y ? -1 : x > y ? 1 : 0) * (down && rank(x) === 0 ? -1 : 1);
      }).forEach(row => body.append(row));
    };
    head.addEventListener('click', sort);
    head.addEventListener('keydown', event => { if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault(); sort(); } });
  });
}
const shots = [...document.querySelectorAll('.shot')];
document.addEventListener('keydown', event => {
  const step = {ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1}[event.key];
  if (!step || !shots.length || event.ctrlKey || event.altKey || event.metaKey) return;
  const at = shots.indexOf(document.activeElement);
  const next = shots[at < 0 ? (step > 0 ? 0 : shots.length - 1) : Math.min(Math.max(at + step, 0), shots.length - 1)];
  next.focus(); next.scrollIntoView({block: 'start'});
});
</script>"""


def check_output(output: pathlib.Path) -> None:
  """Raises ComparisonError where the folder holds a file of one of these names that no comparison wrote."""
  path = output / "comparison.json"
  there = [output / name for name in FILES if (output / name).exists()]
  try:
    ours = path.is_file() and json.loads(path.read_bytes()).get("made_by") == MARK
  except (ValueError, AttributeError):
    ours = False
  if there and not ours:
    raise ComparisonError(f"{there[0]}: no comparison wrote this file; choose another --output, or move it away")


def write(
  inputs: Inputs,
  comparison: Comparison,
  output: pathlib.Path,
  costs: Mapping[str, Cost] | None = None,
  num_pictures: int = 4,
) -> pathlib.Path:
  """Writes the page and its files; returns the path of index.html.

  Args:
    inputs: what was compared.
    comparison: what was found.
    output: a folder, made if need be. What an earlier comparison left there is replaced.
    costs: by variant, as far as they are known.
    num_pictures: images, for each variant beside the base, that are drawn; none without images at hand.

  Raises:
    ComparisonError: the folder holds other files of these names.
  """
  check_output(output)
  plots: dict[str, bytes] = {}
  counts = bootstrap.draws(comparison.num_images, figures.BAND_DRAWS)
  parts = [_of_kind(compared, comparison, counts, plots) for compared in comparison.kinds.values()]
  first = next(iter(comparison.kinds.values()))
  body = [
    STYLE,
    page.heading(" against ".join(variant.name for variant in inputs.variants[:4]), _lead(inputs, comparison)),
    page.cards(_cards(comparison)),
    _contents(comparison),
    page.section("What differs", *_what_differs(inputs)),
    page.section("Worth knowing", _list([*circumstances.warnings(inputs), *_too_few_draws(comparison)])),
    *(part for kind in parts for part in kind),
    *_cost(first, costs or {}, plots),
    page.pair("Training", *_training(inputs, first, plots)),
    *pictures.sections(inputs, first, num_pictures),
    page.section("How it was computed", _list(_method(comparison))),
    SCRIPT,
  ]
  measured = {name: dataclasses.asdict(cost) for name, cost in (costs or {}).items()}
  form = {
    "made_by": MARK,
    "warnings": circumstances.warnings(inputs),
    "costs": measured,
    **tables.as_json(comparison),
  }
  write_text(output / "comparison.json", json.dumps(form, indent=1, allow_nan=False) + "\n")
  write_text(output / "table.md", tables.markdown(comparison))
  write_text(output / "numbers.csv", tables.as_csv(comparison))
  for name, data in plots.items():
    with writing(output / "plots" / f"{name}.png") as file:
      file.write(data)
  write_text(output / "index.html", page.document("Comparison", body))
  return output / "index.html"


# ------------------------------------------------------------------------------------------------ parts of the page


def _lead(inputs: Inputs, comparison: Comparison) -> str:
  objects = len(inputs.truth["annotations"])
  return (
    f"{comparison.num_images:,} images, {objects:,} objects, {_number(len(inputs.truth['categories']), 'class')} · "
    f"{len(inputs.variants)} variants, the first one is the base · {comparison.resamples:,} draws of the images"
  )


def _number(count: int, what: str) -> str:
  return f"{count:,} {what}" + ("" if count == 1 else "es" if what.endswith("s") else "s")


def _cards(comparison: Comparison) -> list[tuple[str, str]]:
  """The difference in AP of each variant, of the first kind; of many variants none."""
  compared = next(iter(comparison.kinds.values()))
  if len(compared.differences) > 4:
    return []
  cards = []
  for variant, found in compared.differences.items():
    one, p = found["AP"].both, compared.adjusted[variant]["AP"]
    if not np.isnan(one.value):
      said = tables.verdict("AP", found["AP"], p)
      interval = tables.shown_interval(one.low, one.high)
      title = f"{variant}: AP of {TITLES[compared.kind]} over the base, {interval}, {tables.told_p(p)}: {said}"
      cards.append((tables.points(one.value), title))
  return cards


def _contents(comparison: Comparison) -> str:
  links = "".join(f'<a href="#{kind}">{TITLES[kind]}</a>' for kind in comparison.kinds)
  return f'<nav>{links}<a href="#pictures">pictures</a></nav>'


def _list(lines: Sequence[str]) -> str:
  items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
  return f'<ul class="notes">{items}</ul>' if lines else ""


def _what_differs(inputs: Inputs) -> list[str]:
  header, rows = circumstances.value_rows(inputs)
  if rows:
    return [page.table(header, rows, style="settings")]
  unknown = [variant.name for variant in inputs.variants if variant.detectors[0].experiment is None]
  said = f"Of {', '.join(unknown)} no settings are known." if unknown else "Their experiments are the same."
  return [f"<p>{html.escape(said)}</p>"]


def _of_kind(compared: Compared, comparison: Comparison, counts: np.ndarray, plots: dict[str, bytes]) -> list[str]:
  """The sections of one kind of output."""
  kind, title = compared.kind, TITLES[compared.kind]
  there = lambda names: [name for name in names if name in compared.names]
  save = lambda name, figure: _saved(plots, f"{kind}_{name}", figure)
  summary = there(tables.SUMMARY)
  classes = [name for name in compared.names if name.startswith("AP/")]
  slices = [name for name in compared.names if name.startswith(("AP ", "AP,"))]
  types = there([f"TIDE {name}" for name in (*tide.TYPES, "Miss", "FP", "FN")])
  quality = there(("oLRP", "oLRP Loc", "oLRP FP", "oLRP FN", "ECE"))
  numbers = lambda names: page.table(*tables.number_rows(compared, names))
  found = [
    f'<div id="{kind}"></div>',
    page.section(
      f"{title.capitalize()}: who is better",
      page.table(*tables.headline_rows(compared, "AP")),
      _list(tables.power_lines(compared, comparison)),
    ),
    page.pair(
      f"{title.capitalize()}: differences",
      save("differences", figures.differences_figure(compared, summary + slices, "Differences, 95 % intervals")),
      save("curves", figures.curves_figure(compared, counts)) if kind != "boundary" else "",
    ),
    page.section(f"{title.capitalize()}: numbers, percent", numbers(summary)),
    page.section(
      f"{title.capitalize()}: where the doubt comes from, AP", page.table(*tables.variance_rows(compared, "AP"))
    ),
    page.section(f"{title.capitalize()}: by aspect and crowding, percent", numbers(slices)),
    page.section(f"{title.capitalize()}: classes, AP in percent", numbers(classes) if len(classes) > 1 else ""),
  ]
  if types:
    names = [name.removeprefix("TIDE ") for name in types]
    found += [
      page.pair(
        f"{title.capitalize()}: why",
        save("errors", figures.errors_figure(compared, names)),
        save("reliability", figures.reliability_figure(compared)),
        *_confusion(compared, plots),
      ),
      page.section(
        f"{title.capitalize()}: AP50 lost to each type of error (TIDE), points; smaller is better", numbers(types)
      ),
      page.section(f"{title.capitalize()}: LRP and calibration error, percent; smaller is better", numbers(quality)),
    ]
  return found


def _confusion(compared: Compared, plots: dict[str, bytes]) -> list[str]:
  """A confusion matrix for each variant's first seed, of at most three."""
  found = []
  for n, variant in enumerate(list(compared.matches)[:3]):
    matrix = tide.confusion(compared.matches[variant][0], compared.errors[variant][0], pictures.MIN_SCORE)
    names = compared.matches[variant][0].class_names
    title = f"{variant}: score at least {pictures.MIN_SCORE:g}"
    found.append(_saved(plots, f"{compared.kind}_confusion_{n}", figures.confusion_figure(matrix, names, title)))
  return found


def _cost(compared: Compared, costs: Mapping[str, Cost], plots: dict[str, bytes]) -> list[str]:
  header, rows = cost_rows(compared, costs)
  if not rows:
    return []
  drawn = []
  for field, label in (
    ("seconds", "seconds an image"),
    ("flops", "GFLOP an image"),
    ("parameters", "million parameters"),
  ):
    scale = {"seconds": 1.0, "flops": 1e9, "parameters": 1e6}[field]
    points = []
    for variant in compared.numbers:
      value = getattr(costs.get(variant), field, None)
      found = tables.cell(compared, variant, "AP")
      if value and found["low"] is not None:
        points.append((variant, value / scale, found["mean"], found["low"], found["high"]))
    if len({cost for _, cost, *_ in points}) > 1:
      figure = figures.pareto_figure(points, f"AP against {label}", label)
      drawn.append(_saved(plots, f"cost_{field}", figure))
  notes = _list([cost.circumstances for cost in costs.values() if cost.circumstances][:1])
  return [page.section("What it costs", page.table(header, rows), notes), page.pair("Cost and AP", *drawn)]


def _training(inputs: Inputs, compared: Compared, plots: dict[str, bytes]) -> list[str]:
  metric = f"{'segm' if compared.kind == 'boundary' else compared.kind}/AP"
  found = []
  for curves, x in zip(circumstances.training_curves(inputs, metric), ("steps", "hours of training")):
    if any(len(points) > 1 for points in curves.values()):
      figure = figures.training_figure(curves, f"{metric} over {x}", x, "AP, %")
      found.append(_saved(plots, f"training_{x.partition(' ')[0]}", figure))
  return found


def _saved(plots: dict[str, bytes], name: str, figure: Figure) -> str:
  drawn, buffer = io.BytesIO(), io.BytesIO()
  figure.savefig(drawn, format="png", dpi=110)
  few = Image.open(drawn).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)  # a third of the bytes
  few.save(buffer, format="png", optimize=True)
  plots[name] = buffer.getvalue()
  return page.image(plots[name], name.replace("_", " "))


def _too_few_draws(comparison: Comparison) -> list[str]:
  """No p is below 1 / (1 + R): of many classes none can then be shown to differ, whatever the difference is."""
  compared = next(iter(comparison.kinds.values()))
  number = len(compared.differences) * sum(name.startswith("AP/") for name in compared.names)
  needed = math.ceil(number / (1 - bootstrap.CONFIDENCE))
  if needed <= comparison.resamples:
    return []
  return [
    f"{comparison.resamples:,} draws of images are too few to show that one class differs, corrected for {number}: "
    f"--resamples={needed} would do; the classes' intervals are not corrected and hold"
  ]


def _method(comparison: Comparison) -> list[str]:
  versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
  return [
    f"AP is pycocotools', at most {comparison.max_detections} detections of an image and class (keypoints 20).",
    f"Images: paired bootstrap, {comparison.resamples:,} draws of {comparison.num_images:,} images with replacement; "
    "the interval is the difference ± the 95 % quantile of the draws' distance from it, and p the share of draws at "
    "least as far from it as 0 is.",
    "Seeds: Welch's t over independent trainings, Student's t where seeds are the same trainings. Both sources are "
    "added as variances; with one seed the intervals are of these very trainings.",
    "p (Holm) is corrected for the number of variants; of classes, for the number of classes and variants.",
    "Intervals stand for images like these: frames of one video or crops of one image are not independent.",
    "Errors: TIDE (arXiv:2008.08115), IoU 0.5 and 0.1. oLRP: arXiv:2011.10772. Boundary: arXiv:2103.16562, 2 % of "
    "the diagonal. ECE: detections in ten bins by score, IoU 0.5. Curves and pictures are those of the first seed.",
    f"Made with {versions}.",
  ]

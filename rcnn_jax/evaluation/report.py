"""The report of a run: everything that its directory holds, on one page that needs no other file."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import json
import pathlib
import platform
import statistics
from collections.abc import Mapping
from typing import Any

import jax
from matplotlib.figure import Figure
from PIL import Image

from rcnn_jax.evaluation import page, plots
from rcnn_jax.evaluation.detect import EvaluationError
from rcnn_jax.files import write_text, writing

HEADLINES = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "keypoints/AP", "voc/mAP_area", "voc/mAP_11pt")
PLOTTED = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "keypoints/AP", "voc/mAP_area")
MEANINGS = {
  "bbox/AP": "COCO box AP",
  "segm/AP": "COCO mask AP",
  "keypoints/AP": "COCO keypoint AP",
  "voc/mAP_area": "VOC mAP, area, IoU 0.5",
  "voc/mAP_11pt": "VOC mAP, 11 points, IoU 0.5",
  "bbox/AP50": "COCO box AP, IoU 0.50",
  "bbox/AP75": "COCO box AP, IoU 0.75",
}
PICTURE_WIDTH = 1400  # pixels, beyond which embedded pictures are made smaller
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pycocotools")


@dataclasses.dataclass(frozen=True)
class RunFiles:
  """What a run directory holds; whatever is not there yet is empty.

  Attributes:
    settings: the experiment's JSON form.
    train: train rows of metrics.jsonl, by step.
    fits: its fit rows, by step.
    evaluations: metrics by step, from metrics.jsonl and eval/STEP/metrics.json.
    keep_best: the metric that the best evaluation has the highest of.
  """

  workdir: pathlib.Path
  settings: dict[str, Any]
  train: list[dict]
  fits: list[dict]
  evaluations: dict[int, dict[str, float | None]]
  keep_best: str

  @property
  def last(self) -> int | None:
    return max(self.evaluations, default=None)

  @property
  def best(self) -> int | None:
    """The evaluated step with the highest `keep_best`; the earliest of equals."""
    value = lambda step: self.evaluations[step].get(self.keep_best)
    return max(self.evaluations, key=lambda s: (-1.0 if value(s) is None else value(s), -s), default=None)


def write_report(workdir) -> pathlib.Path:
  """Writes report.html, with loss.png and ap.png beside it, from what the run directory holds.

  Works at any time of a run: before the first evaluation, and for an imported model that was never trained.

  Args:
    workdir: a run directory (experiment.json, metrics.jsonl, eval/STEP/).

  Returns:
    The path of report.html.

  Raises:
    EvaluationError: the directory has neither experiment.json nor metrics nor evaluations.
  """
  run = read_run(pathlib.Path(workdir))
  curves = [_save(run.workdir / "loss.png", plots.loss_figure(run.train))] if run.train else []
  plotted = [name for name in PLOTTED if any(m.get(name) is not None for m in run.evaluations.values())]
  if plotted:
    rows = [{"step": step, **metrics} for step, metrics in sorted(run.evaluations.items())]
    curves.append(_save(run.workdir / "ap.png", plots.metric_figure(rows, plotted)))
  name = run.settings.get("name", run.workdir.resolve().name)
  path = run.workdir / "report.html"
  write_text(
    path,
    page.document(
      f"{name}: report",
      [
        page.heading(name, _lead(run)),
        page.cards(_headlines(run)),
        page.pair("Curves", *(page.image(data, "curve") for data in curves)),
        page.section("Metrics, percent", _summary_table(run)),
        page.section("Classes, percent", _class_table(run)),
        page.pair("Precision and recall", *_precision_recall(run)),
        page.section(f"Ground truth beside detections, step {run.best}", *_pictures(run)),
        page.section("Speed", page.table(["", ""], _timing(run))),
        page.section(
          "Settings",
          _settings_summary(run.settings),
          page.details("every value of the experiment", _settings_table(run.settings)),
        ),
        page.section("Versions", page.table(["", ""], _versions())),
      ],
    ),
  )
  return path


# ------------------------------------------------------------------------------------------------ reading


def read_run(workdir: pathlib.Path) -> RunFiles:
  """Reads a run directory; see `write_report`."""
  settings = {}
  if (workdir / "experiment.json").is_file():
    form = json.loads((workdir / "experiment.json").read_text())
    settings = form.get("experiment", form)
  rows = _read_rows(workdir / "metrics.jsonl")
  evaluations = {step: dict(row) for (kind, step), row in rows.items() if kind == "eval"}
  for path in sorted(workdir.glob("eval/*/metrics.json")):
    if path.parent.name.isdigit():
      written = json.loads(path.read_text())
      evaluations[int(path.parent.name)] = written | evaluations.get(int(path.parent.name), {}) | written
  train, fits = ([row for (of, _), row in sorted(rows.items()) if of == kind] for kind in ("train", "fit"))
  if not (settings or train or evaluations):
    raise EvaluationError(f"{workdir} holds no run: no experiment.json, metrics.jsonl or eval/STEP/metrics.json")
  keep_best = (settings.get("evaluation") or {}).get("keep_best", "bbox/AP")
  return RunFiles(workdir, settings, train, fits, evaluations, keep_best)


def training_seconds(run: RunFiles) -> float:
  """What the run's steps and fits took, in whatever sessions; compiling, evaluating and saving are not counted.

  Nor is what a kill lost: the steps since the last checkpoint, and the part of a fit behind its features.
  """
  batch_size = run.settings["data"]["batch_size"][0]
  steps = sorted({0, *(row["step"] for row in (*run.train, *run.fits))})
  before = dict(zip(steps[1:], steps))
  rated = [row for row in run.train if row.get("images_per_s")]
  descent = sum((row["step"] - before[row["step"]]) * batch_size / row["images_per_s"] for row in rated)
  fitted = {row["step"] for row in run.fits}  # a fit behind another one has its features
  features = sum(row.get("features_seconds", 0.0) for row in run.fits if row["step"] - 1 not in fitted)
  return descent + features + sum(row.get("seconds", 0.0) for row in run.fits)


def _read_rows(path: pathlib.Path) -> dict[tuple[str, int], dict]:
  """Rows by kind and step; of a step written again the later row counts, a line torn by a crash does not."""
  rows = {}
  for line in path.read_text().splitlines() if path.is_file() else ():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue
    kind = row.pop("kind")
    rows[kind, row["step"]] = row
  return rows


# ------------------------------------------------------------------------------------------------ parts of the page


def _class_name(form: Any) -> str:
  return form["class"].rpartition(":")[2] if isinstance(form, dict) and "class" in form else ""


def _lead(run: RunFiles) -> str:
  model, data = run.settings.get("model") or {}, run.settings.get("data") or {}
  parts = [_class_name(model.get("backbone")), _class_name(model.get("proposer")), _class_name(data.get("train"))]
  last = max([row["step"] for row in run.train[-1:]] + list(run.evaluations), default=None)
  facts = [*(part for part in parts if part), *([f"{last:,} steps"] if last is not None else [])]
  if "seed" in run.settings:
    facts.append(f"seed {run.settings['seed']}")
  return " · ".join(facts)


def _headlines(run: RunFiles) -> list[tuple[str, str]]:
  if run.best is None:
    return []
  metrics = run.evaluations[run.best]
  return [(_percent(metrics[name]), MEANINGS[name]) for name in HEADLINES if metrics.get(name) is not None]


def _percent(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:.1f}"


def _summary_table(run: RunFiles) -> str:
  """Every metric that is not of one class, of the best evaluation and, if it is another one, the last."""
  if run.best is None:
    return "<p>This run has not been evaluated yet.</p>"
  steps = list(dict.fromkeys([run.best, run.last]))
  titles = {run.best: f"best by {run.keep_best}, step {run.best:,}", run.last: f"last, step {run.last:,}"}
  titles |= {run.best: f"step {run.best:,}"} if len(steps) == 1 else {}
  names = [name for name in run.evaluations[run.best] if name.count("/") == 1]
  rows = [
    [
      name + (f" ({MEANINGS[name]})" if name in MEANINGS else ""),
      *(_percent(run.evaluations[step].get(name)) for step in steps),
    ]
    for name in names
  ]
  return page.table(["metric", *(titles[step] for step in steps)], rows)


def _class_table(run: RunFiles) -> str:
  metrics = run.evaluations.get(run.best, {})
  columns = {
    "bbox/AP": "COCO box AP",
    "segm/AP": "COCO mask AP",
    "keypoints/AP": "COCO keypoint AP",
    "voc/AP_area": "VOC AP, area, IoU 0.5",
    "voc/AP_11pt": "VOC AP, 11 points, IoU 0.5",
  }
  columns = {key: title for key, title in columns.items() if any(name.startswith(f"{key}/") for name in metrics)}
  classes = [name.removeprefix("bbox/AP/") for name in metrics if name.startswith("bbox/AP/")]
  rows = [[name, *(page.percent_bar(metrics.get(f"{key}/{name}")) for key in columns)] for name in classes]
  return page.table(["class", *columns.values()], rows)


def _precision_recall(run: RunFiles) -> list[str]:
  path = run.workdir / "eval" / str(run.best) / "curves.json"
  kinds = json.loads(path.read_text()) if path.is_file() else {}
  return [
    page.image(_png(plots.precision_recall_figure(curves, kind)), f"precision and recall, {kind}")
    for kind, curves in kinds.items()
    if curves
  ]


def _pictures(run: RunFiles) -> list[str]:
  paths = sorted((run.workdir / "eval" / str(run.best) / "pictures").glob("*.png"))
  return [page.image(_as_jpeg(path), path.stem) for path in paths]


def _timing(run: RunFiles) -> list[list[str]]:
  """What the train rows say of speed; compilation, evaluation and saving are not in their rates."""
  speed = [row["images_per_s"] for row in run.train if row.get("images_per_s")]
  wait = [row["data_wait"] for row in run.train if row.get("data_wait") is not None]
  table = [["training, images/s (median)", f"{statistics.median(speed):.2f}"]] if speed else []
  table += [["waiting for data, share of the time (median)", f"{statistics.median(wait):.1%}"]] if wait else []
  if speed and (run.settings.get("data") or {}).get("batch_size"):
    table.append(["training, seconds", f"{training_seconds(run):,.0f}"])
  return table


def _settings_summary(settings: Mapping[str, Any]) -> str:
  """One row a part of the model, of the data and of the training: its class and its plain values."""
  parts = {f"model, {name}": part for name, part in (settings.get("model") or {}).items()}
  parts |= {f"data, {name}": part for name, part in (settings.get("data") or {}).items()}
  parts |= {f"stage {n}": stage for n, stage in enumerate(settings.get("stages") or (), start=1)}
  rows = [
    [name, _class_name(part), ", ".join(_plain_values(part))]
    for name, part in parts.items()
    if isinstance(part, dict)
  ]
  return page.table(["part", "is", "with"], rows, style="settings")


def _plain_values(form: Mapping[str, Any]) -> list[str]:
  return [
    f"{name} {value}"
    for name, value in form.items()
    if name != "class"
    and not isinstance(value, dict)
    and not (isinstance(value, list) and any(isinstance(v, dict) for v in value))
  ]


def _settings_table(settings: Mapping[str, Any]) -> str:
  rows = [[path, str(value)] for path, value in _flat(settings).items()]
  return page.table(["path", "value"], rows, style="settings")


def _flat(form: Any, prefix: str = "") -> dict[str, Any]:
  """The paths and values of an experiment's JSON form; a list of plain values is one value."""
  if isinstance(form, dict):
    parts = form.items()
  elif isinstance(form, list) and any(isinstance(part, dict) for part in form):
    parts = ((str(n), part) for n, part in enumerate(form))
  else:
    return {prefix: form}
  flat = {}
  for name, part in parts:
    flat |= _flat(part, f"{prefix}.{name}" if prefix else name)
  return flat


def _versions() -> list[list[str]]:
  found = [[name, importlib.metadata.version(name)] for name in PACKAGES if _is_installed(name)]
  devices = sorted({device.device_kind for device in jax.devices()})
  return [["python", platform.python_version()], *found, ["device", f"{len(jax.devices())} x {', '.join(devices)}"]]


def _is_installed(name: str) -> bool:
  try:
    importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


# ------------------------------------------------------------------------------------------------ images


def _png(figure: Figure) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  return buffer.getvalue()


def _save(path: pathlib.Path, figure: Figure) -> bytes:
  data = _png(figure)
  with writing(path) as file:
    file.write(data)
  return data


def _as_jpeg(path: pathlib.Path) -> bytes:
  """A picture small enough to be embedded: at most `PICTURE_WIDTH` wide."""
  with Image.open(path) as picture:
    picture = picture.convert("RGB")
    if picture.width > PICTURE_WIDTH:
      picture = picture.resize(
        (PICTURE_WIDTH, round(picture.height * PICTURE_WIDTH / picture.width)), Image.Resampling.LANCZOS
      )
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()

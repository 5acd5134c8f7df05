"""The report: complete in itself, true to the files of the run, and possible at any time of a run."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from rcnn_jax.evaluation.detect import EvaluationError
from rcnn_jax.evaluation.report import read_run, write_report

SETTINGS = {
  "class": "rcnn_jax.experiment:Experiment",
  "name": "faster_<b>",
  "seed": 3,
  "data": {
    "class": "rcnn_jax.data:Data",
    "train": {"class": "rcnn_jax.data.voc:VocFolder", "root": "blood"},
    "batch_size": [2, 4],
  },
  "model": {"class": "rcnn_jax.models.detector:Detector", "backbone": {"class": "x:SqueezeNet", "frozen": 2}},
  "stages": [{"class": "rcnn_jax.training.stages:Sgd", "steps": 40, "schedule": {"class": "x:Cosine", "peak": 0.01}}],
  "evaluation": {"class": "rcnn_jax.experiment:Evaluation", "keep_best": "bbox/AP50"},
}

METRICS = {
  "bbox/AP": 0.512,
  "bbox/AP50": 0.861,
  "bbox/APs": None,
  "bbox/AP/cell & co": 0.437,
  "voc/mAP_area": 0.733,
  "voc/AP_area/cell & co": 0.733,
}


def row(step, kind, **values):
  return json.dumps({"step": step, "kind": kind} | values)


def train_rows(steps):
  rates = {"lr": 0.01, "images_per_s": 4.0, "data_wait": 0.25}
  return [row(s, "train", **{"loss": 2.0 / s, "loss/box": 1.0 / s}, **rates) for s in steps]


def write_run(workdir, rows=(), settings=True, evaluations=None):
  if settings:
    form = {"experiment": SETTINGS, "categories": [], "keypoints": None}
    (workdir / "experiment.json").write_text(json.dumps(form))
  if rows:
    (workdir / "metrics.jsonl").write_text("".join(line + "\n" for line in rows))
  for step, metrics in (evaluations or {}).items():
    folder = workdir / "eval" / str(step)
    (folder / "pictures").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "curves.json").write_text(json.dumps({"bbox": {"cell & co": np.linspace(1, 0, 101).tolist()}}))
    Image.fromarray(np.full((20, 1800, 3), step % 256, np.uint8)).save(folder / "pictures" / "one.png")
  return workdir


def text_of(path):
  """What a reader sees of the page, in one line."""
  body = path.read_text().split("</style>")[1]
  return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def images_of(path):
  found = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', path.read_text())
  return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_a_whole_run(tmp_path):
  rows = [*train_rows([20, 40]), row(40, "eval", **METRICS)]
  path = write_report(write_run(tmp_path, rows, evaluations={40: METRICS}))
  text = text_of(path)
  assert path == tmp_path / "report.html"
  for part in (
    "faster_&lt;b&gt;",
    "SqueezeNet · VocFolder · 40 steps · seed 3",
    "51.2 COCO box AP",
    "bbox/AP50 (COCO box AP, IoU 0.50) 86.1",
    "bbox/APs –",
    "voc/mAP_area (VOC mAP, area, IoU 0.5) 73.3",
    "cell &amp; co 43.7 73.3",
    "training, images/s (median) 4.00",
    "share of the time (median) 25.0%",
    "training, seconds 20",
    "stages.0.schedule.peak 0.01",
    "jax",
  ):
    assert part in text
  assert {(tmp_path / name).is_file() for name in ("loss.png", "ap.png")} == {True}


def test_the_page_needs_no_other_file(tmp_path):
  path = write_report(write_run(tmp_path, train_rows([20]), evaluations={40: METRICS}))
  images = images_of(path)
  assert len(images) == len(re.findall("<img", path.read_text())) == 4  # losses, AP, precision over recall, a picture
  assert max(image.width for image in images) == 1400
  assert not re.search(r'(src|href)="(?!data:)', path.read_text())


def test_the_best_evaluation_is_shown_beside_the_last(tmp_path):
  runs = {20: METRICS | {"bbox/AP50": 0.9}, 40: METRICS | {"bbox/AP": 0.6}}
  path = write_report(write_run(tmp_path, train_rows([20, 40]), evaluations=runs))
  text = text_of(path)
  assert "best by bbox/AP50, step 20 last, step 40" in text
  assert "bbox/AP (COCO box AP) 51.2 60.0" in text
  assert "Ground truth beside detections, step 20" in text


def test_before_the_first_evaluation(tmp_path):
  text = text_of(write_report(write_run(tmp_path, train_rows([20]))))
  assert "has not been evaluated yet" in text
  assert not (tmp_path / "ap.png").exists()


def test_an_imported_model_that_was_never_trained(tmp_path):
  text = text_of(write_report(write_run(tmp_path, evaluations={0: METRICS})))
  assert "51.2 COCO box AP" in text
  assert not (tmp_path / "loss.png").exists()


def test_evaluations_are_read_from_the_log_alone_too(tmp_path):
  write_run(tmp_path, [row(40, "eval", **METRICS)], settings=False)
  assert "51.2 COCO box AP" in text_of(write_report(tmp_path))


def test_many_classes_and_nothing_found(tmp_path):
  metrics = {"bbox/AP": 0.0} | {f"bbox/AP/{n}": None for n in range(80)}
  write_run(tmp_path, train_rows(range(1, 101)), evaluations={9: metrics})
  curves = {"bbox": {str(n): [0.0] * 101 for n in range(80)}}
  (tmp_path / "eval" / "9" / "curves.json").write_text(json.dumps(curves))
  assert "0.0 COCO box AP" in text_of(write_report(tmp_path))


def test_a_torn_last_line_and_rows_written_again(tmp_path):
  rows = [row(20, "train", loss=9.0), row(20, "train", loss=1.0), '{"step": 40, "ki']
  run = read_run(write_run(tmp_path, rows))
  assert run.train == [{"step": 20, "loss": 1.0}]


def test_a_directory_without_a_run_is_told(tmp_path):
  with pytest.raises(EvaluationError, match="holds no run"):
    write_report(tmp_path)

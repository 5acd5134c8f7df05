"""The layout of FOD-A: opened, validated, trained and evaluated; and a split of its length, opened in seconds."""

from __future__ import annotations

import json
import os
import pathlib
import time

import numpy as np
import pytest

from rcnn_jax.data import loader, pipeline, validate
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import Resize
from rcnn_jax.data.voc import VocFolder
from rcnn_jax.experiment import Evaluation, Experiment
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.optim import Constant
from rcnn_jax.training.run import train
from rcnn_jax.training.stages import Sgd
from tests import fod
from tests.small_detector import small_detector


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[pathlib.Path, list[int]]:
  root = tmp_path_factory.mktemp("fod")
  return root, fod.write(root, num_images=16, num_lines=60)


def test_it_opens_with_one_warning_about_what_stands_several_times(drawn, caplog):
  root, counts = drawn
  source = VocFolder(str(root), "train").open()
  assert len(source) == 12 and [category.name for category in source.categories] == list(fod.CLASSES)
  (line,) = caplog.messages
  assert line.endswith("train.txt: names 12 images more than once (000001 31 times): each is read once")
  of_name = {source.annotations(row).file_name: source.annotations(row) for row in range(12)}
  assert [len(of_name[f"{number + 1:06d}.jpg"].boxes) for number in range(12)] == counts[:12]
  annotations = of_name["000001.jpg"]
  assert annotations.size == (300, 300) and not annotations.difficult.any()
  assert (annotations.boxes % 1 != 0).any()  # fractions of pixels stay
  assert list(validate.faults(VocFolder(str(root), "val"))) == []
  assert len(list(validate.faults(VocFolder(str(root), "train")))) == 1


def test_it_trains_and_evaluates(drawn, tmp_path):
  root, counts = drawn
  spec = VocFolder(str(root), "train"), VocFolder(str(root), "val")
  experiment = Experiment(
    name="fod",
    data=Data(*spec, Resize((64,), 64), ((64, 64),), batch_size=(4, 2)),
    model=small_detector(num_classes=None),
    stages=(Sgd(steps=3, schedule=Constant(0.01)),),
    evaluation=Evaluation(pictures=1),
  )
  assert loader.training_epoch(experiment.data, spec[0].open()).num_steps == 3  # 12 images, each once
  train(experiment, str(tmp_path / "run"), meshes.data_mesh(1))
  metrics = json.loads((tmp_path / "run/eval/3/metrics.json").read_text())
  assert {"bbox/AP", "voc/mAP_area", *(f"bbox/AP/{name}" for name in fod.CLASSES)} <= set(metrics)
  lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  losses = [line["loss"] for line in lines if line["kind"] == "train"]
  assert len(losses) >= 1 and np.isfinite(losses).all()


def test_33793_lines_of_1000_images_open_in_seconds(tmp_path, caplog):
  fod.write(tmp_path, num_images=1, num_lines=1)
  names = [f"image {number}" for number in range(1000)]
  for name in names:
    for path in ("Annotations/{}.xml", "JPEGImages/{}.jpg"):
      os.link(tmp_path / path.format("000001"), tmp_path / path.format(name))
  lines = [names[number % 1000] for number in range(33_793)]
  (tmp_path / "ImageSets/Main/train.txt").write_text("\n".join(lines))
  began = time.process_time()
  source = VocFolder(str(tmp_path), "train").open()
  found = pipeline.survey(Data(None, None), source)
  assert time.process_time() - began < 5  # seconds, on a core that other tests share
  assert len(source) == len(found.sizes) == 1000
  assert "train.txt: names 1,000 images more than once (image 0 34 times)" in caplog.messages[0]

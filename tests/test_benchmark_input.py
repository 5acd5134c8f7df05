"""The suite `input` of the benchmark: its numbers at a small size, and what it says where it cannot measure."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from large_coco import make

from launch import benchmark_input

ROOT = pathlib.Path(__file__).parents[1]


def test_detections_to_ap_are_pycocotools_numbers(monkeypatch):
  monkeypatch.setattr(benchmark_input, "IMAGES", 30)
  monkeypatch.setattr(benchmark_input, "CLASSES", 5)
  found = benchmark_input.detections_to_ap(referee=True)
  assert found["ap_difference"] == 0 and 0 < found["ap_s"] < found["ap_referee_s"]


def test_drawn_detections_lie_about_their_objects_half_of_the_time():
  truth, results = benchmark_input.drawn_results(np.random.default_rng(0), 20, 100, 80)
  assert len(truth["images"]) == 20 and len(truth["annotations"]) == 140 and len(results.scores) == 2000
  classes = [{one["category_id"] for one in truth["annotations"] if one["image_id"] == 1}]
  assert 40 <= np.isin(results.category_ids[:100], list(classes[0])).sum() <= 80


def test_masks_to_entries_is_some_milliseconds():
  assert 0 < benchmark_input.masks_to_entries(repeats=1) < 10


def test_the_table_has_a_line_for_each_number_with_its_target():
  lines = benchmark_input.table({"open_first_s": 22.5, "ap_difference": 0.0}).splitlines()
  assert lines[0].split() == "open and survey with masks, first time, s 22.5 target 45".split()
  assert lines[1].split() == "greatest difference to pycocotools exactly 0".split()


def run(*options: str) -> subprocess.CompletedProcess:
  environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-m", "launch.benchmark", "--suite=input", "--repeats=1", *options]
  return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_data_that_are_missing_are_told_in_one_line(tmp_path):
  ended = run(f"--coco_images={tmp_path}", f"--coco_annotations={tmp_path}/none.json")
  assert ended.returncode == 1 and ended.stderr.splitlines()[-1].endswith("none.json: no such file or directory")
  assert "Traceback" not in ended.stderr


@pytest.mark.long
def test_the_whole_suite(tmp_path):
  images, annotations = make(tmp_path / "set", 400, 4000)
  ended = run(f"--coco_images={images}", f"--coco_annotations={annotations}", f"--output={tmp_path}/input.json")
  assert ended.returncode == 0, ended.stderr
  found = json.loads((tmp_path / "input.json").read_text())["input"]
  assert {*benchmark_input.TARGETS} <= set(found)
  assert found["worker_more_MiB"] < 300

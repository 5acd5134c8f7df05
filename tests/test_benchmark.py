"""The benchmark: repeats in turns, ratios round by round, and a peer that speaks the protocol or is refused."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from rcnn_jax import chips, experiment
from rcnn_jax.benchmarks import accelerator, ops, scaling, tables
from rcnn_jax.benchmarks.step import Settings
from rcnn_jax.synthetic import random_boxes
from rcnn_jax.timing import alternate, summary

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENT = """
import dataclasses
from experiments.demo import experiment as base
from tests.small_detector import CANVAS, small_detector
data = dataclasses.replace(base.data, canvases=(CANVAS,), batch_size=(2, 1))
experiment = dataclasses.replace(base, name="timed", model=small_detector(num_classes=None), data=data)
"""
PEER = """
import json, sys
request = json.loads(sys.stdin.readline())
assert request["model"]["class"] == "rcnn_jax.models.detector:Detector", request
print(json.dumps({"torch": "9.9", "batch_size": request["batch_size"]}), flush=True)
for line in sys.stdin:
  print(json.dumps({"seconds": {"train": 3.0, "detect": 1.5}[json.loads(line)["measure"]]}), flush=True)
"""


def test_contestants_take_turns_and_the_first_round_is_not_counted():
  order = []
  clock = iter(range(100))
  contestant = lambda name: lambda: order.append(name) or next(clock)
  found = alternate({"ours": contestant("a"), "peer": contestant("b")}, repeats=2)
  assert order == ["a", "b"] * 3
  assert found == {"ours": [2, 4], "peer": [3, 5]}


def test_the_ratio_is_taken_round_by_round():
  found = summary({"ours": [1.0, 4.0, 3.0], "peer": [2.0, 4.0, 4.0]}, iterations=2, batch_size=4)
  assert found["ours"] == {"s": 1.5, "s_min": 0.5, "s_max": 2.0, "images_per_s": 4 / 1.5, "repeats": 3}
  assert found["ratio"] == {"median": 0.75, "min": 0.5, "max": 1.0}


def test_random_boxes_lie_within_the_canvas():
  boxes = random_boxes(np.random.default_rng(0), (480, 640), (2, 500))
  x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
  assert boxes.shape == (2, 500, 4) and (x1 >= 0).all() and (x2 <= 640).all() and (y2 <= 480).all()
  assert (np.minimum(x2 - x1, y2 - y1) >= 39.9).all() and (np.maximum(x2 - x1, y2 - y1) <= 160.1).all()


SUMMARY = {"s": 0.5, "s_min": 0.4, "s_max": 0.6, "images_per_s": 4.0, "repeats": 3}


def test_the_operations_have_the_same_inputs_on_both_sides(tmp_path):
  found = ops.cases((64, 96), num_boxes=(20, 30))
  ops.save(found, str(tmp_path / "inputs.npz"))
  with np.load(tmp_path / "inputs.npz") as file:
    saved = {name: file[name] for name in file.files}
  for name, case in found.items():
    for key, array in (case.inputs | case.beside).items():
      np.testing.assert_array_equal(saved[f"{name}/{key}"], array)
  assert list(found)[:3] == ["nms, 20 random boxes", "nms, 30 random boxes", "nms, a chain of 30 boxes"]


def test_in_a_chain_every_second_box_survives():
  case = ops.cases((64, 96), num_boxes=(20, 30))["nms, a chain of 30 boxes"]
  rows, valid = case.function(*case.inputs.values())
  np.testing.assert_array_equal(rows[valid], range(0, 30, 2))


def test_a_pyramid_has_three_anchors_in_each_cell():
  anchors = ops.anchors_of((64, 96))
  assert len(anchors) == 3 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2)
  assert (anchors[:, 2:] > anchors[:, :2]).all()


def test_steps_are_left_out_when_their_time_is_over_and_halved_when_they_do_not_fit(monkeypatch):
  clock = iter(range(0, 1000, 10))
  monkeypatch.setattr(accelerator.time, "perf_counter", lambda: float(next(clock)))
  told = {"ours": SUMMARY}

  def measured(what, experiment, batch_size, settings, peer):
    if batch_size > 2:
      raise accelerator.jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")
    return told | {"batch_size": batch_size}

  monkeypatch.setattr(accelerator.step, "measured", measured)
  rows, seen = accelerator.rows(), []
  assert (rows[0].experiment.name, rows[0].what, rows[0].batch_size) == (
    "torchvision_maskrcnn_resnet50_fpn",
    "train",
    16,
  )
  found = accelerator.measure(rows[:3], Settings(), budget=45.0, report=seen.append)
  # A row takes two readings of the clock, 20 s from one to the next: the third begins at 50 s.
  assert found == seen and [row["batch_size"] for row in found] == [2, 2, 16]
  assert "left_out" in found[2] and "left_out" not in found[1]
  assert "left out: -5 s were left" in tables.of_row(found[2])


def test_the_share_of_the_peak_is_told_of_devices_that_are_known(monkeypatch):
  told = {"ours": SUMMARY, "GFLOP": 4947.0}
  mask, faster = accelerator.rows()[0].experiment, accelerator.rows()[2].experiment
  assert accelerator.utilisation(told, faster) == {}
  monkeypatch.setattr(accelerator.jax, "devices", lambda: [type("Device", (), {"device_kind": "NVIDIA H200"})])
  assert accelerator.utilisation(told, faster) == {"peak_share": 4947e9 / 0.5 / chips.CHIPS["h200"].bfloat16}
  assert accelerator.utilisation(told, mask) == {}


def test_each_axis_changes_one_thing():
  base = experiment.load("demo")
  points = {name: list(axis(base, 4, Settings())) for name, axis in scaling.AXES.items()}
  assert [value for value, _ in points["foreground"]] == [4, 16, 64]
  assert [how.num_objects for _, (_, _, how) in points["foreground"]] == [4, 16, 64]
  assert [count for _, (_, count, _) in points["batch"]] == [1, 4, 8]
  assert [changed.data.max_objects for _, (changed, _, _) in points["objects"]] == [25, 100, 400]
  most = base.model.proposer.num_post_nms
  assert points["proposals"][-1][1][0].model.proposer.num_post_nms == most
  assert points["size"][-1][1][0].data.canvases == (base.data.canvases[0],)


def run(folder: pathlib.Path, *options: str) -> subprocess.CompletedProcess:
  (folder / "timed.py").write_text(EXPERIMENT)
  command = [sys.executable, "-m", "launch.benchmark", f"--experiment={folder}/timed.py", "--repeats=1", *options]
  environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def fake_python(folder: pathlib.Path, source: str) -> str:
  """An interpreter that runs `source`, whatever script it is given."""
  (folder / "peer.py").write_text(textwrap.dedent(source))
  python = folder / "python"
  python.write_text(f"#!/bin/sh\nexec {sys.executable} {folder}/peer.py\n")
  python.chmod(0o755)
  return str(python)


@pytest.mark.long
def test_one_run_measures_both_and_writes_what_it_printed(tmp_path):
  peer = fake_python(tmp_path, PEER)
  done = run(tmp_path, "--peer=torchvision", f"--peer_python={peer}", f"--output={tmp_path}/out.json")
  assert done.returncode == 0, done.stderr
  report = json.loads((tmp_path / "out.json").read_text())
  assert report["train"]["peer"]["s"] == 1.0 and report["train"]["peer"]["images_per_s"] == 2.0
  assert report["detect"]["peer"]["s"] == 0.5 and report["detect"]["peer"]["images_per_s"] == 2.0
  assert report["environment"]["peer"] == {"torch": "9.9", "batch_size": [2, 1]}
  for what in ("train", "detect"):
    assert report[what]["compile_s"] > 0 and report[what]["ours"]["s"] > 0 and report[what]["ratio"]["median"] > 0
    assert f"{report[what]['ours']['s']:.4f} s" in done.stdout
  assert report["peak_memory_MiB"] > 100


@pytest.mark.long
def test_the_table_of_an_accelerator_and_its_start_are_measured_at_a_small_size(tmp_path):
  done = run(tmp_path, "--suite=gpu", "--iterations=1", f"--output={tmp_path}/out.json")
  assert done.returncode == 0, done.stderr
  report = json.loads((tmp_path / "out.json").read_text())
  assert [(row["what"], row["batch_size"]) for row in report["steps"]] == [("train", 2), ("detect", 1)]
  assert all(row["ours"]["s"] > 0 for row in (*report["steps"], *report["ops"].values()))
  done = run(tmp_path, "--suite=startup", f"--output={tmp_path}/out.json")
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "out.json").read_text())["startup"]
  assert 0 < found["compile_cached_s"] < found["compile_s"]


@pytest.mark.parametrize(
  "source, message",
  [
    ("""print('{"error": "no such backbone"}', flush=True)""", "the peer cannot be measured: no such backbone"),
    ("raise SystemExit('no module torch')", "the peer ended without an answer"),
  ],
)
def test_a_peer_that_cannot_be_run_ends_in_one_line(tmp_path, source, message):
  done = run(tmp_path, "--peer=torchvision", f"--peer_python={fake_python(tmp_path, source)}")
  assert done.returncode == 1 and "Traceback" not in done.stderr and f"error: {message}" in done.stderr

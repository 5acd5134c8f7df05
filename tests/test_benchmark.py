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

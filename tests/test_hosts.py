"""Two processes evaluate together what one evaluates alone, each decoding and converting its own share."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from rcnn_jax.hosts import gathered

ROOT = pathlib.Path(__file__).parents[1]
EVALUATION = """
import json, pathlib, sys
number, count, address, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
import jax
if count > 1:
  jax.distributed.initialize(address, count, number)
import dataclasses
import numpy as np
from rcnn_jax.evaluation.evaluate import evaluate
from rcnn_jax.experiment import Evaluation
from rcnn_jax.training import mesh as meshes
from tests import scenes

class Counted(scenes.Scenes):
  read = ()

  def image(self, index):
    self.read += (index,)
    return super().image(index)

source = Counted(num_images=7)
model = scenes.ColourFinder(masks=True, keypoints=True)
data = dataclasses.replace(scenes.DATA, batch_size=(1, 4))
metrics = evaluate(model, scenes.VARIABLES, data, source, folder, Evaluation(pictures=0), meshes.data_mesh())
print(json.dumps({"read": source.read, "metrics": metrics}))
"""


def test_one_process_gathers_its_own_value():
  assert gathered({"a": 1}) == [{"a": 1}]


def evaluation(folder: pathlib.Path, count: int) -> list[dict]:
  """What each process tells, with four devices in all."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  flags = f"--xla_force_host_platform_device_count={4 // count}"
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", EVALUATION]
  processes = [
    subprocess.Popen(
      [*command, str(number), str(count), address, str(folder)],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(count)
  ]
  ended = [process.communicate(timeout=120) for process in processes]
  assert [process.returncode for process in processes] == [0] * count, [errors[-2000:] for _, errors in ended]
  return [json.loads(output.splitlines()[-1]) for output, _ in ended]


@pytest.mark.long
def test_two_processes_give_the_numbers_of_one_and_share_the_images(tmp_path):
  (alone,) = evaluation(tmp_path / "one", 1)
  first, second = evaluation(tmp_path / "two", 2)
  assert first["metrics"] == second["metrics"] == alone["metrics"]
  assert sorted(alone["read"]) == sorted(first["read"] + second["read"]) == list(range(7))
  assert first["read"] and second["read"]
  read = lambda name: json.loads((tmp_path / name / "detections.json").read_text())
  key = lambda entry: (entry["image_id"], -entry["score"])
  assert sorted(read("two"), key=key) == sorted(read("one"), key=key)

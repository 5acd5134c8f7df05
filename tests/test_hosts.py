"""Two processes train and evaluate together what one does alone, each with its own share of the images."""

from __future__ import annotations

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from rcnn_jax.hosts import gathered
from rcnn_jax.training import checkpoint, log

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


def run(
  script: str, folder: pathlib.Path, count: int, options: tuple[str, ...] = (), status: int = 0
) -> list[tuple[str, str]]:
  """What each process says on stdout and stderr, with four devices in all."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  flags = f"--xla_force_host_platform_device_count={4 // count}"
  path = f"{ROOT}:{ROOT}/tests"
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": path}
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", script, str(number), str(count), address, str(folder), *options],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(count)
  ]
  ended = [process.communicate(timeout=600) for process in processes]
  assert [process.returncode for process in processes] == [status] * count, [errors[-2000:] for _, errors in ended]
  return ended


def evaluation(folder: pathlib.Path, count: int) -> list[dict]:
  """What each process tells."""
  return [json.loads(output.splitlines()[-1]) for output, _ in run(EVALUATION, folder, count)]


TRAINING = """
import dataclasses, functools, os, pathlib, signal, sys
number, count, address, folder, dies_at = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
import jax
if count > 1:
  jax.distributed.initialize(address, count, number)
import tiny
from rcnn_jax.experiment import FULLY_SHARDED, Mesh
from rcnn_jax.training import checkpoint, loop
from rcnn_jax.training.optim import Constant
from rcnn_jax.training.stages import Sgd

stage = Sgd(steps=8, schedule=Constant(0.5), ema=0.5, clip_norm=1.0)
exp = tiny.experiment((stage,)).override({"data.canvases": ((4, 8), (4, 8)), "model.backbone.features": 16})
exp = dataclasses.replace(exp, mesh=Mesh(rules=FULLY_SHARDED))

class Share(tiny.Loader):
  def __next__(self):
    batch = super().__next__()
    if self.given == dies_at and number == 1:  # one process alone hears of it
      os.kill(os.getpid(), signal.SIGUSR1)
    size = len(batch.image_id) // count
    return jax.tree.map(lambda leaf: leaf[number * size : (number + 1) * size], batch)

checkpoint.write_experiment(folder, exp, tiny.CATEGORIES)
try:
  loop.run(exp, folder, tiny.model_of(exp), tiny.variables_of(exp), tiny.STEPS_PER_EPOCH,
           functools.partial(Share, exp.data, exp.seed), log_every=1)
except loop.Stopped as stopped:
  print(stopped, file=sys.stderr)
  sys.exit(stopped.exit_status)
"""


@pytest.mark.long
def test_two_processes_train_as_one_and_agree_on_a_stop(tmp_path):
  options = ("0",)
  run(TRAINING, tmp_path / "one", 1, options)
  stopped = run(TRAINING, tmp_path / "two", 2, ("3",), status=75)
  (step,) = {re.search("at step ([0-9]) of 8", errors)[1] for _, errors in stopped}
  assert checkpoint.saved_steps(tmp_path / "two")[-1] == int(step) >= 3
  talking, silent = (output for output, _ in run(TRAINING, tmp_path / "two", 2, options))
  assert f"resuming at step {step} of 8" in talking and "step" not in silent
  one, two = (log.rows(tmp_path / name) for name in ("one", "two"))
  assert [row["step"] for row in two] == list(range(1, 9))
  for name in ("loss", "loss/class", "grad_norm"):
    np.testing.assert_allclose([row[name] for row in two], [row[name] for row in one], atol=1e-4)


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

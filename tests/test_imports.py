"""What a machine needs that has jax, flax, optax, numpy and absl, and nothing else of the project's requirements."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
BARE = """
import importlib, importlib.abc, pkgutil, sys

ABSENT = {"grain", "msgspec", "hotcoco", "tensorflow_datasets", "tensorflow", "orbax",
          "cv2", "PIL", "pycocotools", "matplotlib",
          "tensorboardX", "safetensors"}


class Without(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in ABSENT:
      raise ModuleNotFoundError(f"No module named {name!r}: it is not on an accelerator machine", name=name)


sys.meta_path.insert(0, Without())
import rcnn_jax.models, rcnn_jax.ops

for package in (rcnn_jax.ops, rcnn_jax.models):
  for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
    importlib.import_module(module.name)
for name in ("rcnn_jax.training.step", "rcnn_jax.training.stages", "rcnn_jax.training.mesh",
             "launch.benchmark", "launch.compile"):
  importlib.import_module(name)
from rcnn_jax import experiment
from rcnn_jax.data import pipeline

for name in experiment.names():
  loaded = experiment.load(name)
  assert experiment.from_json(experiment.to_json(loaded)) == loaded
  print(name, pipeline.example_canvas(loaded.data))
assert not ABSENT & set(sys.modules)
"""


def test_models_steps_benchmark_and_experiments_need_only_jax_flax_optax_numpy_and_absl():
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", BARE]
  ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
  assert ended.returncode == 0, ended.stderr
  files = sorted(path.stem for path in (ROOT / "experiments").glob("[!_]*.py"))
  assert [line.split()[0] for line in ended.stdout.splitlines()] == files

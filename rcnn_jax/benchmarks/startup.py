"""How long it takes until the first step: import, building the model, compiling cold and from the cache.

Each is measured in a process of its own, which is empty at first (`python -m rcnn_jax.benchmarks.startup`): it reads
the experiment as JSON and prints its seconds.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

LABELS = {
  "import_s": "import jax and the model",
  "experiment_s": "read the experiment",
  "init_s": "draw the variables",
  "lower_s": "trace the train step",
  "compile_s": "compile it, nothing in the cache",
  "compile_cached_s": "compile it, from the cache",
  "first_step_s": "the first step",
}


def measure(experiment, file: str, batch_size: int, num_classes: int) -> dict[str, float]:
  """Seconds of each phase of the experiment's first train step; by two processes, of which the second has a cache.

  file: the name or file that the experiment is from, which may define classes of its own.

  Raises:
    BenchmarkError: with the last line of a process that fails.
  """
  from rcnn_jax.benchmarks.peer import BenchmarkError
  from rcnn_jax.experiment import to_json

  asked = {"file": file, "experiment": to_json(experiment), "batch_size": batch_size, "num_classes": num_classes}
  request = json.dumps(asked)
  with tempfile.TemporaryDirectory() as cache:
    kept = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    paths = os.pathsep.join([str(pathlib.Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = []
    for _ in range(2):
      command = [sys.executable, "-m", "rcnn_jax.benchmarks.startup"]
      environment = os.environ | kept | {"PYTHONPATH": paths}
      ended = subprocess.run(command, input=request, env=environment, capture_output=True, text=True)
      if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["ended early"])[-1]
        raise BenchmarkError(re.sub(r"^[\w.]+Error: ", "", last))
      found.append(json.loads(ended.stdout.splitlines()[-1]))
  return found[0] | {"compile_cached_s": found[1]["compile_s"]}


def table(found: dict[str, float]) -> str:
  """The seconds for people."""
  return "\n".join(f"  {label:<36}{found[name]:8.2f} s" for name, label in LABELS.items() if name in found)


def main() -> None:
  """Prints the seconds of each phase in this process."""
  request, seconds = json.loads(sys.stdin.read()), {}
  began = time.perf_counter()

  def passed(name: str) -> None:
    nonlocal began
    now = time.perf_counter()
    seconds[name], began = now - began, now

  import jax

  from rcnn_jax import experiment as experiments
  from rcnn_jax.data import pipeline
  from rcnn_jax.models.detector import init_variables
  from rcnn_jax.synthetic import sized_model, synthetic_batch
  from rcnn_jax.training import mesh as meshes
  from rcnn_jax.training import step as steps

  passed("import_s")
  experiments.load(request["file"])  # its classes are known from here on
  experiment = experiments.from_json(request["experiment"])
  model, stage = sized_model(experiment, request["num_classes"]), experiment.stages[0]
  passed("experiment_s")
  variables = init_variables(model, jax.random.key(0), pipeline.example_canvas(experiment.data))
  jax.block_until_ready(variables)
  passed("init_s")
  mesh = meshes.data_mesh()
  batch = synthetic_batch(experiment, request["batch_size"], num_objects=16, num_classes=request["num_classes"])
  batch, state = meshes.shard_batch(batch, mesh), steps.create_state(variables, stage, mesh)
  began = time.perf_counter()
  lowered = steps.make_train_step(model, stage, mesh, seed=0, num_steps=10_000).lower(state, batch)
  passed("lower_s")
  compiled = lowered.compile()
  passed("compile_s")
  jax.block_until_ready(compiled(state, batch))
  passed("first_step_s")
  print(json.dumps(seconds))


if __name__ == "__main__":
  main()

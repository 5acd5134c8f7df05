"""Memory, open files and processes of a training stay what they are, over 2,000 steps and 20 evaluations.

With RCNN_JAX_FLAT_PLOT=FILE.png the test draws what it has measured.
"""

from __future__ import annotations

import os
import pathlib
import re
import statistics
import time

import pytest
from test_kills import SHARED, Command
from test_voc import write_squares

EXPERIMENT = """
stage = dataclasses.replace(stage, steps=2000)
settings = dict(evaluation=Evaluation(every_steps=100, pictures=1), checkpoints=Checkpoints(every_steps=100))
model = small_detector(num_classes=None)
experiment = Experiment("flat", dataclasses.replace(data, workers=1), model, (stage,), **settings)
"""


def sample(command: Command) -> dict[str, float] | None:
  """The step, and of the command and all that it has started: MiB in memory, open files, processes."""
  steps = re.findall(rb"\nstep (\d+)/", command.said)
  memory, files, processes = 0.0, 0, 0
  for place in command.places():
    try:
      rollup = (place / "smaps_rollup").read_text()
      memory += int(re.search(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)[1]) / 1024
      files += len(os.listdir(place / "fd"))
      processes += 1
    except (OSError, TypeError):
      continue
  return {"step": int(steps[-1]), "memory": memory, "files": files, "processes": processes} if steps else None


@pytest.mark.long
def test_memory_open_files_and_processes_are_flat(tmp_path):
  write_squares(tmp_path / "voc")
  (tmp_path / "flat.py").write_text(SHARED + EXPERIMENT)
  command = Command(tmp_path, "flat", ["train", "--workdir={run}", "--log_every=10"], "run")
  samples = []
  while command.running():
    found = sample(command)
    samples += [found] if found and found["processes"] else []
    time.sleep(0.5)
  assert command.end() == 0, command.lines()
  samples = [each for each in samples if each["step"] < 2000]  # at the end everything is being closed
  assert command.said.count(b"evaluated step") == 20
  if os.environ.get("RCNN_JAX_FLAT_PLOT"):
    draw(samples, pathlib.Path(os.environ["RCNN_JAX_FLAT_PLOT"]))
  early = [each for each in samples if 400 <= each["step"] < 1000]
  late = [each for each in samples if 1400 <= each["step"]]
  for name, growth in (("memory", 1.03), ("files", 1.1), ("processes", 1.0)):
    before, after = (statistics.median(each[name] for each in part) for part in (early, late))
    assert after <= growth * before, f"{name}: {before} and later {after}"


def draw(samples: list[dict[str, float]], path: pathlib.Path) -> None:
  """Three curves over the step."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 5), layout="constrained")
  labels = {"memory": "memory, MiB", "files": "open files", "processes": "processes"}
  for axes, (name, label) in zip(figure.subplots(3, 1, sharex=True), labels.items()):
    axes.plot([each["step"] for each in samples], [each[name] for each in samples], linewidth=1)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
  axes.set_xlabel("step; an evaluation every 100")
  figure.savefig(path, dpi=110)

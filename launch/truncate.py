"""What truncated SVD of a run's fully connected layers saves, and what it costs (Fast R-CNN, section 3.1).

    python -m launch.truncate --workdir=RUN --ranks=1024,256 [--ranks=256,64 ...] [--checkpoint=best|latest|STEP]

One rank for each layer of the trunk (fc6, fc7, ...), '-' for one that stays whole. Evaluates the run as it is and at
each choice of ranks, times their detection in turns on the same images, prints one table and writes it to
RUN/truncated/{table.txt,table.json}. Each choice becomes a run of its own, RUN/truncated/RANKS, for launch.predict.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import shutil
import statistics
from typing import Any

import jax
from absl import flags

from launch import evaluate, import_weights
from launch import flags as launch_flags
from rcnn_jax import timing
from rcnn_jax.data import loader
from rcnn_jax.evaluation.tables import text_table
from rcnn_jax.files import write_json, write_text
from rcnn_jax.training.checkpoint import Run
from rcnn_jax.weights import truncation
from rcnn_jax.weights.errors import WeightsError

FLAGS = flags.FLAGS
METRICS = ("bbox/AP", "bbox/AP50", "segm/AP", "voc/mAP_11pt")


def define_flags() -> None:
  """Defines the options of this command."""
  launch_flags.define_run()
  flags.DEFINE_multi_string("ranks", None, "The rank of each layer, e.g. 1024,256; may be repeated.", required=True)
  flags.DEFINE_integer("batches", 4, "Batches of the evaluation data that detection is timed on.", lower_bound=1)
  flags.DEFINE_integer("repeats", 5, "Times that they are timed, after one that is not counted.", lower_bound=1)


def main(argv: list[str]) -> None:
  """Truncates, evaluates, times, prints."""
  del argv
  run, folder = launch_flags.chosen_run(), pathlib.Path(FLAGS.workdir, "truncated")
  runs = {"whole": run} | {ranks: truncated(run, parsed(ranks)) for ranks in FLAGS.ranks}
  for name, one in itertools.islice(runs.items(), 1, None):
    shutil.rmtree(folder / name, ignore_errors=True)
    import_weights.write(folder / name, one.experiment, one.categories, one.keypoints, one.variables)
  metrics = {name: evaluate.evaluate_run(one, folder / name / "eval" / "0") for name, one in runs.items()}
  seconds = timed(runs, FLAGS.batches, FLAGS.repeats)
  rows = {name: row(one, metrics[name], seconds[name]) for name, one in runs.items()}
  write_json(folder / "table.json", rows)
  write_text(folder / "table.txt", table(rows) + "\n")
  print(f"\n{table(rows)}\nwritten to {folder}")


def parsed(text: str) -> tuple[int | None, ...]:
  """'1024,-' -> (1024, None)."""
  words = text.split(",")
  if not all(word == "-" or word.isdecimal() for word in words):
    raise WeightsError(f"--ranks={text}: expected a whole number or - for each layer, like 1024,256")
  return tuple(None if word == "-" else int(word) for word in words)


def truncated(run: Run, ranks: tuple[int | None, ...]) -> Run:
  """The run with its trunk's layers at these ranks."""
  experiment = truncation.truncated_experiment(run.experiment, ranks)
  changed = dataclasses.replace(run, variables=truncation.truncate(run.variables, ranks))
  return launch_flags.with_experiment(changed, experiment)


def timed(runs: dict[str, Run], num_batches: int, repeats: int) -> dict[str, list[float]]:
  """Seconds an image of each run's detection, by repeat, in turns; images are loaded and programs compiled before."""
  data = next(iter(runs.values())).experiment.data
  bare = dataclasses.replace(data, load_masks=False, load_keypoints=False, max_objects=None)
  batches = list(itertools.islice(loader.eval_batches(bare, data.eval.open()), num_batches))
  return timing.alternate({name: timing.detection(run, batches) for name, run in runs.items()}, repeats)


def row(run: Run, metrics: dict[str, float | None], seconds: list[float]) -> dict[str, Any]:
  """What the table says of one run, as plain JSON values."""
  parameters = sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"]))
  measured = {name: metrics[name] for name in METRICS if name in metrics}
  times = {"seconds": statistics.median(seconds), "seconds_min": min(seconds), "seconds_max": max(seconds)}
  return {"parameters": parameters} | measured | times


def table(rows: dict[str, dict[str, Any]]) -> str:
  """The rows for people, one a choice of ranks."""
  metrics = [name for name in METRICS if name in rows["whole"]]
  header = ["ranks", "parameters", *metrics, "s an image", "least", "most"]
  lines = []
  for name, found in rows.items():
    numbers = ["-" if found[metric] is None else f"{found[metric]:.4f}" for metric in metrics]
    times = [f"{found[time]:.4f}" for time in ("seconds", "seconds_min", "seconds_max")]
    lines.append([name, f"{found['parameters']:,}", *numbers, *times])
  return text_table(header, lines)


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

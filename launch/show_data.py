"""Draws training examples as the model sees them: augmented, on their canvases, with the truth over the pixels.

    python -m launch.show_data --experiment=NAME_OR_FILE --output=DIR [--num_images=24] [--columns=4] [--step=0]

The examples are those of the training's batches from --step on: the same seed, the same draws. Masks are drawn from
the crops that stand in the batch. With --evaluation, those of the evaluation data. The part of a canvas on which no
image stands is drawn dark grey. Sheets are DIR/train_000.png ... (or evaluation_000.png ...); no file is replaced
that this project did not write. --set changes the experiment, e.g. --set=data.augmentations.0.scale=(0.5,1).
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator

from absl import flags

from launch import flags as launch_flags
from rcnn_jax.data import loader, pipeline
from rcnn_jax.data.source import Source, overview
from rcnn_jax.evaluation import outputs, sheets
from rcnn_jax.evaluation.classes import class_keys
from rcnn_jax.evaluation.detect import EvaluationError
from rcnn_jax.experiment import Experiment
from rcnn_jax.types import Batch

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the options of this command."""
  launch_flags.define_experiment()
  launch_flags.define_path("output", "Directory for the sheets.", required=True)
  flags.DEFINE_integer("num_images", 24, "How many examples are drawn.", 1)
  flags.DEFINE_integer("columns", 4, "Examples side by side; a sheet has at most as many rows.", 1)
  flags.DEFINE_integer("side", 480, "Pixels of an example's longer side.", 32)
  flags.DEFINE_integer("step", 0, "The training step of the first batch that is drawn.", 0)
  flags.DEFINE_bool("evaluation", False, "The evaluation data, which nothing augments.")


def main(argv: list[str]) -> None:
  """Draws the sheets, and prints what was done to the images and how many objects of each class they have."""
  del argv
  experiment = launch_flags.chosen_experiment()
  output = pathlib.Path(FLAGS.output)
  if output.exists() and not output.is_dir():
    raise EvaluationError(f"--output={output} is a file; it must be a folder, or not there yet")
  data = dataclasses.replace(experiment.data, workers=0)
  source = (data.eval if FLAGS.evaluation else data.train).open()
  shown = itertools.islice(_examples(experiment, data, source), FLAGS.num_images)
  kind = "evaluation" if FLAGS.evaluation else "train"
  number, counts = write_sheets(shown, source, output, kind, FLAGS.columns, FLAGS.side)
  print("evaluation: resized alone" if FLAGS.evaluation else _told(data))
  print(", ".join(f"{name}: {count}" for name, count in counts.most_common()) or "no objects")
  print(f"{number} sheet{'' if number == 1 else 's'} written to {output}")


def write_sheets(
  examples: Iterator[Batch], source: Source, output: pathlib.Path, kind: str, columns: int, side: int
) -> tuple[int, collections.Counter]:
  """Writes sheets of examples; returns the number of sheets, and how many objects of each class they show."""
  found = overview(source, masks=False)
  file_names = dict(zip(found.image_ids.tolist(), found.file_names))
  keys = class_keys((category.id, category.name) for category in source.categories)
  names = {number: keys[category.id] for number, category in enumerate(source.categories, start=1)}
  skeleton = source.keypoints.skeleton if source.keypoints else ()
  counts, taken, number = collections.Counter(), set(), 0
  while group := list(itertools.islice(examples, columns**2)):
    pictures = [sheets.picture(one, names, side, skeleton) for one in group]
    captions = [_caption(one, file_names[int(one.image_id)]) for one in group]
    sheet = sheets.sheet(pictures, captions, side, min(columns, len(group)))
    outputs.write_picture(outputs.picture_path(output, f"{kind}_{number:03}.png", taken), sheet)
    counts.update(names[int(k)] for one in group for k in one.truth.classes[one.truth.valid])
    number += 1
  return number, counts


def _examples(experiment: Experiment, data: pipeline.Data, source: Source) -> Iterator[Batch]:
  """The examples one by one, without a leading B."""
  if FLAGS.evaluation:
    batches = iter(loader.eval_batches(data, source))
  else:
    steps = FLAGS.step + FLAGS.num_images  # a batch holds at least one image
    batches = loader.train_loader(data, source, seed=experiment.seed, num_steps=steps)
    batches.set_state({"next_step": FLAGS.step})
  for batch in batches:
    yield from sheets.examples(batch)


def _caption(example: Batch, name: str) -> str:
  height, width = example.image_size.tolist()
  count = int(example.truth.valid.sum())
  return f"{name}: {width} x {height}, {count} object{'' if count == 1 else 's'}"


def _told(data: pipeline.Data) -> str:
  return "training: " + ", ".join(repr(operation) for operation in pipeline.operations(data))


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

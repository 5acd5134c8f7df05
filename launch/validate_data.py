"""Lists every fault of a data set by file and object; exits with status 1 if there is any.

python -m launch.validate_data --experiment=NAME_OR_FILE [--set=path=value ...]
python -m launch.validate_data --voc=DIR --split=trainval
python -m launch.validate_data --coco_images=DIR --coco_annotations=FILE
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

from absl import app, flags

from launch import flags as launch_flags
from rcnn_jax import experiment
from rcnn_jax.data import validate
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.voc import VocFolder

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the options of this command."""
  flags.DEFINE_string("experiment", None, "Name or file of an experiment: its training and evaluation data.")
  launch_flags.define_set()
  launch_flags.define_path("voc", "A folder in the layout of Pascal VOC.")
  flags.DEFINE_string("split", "trainval", "With --voc: the split, ImageSets/Main/SPLIT.txt.")
  launch_flags.define_path("coco_images", "A folder of images, with --coco_annotations.")
  launch_flags.define_path("coco_annotations", "A COCO annotation file, with --coco_images.")


def main(argv: list[str]) -> None:
  """Prints the faults, one a line, and their number."""
  del argv
  found = set()  # what two splits of a folder share is reported once
  for fault in itertools.chain.from_iterable(map(validate.faults, chosen_data())):
    if fault not in found:
      found.add(fault)
      print(fault.encode(errors="backslashreplace").decode(), flush=True)  # names of files may be no text
  print(f"{len(found)} fault{'' if len(found) == 1 else 's'}")
  if found:
    sys.exit(1)


def chosen_data() -> list[Any]:
  """The data sets that the flags name. Raises app.UsageError unless they name exactly one kind."""
  if (FLAGS.coco_images is None) != (FLAGS.coco_annotations is None):
    raise app.UsageError("--coco_images and --coco_annotations go together")
  if sum(value is not None for value in (FLAGS.experiment, FLAGS.voc, FLAGS.coco_images)) != 1:
    raise app.UsageError("name one data set: --experiment, --voc, or --coco_images with --coco_annotations")
  if FLAGS.voc:
    return [VocFolder(FLAGS.voc, FLAGS.split)]
  if FLAGS.coco_images:
    return [CocoFolder(FLAGS.coco_images, FLAGS.coco_annotations)]
  data = experiment.load(FLAGS.experiment).set(FLAGS.set).data
  return [data.train] if data.train == data.eval else [data.train, data.eval]


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

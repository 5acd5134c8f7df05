"""How fast examples are made, on one core: copy-paste over large-scale jitter against mirror images alone.

    OPENBLAS_NUM_THREADS=1 python -m launch.benchmark_augment --coco_images=DIR --coco_annotations=FILE [--side=1024]

Prints images per second of processor time, from the file to the example with its masks on a square canvas; the
chains are measured in turns, each over all images, and the median of its passes counts.
"""

from __future__ import annotations

import dataclasses
import statistics
import time

import cv2
import numpy as np
from absl import flags

from launch import flags as launch_flags
from rcnn_jax.data import pipeline
from rcnn_jax.data.augment.copy_paste import CopyPaste
from rcnn_jax.data.augment.scale import LargeScaleJitter
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import HorizontalFlip, Resize

FLAGS = flags.FLAGS
CHAINS = {
  "plain": (HorizontalFlip(),),
  "large-scale jitter": (LargeScaleJitter(), HorizontalFlip()),
  "copy-paste over it": (LargeScaleJitter(), HorizontalFlip(), CopyPaste()),
}


def define_flags() -> None:
  """Defines the options of this command."""
  launch_flags.define_path("coco_images", "A folder of images.", required=True)
  launch_flags.define_path("coco_annotations", "Its annotation file, with masks.", required=True)
  flags.DEFINE_integer("side", 1024, "Of the canvas, in pixels.", 1)
  flags.DEFINE_integer("repeats", 2, "Passes over all images.", 1)


def main(argv: list[str]) -> None:
  """Measures, and prints one line for each chain."""
  del argv
  cv2.setNumThreads(1)
  folder, side = CocoFolder(FLAGS.coco_images, FLAGS.coco_annotations), FLAGS.side
  plain = Data(folder, folder, resize=Resize((side,), side), canvases=((side, side),), load_masks=True)
  source = folder.open()
  max_objects = pipeline.survey(plain, source).max_objects
  speeds = {name: [] for name in CHAINS}
  for repeat in range(FLAGS.repeats):
    for name, chain in CHAINS.items():
      speeds[name].append(_speed(plain, chain, source, max_objects, repeat))
  for name, measured in speeds.items():
    median = statistics.median(measured)
    share = median / statistics.median(speeds["plain"])
    print(f"{name:<20}{median:8.1f} images/s{100 * share:7.0f} % of plain")


def _speed(plain: Data, chain: tuple, source, max_objects: int, seed: int) -> float:
  """Images per second of processor time."""
  data = dataclasses.replace(plain, augmentations=chain)
  room, began = pipeline.room_for_objects(data, max_objects), time.process_time()
  for index in range(len(source)):
    pipeline.load(data, source, index, data.canvases[0], room, np.random.default_rng((seed, index)))
  return len(source) / (time.process_time() - began)


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

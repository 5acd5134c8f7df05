"""Finds objects in image files with a checkpoint of a run.

    python -m launch.predict --workdir=DIR --images=FILES --output=DIR2 [--min_score=0.05] [--checkpoint=best]

FILES is a file, a folder (its images) or a pattern ('photos/**/*.jpg'). Writes a picture of each image and
detections.json: COCO results entries in pixels of the original image, each with the `file_name` and the `category`
name beside. Both are written as they come: until the last image is done, the entries stand in
detections.json.partial. A photograph is taken upright, as its camera's orientation flag says.

No file is replaced that an earlier prediction did not write. A file that is no image is named in a warning; the
others are still worked on, and the command fails at the end.
"""

from __future__ import annotations

import pathlib

import cv2
from absl import flags

from launch import flags as launch_flags
from rcnn_jax.evaluation.detect import EvaluationError
from rcnn_jax.evaluation.image_files import matching_files
from rcnn_jax.evaluation.predict import check_output, predict
from rcnn_jax.evaluation.tiles import Tiles

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the options of this command."""
  launch_flags.define_run()
  flags.DEFINE_string(
    "images", None, "A file, a folder or a pattern, e.g. photos, 'photos/*.jpg' or 'photos/**/*.png'.", required=True
  )
  launch_flags.define_path("output", "Directory for pictures and detections.json.", required=True)
  flags.DEFINE_float("min_score", 0.05, "Detections of a lower score are left out.", 0.0, 1.0)
  flags.DEFINE_integer("tile", None, "Look at each image by overlapping square tiles of so many pixels.", 1)
  flags.DEFINE_float(
    "overlap", 0.2, "With --tile: the share of a tile's side that neighbours have in common.", 0.0, 0.9
  )
  flags.DEFINE_integer("batch_size", None, "Images at a time; by default as in the run's evaluations.", 1)


def main(argv: list[str]) -> None:
  """Predicts, and fails if a file could not be read."""
  del argv
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # files that are no images get one line, of ours
  output = pathlib.Path(FLAGS.output)
  files = matching_files(FLAGS.images, output)
  check_output(output)
  run = launch_flags.chosen_run()
  tiles = None if FLAGS.tile is None else Tiles(FLAGS.tile, FLAGS.overlap)
  unread = predict(run, files, output, FLAGS.min_score, FLAGS.batch_size, tiles)
  if unread:
    raise EvaluationError(f"{len(unread)} of {len(files)} files could not be read")


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

"""Writes a run's detection, with its preprocessing, as one portable program that needs nothing of this project.

    python -m launch.export_program --workdir=DIR --output=FILE.zip [--checkpoint=best|latest|STEP] [--batch_size=N]

The program is StableHLO as jax.export serialises it, for CPU, CUDA and TPU; docs/export.md has the script that runs it.
Without --batch_size it takes any number of images at a time; a model that finds masks or keypoints needs it.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence

from absl import flags

from launch import flags as launch_flags
from rcnn_jax.export_program import PLATFORMS, ExportError, write

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the options of this command."""
  launch_flags.define_run()
  launch_flags.define_path("output", "The zip to be written; it must be new.", required=True)
  flags.DEFINE_integer("batch_size", None, "Images that the program takes at a time; by default any number.", 1)
  flags.DEFINE_list("platforms", list(PLATFORMS), "What the program is lowered for.")
  help_text = "HEIGHTxWIDTH of images, e.g. 480x640,640x480, where the run has a canvas for each size."
  flags.DEFINE_list("image_sizes", [], help_text)


def main(argv: list[str]) -> None:
  """Exports one checkpoint, and says what the file takes."""
  del argv
  output = pathlib.Path(FLAGS.output)
  check_output(output)
  check_platforms(FLAGS.platforms)
  image_sizes = [size_of(text) for text in FLAGS.image_sizes]
  run = launch_flags.chosen_run()
  said = write(run, output, FLAGS.batch_size, FLAGS.platforms, image_sizes)
  takes = ", ".join(f"{name} {shape}" for name, shape in said["takes"].items())
  size = output.stat().st_size / 2**20
  print(f"step {run.step} written to {output} ({size:.1f} MiB), for {', '.join(said['platforms'])}; it takes {takes}")


def check_output(output: pathlib.Path) -> None:
  """Raises ExportError where a new file cannot be written at `output`."""
  if not output.parent.is_dir():
    raise ExportError(f"--output={output}: there is no folder {output.parent}")
  if os.path.lexists(output):
    raise ExportError(f"--output={output} is there already")


def check_platforms(platforms: Sequence[str]) -> None:
  """Raises ExportError for a platform that the program cannot be lowered for."""
  unknown = [name for name in platforms if name not in PLATFORMS]
  if unknown or not platforms:
    raise ExportError(f"--platforms={','.join(platforms)}: it takes {', '.join(PLATFORMS)}")


def size_of(text: str) -> tuple[int, int]:
  """(height, width) of '480x640'; raises ExportError for another text."""
  if not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", text):
    raise ExportError(f"--image_sizes={text}: it takes HEIGHTxWIDTH, e.g. 480x640")
  height, width = text.split("x")
  return int(height), int(width)


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

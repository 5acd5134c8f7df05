"""Finds objects in image files with a checkpoint of a run.

    python -m launch.predict --workdir=DIR --images=GLOB --output=DIR2 [--min_score=0.05] [--checkpoint=best]

Writes a picture of each image and detections.json: COCO results entries in pixels of the original image, each with
the `file_name` and the `category` name beside. A photograph is taken upright, as its camera's orientation flag says.
A file that is no image is named in a warning; the others are still worked on, and the command fails at the end.
"""

from __future__ import annotations

import glob
import pathlib
import sys
from collections.abc import Iterator, Sequence

import cv2
from absl import flags
from PIL import Image

from launch import flags as launch_flags
from rcnn_jax.data import images, pipeline, proposals, selective_search
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.selective_search import SelectiveSearch
from rcnn_jax.evaluation import detect, draw
from rcnn_jax.evaluation.detect import EvaluationError
from rcnn_jax.files import write_json
from rcnn_jax.types import Batch

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the options of this command."""
  launch_flags.define_run()
  launch_flags.define_compilation_cache()
  flags.DEFINE_string("images", None, "The image files, e.g. 'photos/*.jpg' or 'photos/**/*.png'.", required=True)
  launch_flags.define_path("output", "Directory for pictures and detections.json.", required=True)
  flags.DEFINE_float("min_score", 0.05, "Detections of a lower score are left out.", 0.0, 1.0)


def main(argv: list[str]) -> None:
  """Predicts, and fails if a file could not be read."""
  del argv
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # files that are no images get one line, of ours
  files = matching_files(FLAGS.images)
  run = launch_flags.chosen_run()
  launch_flags.keep_programs(run.experiment, FLAGS.workdir)
  unread = predict(run, files, pathlib.Path(FLAGS.output), FLAGS.min_score)
  if unread:
    raise EvaluationError(f"{len(unread)} of {len(files)} files could not be read")


def predict(
  run, files: Sequence[tuple[pathlib.Path, str]], output: pathlib.Path, min_score: float
) -> list[pathlib.Path]:
  """Writes detections.json and a picture of each image into `output`.

  Args:
    run: `training.checkpoint` Run.
    files: of `matching_files`.
    output: made if need be.
    min_score: detections below are left out.

  Returns:
    The files that could not be read; each has been named in a warning on stderr.
  """
  model = run.experiment.model.met_with(run.categories, run.keypoints)
  sizes: dict[int, tuple[int, int]] = {}
  batches = _batches(files, run.experiment.data, sizes, chosen_search(run.experiment.data))
  ids, offset = [c.id for c in run.categories], run.experiment.data.joint_offset
  results = detect.detect(model, run.variables, batches, sizes, ids, joint_offset=offset)
  names = {c.id: c.name for c in run.categories}
  entries = [_named(e, files, names) for e in results.entries if e["score"] >= min_score]
  write_json(output / "detections.json", entries, indent=None)
  skeleton = run.keypoints.skeleton if run.keypoints else ()
  _write_pictures(files, sizes, entries, names, skeleton, output)
  print(f"{len(entries)} objects in {len(sizes)} images; written to {output}")
  return [path for image_id, (path, _) in enumerate(files, start=1) if image_id not in sizes]


def matching_files(pattern: str) -> list[tuple[pathlib.Path, str]]:
  """The files that match, sorted, each with its name relative to the pattern's first folder without a wildcard.

  Raises:
    EvaluationError: there is none.
  """
  paths = sorted(pathlib.Path(p) for p in glob.glob(pattern, recursive=True) if pathlib.Path(p).is_file())
  if not paths:
    raise EvaluationError(f"no file matches --images={pattern}")
  parts = pathlib.Path(pattern).parts[:-1]
  fixed = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts))
  return [(path, path.relative_to(pathlib.Path(*parts[:fixed])).as_posix()) for path in paths]


def chosen_search(data: pipeline.Data) -> SelectiveSearch | None:
  """The search that made the run's evaluation proposals; None where the model makes its own.

  Raises:
    DataError: they are not there, or were not found by a search that can be repeated here.
  """
  if data.proposals is None:
    return None
  folder = data.proposals[1]
  return selective_search.like(proposals.read_settings(folder), folder)


def _batches(
  files: Sequence[tuple[pathlib.Path, str]],
  data: pipeline.Data,
  sizes: dict[int, tuple[int, int]],
  search: SelectiveSearch | None,
) -> Iterator[Batch]:
  """A batch for each file that can be read; its size is noted in `sizes` by image id (its place, from 1)."""
  for image_id, (path, _) in enumerate(files, start=1):
    try:
      image = images.read(path, upright=True)
    except DataError as error:
      print(f"warning: {error}", file=sys.stderr)
      continue
    sizes[image_id] = image.shape[:2]
    found = None if search is None else [search(image, str(path))]
    yield pipeline.image_batch([image], data, [image_id], found)


def _named(entry: dict, files: Sequence[tuple[pathlib.Path, str]], names: dict[int, str]) -> dict:
  return entry | {"category": names[entry["category_id"]], "file_name": files[entry["image_id"] - 1][1]}


def _write_pictures(
  files: Sequence[tuple[pathlib.Path, str]],
  sizes: dict,
  entries: Sequence[dict],
  names: dict[int, str],
  skeleton: Sequence[tuple[int, int]],
  output: pathlib.Path,
) -> None:
  """A PNG named like each image; of files that differ only in their ending, the later keep it in their name."""
  taken = set()
  for image_id in sizes:
    path, relative = files[image_id - 1]
    target = (output / relative).with_suffix(".png")
    target = output / f"{relative}.png" if target in taken else target
    taken.add(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    found = [e for e in entries if e["image_id"] == image_id]
    picture = draw.draw(images.read(path, upright=True), found, names, skeleton=skeleton)
    Image.fromarray(picture).save(target)


if __name__ == "__main__":
  launch_flags.run(main, define_flags)

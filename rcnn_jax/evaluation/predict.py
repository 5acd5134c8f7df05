"""Objects in image files: found, written and drawn image by image, in a time that is linear in their number."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from rcnn_jax.data import pipeline, proposals, selective_search
from rcnn_jax.data.selective_search import SelectiveSearch
from rcnn_jax.evaluation import detect, draw, outputs
from rcnn_jax.evaluation.classes import class_keys
from rcnn_jax.evaluation.detect import EvaluationError
from rcnn_jax.evaluation.image_files import ImageFile
from rcnn_jax.evaluation.readers import Reader, TiledReader, ViewsReader
from rcnn_jax.evaluation.results import Found
from rcnn_jax.evaluation.tiles import Tiles
from rcnn_jax.evaluation.view_masks import Masker, split
from rcnn_jax.evaluation.views import Merging, check_views, views_of
from rcnn_jax.files import naming


def predict(
  run,
  files: Sequence[ImageFile],
  output: pathlib.Path,
  min_score: float,
  batch_size: int | None = None,
  tiles: Tiles | None = None,
) -> list[pathlib.Path]:
  """Writes detections.json and a picture of each image into `output`, as they come.

  No file that an earlier prediction did not write is replaced: a picture gets another name instead
  (`outputs.picture_path`).

  Args:
    run: `training.checkpoint` Run.
    files: of `image_files.matching_files`.
    output: made if need be.
    min_score: detections below are left out.
    batch_size: images, tiles or views that are looked at together; None: as many as in the run's evaluations.
    tiles: look at each image by these, and not at it as a whole.

  Returns:
    The files that could not be read; each has been named in a warning on stderr.

  Raises:
    EvaluationError: `output` is no folder, or holds a detections.json that no prediction wrote; or `check_views`
      raises it.
  """
  check_output(output)
  data, model = run.experiment.data, run.experiment.model.with_data(run.categories, run.keypoints)
  search, views = chosen_search(data), views_of(run.experiment.evaluation.views, data)
  category_ids = [category.id for category in run.categories]
  check_views(run.experiment.evaluation.views, tiles, model, run.keypoints)
  if tiles is not None and search is not None:
    raise EvaluationError("tiles need a model that makes its own proposals")
  with tqdm(total=len(files), unit="image", file=sys.stderr, disable=None, leave=False) as bar:
    at_a_time = batch_size or data.batch_size[1]
    if tiles is not None:
      reader = TiledReader(files, data, tiles, at_a_time, bar)
    elif len(views) == 1:
      reader = Reader(files, views[0].data, search, min(at_a_time, len(files)), bar)
    else:
      model, of_masks = split(model)
      merging = Merging(model.box, run.keypoints, data.joint_offset)
      masker = None if of_masks is None else Masker(of_masks, run.variables, category_ids, views)
      reader = ViewsReader(files, data, search, views, merging, masker, min(at_a_time, len(files)), bar)
    found = detect.find(
      model,
      run.variables,
      reader.batches(),
      reader.sizes,
      category_ids,
      joint_offset=data.joint_offset,
    )
    count = write(run, files, reader, reader.whole(found), output, min_score, bar)
  print(f"{count} objects in {len(files) - len(reader.unread)} images; written to {output}")
  return reader.unread


def check_output(output: pathlib.Path) -> None:
  """Raises EvaluationError where predictions cannot be written into `output` without a loss."""
  if output.exists() and not output.is_dir():
    raise EvaluationError(f"--output={output} is a file; it must be a folder, or not there yet")
  for name in ("detections.json", "detections.json.partial"):
    if (output / name).exists() and not outputs.is_own_detections(output / name):
      what = "no prediction wrote this file; choose another --output, or move it away"
      raise EvaluationError(f"{output / name}: {what}")


def chosen_search(data: pipeline.Data) -> SelectiveSearch | None:
  """The search that made the run's evaluation proposals; None where the model makes its own.

  Raises:
    DataError: they are not there, or were not found by a search that can be repeated here.
  """
  if data.proposals is None:
    return None
  folder = data.proposals[1]
  return selective_search.like(proposals.read_settings(folder), folder)


def write(run, files, reader: Reader, found: Iterator[Found], output: pathlib.Path, min_score: float, bar) -> int:
  """Writes what was found in each image; returns the number of objects."""
  names = {category.id: category.name for category in run.categories}
  keys = class_keys(names.items())
  skeleton = run.keypoints.skeleton if run.keypoints else ()
  kept, taken, count = outputs.file_ids([path for path, _ in files]), set(), 0
  with DetectionsFile(output / "detections.json") as detections:
    for image in found:
      relative = files[image.image_id - 1][1]
      entries = image.above(min_score).entries
      picture = draw.draw(reader.take(image.image_id), entries, keys, skeleton=skeleton)
      outputs.write_picture(outputs.picture_path(output, relative, taken, kept), picture)
      detections.add([{**e, "category": names[e["category_id"]], "file_name": relative} for e in entries])
      count += len(entries)
      bar.update()
  return count


class DetectionsFile:
  """detections.json as it grows. `detections.json.partial` is whole JSON after each image, then takes its place."""

  def __init__(self, path: pathlib.Path):
    self._path, self._partial = path, path.with_name(f"{path.name}.partial")
    with naming(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      self._file = open(self._partial, "wb", buffering=0)
      self._file.write(b"[\n]\n")
    self._end = 1  # where the next entry begins

  def add(self, entries: Sequence[dict]) -> None:
    """Appends entries, one a line. Where there is no room for them, the file is left with those before."""
    text = b",\n".join(json.dumps(entry, allow_nan=False).encode() for entry in entries)
    if not text:
      return
    text = (b",\n" if self._end > 1 else b"\n") + text
    with naming(self._path):
      try:
        self._put(text + b"\n]\n")
      except OSError:
        self._file.truncate(self._end)
        self._put(b"\n]\n")
        raise
    self._end += len(text)

  def _put(self, text: bytes) -> None:
    self._file.seek(self._end)
    while text:
      text = text[self._file.write(text) :]

  def __enter__(self) -> DetectionsFile:
    return self

  def __exit__(self, kind, *_) -> None:
    self._file.close()
    if kind is None:
      self._partial.replace(self._path)

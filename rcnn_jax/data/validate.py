"""Every fault of a data set, one line each: what `launch.validate_data` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rcnn_jax.data.errors import DataError
from rcnn_jax.data.images import size_problem
from rcnn_jax.data.source import Source, object_faults, overview, unfollowed_orientation, untrainable


def faults(spec: Any) -> Iterator[str]:
  """Yields every fault of the data set that `spec` names; each image is decoded, which takes its time.

  Found are: missing folders, files and splits; annotation files that cannot be parsed; ids that are unknown or
  stand twice; degenerate boxes; missing, empty and corrupt masks; too few or too many joints; images that are
  missing, truncated, no images, or of another size than their annotations say, or whose EXIF orientation is not
  followed; and that all objects are crowds, or that there are none.
  """
  try:
    source = spec.open(strict=False)
  except DataError as error:
    yield str(error)
    return
  yield from (str(fault) for fault in source.faults)
  for index in range(len(source)):
    yield from _image_faults(source, index)
  found = overview(source, masks=False)
  nothing = untrainable(found) if len(source) else None  # else the faults have said so
  if nothing is not None and not found.num_faulty:  # faulty objects have been named one by one
    yield nothing


def _image_faults(source: Source, index: int) -> Iterator[str]:
  annotations = source.annotations(index)
  for row, problem in object_faults(annotations).items():
    yield f"{annotations.file_name}: object {annotations.ids[row]}: {problem}"
  try:
    size = source.image(index).shape[:2]
    orientation = unfollowed_orientation(source, index)
  except DataError as error:
    yield str(error)
    return
  problem = size_problem(size, annotations.size, orientation)
  if problem is None and orientation > 1:
    problem = (
      f"its EXIF orientation {orientation} is not followed: its boxes are read as those of the image as it is stored "
      "(with upright=True, as those of the image turned upright)"
    )
  if problem is not None:
    yield f"{annotations.file_name}: {problem}"

"""Every fault of a data set, one line each: what `launch.validate_data` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rcnn_jax.data.errors import DataError
from rcnn_jax.data.source import Source, object_faults


def faults(spec: Any) -> Iterator[str]:
  """Yields every fault of the data set that `spec` names; each image is decoded, which takes its time.

  Found are: missing folders, files and splits; annotation files that cannot be parsed; ids that are unknown or
  stand twice; degenerate boxes; missing, empty and corrupt masks; too few or too many joints; images that are
  missing, truncated, no images, or of another size than their annotations say.
  """
  try:
    source = spec.open(strict=False)
  except DataError as error:
    yield str(error)
    return
  yield from (str(fault) for fault in source.faults)
  for index in range(len(source)):
    yield from _image_faults(source, index)


def _image_faults(source: Source, index: int) -> Iterator[str]:
  annotations = source.annotations(index)
  for row, problem in object_faults(annotations).items():
    yield f"{annotations.file_name}: object {annotations.ids[row]}: {problem}"
  try:
    height, width = source.image(index).shape[:2]
  except DataError as error:
    yield str(error)
    return
  if (height, width) != tuple(annotations.size):
    said = f"{annotations.size[1]} x {annotations.size[0]}"
    yield f"{annotations.file_name}: the file is {width} x {height}, its annotations are for {said}"

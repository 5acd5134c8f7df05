"""The least that the numbers of an experiment may be: a smaller one raises an error that names its path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rcnn_jax.experiment import Experiment, ExperimentError, flatten

# Whole paths (regular expressions) -> the least of every number there; a tuple must not be empty either.
LEAST = {
  r"seed|data\.(workers|min_keypoints)|evaluation\.pictures|checkpoints\.keep_last|stages\.\d+\.weight_decay": 0,
  r"data\.(batch_size|num_proposals|max_objects|canvases|read_threads|prefetch|resize\.(short|long)_side)": 1,
  r"evaluation\.(every_steps|max_detections)|checkpoints\.every_steps|stages\.\d+\.(steps|accumulate)": 1,
  r"evaluation\.views\.(short_sides|long_side)": 1,
  r"evaluation\.patience|mesh\.(data|model)|max_skipped_steps": 1,
  r"model\.(num_classes|roi_chunk|heads\.keypoint\.num_keypoints)": 1,
  r"model\..*\b(num_pre_nms|num_post_nms|num_samples|num_candidates|max_detections|output_size|channels)": 1,
}


def check(experiment: Experiment) -> None:
  """Raises ExperimentError for a number below the least that it may be, with its path."""
  for path, value in flatten(experiment).items():
    least = next((least for pattern, least in LEAST.items() if re.fullmatch(pattern, path)), None)
    if least is None:
      continue
    if value == ():
      raise ExperimentError(f"{path} is empty: it needs at least one value")
    if any(number < least for number in _numbers(value)):
      raise ExperimentError(f"{path} is {value!r}: it must be at least {least}")


def _numbers(value: Any) -> Iterator[float]:
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    yield value
  elif isinstance(value, tuple):
    for part in value:
      yield from _numbers(part)

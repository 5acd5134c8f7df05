"""What earlier versions wrote, in today's form: run directories, files and command lines of then go on working."""

from __future__ import annotations

import re
from typing import Any

# Paths (regular expressions) as they were until 2026-11-27 -> as they are.
PATHS = (
  (r"^((?:.*\.)?model)\.num_keypoints$", r"\1.heads.keypoint.num_keypoints"),
  (r"^((?:.*\.)?model)\.(mask|keypoint)(?=\.|$)", r"\1.heads.\2"),
)
DETECTOR = "rcnn_jax.models.detector:Detector"


def path(given: str) -> str:
  """The path of an experiment's value, as it is called today."""
  for pattern, today in PATHS:
    given = re.sub(pattern, today, given)
  return given


def form(given: dict[str, Any]) -> dict[str, Any]:
  """The JSON form of a part of an experiment, with the fields that its class has today."""
  if given.get("class") != DETECTOR or "heads" in given or not {"mask", "keypoint", "num_keypoints"} & set(given):
    return given
  today = {name: value for name, value in given.items() if name not in ("mask", "keypoint", "num_keypoints")}
  keypoint = given.get("keypoint")
  if isinstance(keypoint, dict):
    keypoint = keypoint | {"num_keypoints": given.get("num_keypoints")}
  return today | {"heads": [head for head in (given.get("mask"), keypoint) if head is not None]}

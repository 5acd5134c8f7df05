"""torchvision's recorded answers, how ours are compared with them, and the variables that both sides share."""

from __future__ import annotations

import functools
import pathlib
import re

import numpy as np
from flax import traverse_util

from rcnn_jax.weights.backbone import torchvision_name
from tests import filling

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "torchvision"

# From our paths to torchvision's, beyond those of a backbone; the first that matches counts.
PATHS = (
  (r"(.*)bottom_up/", r"\1body/"),
  (r"(.*)lateral(\d)/", r"\1fpn/inner_blocks/\2/0/"),
  (r"(.*)output(\d)/", r"\1fpn/layer_blocks/\2/0/"),
  (r"proposer/conv/", "rpn/head/conv/0/0/"),
  (r"proposer/objectness/", "rpn/head/cls_logits/"),
  (r"proposer/deltas/", "rpn/head/bbox_pred/"),
  (r"trunk/", "roi_heads/box_head/"),
  (r"box/classes/", "roi_heads/box_predictor/cls_score/"),
  (r"box/deltas/", "roi_heads/box_predictor/bbox_pred/"),
)
POOLED = (7, 7, 256)  # what the first fully connected layer reads: ours by row, column, channel


@functools.cache
def recorded(name: str) -> dict[str, np.ndarray]:
  """The answers of one function of tests/record_torchvision.py, by name."""
  with np.load(FIXTURES / f"{name}.npz") as answers:
    return dict(answers)


def close(ours, theirs: np.ndarray, tolerance: float = 1e-5) -> None:
  """Equal to `tolerance` relative to the largest of the values, or to 1 where that is smaller."""
  scale = max(1.0, np.abs(theirs).max(initial=0.0))
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


def name_of(path: str, positions: dict[str, int]) -> str:
  """torchvision's name of a variable of a backbone, an FPN or a detector."""
  for ours, theirs in PATHS:
    if re.match(ours, path):
      return torchvision_name(re.sub(ours, theirs, path, count=1), positions)
  return torchvision_name(path, positions)


def to_torch(name: str, value: np.ndarray) -> np.ndarray:
  """Our layout to PyTorch's: HWIO to OIHW, [in, out] to [out, in]; torchvision regresses the background too."""
  if name.endswith("fc6.weight"):
    value = np.reshape(value, (*POOLED, -1))
    return value.transpose(3, 2, 0, 1).reshape(value.shape[-1], -1)
  value = np.transpose(value, (3, 2, 0, 1)) if np.ndim(value) == 4 else np.transpose(value)
  if "box_predictor.bbox_pred" in name:
    value = np.concatenate([np.zeros((4, *value.shape[1:]), np.float32), value])
  return value


def from_torch(name: str, value: np.ndarray) -> np.ndarray:
  """The inverse of `to_torch`."""
  if name.endswith("fc6.weight"):
    rows, columns, channels = POOLED
    return value.reshape(-1, channels, rows, columns).transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
  if "box_predictor.bbox_pred" in name:
    value = value[4:]
  return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def filled(shapes: dict, positions: dict[str, int]) -> dict:
  """Variables of the given shapes, filled by torchvision's names."""

  def fill(path: tuple[str, ...], leaf) -> np.ndarray:
    name = name_of("/".join(path[1:]), positions)
    theirs = to_torch(name, np.broadcast_to(np.float32(0), leaf.shape)).shape
    return from_torch(name, filling.tensor(name, theirs))

  return traverse_util.path_aware_map(fill, shapes)


def in_torchvisions_layout(variables: dict, positions: dict[str, int]) -> dict[str, np.ndarray]:
  """The variables, or gradients by them, under torchvision's names and in PyTorch's layout."""
  flat = traverse_util.flatten_dict(variables, sep="/")
  named = {name_of(path.partition("/")[2], positions): np.asarray(value) for path, value in flat.items()}
  return {name: to_torch(name, value) for name, value in named.items()}


def pair_up(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
  """bool[N]: which of their detections f32[N, 6] (box, score, class) have a twin among ours, none used twice.

  A twin is of the same class, with an IoU of at least 0.99 and a score within 0.001.
  """
  low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
  high = np.minimum(ours[:, None, 2:4], theirs[None, :, 2:4])
  shared = np.prod(np.maximum(high - low, 0), axis=-1)
  area = lambda rows: np.prod(rows[:, 2:4] - rows[:, :2], axis=1)
  overlap = shared / (area(ours)[:, None] + area(theirs) - shared)
  near = np.abs(ours[:, None, 4] - theirs[:, 4]) <= 1e-3
  twins = (overlap >= 0.99) & near & (ours[:, None, 5] == theirs[:, 5])
  found = np.zeros(len(theirs), bool)
  for column in range(len(theirs)):
    candidates = np.flatnonzero(twins[:, column])
    if len(candidates):
      best = candidates[overlap[candidates, column].argmax()]
      twins[best] = False
      found[column] = True
  return found

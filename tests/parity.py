"""The peers' recorded answers, how ours are compared with them, and the variables that both sides share."""

from __future__ import annotations

import functools
import pathlib
import zlib

import jax
import numpy as np
import pytest
from flax import traverse_util

from rcnn_jax.data import images
from rcnn_jax.models.detector import Detector
from rcnn_jax.weights import backbone, torchvision
from rcnn_jax.weights.library import Library
from tests import filling

FIXTURES = pathlib.Path(__file__).parent / "fixtures"

needs_photographs = pytest.mark.skipif(
  not filling.PHOTOGRAPHS.exists(), reason="needs ../shared/data, which is not part of the project"
)


@functools.cache
def recorded(name: str, peer: str = "torchvision") -> dict[str, np.ndarray]:
  """The answers of one recording by tests/record_torchvision.py or tests/record_detectron2.py, by name."""
  with np.load(FIXTURES / peer / f"{name}.npz") as answers:
    return dict(answers)


def photographs(answers: dict[str, np.ndarray], count: int = len(filling.COCO_IMAGES)) -> dict[int, np.ndarray]:
  """The first photographs by their number in COCO; skips the test where they are not those of the recording."""
  read = {name: images.read(filling.PHOTOGRAPHS / f"{name}.jpg") for name in filling.COCO_IMAGES[:count]}
  if any(zlib.crc32(image.tobytes()) != answers[f"{name}_crc32"] for name, image in read.items()):
    pytest.skip("this JPEG decoder gives other pixels than that of the recording")
  return {int(name): image for name, image in read.items()}


def close(ours, theirs: np.ndarray, tolerance: float = 1e-5) -> None:
  """Equal to `tolerance` relative to the largest of the values, or to 1 where that is smaller."""
  scale = max(1.0, np.abs(theirs).max(initial=0.0))
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


def filled_backbone(shapes: dict, positions: dict[str, int]) -> dict:
  """A bare backbone's variables of the given shapes, filled by torchvision's names."""

  def fill(path: tuple[str, ...], leaf) -> np.ndarray:
    shape = (leaf.shape[3], leaf.shape[2], *leaf.shape[:2]) if len(leaf.shape) == 4 else leaf.shape
    return backbone.to_flax(filling.tensor(backbone.torchvision_name("/".join(path[1:]), positions), shape))

  return traverse_util.path_aware_map(fill, shapes)


def filled_detector(shapes: dict, detector: Detector, library: Library = torchvision.LIBRARY) -> dict:
  """A detector's variables of the given shapes, filled by the library's names and imported like a file of weights."""
  blank = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
  theirs = library.export(blank, detector)
  return library.load({k: filling.tensor(k, v.shape) for k, v in theirs.items()}, blank, detector)


def numbered(shapes: dict) -> dict:
  """Variables of these shapes, each filled with numbers of its own."""
  flat = traverse_util.flatten_dict(shapes, sep="/")
  drawn = {
    p: np.random.default_rng(n).normal(size=s.shape).astype(np.float32) for n, (p, s) in enumerate(flat.items())
  }
  return traverse_util.unflatten_dict(drawn, sep="/")


def assert_equal(ours: dict, theirs: dict) -> None:
  """The same variables, to the last bit."""
  ours, theirs = (traverse_util.flatten_dict(tree, sep="/") for tree in (ours, theirs))
  assert ours.keys() == theirs.keys()
  for path in ours:
    np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


def pair_up(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
  """bool[N]: which of their detections f32[N, 6] (box, score, class) have a twin among ours, none used twice."""
  return twins_of(ours, theirs) >= 0


def twins_of(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
  """i64[N]: the row of the twin among ours f32[M, 6] of each of their detections f32[N, 6], or -1; none used twice.

  A twin is of the same class, with an IoU of at least 0.99 and a score within 0.001.
  """
  low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
  high = np.minimum(ours[:, None, 2:4], theirs[None, :, 2:4])
  shared = np.prod(np.maximum(high - low, 0), axis=-1)
  area = lambda rows: np.prod(rows[:, 2:4] - rows[:, :2], axis=1)
  overlap = shared / (area(ours)[:, None] + area(theirs) - shared)
  near = np.abs(ours[:, None, 4] - theirs[:, 4]) <= 1e-3
  twins = (overlap >= 0.99) & near & (ours[:, None, 5] == theirs[:, 5])
  found = np.full(len(theirs), -1)
  for column in range(len(theirs)):
    candidates = np.flatnonzero(twins[:, column])
    if len(candidates):
      best = candidates[overlap[candidates, column].argmax()]
      twins[best] = False
      found[column] = best
  return found

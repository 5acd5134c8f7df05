"""Large images by overlapping tiles: where the tiles lie, and how what was found in them becomes one answer.

Two detections of neighbouring tiles are of one object where, within what both tiles show, their boxes agree: what a
border cuts looks the same to both of them there. No size of object has to be known for that.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from rcnn_jax.evaluation import paste
from rcnn_jax.evaluation.results import Found

Window = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels of the image

SAME_IOU = 0.5  # of two boxes within what both tiles show
BORDER = 2.0  # pixels; a box that comes so near to a border within the image is taken as cut by it


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Square tiles of `side` pixels; neighbours overlap by at least the share `overlap` of a side."""

  side: int
  overlap: float = 0.2

  def __post_init__(self):
    if self.side < 1:
      raise ValueError(f"a tile of {self.side} pixels: it must have at least 1")
    if not 0 <= self.overlap < 1:
      raise ValueError(f"an overlap of {self.overlap:g}: it must be at least 0 and less than 1")

  def windows(self, size: tuple[int, int]) -> list[Window]:
    """The tiles of an image of `size` (height, width), evenly spaced; the whole image where that is no larger."""
    rows, columns = (self._spans(side) for side in size)
    return [(x1, y1, x2, y2) for (y1, y2), (x1, x2) in itertools.product(rows, columns)]

  def _spans(self, length: int) -> list[tuple[int, int]]:
    if length <= self.side:
      return [(0, length)]
    step = max(1.0, self.side * (1 - self.overlap))
    count = math.ceil((length - self.side) / step) + 1
    starts = np.linspace(0, length - self.side, count).astype(int).tolist()
    return [(start, start + self.side) for start in starts]


def merged(parts: Sequence[tuple[Window, Found]], image_id: int, size: tuple[int, int]) -> Found:
  """What was found in the tiles of an image of `size` (height, width), as one.

  Of an object that several tiles show, the detection that no border cuts counts, the best of them; where all are cut,
  box and mask are the union of theirs. The score is the highest, joints are those of the detection that has it.
  """
  windows = np.array([window for window, _ in parts], np.float64).reshape(-1, 4)
  tiles = np.repeat(np.arange(len(parts)), [len(found) for _, found in parts])
  join = lambda name: np.concatenate([getattr(found, name) for _, found in parts])
  boxes, scores, ids = join("boxes"), join("scores"), join("category_ids")
  boxes[:, :2] += windows[tiles, :2]
  boxes[:, 2:] += boxes[:, :2]
  keypoints = None
  if parts[0][1].keypoints is not None:
    keypoints = join("keypoints")
    keypoints[..., :2] += windows[tiles, None, :2]
  groups = _groups(boxes, ids, tiles, windows)
  groups.sort(key=lambda group: -scores[group].max())
  cut = _cut(boxes, windows[tiles], size)
  best = [
    group[np.lexsort((-scores[group], cut[group]))[0]] for group in groups
  ]  # one that is whole before all others
  kept = [group if cut[first] else np.array([first]) for group, first in zip(groups, best)]
  found = [np.concatenate([boxes[rows, :2].min(0), boxes[rows, 2:].max(0)]) for rows in kept]
  found = np.array(found, np.float64).reshape(-1, 4)
  found[:, 2:] -= found[:, :2]
  counts = None
  if parts[0][1].counts is not None:
    runs = [(window, one.size, each) for window, one in parts for each in one.counts]
    counts = paste.compress([_runs([runs[row] for row in rows], size) for rows in kept])
  leaders = np.array([group[scores[group].argmax()] for group in groups], np.int64)
  return Found(
    image_id, size, found, scores[leaders], ids[leaders], counts, None if keypoints is None else keypoints[leaders]
  )


def _groups(boxes: np.ndarray, ids: np.ndarray, tiles: np.ndarray, windows: np.ndarray) -> list[np.ndarray]:
  """The detections of each object, i64[n] rows each, no two of one tile; the best pairs are joined first."""
  pairs = []
  for a, b in itertools.combinations(range(len(windows)), 2):
    both = np.concatenate([np.maximum(windows[a, :2], windows[b, :2]), np.minimum(windows[a, 2:], windows[b, 2:])])
    if (both[2:] <= both[:2]).any():
      continue
    first, second = np.flatnonzero(tiles == a), np.flatnonzero(tiles == b)
    limited = [np.clip(boxes[rows], np.tile(both[:2], 2), np.tile(both[2:], 2)) for rows in (first, second)]
    iou = _iou(*limited) * (ids[first][:, None] == ids[second])
    pairs += [(iou[i, j], first[i], second[j]) for i, j in np.argwhere(iou >= SAME_IOU)]
  group_of, members = list(range(len(boxes))), {row: [row] for row in range(len(boxes))}
  for _, i, j in sorted(pairs, reverse=True):
    one, other = group_of[i], group_of[j]
    if one == other or set(tiles[members[one]]) & set(tiles[members[other]]):
      continue
    for row in members[other]:
      group_of[row] = one
    members[one] += members.pop(other)
  return [np.array(rows) for rows in members.values()]


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  low = np.maximum(first[:, None, :2], second[None, :, :2])
  high = np.minimum(first[:, None, 2:], second[None, :, 2:])
  area = lambda boxes: np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
  common = np.prod(np.maximum(high - low, 0), axis=2)
  return common / np.maximum(area(first)[:, None] + area(second) - common, 1e-9)


def _cut(boxes: np.ndarray, windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """bool[N]: boxes that touch a border of their tile which is none of the image."""
  low = (boxes[:, :2] - windows[:, :2] < BORDER) & (windows[:, :2] > 0)
  high = (windows[:, 2:] - boxes[:, 2:] < BORDER) & (windows[:, 2:] < np.array(size[::-1]))
  return (low | high).any(axis=1)


def _runs(pieces: Sequence[tuple[Window, tuple[int, int], bytes]], size: tuple[int, int]) -> np.ndarray:
  """The run lengths of the union of masks of tiles, in the image."""
  from pycocotools import mask

  x1, y1 = (min(window[axis] for window, _, _ in pieces) for axis in (0, 1))
  x2, y2 = (max(window[axis] for window, _, _ in pieces) for axis in (2, 3))
  inside = np.zeros((y2 - y1, x2 - x1), bool)
  for window, tile_size, counts in pieces:
    part = inside[window[1] - y1 : window[3] - y1, window[0] - x1 : window[2] - x1]
    part |= mask.decode({"size": list(tile_size), "counts": counts}).astype(bool)
  return paste.window_runs((slice(y1, y2), slice(x1, x2), inside), size)

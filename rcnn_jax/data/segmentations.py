"""Masks as COCO writes them, polygons and run lengths: checked, measured and encoded for many objects at a time.

pycocotools trusts what it is given: a coordinate that is no number or lies far away takes all memory, and run lengths
that are corrupt are read beyond their end. Whatever comes from a file passes through `check_polygons` and
`check_runs` first, which look at the objects of a whole chunk of a file with a few array operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NONE, FILLED, EMPTY, REFUSED = range(4)  # an object's mask: not given, has pixels, has none, cannot be read
FARTHEST = 2.0**31  # pixels; a coordinate beyond is garbage, one within is cut to the surroundings of the image
LONGEST = 2**22  # pixels of a polygon's outline; encoding takes 80 bytes for each


class Polygons(NamedTuple):
  """P polygons, one behind the other."""

  coordinates: np.ndarray  # f64[c]: x, y, x, y ... in pixels
  lengths: np.ndarray  # i64[P], how many coordinates each has; all even and at least 6

  @property
  def starts(self) -> np.ndarray:
    """i64[P], the first coordinate of each."""
    return np.cumsum(self.lengths) - self.lengths

  def pieces(self) -> list[np.ndarray]:
    """The coordinates of each polygon."""
    return np.split(self.coordinates, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []


def check_polygons(polygons: Polygons, sizes: np.ndarray) -> tuple[Polygons, dict[int, str]]:
  """Polygons that can be encoded safely, and what is wrong with the others.

  A polygon that reaches farther beyond the image than the image is long is cut to that window, which moves its edges
  within the image by a tenth of a pixel at most. One without a part in the window, or with a problem, has length 0
  afterwards.

  Args:
    sizes: i64[P, 2], (height, width) of each polygon's image.

  Returns:
    The polygons, and for the place of each one that is refused the reason.
  """
  if not len(polygons.lengths):
    return polygons, {}
  starts, margin = polygons.starts, sizes.max(axis=1)
  with np.errstate(invalid="ignore", over="ignore"):
    low, high = _extents(polygons)
    outside = (low < -margin[:, None]) | (high > sizes[:, ::-1] + margin[:, None]) | ~np.isfinite(low + high)
    too_long = _outlines(polygons) > LONGEST
  odd = np.flatnonzero(outside.any(axis=1) | too_long)
  if not len(odd):
    return polygons, {}
  pieces, problems = polygons.pieces(), {}
  for place in odd.tolist():
    piece, size = polygons.coordinates[starts[place] :][: polygons.lengths[place]], sizes[place]
    problem = _coordinate_problem(piece, size)
    cut = np.zeros(0) if problem else _cut(piece.reshape(-1, 2), size, int(margin[place])).ravel()
    outline = 0.0 if len(cut) < 6 else float(_outlines(Polygons(cut, np.array([len(cut)])))[0])
    if outline > LONGEST:
      problem, cut = f"the outline of a polygon is {outline:.0f} pixels long, more than {LONGEST}", np.zeros(0)
    if problem:
      problems[place] = problem
    pieces[place] = cut if len(cut) >= 6 else np.zeros(0)
  return Polygons(np.concatenate(pieces), np.array([len(piece) for piece in pieces])), problems


def _coordinate_problem(piece: np.ndarray, size: np.ndarray) -> str | None:
  if not np.isfinite(piece).all():
    return f"polygon coordinate {piece[~np.isfinite(piece)][0]:g} is not a finite number"
  if np.abs(piece).max() > FARTHEST:
    return f"polygon coordinate {piece[np.abs(piece).argmax()]:g} is far from the image of {size[1]} x {size[0]}"
  return None


def _cut(points: np.ndarray, size: np.ndarray, margin: int) -> np.ndarray:
  """f64[n, 2]: what of a polygon lies in the image and `margin` pixels around it (Sutherland and Hodgman, 1974)."""
  height, width = (int(side) for side in size)
  for axis, sign, limit in ((0, 1, width + margin), (0, -1, margin), (1, 1, height + margin), (1, -1, margin)):
    if not len(points):
      break
    depth = limit - sign * points[:, axis]  # at least 0 within the half plane
    following, following_depth = np.roll(points, -1, 0), np.roll(depth, -1)
    crossing = (depth >= 0) != (following_depth >= 0)
    share = np.divide(depth, depth - following_depth, out=np.zeros_like(depth), where=crossing)
    met = points + share[:, None] * (following - points)
    met[:, axis] = sign * limit
    both = np.stack([points, met], 1).reshape(-1, 2)
    points = both[np.stack([depth >= 0, crossing], 1).ravel()]
  return points


def _extents(polygons: Polygons) -> tuple[np.ndarray, np.ndarray]:
  """f64[P, 2] each: the least and the greatest (x, y) of every polygon."""
  points, starts = polygons.coordinates.reshape(-1, 2), polygons.starts // 2
  return np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)


def _steps(polygons: Polygons) -> tuple[np.ndarray, np.ndarray]:
  """The points f64[c / 2, 2] and the point that follows each in its polygon."""
  points = polygons.coordinates.reshape(-1, 2)
  following = np.roll(points, -1, 0)
  following[(polygons.starts + polygons.lengths) // 2 - 1] = points[polygons.starts // 2]
  return points, following


def _outlines(polygons: Polygons) -> np.ndarray:
  """f64[P]: the length of every outline, an edge counted by its longer side as it is walked in encoding."""
  points, following = _steps(polygons)
  return np.add.reduceat(np.abs(following - points).max(axis=1), polygons.starts // 2)


def surely_fill(polygons: Polygons, sizes: np.ndarray) -> np.ndarray:
  """bool[P]: polygons, all of a length, that lie in their image and have a pixel for certain; of others, who knows.

  Encoding moves an outline by at most half a pixel. What is left of an area cannot be nothing where the area is
  greater than half the length of the outline. (Of a polygon that runs round twice, the area counts twice.)
  """
  if not len(polygons.lengths):
    return np.zeros(0, bool)
  points, following = _steps(polygons)
  starts = polygons.starts // 2
  twice_area = np.add.reduceat(points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0], starts)
  outline = np.add.reduceat(np.abs(following - points).sum(axis=1), starts)
  low, high = _extents(polygons)
  inside = (low >= 0).all(axis=1) & (high <= sizes[:, ::-1]).all(axis=1)
  return inside & (np.abs(twice_area) > outline + 2)


def polygon_box(polygons: Sequence[np.ndarray]) -> list[float]:
  """[x, y, width, height] of the polygons of one object."""
  points = np.concatenate(polygons).reshape(-1, 2)
  low, high = points.min(axis=0), points.max(axis=0)
  return [*low.tolist(), *(high - low).tolist()]


def encode(polygons: Sequence[Sequence[float]] | None, size: tuple[int, int]) -> dict:
  """The union of polygons (x, y, x, y ...) as COCO's compressed run lengths: {size, counts (str)}.

  The polygons are trusted: see `check_polygons`. Those of fewer than three points are left out, as Detectron2 does;
  what has no pixel left is an empty mask of `size` (height, width).
  """
  from pycocotools import mask

  polygons = [polygon for polygon in polygons or () if len(polygon) >= 6 and len(polygon) % 2 == 0]
  if not polygons:
    return run_lengths(compress([size[0] * size[1]], size), size)
  return run_lengths(mask.merge(mask.frPyObjects(polygons, *size))["counts"], size)


def run_lengths(counts: bytes, size: tuple[int, int]) -> dict:
  """One mask in COCO's form, of plain values."""
  return {"size": [int(side) for side in size], "counts": counts.decode("ascii")}


def compress(counts: list[int], size: tuple[int, int]) -> bytes:
  """COCO's compressed form of run lengths that are sound: not negative, with the sum height * width."""
  from pycocotools import mask

  return mask.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"]


def union(runs: Sequence[bytes], size: tuple[int, int]) -> bytes:
  """The compressed run lengths of several masks as one; all are sound and of `size`."""
  from pycocotools import mask

  return runs[0] if len(runs) == 1 else mask.merge([{"size": list(size), "counts": one} for one in runs])["counts"]


def runs_box(runs: bytes, size: tuple[int, int]) -> list[float]:
  """[x, y, width, height] of a mask."""
  from pycocotools import mask

  return mask.toBbox({"size": list(size), "counts": runs}).tolist()


def check_runs(runs: Sequence[bytes], num_pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Whether compressed run lengths are sound, and the area of the masks: (bool[n], i64[n]).

  Each length is written in characters of five bits from the lowest on, and a sixth where more follow; from the
  fourth length on it is the difference to the length two before. Sound ones are not negative, end with their last
  character, and have the sum `num_pixels`, i64[n].
  """
  count = len(runs)
  sound, areas = np.zeros(count, bool), np.zeros(count, np.int64)
  sizes = np.array([len(one) for one in runs], np.int64)
  filled = np.flatnonzero(sizes)
  if not len(filled):
    return sound, areas
  codes = np.frombuffer(b"".join(runs), np.uint8).astype(np.int64) - 48
  ends = np.cumsum(sizes[filled])
  legible = np.logical_and.reduceat((codes >= 0) & (codes < 64), ends - sizes[filled])
  last = codes & 32 == 0  # the last character of a length
  legible &= last[ends - 1]
  last[ends - 1] = True  # so that no length reaches into the next mask
  values, first = _values(codes, last)
  legible &= np.logical_and.reduceat(np.abs(values) < 2**32, np.searchsorted(first, ends - sizes[filled]))
  lengths, starts, sums, odd_sums = _undo_differences(values, np.searchsorted(first, ends - sizes[filled]))
  least = np.minimum.reduceat(lengths, starts)
  sound[filled] = legible & (least >= 0) & (sums == num_pixels[filled])
  areas[filled] = odd_sums
  return sound, areas


def _values(codes: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The numbers that characters stand for, and the place of the first character of each; 2**40 for one too long."""
  stops = np.flatnonzero(last)
  first = np.concatenate([[0], stops[:-1] + 1])
  digits = stops - first + 1
  place = np.arange(len(codes)) - np.repeat(first, digits)
  values = np.add.reduceat((codes & 31) << (5 * np.minimum(place, 7)), first)
  values -= (codes[stops] & 16 != 0) * (np.int64(1) << (5 * np.minimum(digits, 8)))  # the highest bit is the sign
  return np.where(digits > 7, 2**40, values), first


def _undo_differences(values: np.ndarray, starts: np.ndarray):
  """The lengths that values stand for, the first of each mask, and by mask their sum and that of the mask's runs."""
  counts = np.diff(np.concatenate([starts, [len(values)]]))
  place = np.arange(len(values)) - np.repeat(starts, counts)
  # Places 1, 3, 5 ... are a running sum, and so are 2, 4, 6 ...; each restarts with its mask.
  values = np.clip(values, -(2**32), 2**32)
  lengths = values.copy()
  for parity in (0, 1):
    chosen = np.flatnonzero((place % 2 == parity) & (place > 0))
    running = np.cumsum(values[chosen])
    begins = place[chosen] == 2 - parity
    before = (running - values[chosen])[begins]
    lengths[chosen] = running - np.repeat(before, np.diff(np.concatenate([np.flatnonzero(begins), [len(chosen)]])))
  return lengths, starts, np.add.reduceat(lengths, starts), np.add.reduceat(lengths * (place % 2), starts)


def is_empty(segmentation: dict) -> bool:
  """Whether a run-length encoded mask has no pixel."""
  from pycocotools import mask

  return int(mask.area(segmentation)) == 0

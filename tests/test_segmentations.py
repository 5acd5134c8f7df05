"""Masks as COCO writes them: what is refused before pycocotools sees it, what is cut, which masks have a pixel."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from rcnn_jax.data import segmentations
from rcnn_jax.data.segmentations import Polygons, check_polygons, check_runs, encode, is_empty, surely_fill

SIZE = (40, 60)


def polygons_of(*each: list[float]) -> tuple[Polygons, np.ndarray]:
  flat = np.array([number for one in each for number in one], np.float64)
  return Polygons(flat, np.array([len(one) for one in each])), np.full((len(each), 2), SIZE)


def pixels(polygon) -> np.ndarray:
  return coco_mask.decode(encode([polygon], SIZE))


SOUND = [10, 5, 30, 5, 30, 15, 10, 15]


def test_sound_polygons_stay_as_they_are():
  given_ones, sizes = polygons_of(SOUND, [-50, 0, 0, 0, 0, 30])  # partly outside, by less than an image
  checked, problems = check_polygons(given_ones, sizes)
  assert checked is given_ones and problems == {}


@pytest.mark.parametrize(
  "polygon, problem",
  [
    ([0, 0, 9, 0, 9, math.nan], "polygon coordinate nan is not a finite number"),
    ([0, 0, 9, 0, -math.inf, 9], "polygon coordinate -inf is not a finite number"),
    ([0, 0, 1e300, 0, 9, 9], r"polygon coordinate 1e\+300 is far from the image of 60 x 40"),
    ([0, 0, -1e10, 0, 9, 9], r"polygon coordinate -1e\+10 is far from the image of 60 x 40"),
    ([0, 0, 60, 40, 0, 40] * 30_000, "the outline of a polygon is 4800000 pixels long, more than 4194304"),
  ],
)
def test_polygons_that_would_take_all_memory_are_refused_and_the_others_kept(polygon, problem):
  checked, problems = check_polygons(*polygons_of(SOUND, polygon, SOUND))
  assert list(problems) == [1] and re.fullmatch(problem, problems[1])
  assert checked.lengths.tolist() == [8, 0, 8] and checked.coordinates.tolist() == SOUND * 2


@pytest.mark.parametrize(
  "polygon, box",
  [
    ([-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9], (0, 0, 60, 40)),  # around the image
    ([-1e9, 10, 1e9, 10, 1e9, 20, -1e9, 20], (0, 10, 60, 20)),  # a band across it
    ([20, -5000, 30, -5000, 30, 10, 20, 10], (20, 0, 30, 10)),  # a pole from above
    ([1000, 0, 2000, 0, 2000, 1000, 1000, 1000], (0, 0, 0, 0)),  # beside it
  ],
)
def test_polygons_that_reach_far_beyond_the_image_are_cut_and_cover_what_they_did(polygon, box):
  checked, problems = check_polygons(*polygons_of(polygon))
  x1, y1, x2, y2 = box
  expected = np.zeros(SIZE, np.uint8)
  expected[y1:y2, x1:x2] = 1
  assert problems == {}
  np.testing.assert_array_equal(pixels(checked.coordinates), expected)


coordinates = st.lists(st.floats(-150, 200), min_size=6, max_size=24).filter(lambda numbers: len(numbers) % 2 == 0)


@settings(max_examples=200, deadline=None)
@given(coordinates)
def test_cutting_changes_pixels_along_the_outline_alone(polygon):
  checked, problems = check_polygons(*polygons_of(polygon))
  assert problems == {}
  cut = pixels(checked.coordinates) if checked.lengths[0] else np.zeros(SIZE, np.uint8)
  whole = pixels(polygon)
  outline = np.zeros(SIZE, bool)
  for start, end in zip(np.reshape(polygon, (-1, 2)), np.roll(np.reshape(polygon, (-1, 2)), -1, 0)):
    for x, y in np.linspace(start, end, 2000):
      rows, columns = (slice(max(int(at) - 1, 0), max(int(at) + 2, 0)) for at in (y, x))
      outline[rows, columns] = True
  assert not (cut != whole)[~outline].any()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(0, 40), min_size=6, max_size=16).filter(lambda numbers: len(numbers) % 2 == 0))
def test_a_polygon_that_surely_fills_has_a_pixel(polygon):
  crossing_free = polygon[:6]  # of a triangle, the area is what is inside
  sure = surely_fill(*polygons_of(crossing_free))
  assert not (sure[0] and is_empty(encode([crossing_free], SIZE)))


def test_what_surely_fills_and_what_may_not():
  square, sliver, outside = [5, 5, 9, 5, 9, 9, 5, 9], [5, 5, 30, 5, 30, 5.1, 5, 5.1], [-5, 5, 9, 5, 9, 30, -5, 30]
  assert surely_fill(*polygons_of(square, sliver, outside)).tolist() == [True, False, False]


def compressed(mask: np.ndarray) -> bytes:
  return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_of_masks_are_sound_and_have_their_area(seed, density):
  rng = np.random.default_rng(seed)
  masks = [rng.random((int(rng.integers(1, 300)), int(rng.integers(1, 30)))) < density for _ in range(5)]
  sound, areas = check_runs([compressed(mask) for mask in masks], np.array([mask.size for mask in masks]))
  assert sound.all() and areas.tolist() == [int(mask.sum()) for mask in masks]


def legible(counts: bytes, total: int) -> bool:
  """The same in the words of pycocotools' own decoder, one character after the other."""
  lengths, value, shift = [], 0, 0
  for character in counts:
    bits = character - 48
    if not 0 <= bits < 64:
      return False
    value |= (bits & 31) << shift
    shift += 5
    if not bits & 32:
      value -= (bits & 16) << (shift - 4)
      value += lengths[-2] if len(lengths) > 2 else 0
      lengths.append(value)
      value = shift = 0
  return shift == 0 and min(lengths, default=-1) >= 0 and sum(lengths) == total


@settings(max_examples=500, deadline=None)
@given(
  st.lists(st.binary(max_size=12) | st.text("0123456789:;<=>?@ABCP`abo", max_size=8).map(str.encode), max_size=6)
)
def test_corrupt_run_lengths_are_told_from_sound_ones(runs):
  totals = [37] * len(runs)
  sound, _ = check_runs(runs, np.array(totals, np.int64))
  assert sound.tolist() == [legible(one, total) for one, total in zip(runs, totals)]


@pytest.mark.parametrize("counts", [b"o" * 1000 + b"0", b"o" * 12 + b"0", b"ooooooo?", b"PPPPPPPP0"])
def test_numbers_that_overflow_are_corrupt(counts):
  assert check_runs([counts, compressed(np.ones(SIZE))], np.array([2400, 2400]))[0].tolist() == [False, True]


def test_the_empty_mask_and_the_union():
  assert encode(None, SIZE) == encode([], SIZE) == {"size": [40, 60], "counts": compressed(np.zeros(SIZE)).decode()}
  one, two = np.zeros(SIZE), np.zeros(SIZE)
  one[3:6, 2:4] = two[5:9, 3:8] = 1
  assert segmentations.union([compressed(one), compressed(two)], SIZE) == compressed(np.maximum(one, two))

"""Keypoints into heat maps and back: by eye, and against the enlarged map written out whole."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcnn_jax.ops import keypoints

ROI = [10, 20, 18, 36]  # on a 4 x 4 map, cells are 2 pixels wide and 4 high


def cell_of(x, y, visibility=2, roi=ROI):
  cells, valid = keypoints.encode(np.float32([[[x, y, visibility]]]), np.float32([roi]), size=4)
  return int(cells[0, 0]) if valid[0, 0] else None


@pytest.mark.parametrize(
  "x, y, cell",
  [
    (10, 20, 0),
    (11.9, 23.9, 0),
    (12, 20, 1),
    (10, 24, 4),
    (15, 29, 2 * 4 + 2),
    (18, 36, 15),  # the corner belongs to the last cell
    (18, 20, 3),
    (18.01, 20, None),
    (9.99, 20, None),
    (15, 36.5, None),
  ],
)
def test_cells_of_a_four_by_four_map(x, y, cell):
  assert cell_of(x, y) == cell


def test_joints_that_are_hidden_count_and_those_that_are_not_labelled_do_not():
  assert [cell_of(12, 24, visibility) for visibility in (0, 1, 2)] == [None, 5, 5]


def test_an_empty_region_has_no_cells():
  assert cell_of(10, 20, roi=[10, 20, 10, 36]) is None


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_the_mirror_image_lies_in_the_mirrored_cell(seed):
  rng = np.random.default_rng(seed)
  points = np.concatenate([rng.uniform(0, 100, (1, 5, 2)), np.full((1, 5, 1), 2)], axis=2).astype(np.float32)
  roi = np.float32([[20, 30, 90, 80]])
  mirrored = points * np.float32([-1, 1, 1]) + np.float32([100, 0, 0])
  cells, valid = keypoints.encode(points, roi, size=7)
  flipped, still_valid = keypoints.encode(mirrored, np.float32([[10, 30, 80, 80]]), size=7)
  np.testing.assert_array_equal(valid, still_valid)
  row, column = np.divmod(cells, 7)
  np.testing.assert_array_equal(flipped[valid], (row * 7 + 6 - column)[valid])


# ---------------------------------------------------------------------------------------------------------- decoding


def cubic(distance: np.ndarray) -> np.ndarray:
  """Keys' kernel with a = -0.75, in the factored form of the textbooks."""
  d, a = np.abs(distance), -0.75
  near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
  return np.select([d <= 1, d < 2], [near, far], 0.0)


def enlarged(heat_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """f64[height, width]: the whole map, tap by tap, as PyTorch's bicubic interpolation has it."""
  for axis, length in enumerate(size):
    cells = heat_map.shape[axis]
    position = (np.arange(length) + 0.5) * cells / length - 0.5
    first = np.floor(position).astype(int)
    taps = [first + offset for offset in (-1, 0, 1, 2)]
    terms = [np.take(heat_map, np.clip(t, 0, cells - 1), axis) for t in taps]
    shares = [cubic(position - t).reshape((-1, 1) if axis == 0 else (1, -1)) for t in taps]
    heat_map = sum(term * share for term, share in zip(terms, shares))
  return heat_map


def highest_of_all(logits: np.ndarray, box: np.ndarray) -> np.ndarray:
  """f64[J, 3] of maps [S, S, J]: the highest pixel among all those of the box, and its value."""
  extent = np.maximum(box[2:] - box[:2], 1)
  width, height = np.ceil(extent).astype(int)
  found = []
  for heat_map in logits.astype(np.float64).transpose(2, 0, 1):
    surface = enlarged(heat_map, (height, width))
    row, column = np.unravel_index(surface.argmax(), surface.shape)
    found.append([*((column, row) + np.float64(0.5)) * extent / (width, height) + box[:2], surface[row, column]])
  return np.array(found)


decode = jax.jit(keypoints.decode)
N, J, S = 8, 3, 56


def heat_maps(kind: str, rng: np.random.Generator) -> np.ndarray:
  """f32[N, S, S, J]: noise in every cell; as a head gives it, noise enlarged from half the size; or three bumps."""
  if kind == "noise":
    return rng.normal(size=(N, S, S, J)).astype(np.float32)
  if kind == "head":
    coarse = rng.normal(size=(N, S // 2, S // 2, J)).astype(np.float32)
    return np.asarray(jax.image.resize(coarse, (N, S, S, J), "bilinear"))
  y, x = np.mgrid[:S, :S]
  centres, widths = rng.uniform(-2, S + 2, (2, 3, N, 1, 1, J)), rng.uniform(1.5, 5, (3, N, 1, 1, J))
  distance = (y[..., None] - centres[0]) ** 2 + (x[..., None] - centres[1]) ** 2
  heights = rng.uniform(2, 12, (3, N, 1, 1, J))
  return (heights * np.exp(-distance / 2 / widths**2)).sum(0).astype(np.float32)


@functools.cache
def misses(kind: str, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
  """Of random boxes of sides low..high: pixels from the highest of all, and how much the score falls short."""
  rng = np.random.default_rng(0)
  corner = rng.uniform(0, 60, (N, 2))
  boxes = np.concatenate([corner, corner + rng.uniform(low, high, (N, 2))], axis=1).astype(np.float32)
  maps = heat_maps(kind, rng)
  expected = np.stack([highest_of_all(m, box) for m, box in zip(maps, boxes)])
  found = np.asarray(decode(maps, boxes))
  return np.abs(found[..., :2] - expected[..., :2]).max(-1), expected[..., 2] - found[..., 2]


@pytest.mark.parametrize("kind", ["bumps", "head", "noise"])
@pytest.mark.parametrize("low, high", [(0.2, 6), (6, 112)])
def test_in_boxes_up_to_the_grid_it_is_the_highest_of_all_pixels(kind, low, high):
  distance, shortfall = misses(kind, low, high)
  assert distance.max() < 1e-3
  assert np.abs(shortfall).max() < 1e-4


@pytest.mark.parametrize("kind", ["bumps", "head"])
@pytest.mark.parametrize("low, high", [(113, 224), (224, 800)])
def test_in_larger_boxes_it_is_the_highest_pixel_of_maps_as_a_head_gives_them(kind, low, high):
  distance, shortfall = misses(kind, low, high)
  assert distance.max() < 1e-3
  assert np.abs(shortfall).max() < 1e-4


def test_in_larger_boxes_the_highest_of_pure_noise_is_rarely_missed():
  distance, shortfall = misses("noise", 113, 400)
  assert (distance < 1e-3).mean() >= 0.9
  assert shortfall.max() < 1.0


def test_a_single_hot_cell_by_eye():
  logits = np.zeros((1, 56, 56, 1), np.float32)
  logits[0, 14, 28, 0] = 5
  # A cell is 2 pixels: the two nearest are a quarter of a cell from its centre, where the cubic is 0.8789.
  x, y, score = np.asarray(decode(logits, np.float32([[100, 200, 212, 312]])))[0, 0]
  assert x in (156.5, 157.5) and y in (228.5, 229.5)
  assert score == pytest.approx(5 * 0.8789**2, abs=1e-3)


def test_pixels_of_boxes_whose_sides_are_no_whole_number_are_a_little_smaller():
  ramp = np.arange(56, dtype=np.float32)
  logits = (ramp + ramp[:, None]).reshape(1, 56, 56, 1)
  x, y, _ = np.asarray(decode(logits, np.float32([[10, 10, 20.5, 13.25]])))[0, 0]
  assert x == pytest.approx(20.5 - 10.5 / 11 / 2) and y == pytest.approx(13.25 - 3.25 / 4 / 2)

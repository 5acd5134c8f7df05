"""Pooling of regions against loops: torchvision's kernels, crops, the spatial pyramid; the routing to levels."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcnn_jax.models.pooling import RoiMaxPool
from rcnn_jax.ops import max_pooling, pooling

SCALE = 1 / 8
FEATURES = np.random.default_rng(0).normal(size=(9, 12, 3)).astype(np.float32)
BOXES = np.float32(
  [
    [0, 0, 96, 72],  # the whole canvas
    [3, 5, 40, 33],
    [50.5, 20.25, 54, 71],  # narrower than a cell
    [10, 10, 10, 10],  # empty
    [30, 30, 20, 25],  # inside out
    [-20, -30, 60, 40],  # beyond the top left corner
    [70, 50, 130, 110],  # beyond the bottom right corner
    [200, 10, 300, 60],  # outside
    [88, 64, 96, 72],  # the last cell
    [24, 16, 72, 48],  # whole cells, whose number times 1 / 3 or 1 / 7 is not whole in float32
    [4, 4, 12, 12],  # halves, which C rounds away from zero
  ]
)


def bilinear(features, y, x):
  """torchvision's bilinear_interpolate: clamped at the border, zero farther than one cell beyond it."""
  height, width, channels = features.shape
  if y < -1 or y > height or x < -1 or x > width:
    return np.zeros(channels)
  y, x = max(y, 0), max(x, 0)
  y0, x0 = int(y), int(x)
  if y0 >= height - 1:
    y0 = y1 = y = height - 1
  else:
    y1 = y0 + 1
  if x0 >= width - 1:
    x0 = x1 = x = width - 1
  else:
    x1 = x0 + 1
  ly, lx = y - y0, x - x0
  top = (1 - lx) * features[y0, x0] + lx * features[y0, x1]
  bottom = (1 - lx) * features[y1, x0] + lx * features[y1, x1]
  return (1 - ly) * top + ly * bottom


def loop_roi_align(features, boxes, rows, columns, scale, ratio, aligned):
  out = np.zeros((len(boxes), rows, columns, features.shape[2]))
  for n, box in enumerate(boxes):
    x1, y1, x2, y2 = np.float64(box) * scale - (0.5 if aligned else 0)
    height, width = y2 - y1, x2 - x1
    if not aligned:
      height, width = max(height, 1), max(width, 1)
    bin_h, bin_w = height / rows, width / columns
    grid_h = ratio or max(math.ceil(bin_h), 0)
    grid_w = ratio or max(math.ceil(bin_w), 0)
    for p, q, i, j in np.ndindex(rows, columns, grid_h, grid_w):
      y = y1 + p * bin_h + (i + 0.5) * bin_h / grid_h
      x = x1 + q * bin_w + (j + 0.5) * bin_w / grid_w
      out[n, p, q] += bilinear(features, y, x) / (grid_h * grid_w)
  return out


def c_round(value):
  return int(math.copysign(math.floor(abs(value) + 0.5), value))


def loop_roi_pool(features, boxes, rows, columns, scale):
  height, width, channels = features.shape
  out = np.zeros((len(boxes), rows, columns, channels))
  for n, box in enumerate(boxes):
    x1, y1, x2, y2 = (c_round(edge * scale) for edge in box)
    bin_h = np.float32(max(y2 - y1 + 1, 1)) / np.float32(rows)
    bin_w = np.float32(max(x2 - x1 + 1, 1)) / np.float32(columns)
    for p, q in np.ndindex(rows, columns):
      top, bottom = (min(max(int(v) + y1, 0), height) for v in (np.floor(p * bin_h), np.ceil((p + 1) * bin_h)))
      left, right = (min(max(int(v) + x1, 0), width) for v in (np.floor(q * bin_w), np.ceil((q + 1) * bin_w)))
      if bottom > top and right > left:
        out[n, p, q] = features[top:bottom, left:right].max(axis=(0, 1))
  return out


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("output_size", [3, (2, 5)])
def test_roi_align_is_torchvisions(aligned, ratio, output_size):
  rows, columns = (3, 3) if output_size == 3 else output_size
  pool = functools.partial(
    pooling.roi_align, output_size=output_size, spatial_scale=SCALE, sampling_ratio=ratio, aligned=aligned
  )
  got = jax.jit(pool)(FEATURES, BOXES)
  expected = loop_roi_align(FEATURES, BOXES, rows, columns, SCALE, ratio, aligned)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_roi_align_of_a_ramp_is_the_coordinate_of_the_bins_centre():
  # Cell k of an aligned map has its centre at pixel 8 * (k + 0.5).
  centres = 8 * (np.arange(12, dtype=np.float32) + 0.5)
  ramp = np.broadcast_to(centres[None, :, None], (9, 12, 1))
  pool = jax.jit(functools.partial(pooling.roi_align, output_size=2, spatial_scale=SCALE, aligned=True))
  got = pool(ramp, np.float32([[16, 16, 48, 32]]))
  np.testing.assert_allclose(got[0, :, :, 0], [[24, 40], [24, 40]], rtol=1e-6)


@pytest.mark.parametrize("ratio", [0, 2])
def test_the_gradient_of_roi_align_is_its_transpose(ratio):
  # The function is linear in the features: <pool(f), c> = <f, gradient> for every f and c.
  pool = functools.partial(
    pooling.roi_align, boxes=BOXES, output_size=3, spatial_scale=SCALE, sampling_ratio=ratio, aligned=True
  )
  cotangent = np.random.default_rng(1).normal(size=(len(BOXES), 3, 3, 3)).astype(np.float32)
  product = jax.jit(jax.value_and_grad(lambda f: (pool(f) * cotangent).sum()))
  _, gradient = product(FEATURES)
  other = np.random.default_rng(2).normal(size=FEATURES.shape).astype(np.float32)
  np.testing.assert_allclose(product(other)[0], (other * gradient).sum(), atol=1e-4)


@pytest.mark.parametrize("output_size", [3, 7, (2, 5)])
def test_roi_max_pool_is_torchvisions(output_size):
  rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
  boxes = np.clip(BOXES, -16, np.float32([112, 88, 112, 88]))  # two cells beyond the map
  pool = functools.partial(max_pooling.roi_max_pool, output_size=output_size, spatial_scale=SCALE)
  got = jax.jit(pool)(FEATURES, boxes)
  np.testing.assert_array_equal(got, loop_roi_pool(FEATURES, boxes, rows, columns, SCALE).astype(np.float32))


def test_the_gradient_of_roi_max_pool_goes_to_the_maxima():
  features = np.float32([[1, 5, 2, 0], [0, 3, 9, 4]])[..., None]
  box = np.float32([[0, 0, 3, 1]])
  pool = functools.partial(max_pooling.roi_max_pool, boxes=box, output_size=(1, 2), spatial_scale=1.0)
  gradient = jax.jit(jax.grad(lambda f: pool(f).sum()))(features)
  np.testing.assert_array_equal(gradient[..., 0], [[0, 1, 0, 0], [0, 0, 1, 0]])


def test_the_gradient_of_roi_max_pool_goes_to_the_first_of_equal_maxima():
  # Torchvision's choice. After a ReLU many cells are equal; a bin of 3 x 3 is covered by four overlapping windows.
  features = np.float32([[0, 0, 5, 0], [0, 5, 5, 0], [5, 0, 0, 0]])[..., None]
  box = np.float32([[0, 0, 2, 2]])
  pool = functools.partial(max_pooling.roi_max_pool, boxes=box, output_size=1, spatial_scale=1.0)
  gradient = jax.jit(jax.grad(lambda f: pool(f).sum()))(features)
  np.testing.assert_array_equal(gradient[..., 0], [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_no_gradient_goes_to_the_boxes():
  warp = lambda feature, *inputs, spatial_scale, **options: pooling.roi_warp(
    [feature], *inputs, strides=(1 / spatial_scale,), **options
  )
  for pool in (functools.partial(pooling.roi_align, aligned=True), warp, max_pooling.roi_max_pool):
    pool = functools.partial(pool, jnp.asarray(FEATURES), output_size=3, spatial_scale=SCALE)
    gradient = jax.jit(jax.grad(lambda boxes, pool=pool: pool(boxes).sum()))(BOXES)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
  "side, level",
  [(0, 2), (16, 2), (111.9, 2), (112, 3), (223.9, 3), (224, 4), (447, 4), (448, 5), (896, 5), (1e6, 5)],
)
def test_level_of(side, level):
  assert pooling.level_of(np.float32([[0, 0, side, side]]), min_level=2, max_level=5)[0] == level


OF_LEVELS = {
  "roi_align": (
    functools.partial(pooling.multilevel_roi_align, aligned=False),
    lambda f, b, stride: pooling.roi_align(f, b, spatial_scale=1 / stride, output_size=3, aligned=False),
  ),
  "roi_warp": (
    pooling.roi_warp,
    lambda f, b, stride: pooling.roi_warp([f], b, strides=(stride,), output_size=3),
  ),
  "roi_max_pool": (
    max_pooling.multilevel_roi_max_pool,
    lambda f, b, stride: max_pooling.roi_max_pool(f, b, spatial_scale=1 / stride, output_size=3),
  ),
}


@pytest.mark.parametrize("name", OF_LEVELS)
def test_a_pyramid_pools_each_region_from_its_own_level(name):
  rng = np.random.default_rng(3)
  levels = [rng.normal(size=(64 // s, 96 // s, 2)).astype(np.float32) for s in (4, 8, 16)]
  boxes = np.float32([[0, 0, 20, 20], [10, 8, 50, 40], [0, 0, 96, 64], [3, 3, 3, 3], [90, 60, 96, 64]])
  of_pyramid, of_map = OF_LEVELS[name]
  pyramid = functools.partial(of_pyramid, strides=(4, 8, 16), output_size=3, canonical_size=32.0, canonical_level=3)
  got = jax.jit(pyramid)(levels, boxes)
  of_box = [2, 3, 4, 2, 2]  # by their sides, against a canonical side of 32 on level 3
  for level in (2, 3, 4):
    here = np.array(of_box) == level
    alone = jax.jit(functools.partial(of_map, stride=2**level))
    np.testing.assert_allclose(got[here], alone(levels[level - 2], boxes[here]), atol=1e-6)


def test_max_pooling_over_a_pyramid_pools_each_region_from_its_own_level():
  strides, rng = (8, 16), np.random.default_rng(3)
  levels = tuple(rng.normal(size=(256 // s, 256 // s, 2)).astype(np.float32) for s in strides)
  boxes = np.float32([[0, 0, 20, 20], [10, 8, 250, 230], [3, 3, 3, 3], [np.nan] * 4])  # of sides below 224, or above

  def pooled(levels, boxes):
    single = RoiMaxPool(output_size=3)
    alone = [single((level,), boxes, (stride,)) for level, stride in zip(levels, strides)]
    return RoiMaxPool(output_size=3, num_levels=2)(levels, boxes, strides), *alone

  got, fine, coarse = jax.jit(pooled)(levels, boxes)
  np.testing.assert_array_equal(got, [fine[0], coarse[1], fine[2], np.zeros((3, 3, 2))])
  assert not np.array_equal(fine[:2], coarse[:2])


def warp_grid(box, output_size, features=None):
  features = RAMP if features is None else features
  warp = functools.partial(pooling.roi_warp, strides=(8,), output_size=output_size, sampling_ratio=1)
  return np.asarray(warp([features], np.float32([box])))[0, :, :, 0]


def test_roi_warp_reads_whole_cells():
  # Columns count by 1 and rows by 10, from 1: cells 2 to 4 of rows 1 to 3, both ends of the rounded region included.
  expected = [[13, 14, 15], [23, 24, 25], [33, 34, 35]]
  np.testing.assert_array_equal(warp_grid([16, 8, 32, 24], 3), expected)
  # A shift of less than half a cell is lost: the quantisation that RoI Align does without.
  np.testing.assert_array_equal(warp_grid([19, 11, 29, 21], 3), expected)
  np.testing.assert_array_equal(warp_grid([20, 12, 36, 28], 3), np.add(expected, 11))  # halves away from zero


def test_roi_warp_samples_between_cells_and_a_region_within_a_cell_is_that_cell():
  # Cells 2 and 3 into four bins each of half a cell.
  np.testing.assert_allclose(warp_grid([16, 8, 24, 8], (1, 4)), [[12.75, 13.25, 13.75, 14.25]])
  np.testing.assert_allclose(warp_grid([17, 9, 18, 10], 2), [[10.25, 10.75], [15.25, 15.75]])


RAMP = np.arange(8, dtype=np.float32)[None, :, None] + 10 * np.arange(6, dtype=np.float32)[:, None, None] + 1


def crop_grid(box, output_size, context):
  crop = jax.jit(functools.partial(pooling.warp_crop, output_size=output_size, context=context))
  return np.asarray(crop(RAMP, np.float32([box])))[0, :, :, 0]


def test_a_crop_of_a_regions_own_size_is_the_pixels_and_their_surroundings():
  # Columns count by 1 and rows by 10, from 1: the region is 2 by 2 pixels, with 1 about it.
  expected = [[13, 14, 15, 16], [23, 24, 25, 26], [33, 34, 35, 36], [43, 44, 45, 46]]
  np.testing.assert_array_equal(crop_grid([3, 2, 5, 4], 4, 1), expected)


def test_a_crop_beyond_the_image_is_zero_there():
  expected = [[0, 0, 0, 0], [0, 1, 2, 3], [0, 11, 12, 13], [0, 21, 22, 23]]
  np.testing.assert_array_equal(crop_grid([0, 0, 2, 2], 4, 1), expected)
  expected = [[46, 47, 48, 0], [56, 57, 58, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(crop_grid([6, 5, 8, 7], 4, 1), expected)


def test_a_crop_scales_width_and_height_apart_with_context_in_crop_pixels():
  # 4 wide and 1 high become 2 by 2: a pixel of the crop is 2 columns wide, half a row high.
  np.testing.assert_allclose(crop_grid([2, 2, 6, 3], 2, 0), [[23.5 - 2.5, 25.5 - 2.5], [23.5 + 2.5, 25.5 + 2.5]])
  np.testing.assert_allclose(crop_grid([2, 2, 6, 3], 4, 1)[1:3, 1:3], crop_grid([2, 2, 6, 3], 2, 0))


def test_the_papers_crop_keeps_16_pixels_of_context():
  # The region is white: in the crop it spans pixels 16 to 210 along both axes, whatever its own sides are.
  image = np.zeros((300, 400, 1), np.float32)
  image[100:200, 50:350] = 1
  pool = jax.jit(functools.partial(pooling.warp_crop, output_size=227, context=16))
  crop = pool(image, np.float32([[50, 100, 350, 200]]))[0, :, :, 0]
  inside = (np.arange(227) >= 16) & (np.arange(227) < 211)
  clear = np.abs(np.arange(227) - 15.5) > 2, np.abs(np.arange(227) - 210.5) > 2  # away from blurred edges
  sure = clear[0] & clear[1]
  np.testing.assert_allclose(crop[np.ix_(sure, sure)], np.outer(inside, inside)[np.ix_(sure, sure)], atol=1e-5)


def test_a_crop_without_room_for_the_region_is_refused():
  with pytest.raises(ValueError, match="a crop of 32 pixels has no room inside a context of 16"):
    crop_grid([0, 0, 2, 2], 32, 16)


def loop_pyramid(features, boxes, bins, stride):
  height, width, channels = features.shape
  out = []
  for x1, y1, x2, y2 in np.float64(boxes):
    spans = []
    for low, high, length in ((y1, y2, height), (x1, x2, width)):
      inside = [k for k in range(-2, length + 2) if low < stride * (k + 0.5) < high]
      cells = inside or [math.floor((low + high) / 2 / stride)]
      spans.append([min(max(cell, 0), length - 1) for cell in (cells[0], cells[-1])])
    (top, bottom), (left, right) = spans
    window = features[top : bottom + 1, left : right + 1]
    h, w = window.shape[:2]
    for n in bins:
      for i, j in np.ndindex(n, n):
        rows = slice(i * h // n, -(-(i + 1) * h // n))
        columns = slice(j * w // n, -(-(j + 1) * w // n))
        out.append(window[rows, columns].max(axis=(0, 1)))
  return np.reshape(out, (len(boxes), -1, channels))


@pytest.mark.parametrize("bins", [(1, 2, 3, 6), (4, 3, 2, 1), (5,)])
def test_the_spatial_pyramid_is_the_maxima_of_its_bins(bins):
  boxes = np.concatenate([BOXES[:4], np.clip(BOXES[4:], -16, np.float32([112, 88, 112, 88]))])
  boxes = boxes[[0, 1, 2, 3, 5, 6, 8, 9, 10]]  # a region inside out has no middle worth the name
  pool = functools.partial(max_pooling.spatial_pyramid, bins=bins, spatial_scale=SCALE)
  got = jax.jit(pool)(FEATURES, boxes)
  assert got.shape == (len(boxes), sum(n * n for n in bins), 3)
  np.testing.assert_array_equal(got, loop_pyramid(FEATURES, boxes, bins, 8))


def test_the_pyramid_of_a_map_by_eye():
  features = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
  got = max_pooling.spatial_pyramid(
    features, np.float32([[0, 0, 4, 4], [1, 1, 3, 4]]), bins=(1, 2), spatial_scale=1.0
  )
  np.testing.assert_array_equal(got[0, :, 0], [15, 5, 7, 13, 15])
  np.testing.assert_array_equal(got[1, :, 0], [14, 9, 10, 13, 14])  # 3 rows: both bins hold the middle one


def test_strides_that_are_no_pyramid_are_refused():
  with pytest.raises(ValueError, match="powers of two"):
    pooling.multilevel_roi_align([FEATURES] * 2, BOXES, strides=(8, 32), output_size=3, aligned=True)


def test_pooling_keeps_the_precision_of_the_features():
  half = jnp.asarray(FEATURES, jnp.bfloat16)
  for pool in (functools.partial(pooling.roi_align, aligned=True), max_pooling.roi_max_pool):
    pool = functools.partial(pool, output_size=3, spatial_scale=SCALE)
    assert jax.eval_shape(pool, half, BOXES).dtype == jnp.bfloat16

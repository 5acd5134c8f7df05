"""Mask targets: regions against crops, by eye, and against targets from whole masks on real objects."""

from __future__ import annotations

import functools
import pathlib

import jax
import numpy as np
import pytest
from pycocotools import mask as rle

from rcnn_jax.data import object_masks
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.source import clean
from rcnn_jax.ops import boxes as box_ops
from rcnn_jax.ops import masks, pooling

BOX = np.float32([[10, 20, 50, 100]])
FULL = np.ones((1, 112, 112), np.uint8)
LEFT_HALF = FULL * (np.arange(112) < 56).astype(np.uint8)


def target(mask, roi, box=BOX, size=4):
  return np.asarray(masks.crop_targets(mask, box, np.array([0]), np.float32([roi]), size=size))[0]


def test_a_region_that_is_the_box_sees_the_mask():
  np.testing.assert_array_equal(target(FULL, BOX[0]), np.ones((4, 4)))
  np.testing.assert_array_equal(target(LEFT_HALF, BOX[0]), np.tile([1, 1, 0, 0], (4, 1)))


def test_outside_of_the_box_there_is_no_mask():
  # Twice the box, from its top left corner.
  expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(target(FULL, [10, 20, 90, 180]), expected)


def test_a_region_inside_the_box_is_enlarged():
  np.testing.assert_array_equal(target(LEFT_HALF, [20, 20, 40, 40]), np.tile([1, 1, 0, 0], (4, 1)))
  np.testing.assert_array_equal(target(LEFT_HALF, [10, 20, 20, 40]), np.ones((4, 4)))


def test_each_region_looks_at_the_object_that_it_is_matched_to():
  crops = np.concatenate([FULL, LEFT_HALF])
  boxes = np.float32([[0, 0, 8, 8], [100, 100, 108, 108]])
  got = masks.crop_targets(crops, boxes, np.array([1, 0, 0]), boxes[[1, 0, 1]], size=2)
  np.testing.assert_array_equal(got, [[[1, 0], [1, 0]], np.ones((2, 2)), np.zeros((2, 2))])


def test_a_circle_seen_from_a_shifted_region_is_the_circle():
  y, x = np.mgrid[:112, :112]
  crop = ((y + 0.5 - 56) ** 2 + (x + 0.5 - 56) ** 2 < 40**2).astype(np.uint8)[None]
  box = np.float32([[0, 0, 112, 112]])
  got = target(crop, [28, 14, 140, 126], box, size=28)
  y, x = np.mgrid[:28, :28] * 4 + 2.0
  radius = np.hypot(y + 14 - 56, x + 28 - 56)
  sure = np.abs(radius - 40) > 3  # three pixels from the edge no rounding can matter
  np.testing.assert_array_equal(got[sure], (radius < 40)[sure])


@pytest.mark.parametrize("roi", [[5, 5, 5, 5], [9, 9, 1, 1]])
def test_degenerate_boxes_and_regions_give_zeros_and_ones_only(roi):
  assert set(np.unique(target(FULL, roi))) <= {0.0, 1.0}
  np.testing.assert_array_equal(target(FULL, [0, 0, 9, 9], box=np.float32([roi])), np.zeros((4, 4)))


# ------------------------------------------------------------------------------------------------- on real objects

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"
CANVAS = 640  # holds every image of both sets
SIZE = 28
NUM_ROIS = 16  # of each object
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the real images (../shared/data) are not here")


def moved(box: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
  """f32[NUM_ROIS, 4]: boxes within the image that overlap an object's by an IoU of 0.5 and more."""
  height, width = size
  sides = np.tile(box[2:] - box[:2], 2)
  found = np.zeros((0, 4), np.float32)
  while len(found) < NUM_ROIS:
    drawn = box + rng.uniform(-0.25, 0.25, (4 * NUM_ROIS, 4)) * sides
    drawn = np.clip(drawn, 0, [width, height, width, height]).astype(np.float32)
    found = np.concatenate([found, drawn[np.asarray(box_ops.iou(drawn, box[None]))[:, 0] >= 0.5]])
  return found[:NUM_ROIS]


@jax.jit
def whole_mask_targets(mask: jax.Array, rois: jax.Array) -> jax.Array:
  """Detectron2's targets: RoI Align of the whole mask f32[H, W] with a sample for each pixel, from 0.5 on."""
  options = dict(output_size=SIZE, spatial_scale=1.0, sampling_ratio=0, aligned=True)
  return pooling.roi_align(mask[..., None], rois, **options)[..., 0] >= 0.5


@needs_data
@pytest.mark.parametrize(
  "folder, annotations, every",
  [
    ("coco_mini/val2017", "coco_mini/annotations/instances_val2017.json", 24),
    ("coco_mini/train2017", "coco_mini/annotations/instances_train2017.json", 24),
    ("nuclei/val", "nuclei/annotations/instances_val.json", 12),
  ],
)
def test_targets_from_crops_are_those_from_whole_masks(folder, annotations, every):
  source = CocoFolder(str(SHARED / folder), str(SHARED / annotations)).open()
  crop_targets = jax.jit(functools.partial(masks.crop_targets, size=SIZE))
  rng, equal = np.random.default_rng(0), []
  for index in range(0, len(source), every):
    image = clean(source.annotations(index))
    image = image.take(np.flatnonzero(~image.crowd)[:20])
    crops = object_masks.mask_crops(image.segmentations, image.boxes)
    for box, crop, run_lengths in zip(image.boxes, crops, image.segmentations):
      rois = moved(box, image.size, rng)
      mask = rle.decode(run_lengths)
      # Repeated beyond the image, as RoI Align itself continues its border.
      beyond = [(0, CANVAS - side) for side in mask.shape]
      whole = whole_mask_targets(np.pad(mask, beyond, mode="edge").astype(np.float32), rois)
      ours = crop_targets(crop[None], box[None], np.zeros(NUM_ROIS, np.int32), rois)
      equal.append(np.mean(np.asarray(ours) == np.asarray(whole)))
  assert len(equal) >= 20
  assert np.mean(equal) >= 0.98

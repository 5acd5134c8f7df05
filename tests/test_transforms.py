"""Resizing by torchvision's rule, canvases, mirror images, colours and mask crops."""

from __future__ import annotations

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rcnn_jax.data import object_masks, transforms
from rcnn_jax.data.object_masks import Masks
from rcnn_jax.data.transforms import ColorJitter, Example, HorizontalFlip, Resize

sizes = st.tuples(st.integers(1, 2000), st.integers(1, 2000))
settings = hypothesis.settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(
  "size, short_side, long_side, down, nearest",
  [
    ((480, 640), 480, 640, (480, 640), (480, 640)),
    ((480, 640), 800, 1333, (800, 1066), (800, 1067)),  # 1066.67
    ((640, 480), 800, 1333, (1066, 800), (1067, 800)),
    ((200, 1000), 800, 1333, (266, 1333), (267, 1333)),  # 266.6: the long side decides
    ((427, 640), 800, 1333, (800, 1199), (800, 1199)),  # 1199.06
    ((2, 5), 1, 9, (1, 2), (1, 3)),  # 2.5: half is rounded up
    ((1, 900), 800, 90, (1, 90), (1, 90)),  # 0.1: no side vanishes
  ],
)
def test_resized_size_is_torchvisions_and_detectron2s(size, short_side, long_side, down, nearest):
  assert transforms.resized_size(size, Resize((short_side,), long_side)) == down
  assert transforms.resized_size(size, Resize((short_side,), long_side, rounding="nearest")) == nearest


@pytest.mark.parametrize("interpolation", ["linear", "area", "cubic", "pillow"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_image_of_the_right_size_is_not_resampled(interpolation, dtype):
  image = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(dtype)
  assert transforms.resize(image, (6, 8), interpolation) is image


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
  "interpolation, half, double",
  [
    ("linear", [50, 120], [0, 25, 75, 125, 175, 160, 80, 40]),
    # Twice as wide a triangle: weights 3, 3, 1 of 7, over the border of nothing.
    ("pillow", [500 / 7, 820 / 7], [0, 25, 75, 125, 175, 160, 80, 40]),
  ],
)
def test_resizing_samples_at_pixel_centres(interpolation, half, double, dtype):
  row = np.array([0, 100, 200, 40], dtype)
  image = np.broadcast_to(row[None, :, None], (2, 4, 3)).copy()
  tolerance = 0.5 if dtype == np.uint8 else 1e-4
  for size, expected in (((2, 2), half), ((2, 8), double)):
    resized = transforms.resize(image, size, interpolation)
    assert resized.dtype == dtype and resized.shape == (*size, 3)
    np.testing.assert_allclose(resized[0, :, 0], expected, atol=tolerance)


LANDSCAPE, PORTRAIT = (480, 640), (640, 480)


@pytest.mark.parametrize(
  "size, canvas, fitted",
  [
    ((480, 640), LANDSCAPE, (480, 640)),
    ((100, 600), LANDSCAPE, (100, 600)),
    ((640, 400), PORTRAIT, (640, 400)),
    ((100, 100), LANDSCAPE, (100, 100)),  # both hold it: the first
    ((500, 1000), LANDSCAPE, (320, 640)),  # none holds it: the one that shrinks it least
    ((1000, 500), PORTRAIT, (640, 320)),
  ],
)
def test_canvas(size, canvas, fitted):
  assert transforms.choose_canvas(size, (LANDSCAPE, PORTRAIT)) == canvas
  assert transforms.fit(size, canvas) == fitted


def test_the_smallest_canvas_that_holds_the_image():
  canvases = ((512, 512), (256, 512), (256, 256))
  assert transforms.choose_canvas((200, 200), canvases) == (256, 256)
  assert transforms.choose_canvas((200, 300), canvases) == (256, 512)
  assert transforms.choose_canvas((300, 200), canvases) == (512, 512)


@settings
@hypothesis.given(sizes, sizes)
def test_whatever_the_size_it_fits(size, canvas):
  height, width = transforms.fit(size, transforms.choose_canvas(size, (canvas, canvas[::-1])))
  assert 1 <= height <= max(canvas) and 1 <= width <= max(canvas)
  chosen = transforms.choose_canvas(size, (canvas, canvas[::-1]))
  assert height <= chosen[0] and width <= chosen[1]


BOXES = np.array([[1, 0, 3, 2], [0, 1, 8, 4]], np.float32)


def example(width: int = 8) -> Example:
  rng = np.random.default_rng(0)
  return Example(
    image=rng.integers(0, 256, (4, width, 3), dtype=np.uint8),
    boxes=BOXES,
    classes=np.array([1, 2], np.int32),
    crowd=np.array([False, True]),
    difficult=np.array([False, False]),
    canvas=(4, width),
    masks=Masks.of([encoded(rng.integers(0, 2, (4, width))) for _ in range(2)], BOXES),
    keypoints=np.array([[[1, 1, 2], [3, 1, 1], [0, 0, 0]]] * 2, np.float32),
    flip_order=np.array([0, 2, 1]),
  )


def test_flip_mirrors_pixels_boxes_masks_and_joints():
  flipped = transforms.flip(example())
  np.testing.assert_array_equal(flipped.image[:, 0], example().image[:, 7])
  assert flipped.boxes.tolist() == [[5, 0, 7, 2], [0, 1, 8, 4]]
  crops, mirrored = (each.masks.crops(each.boxes) for each in (example(), flipped))
  np.testing.assert_array_equal(mirrored, crops[:, :, ::-1])
  # Left and right change names; a joint that is not labelled stays at zero.
  assert flipped.keypoints[0].tolist() == [[7, 1, 2], [0, 0, 0], [5, 1, 1]]


def test_flipping_twice_changes_nothing():
  twice = transforms.flip(transforms.flip(example()))
  for name in ("image", "boxes", "keypoints"):
    np.testing.assert_array_equal(getattr(twice, name), getattr(example(), name))
  np.testing.assert_array_equal(twice.masks.crops(twice.boxes), example().masks.crops(BOXES))


def test_flip_probability():
  rng = np.random.default_rng(0)
  given = example()
  assert all(HorizontalFlip(0.0)(given, rng) is given for _ in range(20))
  flips = sum(HorizontalFlip(0.25)(given, rng) is not given for _ in range(400))
  assert 70 < flips < 130


def test_colour_jitter_of_strength_zero_changes_nothing_and_never_touches_objects():
  given = example()
  np.testing.assert_array_equal(ColorJitter(0, 0, 0, 0)(given, np.random.default_rng(0)).image, given.image)
  jittered = ColorJitter(0.5, 0.5, 0.5, 0.1)(given, np.random.default_rng(0))
  assert jittered.boxes is given.boxes and not np.array_equal(jittered.image, given.image)


def test_colours_of_float_pixels_change_like_those_of_bytes():
  given = example()
  floats = dataclasses.replace(given, image=given.image.astype(np.float32))
  for seed in range(4):
    bytes_, values = (ColorJitter(0.3, 0.3, 0.3, 0.2)(e, np.random.default_rng(seed)).image for e in (given, floats))
    assert values.dtype == np.float32 and values.min() >= 0 and values.max() <= 255
    # Bytes are rounded five times on the way, and their hue to 2 degrees.
    assert np.abs(values - bytes_).mean() < 1


def test_each_colour_change_does_what_its_name_says():
  pixels = np.array([[[200, 100, 0]], [[50, 50, 50]]], np.uint8)
  given = dataclasses.replace(example(), image=pixels)

  def spread(image):  # of the colours of the first pixel
    return int(image[0, 0].max()) - int(image[0, 0].min())

  for seed in range(8):
    factor = np.random.default_rng(seed).uniform(0.5, 1.5)
    bright = ColorJitter(0.5, 0, 0)(given, np.random.default_rng(seed)).image
    assert bright[1, 0].tolist() == [round(50 * factor)] * 3
    saturated = ColorJitter(0, 0, 0.5)(given, np.random.default_rng(seed)).image
    contrast = ColorJitter(0, 0.5, 0)(given, np.random.default_rng(seed)).image
    assert saturated[1, 0].tolist() == [50] * 3  # grey stays grey
    distances = [abs(int(image[1, 0, 0]) - int(image[0, 0, 0])) for image in (contrast, pixels)]
    assert spread(saturated) != 200 and distances[0] != distances[1]


def encoded(mask: np.ndarray) -> dict:
  return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def test_mask_crop_of_a_full_box_is_full_and_of_its_left_half_is_half():
  mask = np.zeros((40, 60), np.uint8)
  mask[8:24, 10:30] = 1
  boxes = np.array([[10, 8, 30, 24], [20, 8, 40, 24], [10, 0, 30, 16]], np.float32)
  crops = object_masks.mask_crops([encoded(mask)] * 3, boxes)
  assert crops.shape == (3, 112, 112) and crops.dtype == np.uint8
  expected = np.zeros_like(crops)
  expected[0] = expected[1, :, :56] = expected[2, 56:] = 1
  # Bilinear samples round a corner, by less than half a pixel: 3 cells of these boxes across, 4 down.
  corner = np.zeros((112, 112), bool)
  corner[np.ix_(np.r_[:4, 56:60, 108:112], np.r_[:3, 53:56, 109:112])] = True
  assert (crops == expected)[:, ~corner].all() and (crops == expected).mean() > 0.995


def test_mask_crop_at_the_border_and_of_a_box_between_pixels():
  mask = np.ones((4, 4), np.uint8)
  crops = object_masks.mask_crops([encoded(mask)], np.array([[0, 0, 4, 4]], np.float32))
  assert crops.all()
  mask[:, 2:] = 0  # columns 0 and 1: the edge is at x = 2, seven tenths into a box from 0.6 to 2.6
  crop = object_masks.mask_crops([encoded(mask)], np.array([[0.6, 1, 2.6, 3]], np.float32))[0]
  assert crop.sum(1).tolist() == [round(0.7 * 112)] * 112


@settings
@hypothesis.given(st.integers(0, 2**32 - 1))
def test_mask_crop_and_flip_commute(seed):
  rng = np.random.default_rng(seed)
  mask = np.kron(rng.integers(0, 2, (5, 7)), np.ones((3, 3))).astype(np.uint8)
  x1, y1 = rng.uniform(0, 8, 2)
  box = np.array([[x1, y1, x1 + rng.uniform(2, 12), y1 + rng.uniform(2, 6)]], np.float32)
  mirrored = box.copy()
  mirrored[:, [0, 2]] = 21 - box[:, [2, 0]]
  crop = object_masks.mask_crops([encoded(mask)], box)[0]
  other = object_masks.mask_crops([encoded(mask[:, ::-1])], mirrored)[0]
  assert np.mean(crop[:, ::-1] != other) < 0.02  # rounding on the edge itself

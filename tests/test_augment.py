"""Augmentations that change the set of objects: boxes, masks and joints follow the pixels.

Each object of `drawn` is a rectangle of a colour of its own, so that pixels tell where it is.
"""

from __future__ import annotations

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rcnn_jax.data.augment import copy_paste, geometry, rotate
from rcnn_jax.data.augment.copy_paste import CopyPaste
from rcnn_jax.data.augment.crop import RandomCrop
from rcnn_jax.data.augment.mosaic import Mosaic
from rcnn_jax.data.augment.photometric import PhotometricDistortion
from rcnn_jax.data.augment.rotate import QuarterTurns, Rotate
from rcnn_jax.data.augment.scale import LargeScaleJitter
from rcnn_jax.data.object_masks import Masks
from rcnn_jax.data.transforms import Example, HorizontalFlip, Resize

settings = hypothesis.settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
CANVAS = (64, 80)


def drawn(boxes, size=(48, 64), canvas=CANVAS, masks=True, first=1) -> Example:
  """Black, with rectangles apart; rectangle k is painted 40 k and of class k, its joint at its middle."""
  boxes = np.array(boxes, np.float32).reshape(-1, 4)
  image, runs = np.zeros((*size, 3), np.uint8), []
  for k, (x1, y1, x2, y2) in enumerate(boxes.astype(int), start=first):
    image[y1:y2, x1:x2] = 40 * k
    runs.append(encoded(image[..., 0] == 40 * k))
  middles = np.stack([boxes[:, [0, 2]].mean(1), boxes[:, [1, 3]].mean(1), np.full(len(boxes), 2)], -1)
  return Example(
    image=image,
    boxes=boxes,
    classes=np.arange(first, first + len(boxes), dtype=np.int32),
    crowd=np.zeros(len(boxes), bool),
    difficult=np.zeros(len(boxes), bool),
    canvas=canvas,
    masks=Masks.of(runs, boxes) if masks else None,
    keypoints=middles[:, None].astype(np.float32),
    flip_order=np.array([0]),
  )


def encoded(mask: np.ndarray) -> dict:
  return coco_mask.encode(np.asfortranarray(mask, np.uint8))


GRID = [(8, 6, 20, 20), (36, 10, 60, 18), (10, 28, 22, 44), (40, 26, 56, 46)]


def whole_mask(example: Example, row: int) -> np.ndarray:
  """bool[h, w]: what of an object's mask lies in its box."""
  x1, y1, x2, y2 = window = geometry.around(example.boxes[row], example.image.shape[:2])
  mask = np.zeros(example.image.shape[:2], bool)
  mask[y1:y2, x1:x2] = example.masks.pixels(row, window)
  return mask


def pasted_crop(example: Example, row: int) -> np.ndarray:
  """bool[h, w]: the 112 x 112 crop of an object put back into its box, nearest cells."""
  crop = example.masks.crops(example.boxes)[row]
  x1, y1, x2, y2 = example.boxes[row]
  height, width = example.image.shape[:2]
  rows = np.floor((np.arange(height) + 0.5 - y1) / (y2 - y1) * 112).astype(int)
  columns = np.floor((np.arange(width) + 0.5 - x1) / (x2 - x1) * 112).astype(int)
  inside = ((rows >= 0) & (rows < 112))[:, None] & ((columns >= 0) & (columns < 112))
  return inside & (crop[np.clip(rows, 0, 111)[:, None], np.clip(columns, 0, 111)] > 0)


def assert_objects_follow_pixels(example: Example, tolerance: float = 1.0, swing: float = 0.0) -> None:
  """Every object's mask, crop and box are where its colour is, and joints that have a label lie in the image."""
  height, width = example.image.shape[:2]
  for row, k in enumerate(example.classes):
    mask, box = whole_mask(example, row), example.boxes[row]
    border = ~_eroded(mask) & _dilated(mask)  # where bilinear pixels are neither black nor the object's colour
    value = example.image[..., 0].astype(int)
    assert (np.abs(value - 40 * k)[_eroded(mask)] <= 2 + swing * 40 * k).all()
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(box, extent, atol=tolerance)
    assert (pasted_crop(example, row) == mask)[~border].all()
  labelled = example.keypoints[example.keypoints[..., 2] > 0]
  assert ((labelled[:, :2] >= 0) & (labelled[:, :2] <= [width, height])).all()
  assert (example.boxes >= 0).all() and (example.boxes <= np.array([width, height] * 2) + 1e-3).all()


def _neighbours(mask: np.ndarray) -> np.ndarray:
  padded = np.pad(mask, 2)
  height, width = mask.shape
  return np.stack([padded[y : y + height, x : x + width] for y in range(5) for x in range(5)])


def _eroded(mask: np.ndarray) -> np.ndarray:
  return _neighbours(mask).all(0)


def _dilated(mask: np.ndarray) -> np.ndarray:
  return _neighbours(mask).any(0)


GEOMETRIC = (
  LargeScaleJitter((0.4, 2.0)),
  LargeScaleJitter((0.4, 2.0), interpolation="cubic"),
  LargeScaleJitter((0.5, 1.0), interpolation="pillow"),
  RandomCrop((0.3, 0.9)),
  QuarterTurns(),
  Rotate(20.0, 1.0),
)


@pytest.mark.parametrize("operation", GEOMETRIC, ids=lambda operation: type(operation).__name__)
@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(seeds)
def test_boxes_masks_and_joints_follow_the_pixels(operation, seed):
  found = operation(drawn(GRID), np.random.default_rng(seed))
  swing = 0.3 if getattr(operation, "interpolation", "linear") == "cubic" else 0.0  # it overshoots beside an edge
  assert_objects_follow_pixels(found, tolerance=1.5, swing=swing)


@settings
@hypothesis.given(seeds, st.permutations(range(len(GEOMETRIC))), st.integers(1, 4))
def test_operations_one_after_the_other_lose_nothing(seed, order, count):
  rng, found = np.random.default_rng(seed), drawn(GRID)
  for place in order[:count]:
    found = HorizontalFlip(0.5)(GEOMETRIC[place](found, rng), rng)
  for row, k in enumerate(found.classes):
    inside = _eroded(whole_mask(found, row))
    if inside.sum() >= 50:  # each warp of the pixels blurs the borders of what is small
      assert abs(np.median(found.image[inside]) - 40 * k) <= 0.1 * 40 * k


def test_a_crop_cuts_boxes_and_masks_drops_what_is_outside_and_unlabels_joints():
  found = geometry.cropped(drawn(GRID), (14, 0, 50, 30), min_visibility=0.25)
  # The first is cut by half, the second by ten of 24 pixels; of the third 8 x 2 of 192 show, of the fourth 10 x 4.
  assert found.classes.tolist() == [1, 2]
  assert found.boxes.tolist() == [[0, 6, 6, 20], [22, 10, 36, 18]]
  assert (found.masks.crops(found.boxes).mean(axis=(1, 2)) > 0.99).all()  # bilinear samples round corners off
  assert found.keypoints.tolist() == [[[0, 13, 2]], [[34, 14, 2]]]  # of (14, 13) and (48, 14)
  further = geometry.cropped(drawn(GRID), (15, 0, 50, 30), min_visibility=0.25)
  assert further.keypoints[0].tolist() == [[0, 0, 0]]


def test_with_a_mask_the_box_of_a_cut_object_is_around_what_shows():
  """An L: a column at the left and a foot at the bottom. Cut above the foot, the column is left."""
  given = drawn([(10, 10, 30, 40)])
  mask = np.zeros((48, 64), bool)
  mask[10:40, 10:14] = mask[36:40, 10:30] = True
  given = dataclasses.replace(given, masks=Masks.of([encoded(mask)], given.boxes))
  found = geometry.cropped(given, (0, 0, 64, 32), min_visibility=0.1)
  assert found.boxes.tolist() == [[10, 10, 14, 32]]
  assert found.masks.crops(found.boxes).mean() > 0.98
  # 88 of 184 of its pixels show; of its box, 22 of 30 rows would.
  assert len(geometry.cropped(given, (0, 0, 64, 32), min_visibility=0.5).boxes) == 0
  without = dataclasses.replace(given, masks=None)
  assert geometry.cropped(without, (0, 0, 64, 32), min_visibility=0.5).boxes.tolist() == [[10, 10, 30, 32]]


def test_quarter_turns_are_exact():
  given = drawn(GRID)
  turned = rotate.quarter_turned(given, 1)
  np.testing.assert_array_equal(turned.image, np.rot90(given.image))
  assert turned.boxes[0].tolist() == [6, 64 - 20, 20, 64 - 8]  # x becomes y, and y what is left of the width
  for times in range(4):
    found = rotate.quarter_turned(given, times)
    for row, k in enumerate(found.classes):
      np.testing.assert_array_equal(whole_mask(found, row), found.image[..., 0] == 40 * k)
  back = rotate.quarter_turned(turned, 3)
  for name in ("image", "boxes", "keypoints"):
    np.testing.assert_array_equal(getattr(back, name), getattr(given, name))


def test_a_turn_keeps_the_middle_and_moves_points_as_a_compass_does():
  given = drawn([(30, 10, 34, 14)], size=(48, 48), canvas=(48, 48))
  found = rotate.rotated(given, 30.0, 0.1)
  # From the middle (24, 24) the joint lies at (8, -12); turned by 30 degrees against the clock as seen on the screen.
  x, y = 8 * np.cos(np.pi / 6) - 12 * np.sin(np.pi / 6), -8 * np.sin(np.pi / 6) - 12 * np.cos(np.pi / 6)
  np.testing.assert_allclose(found.keypoints[0, 0], [24 + x, 24 + y, 2], atol=1e-4)
  without = rotate.rotated(dataclasses.replace(given, masks=None), 30.0, 0.1)
  side = 4 * (np.cos(np.pi / 6) + np.sin(np.pi / 6))  # of the box around the turned square
  np.testing.assert_allclose(without.boxes[0, 2:] - without.boxes[0, :2], [side, side], atol=1e-4)


@settings
@hypothesis.given(seeds)
def test_large_scale_jitter_fits_the_canvas_and_remembers_its_scale(seed):
  given = drawn(GRID)
  found = LargeScaleJitter((0.1, 2.0), min_visibility=0.0)(given, np.random.default_rng(seed))
  height, width = found.image.shape[:2]
  assert height <= CANVAS[0] and width <= CANVAS[1]
  assert 0.1 * 0.8 < found.scale[0] < 2.0 * 1.26 and abs(found.scale[0] - found.scale[1]) < 0.3
  sides = found.boxes[:, 2:] - found.boxes[:, :2]
  assert (sides >= 1).all()


def test_an_enlarged_part_is_the_part_of_the_enlarged_image():
  given = drawn(GRID)
  rng = np.random.default_rng(1)
  given = dataclasses.replace(given, image=rng.integers(0, 256, given.image.shape, dtype=np.uint8))
  window = (20, 30, 84, 86)
  whole = Resize.__call__(Resize((96,), 128), dataclasses.replace(given, canvas=(96, 128)), None)
  part = geometry.scaled_window(given, (96, 128), window, 0.0, "linear")
  inside = part.image[2:-2, 2:-2]  # at the part's own borders the pixels beyond are not read
  np.testing.assert_array_equal(inside, whole.image[32:84, 22:82])


def test_a_crop_keeps_an_object_where_there_is_one_and_ends_where_there_is_none():
  given = drawn([(0, 0, 6, 6)])
  for seed in range(30):
    found = RandomCrop((0.1, 0.2), attempts=3)(given, np.random.default_rng(seed))
    assert len(found.boxes) == 1  # of the crop, or of the whole image after three in vain
  nothing = drawn(np.zeros((0, 4)))
  found = RandomCrop((0.1, 0.2))(nothing, np.random.default_rng(0))
  assert found.image.shape[0] < 48 and found.boxes.shape == (0, 4)
  crowd = dataclasses.replace(given, crowd=np.ones(1, bool))
  assert RandomCrop((0.1, 0.2))(crowd, np.random.default_rng(0)).image.shape[0] < 48


# ---- copy-paste --------------------------------------------------------------------------------------------------


def test_pasted_objects_cover_what_was_there():
  below = drawn([(10, 10, 30, 30), (40, 10, 44, 14)])
  below = dataclasses.replace(below, keypoints=below.keypoints.copy())
  above = drawn([(20, 6, 34, 34), (38, 8, 46, 16)], first=3)
  found = copy_paste.pasted(below, above, min_visibility=0.1)
  # The right half of the first is covered, and with it its middle (20, 20); the second is covered whole.
  assert found.classes.tolist() == [1, 3, 4]
  assert found.boxes.tolist() == [[10, 10, 20, 30], [20, 6, 34, 34], [38, 8, 46, 16]]
  assert found.keypoints[:, 0].tolist() == [[20, 20, 1], [27, 20, 2], [42, 12, 2]]
  for row, k in enumerate(found.classes):
    np.testing.assert_array_equal(whole_mask(found, row), found.image[..., 0] == 40 * k)
  assert found.masks.crops(found.boxes)[0, 4:-4, :-6].all()
  half = copy_paste.pasted(below, above, min_visibility=0.6)
  assert half.classes.tolist() == [3, 4]  # half of the first is left


def test_copy_paste_grows_to_the_larger_image_and_pastes_no_crowds():
  small, large = drawn([(2, 2, 8, 8)], size=(16, 16)), drawn([(30, 20, 40, 30), (4, 20, 10, 30)], first=2)
  large = dataclasses.replace(large, crowd=np.array([False, True]))
  found = {len(CopyPaste(1.0)(small, np.random.default_rng(seed), lambda: large).boxes) for seed in range(20)}
  assert found == {1, 2}  # the number that is pasted is drawn: none or the one
  pasted = copy_paste.pasted(small, large.take(np.array([0])), 0.1)
  assert pasted.image.shape == (48, 64, 3) and pasted.classes.tolist() == [1, 2]
  assert_objects_follow_pixels(pasted)
  assert_objects_follow_pixels(copy_paste.pasted(large, drawn([(2, 2, 8, 8)], size=(16, 16)), 0.1))


@settings
@hypothesis.given(seeds)
def test_what_copy_paste_makes_of_scaled_images_is_consistent(seed):
  rng = np.random.default_rng(seed)
  jitter = LargeScaleJitter((0.5, 2.0))
  below, above = (jitter(drawn(GRID), rng) for _ in range(2))
  found = CopyPaste(1.0)(below, rng, lambda: above)
  pixels = np.zeros(found.image.shape[:2], int)
  for row in range(len(found.boxes)):
    pixels += whole_mask(found, row)
    assert whole_mask(found, row).any()
  assert pixels.max(initial=0) <= 1  # no pixel belongs to two objects
  height, width = found.image.shape[:2]
  assert height <= CANVAS[0] and width <= CANVAS[1]


# ---- mosaic ------------------------------------------------------------------------------------------------------


@settings
@hypothesis.given(seeds, st.booleans())
def test_a_mosaic_fills_the_canvas_with_four_images_and_their_objects(seed, masks):
  given = drawn(GRID, masks=masks)
  calls = []

  def other():
    calls.append(1)
    return given

  found = Mosaic(scale=(0.6, 1.0))(given, np.random.default_rng(seed), other)
  assert len(calls) == 3 and found.image.shape[:2] == CANVAS
  if masks:
    assert_objects_follow_pixels(found, tolerance=1.5)
  else:
    assert (found.boxes[:, 2:] <= [80.001, 64.001]).all() and len(found.boxes) == len(found.classes)


def test_a_mosaic_of_four_colours_has_each_in_its_quarter():
  images = [drawn([(0, 0, 64, 48)], first=k) for k in (1, 2, 3, 4)]
  rest = iter(images[1:])
  found = Mosaic(scale=(1.0, 1.0), middle=(0.5, 0.5))(images[0], np.random.default_rng(0), lambda: next(rest))
  # An image that fits the canvas is 60 x 80: more than a quarter of 32 x 40, of which it fills all.
  assert found.classes.tolist() == [1, 2, 3, 4]
  assert found.boxes.tolist() == [[0, 0, 40, 32], [40, 0, 80, 32], [0, 32, 40, 64], [40, 32, 80, 64]]
  assert found.image[[0, 0, 63, 63], [0, 79, 0, 79], 0].tolist() == [40, 80, 120, 160]


# ---- colours -----------------------------------------------------------------------------------------------------


def test_photometric_distortion_touches_pixels_alone():
  noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
  given = dataclasses.replace(drawn(GRID), image=noise)
  assert PhotometricDistortion(probability=0.0)(given, np.random.default_rng(0)).image is given.image
  for dtype in (np.uint8, np.float32):
    typed = HorizontalFlip(1.0)(dataclasses.replace(given, image=given.image.astype(dtype)), np.random.default_rng(0))
    for seed in range(12):
      found = PhotometricDistortion()(typed, np.random.default_rng(seed))
      assert found.image.dtype == dtype and found.boxes is typed.boxes and found.masks is typed.masks
      assert found.image.min() >= 0 and found.image.max() <= 255


# ---- all of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "operation", [*GEOMETRIC, CopyPaste(1.0), Mosaic(), PhotometricDistortion()], ids=lambda one: type(one).__name__
)
def test_same_seed_same_result_and_the_given_example_is_left_alone(operation):
  def result(seed):
    given = drawn(GRID)
    more = (lambda: drawn(GRID, first=2),) if getattr(operation, "takes_others", False) else ()
    found = operation(given, np.random.default_rng(seed), *more)
    for name in ("image", "boxes", "keypoints"):
      np.testing.assert_array_equal(getattr(given, name), getattr(drawn(GRID), name))
    return found

  for seed in range(4):
    first, again = result(seed), result(seed)
    for name in ("image", "boxes", "classes", "keypoints", "scale"):
      np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    np.testing.assert_array_equal(first.masks.crops(first.boxes), again.masks.crops(again.boxes))


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: LargeScaleJitter((2.0, 0.1)), r"LargeScaleJitter: scale is \(2, 0.1\): it must be two numbers above 0"),
    (lambda: RandomCrop((0.0, 1.0)), r"RandomCrop: share is \(0, 1\): it must be two numbers above 0 and at most 1"),
    (lambda: RandomCrop(attempts=0), "RandomCrop: attempts is 0: it must be at least 1"),
    (lambda: Rotate(-3), "Rotate: degrees is -3: it must be at least 0"),
    (lambda: CopyPaste(1.5), "CopyPaste: probability is 1.5: it must lie within 0 and 1"),
    (lambda: Mosaic(middle=(0.5, 1.5)), r"Mosaic: middle is \(0.5, 1.5\): .* at most 1"),
  ],
)
def test_values_that_make_no_sense_are_told_in_one_line(make, message):
  with pytest.raises(ValueError, match=message):
    make()

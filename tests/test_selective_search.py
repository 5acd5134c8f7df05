"""Selective search finds what is there, in one order in every run, and never nothing."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rcnn_jax.data import selective_search
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.selective_search import SelectiveSearch

SEARCH = SelectiveSearch(width=None, min_side=6)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
  """A red and a green rectangle, xyxy (10, 10, 40, 50) and (60, 30, 100, 60), on speckled grey: 120 x 80."""
  image = np.random.default_rng(0).integers(100, 110, (80, 120, 3)).astype(np.uint8)
  image[10:50, 10:40] = (220, 30, 30)
  image[30:60, 60:100] = (30, 200, 30)
  return image


def nearest(boxes: np.ndarray, box) -> float:
  """The largest distance of any side of the box that comes nearest, pixels."""
  return float(np.abs(boxes - np.array(box)).max(axis=1).min())


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_objects_are_among_the_proposals_in_pixels_of_the_original(picture, mode):
  found = SelectiveSearch(mode=mode, width=None, min_side=6)(picture, "picture")
  assert found.boxes.dtype == found.scores.dtype == np.float32
  for box in ([10, 10, 40, 50], [60, 30, 100, 60], [0, 0, 120, 80]):
    assert nearest(found.boxes, box) <= 2


@pytest.mark.parametrize("width", [60, 240])
def test_searching_a_resized_image_gives_boxes_of_the_original(picture, width):
  found = SelectiveSearch(width=width, min_side=6)(picture, "picture")
  assert nearest(found.boxes, [10, 10, 40, 50]) <= 4
  assert (found.boxes >= 0).all() and (found.boxes <= [120, 80, 120, 80]).all()


def test_boxes_differ_and_have_their_least_side(picture):
  few = SelectiveSearch(width=None, min_side=25)(picture, "picture").boxes
  many = SEARCH(picture, "picture").boxes
  assert len(np.unique(many, axis=0)) == len(many) > len(few)
  assert (few[:, 2:] - few[:, :2]).min() >= 25 and (many[:, 2:] - many[:, :2]).min() >= 6
  # The least side is one of the image that is searched.
  halved = SelectiveSearch(width=60, min_side=12)(picture, "picture").boxes
  assert (halved[:, 2:] - halved[:, :2]).min() >= 24


def test_every_run_gives_the_same_order_whatever_is_drawn_elsewhere(picture):
  first = SEARCH(picture, "picture")
  cv2.setRNGSeed(7)
  SEARCH(picture[::-1], "another")  # OpenCV's own order depends on what ran before
  again = SEARCH(picture, "picture")
  np.testing.assert_array_equal(first.boxes, again.boxes)
  np.testing.assert_array_equal(first.scores, again.scores)
  other = SelectiveSearch(width=None, min_side=6, seed=1)(picture, "picture")
  assert not np.array_equal(first.boxes, other.boxes)
  assert sorted(map(tuple, first.boxes)) == sorted(map(tuple, other.boxes))


def test_scores_fall_and_the_best_are_kept(picture):
  whole = SEARCH(picture, "picture")
  assert (np.diff(whole.scores) <= 0).all() and 0 <= whole.scores.min() and whole.scores.max() <= 1
  best = SelectiveSearch(width=None, min_side=6, max_boxes=3)(picture, "picture")
  np.testing.assert_array_equal(best.boxes, whole.boxes[:3])


def test_the_order_begins_with_large_boxes_or_with_small_ones():
  areas = np.arange(1, 401)
  for first, sign in (("large", -1), ("small", 1)):
    scores, order = SelectiveSearch(first=first)._order(areas)
    ranks = np.argsort(np.argsort(-scores))
    assert sign * np.corrcoef(areas, ranks)[0, 1] > 0.4  # by place times chance, not by place alone
    assert (np.diff(scores[order]) <= 0).all()


def test_where_no_box_is_found_the_whole_image_is_the_one_proposal(picture, caplog):
  found = SelectiveSearch(width=None, min_side=1000)(picture, "empty.png")
  assert found.boxes.tolist() == [[0, 0, 120, 80]] and len(found.scores) == 1
  assert caplog.messages == ["empty.png: selective search finds no box: the whole image is the one proposal"]


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (64, 64)])
def test_a_flat_image_of_any_size_has_a_proposal(size):
  found = SelectiveSearch(width=100)(np.full((*size, 3), 77, np.uint8), "flat")
  np.testing.assert_allclose(found.boxes, [[0, 0, size[1], size[0]]], rtol=1e-6)


def test_a_search_is_made_anew_from_the_settings_that_it_leaves():
  search = SelectiveSearch("quality", width=200, base_k=50, first="small")
  settings = search.settings()
  assert settings["opencv"] == cv2.__version__
  assert selective_search.like(settings, "folder") == search
  with pytest.raises(
    DataError, match="folder: proposals made by 'rpn': for other images than those, only selective_s"
  ):
    selective_search.like({"method": "rpn"}, "folder")


def test_opencv_without_its_contrib_modules_is_named(monkeypatch, picture):
  monkeypatch.delattr(cv2, "ximgproc")
  with pytest.raises(DataError, match="pip install opencv-contrib-python-headless"):
    SEARCH(picture, "picture")


def test_a_sliver_is_not_enlarged_to_the_width_of_others():
  sliver = np.full((3000, 2, 3), 100, np.uint8)
  sliver[1000:2000] = 250
  found = SelectiveSearch(width=40, min_side=1)(sliver, "sliver")  # searched at 160 x 1 pixels, not at 60,000 x 40
  assert len(found.boxes) >= 1
  assert (found.boxes >= 0).all() and (found.boxes <= [2, 3000, 2, 3000]).all()

"""Pictures: what must be seen in them, and that no object makes drawing fail."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from rcnn_jax.evaluation.draw import class_colours, draw, side_by_side
from tests.scenes import entry

NAMES = {7: "red", 9: "green"}
GREY = np.full((60, 80, 3), 90, np.uint8)


def truth(category_id, box, **more):
  one = entry(1, category_id, box, 0, **more)
  del one["score"]
  return one


def test_a_small_image_is_enlarged_and_a_large_one_left_as_it_is():
  assert draw(GREY, [], NAMES, long_side=320).shape == (240, 320, 3)
  assert draw(GREY, [], NAMES, long_side=40).shape == (60, 80, 3)


def test_without_objects_the_picture_is_the_image():
  assert np.array_equal(draw(GREY, [], NAMES, long_side=80), GREY)


def test_the_edges_of_a_box_have_the_colour_of_its_class():
  picture = draw(GREY, [truth(9, [20, 30, 60, 50])], NAMES, long_side=80)
  colour = class_colours(NAMES)[9]
  for x, y in ((20, 40), (60, 40), (40, 50)):
    assert tuple(picture[y, x]) == colour
  assert tuple(picture[40, 40]) == (90, 90, 90)


def test_a_mask_tints_its_pixels_only_and_those_of_its_rim_most():
  mask = np.zeros((60, 80), np.uint8)
  mask[35:40, 30:50] = 1
  one = truth(7, [20, 20, 60, 55], segmentation=rle.encode(np.asfortranarray(mask)))
  picture = draw(GREY, [one], NAMES, long_side=80)
  tint = np.abs(picture[33:42, 40].astype(int) - 90).sum(axis=1)
  assert (tint > 0).tolist() == [False] * 2 + [True] * 5 + [False] * 2
  assert tint[2] == tint[6] > tint[3] == tint[4] == tint[5]


def test_a_score_stands_in_the_label():
  without = draw(GREY, [truth(7, [5, 30, 70, 55])], NAMES)
  with_score = draw(GREY, [entry(1, 7, [5, 30, 70, 55], 0.87)], NAMES)
  assert (without != with_score).any()


def test_keypoints_are_dots_and_those_not_annotated_are_left_out():
  points = [40, 40, 2, 10, 10, 0]
  picture = draw(GREY, [truth(7, [20, 20, 60, 55], keypoints=points)], NAMES, long_side=80)
  assert tuple(picture[40, 40]) == class_colours(NAMES)[7]
  assert tuple(picture[10, 10]) == (90, 90, 90)


def test_limbs_join_the_joints_that_are_there():
  points = [30, 40, 2, 50, 40, 2, 40, 25, 0]
  drawn = lambda limbs: draw(
    GREY, [truth(7, [20, 20, 60, 55], keypoints=points)], NAMES, skeleton=limbs, long_side=80
  )
  assert tuple(drawn([(0, 1)])[40, 40]) == class_colours(NAMES)[7]
  assert tuple(drawn([])[40, 40]) == (90, 90, 90)
  assert np.array_equal(drawn([(0, 2)]), drawn([]))  # the third joint is not labelled


def test_every_class_has_a_colour_of_its_own():
  colours = class_colours({n: str(n) for n in range(80)})
  assert len(set(colours.values())) == 80


def test_truth_stands_left_and_detections_of_enough_score_right():
  objects = [truth(7, [20, 20, 60, 55])]
  low, high = (entry(1, 7, [20, 20, 60, 55], score) for score in (0.2, 0.8))
  hidden = side_by_side(GREY, objects, [low], NAMES, min_score=0.5)
  nothing = side_by_side(GREY, objects, [], NAMES, min_score=0.5)
  shown = side_by_side(GREY, objects, [high], NAMES, min_score=0.5)
  middle = hidden.shape[1] // 2
  assert np.array_equal(hidden, nothing)
  assert np.array_equal(hidden[60:-60, :middle], shown[60:-60, :middle])
  assert (hidden[60:-60, middle:] != shown[60:-60, middle:]).any()


@settings(deadline=None, max_examples=25)
@given(
  st.lists(
    st.tuples(
      *[st.floats(-50, 150, width=32) for _ in range(2)],
      *[st.floats(0, 90, width=32)] * 2,
      st.sampled_from([7, 9]),
      st.floats(0, 1),
    ),
    max_size=6,
  )
)
def test_any_box_can_be_drawn(boxes):
  objects = [entry(1, k, [x, y, x + w, y + h], score) for x, y, w, h, k, score in boxes]
  assert draw(GREY, objects, NAMES, long_side=80).shape == GREY.shape

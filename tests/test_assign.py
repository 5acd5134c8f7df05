"""Matching and sampling: the rules by eye, and the laws of sampling for all inputs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rcnn_jax import types
from rcnn_jax.ops import assign, boxes

N, S = 30, 12
rules = functools.partial(assign.match, foreground_iou=0.7, background_iou=0.3)
draw_samples = jax.jit(functools.partial(assign.sample, num_samples=S, foreground_fraction=0.25))

# Five regions (rows) and two objects (columns).
IOU = np.float32(
  [
    [0.8, 0.1],
    [0.5, 0.6],
    [0.2, 0.1],
    [0.2, 0.6],
    [0.0, 0.0],
  ]
)


def roles(match):
  """One letter for each region: foreground, background, or - for neither."""
  return "".join(
    "f" if f else "b" if b else "-" for f, b in zip(np.asarray(match.foreground), np.asarray(match.background))
  )


def test_thresholds_make_foreground_background_and_neither():
  got = rules(IOU, np.ones(2, bool))
  assert roles(got) == "f-b-b"
  np.testing.assert_array_equal(got.matched, [0, 1, 0, 1, 0])
  np.testing.assert_allclose(got.iou, [0.8, 0.6, 0.2, 0.6, 0])


def test_the_thresholds_themselves_are_foreground_and_not_background():
  got = rules(np.float32([[0.7], [0.3], [0.29]]), np.ones(1, bool))
  assert roles(got) == "f-b"


def test_low_quality_matches_give_every_object_all_its_best_regions():
  got = rules(IOU, np.ones(2, bool), allow_low_quality=True)
  assert roles(got) == "ffbfb"  # regions 1 and 3 tie for object 1


def test_a_low_quality_match_keeps_the_object_that_the_region_overlaps_most():
  # Region 0 is the best of object 1, though it overlaps object 0 more: it is matched to object 0, as in torchvision.
  got = rules(np.float32([[0.5, 0.4], [0.6, 0.1]]), np.ones(2, bool), allow_low_quality=True)
  assert roles(got) == "ff"
  np.testing.assert_array_equal(got.matched, [0, 0])


def test_an_object_that_no_region_touches_makes_nothing_foreground():
  got = rules(np.float32([[0.8, 0], [0.1, 0]]), np.ones(2, bool), allow_low_quality=True)
  assert roles(got) == "fb"


def test_without_objects_everything_is_background():
  for low_quality in (False, True):
    got = rules(IOU, np.zeros(2, bool), allow_low_quality=low_quality)
    assert roles(got) == "bbbbb"
    np.testing.assert_array_equal(got.matched, 0)
    np.testing.assert_array_equal(got.iou, 0)


def test_regions_that_do_not_exist_are_nothing_and_set_no_record():
  exists = np.array([False, True, True, False, True])
  got = rules(IOU, np.ones(2, bool), allow_low_quality=True, anchor_valid=exists)
  # With region 0 gone, region 1 is the best of both objects.
  assert roles(got) == "-fb-b"


def test_ignored_regions_are_neither():
  ignored = np.array([True, False, True, False, False])
  assert roles(rules(IOU, np.ones(2, bool), ignored=ignored)) == "----b"


THRESHOLDS = dict(foreground_iou=0.7, background_iou=0.3)
one_table = jax.jit(
  lambda anchors, objects, valid, exists: assign.match(
    boxes.iou(anchors, objects), valid, allow_low_quality=True, anchor_valid=exists, **THRESHOLDS
  )
)
in_chunks = jax.jit(functools.partial(assign.match_anchors, **THRESHOLDS), static_argnames="chunk")
whole_pixels = st.integers(0, 40).map(float)
several_boxes = lambda count: hnp.arrays(np.float32, (count, 4), elements=whole_pixels)


@settings(deadline=None, max_examples=60)
@given(several_boxes(23), several_boxes(34), hnp.arrays(bool, 34), hnp.arrays(bool, 23), st.sampled_from([1, 9, 64]))
def test_anchors_in_chunks_are_matched_as_in_one_table_to_the_last_bit(anchors, objects, valid, exists, chunk):
  # 34 objects take two words of 32 bits; boxes of so few pixels are often equal, so that there are ties.
  want = one_table(anchors, objects, valid, exists)
  got = in_chunks(anchors, objects, valid, anchor_valid=exists, chunk=chunk)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_the_highest_overlap_counts_wherever_its_chunk_is():
  anchors = np.float32([[0, 0, 10, 10], [0, 0, 8, 8], [40, 40, 50, 50], [0, 0, 8, 8]])
  objects = np.float32([[0, 0, 6, 6]])
  got = in_chunks(anchors, objects, np.ones(1, bool), chunk=1)
  assert roles(got) == "-fbf"  # 36 / 64 is the highest, twice; 36 / 100 is neither


roles_of_regions = hnp.arrays(np.int32, N, elements=st.integers(0, 2))


@settings(deadline=None, max_examples=40)
@given(roles_of_regions, st.integers(0, 2**31 - 1))
def test_samples_are_distinct_rows_of_the_right_kind_in_the_right_number(role, seed):
  foreground, background = role == 1, role == 2
  got = jax.tree.map(np.asarray, draw_samples(jax.random.key(seed), foreground, background))
  num_foreground = min(foreground.sum(), S // 4)
  num_background = min(background.sum(), S - num_foreground)
  chosen = got.indices[got.valid]
  assert len(set(chosen)) == len(chosen)
  assert foreground[chosen[:num_foreground]].all()
  assert background[chosen[num_foreground:]].all()
  np.testing.assert_array_equal(got.foreground, np.arange(S) < num_foreground)
  np.testing.assert_array_equal(got.valid, np.arange(S) < num_foreground + num_background)
  np.testing.assert_array_equal(got.indices[~got.valid], 0)


def test_every_region_is_equally_likely_to_be_drawn():
  foreground, background = np.arange(N) < 10, np.arange(N) >= 10
  keys = jax.random.split(jax.random.key(0), 4000)
  got = jax.vmap(draw_samples, in_axes=(0, None, None))(keys, foreground, background)
  share = np.bincount(np.asarray(got.indices).ravel(), minlength=N) / len(keys)
  expected = np.where(foreground, 3 / 10, 9 / 20)
  # Five standard deviations of a binomial share, for 30 regions.
  np.testing.assert_array_less(np.abs(share - expected), 5 * np.sqrt(expected * (1 - expected) / len(keys)))


def test_more_samples_than_regions_leave_the_rest_not_valid():
  got = assign.sample(
    jax.random.key(0), np.array([True, False]), np.array([False, True]), num_samples=6, foreground_fraction=0.5
  )
  np.testing.assert_array_equal(got.indices, [0, 1, 0, 0, 0, 0])
  np.testing.assert_array_equal(got.valid, [True, True, False, False, False, False])


def test_targets_gather_boxes_and_classes_and_zero_the_rest():
  regions = np.arange(20, dtype=np.float32).reshape(5, 4)
  truth = types.GroundTruth(
    boxes=np.zeros((2, 4), np.float32),
    classes=np.array([7, 9], np.int32),
    crowd=np.zeros(2, bool),
    difficult=np.zeros(2, bool),
    valid=np.ones(2, bool),
  )
  match = rules(IOU, truth.valid, allow_low_quality=True)
  samples = assign.Samples(
    indices=jnp.array([3, 0, 4, 0]),
    foreground=jnp.array([True, True, False, False]),
    valid=jnp.array([True, True, True, False]),
  )
  got = assign.targets(samples, match, regions, truth)
  np.testing.assert_array_equal(got.boxes, [regions[3], regions[0], regions[4], [0, 0, 0, 0]])
  np.testing.assert_array_equal(got.classes, [9, 7, 0, 0])
  np.testing.assert_array_equal(got.matched, [1, 0, 0, 0])
  np.testing.assert_array_equal(got.valid, [True, True, True, False])

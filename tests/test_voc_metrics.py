"""VOC's average precision: examples that can be computed by hand, and the development kit's own way of computing."""

from __future__ import annotations

import dataclasses
import pathlib
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from rcnn_jax.data.voc import VocFolder
from rcnn_jax.evaluation.coco import truth_dataset
from rcnn_jax.evaluation.results import Results
from rcnn_jax.evaluation.voc import average_precision_11pt, average_precision_area, voc_metrics
from tests.scenes import CATEGORIES, annotations, entry

A, B, C = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]
NOWHERE = [70, 70, 90, 90]


def metrics_of(images, entries):
  return voc_metrics(truth_dataset(images, CATEGORIES), Results.from_entries(entries))


def red(images, entries):
  """(11-point, area) AP of the class red."""
  numbers = metrics_of(images, entries)
  return numbers["voc/AP_11pt/red"], numbers["voc/AP_area/red"]


def test_hit_miss_hit_of_three_objects():
  # recall      1/3  1/3  2/3
  # precision    1   1/2  2/3
  entries = [entry(1, 7, A, 0.9), entry(1, 7, NOWHERE, 0.8), entry(1, 7, B, 0.7)]
  eleven, area = red([annotations(1, [A, B, C], [1, 1, 1])], entries)
  assert eleven == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 0) / 11)  # recalls 0-0.3, 0.4-0.6, 0.7-1
  assert area == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)


def test_precision_is_made_to_fall_with_recall():
  # One wrong, then one right: the precision at recall 0.5 is 1/2, and so it is at recall 0.
  entries = [entry(1, 7, NOWHERE, 0.9), entry(1, 7, A, 0.8)]
  eleven, area = red([annotations(1, [A, B], [1, 1])], entries)
  assert eleven == pytest.approx(6 * 0.5 / 11)
  assert area == pytest.approx(0.5 * 0.5)


@pytest.mark.parametrize("found", range(11))
def test_eleven_points_meet_recalls_of_tenths_exactly(found):
  recall = np.arange(1, found + 1) / 10
  assert average_precision_11pt(recall, np.ones(found)) == pytest.approx((found + 1 if found else 0) / 11)
  assert average_precision_area(recall, np.ones(found)) == pytest.approx(found / 10)


def test_a_second_detection_of_an_object_is_wrong():
  entries = [entry(1, 7, A, 0.9), entry(1, 7, A, 0.8), entry(1, 7, B, 0.7)]
  assert red([annotations(1, [A, B], [1, 1])], entries)[1] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_a_detection_goes_to_the_object_of_highest_iou_only():
  # Both detections fit A best; the second is wrong although its IoU with the free neighbour is 8 / 12 > 0.5.
  neighbour = [2, 0, 12, 10]
  entries = [entry(1, 7, A, 0.9), entry(1, 7, [0, 0, 10, 10], 0.8)]
  assert red([annotations(1, [A, neighbour], [1, 1])], entries)[1] == pytest.approx(0.5)


def test_an_iou_of_exactly_a_half_is_a_hit():
  assert red([annotations(1, [A], [1])], [entry(1, 7, [0, 0, 10, 5], 0.9)]) == (1, 1)
  assert red([annotations(1, [A], [1])], [entry(1, 7, [0, 0, 10, 4.9], 0.9)]) == (0, 0)


def test_difficult_objects_and_what_is_found_of_them_do_not_count():
  image = annotations(1, [A, B], [1, 1], difficult=[False, True])
  assert red([image], [entry(1, 7, A, 0.5)]) == (1, 1)
  twice = [entry(1, 7, B, 0.9), entry(1, 7, B, 0.8), entry(1, 7, A, 0.5)]
  assert red([image], twice) == (1, 1)


def test_objects_of_other_images_and_classes_are_not_hit():
  images = [annotations(1, [A], [1]), annotations(2, [A], [2])]
  assert red(images, [entry(2, 7, A, 0.9)]) == (0, 0)
  assert red(images, [entry(1, 9, A, 0.9)]) == (0, 0)


def test_the_mean_is_over_the_classes_that_have_objects():
  numbers = metrics_of([annotations(1, [A, B], [1, 2])], [entry(1, 7, A, 0.9)])
  assert numbers == {
    "voc/mAP_11pt": 0.5,
    "voc/mAP_area": 0.5,
    "voc/AP_11pt/red": 1,
    "voc/AP_area/red": 1,
    "voc/AP_11pt/green": 0,
    "voc/AP_area/green": 0,
    "voc/AP_11pt/blue": None,
    "voc/AP_area/blue": None,
  }


def test_without_objects_or_results():
  nothing = metrics_of([annotations(1, [], [])], [entry(1, 7, A, 0.9)])
  assert set(nothing.values()) == {None}
  assert red([annotations(1, [A], [1])], []) == (0, 0)


# ------------------------------------------------------------------------------------- as the development kit does it


def area(box) -> float:
  """The area of an inclusive box (xmin, ymin, xmax, ymax), which may be empty."""
  return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def overlap(a, b) -> float:
  corners = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
  shared = area(corners)
  return shared / (area(a) + area(b) - shared)


def inclusive(one: dict) -> tuple[float, float, float, float]:
  """VOC's own coordinates: pixels from 1 on, the last of which belongs to the box."""
  x, y, width, height = one["bbox"]
  return x + 1, y + 1, x + width, y + height


def as_the_development_kit_does_it(objects: list[dict], found: list[dict]) -> tuple[Fraction, Fraction] | None:
  """(11-point, area) AP of one class: every detection by falling score, one comparison after the other."""
  hits, misses, points, taken = 0, 0, [], set()
  num_objects = sum(not one["difficult"] for one in objects)
  if num_objects == 0:
    return None
  for detection in sorted(found, key=lambda one: -one["score"]):
    best, best_overlap = None, -1.0
    for number, one in enumerate(objects):
      if one["image_id"] == detection["image_id"]:
        value = overlap(inclusive(one), inclusive(detection))
        if value > best_overlap:
          best, best_overlap = number, value
    if best_overlap < 0.5 or (not objects[best]["difficult"] and best in taken):
      misses += 1
    elif not objects[best]["difficult"]:
      taken.add(best)
      hits += 1
    if hits + misses:  # nothing but difficult objects so far is no precision at all
      points.append((Fraction(hits, num_objects), Fraction(hits, hits + misses)))
  best_beyond = lambda recall: max((p for r, p in points if r >= recall), default=Fraction(0))
  eleven = sum(best_beyond(Fraction(tenth, 10)) for tenth in range(11)) / 11
  steps = sorted({Fraction(0), *(recall for recall, _ in points)})
  return eleven, sum((high - low) * best_beyond(high) for low, high in zip(steps, steps[1:]))


def same_as_the_development_kit(images, entries, categories) -> None:
  """Both APs of every class, and their means."""
  truth = truth_dataset(images, categories)
  numbers = voc_metrics(truth, Results.from_entries(entries))
  every = []
  for category in categories:
    mine = [[one for one in group if one["category_id"] == category.id] for group in (truth["annotations"], entries)]
    expected = as_the_development_kit_does_it(*mine)
    ours = [numbers[f"voc/AP_{points}/{category.name}"] for points in ("11pt", "area")]
    if expected is None:
      assert ours == [None, None]
    else:
      assert ours == pytest.approx([float(value) for value in expected], rel=1e-12, abs=1e-15)
      every.append(expected)
  for points, values in zip(("11pt", "area"), zip(*every)):
    assert numbers[f"voc/mAP_{points}"] == pytest.approx(float(sum(values) / len(values)), rel=1e-12, abs=1e-15)


small_boxes = st.tuples(*[st.integers(0, 8)] * 2, *[st.integers(1, 8)] * 2).map(
  lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)
# Few images, places and scores: ties of both, and several detections of one object, are the rule.
some_objects = st.lists(st.tuples(st.integers(1, 2), small_boxes, st.integers(1, 2), st.booleans()), max_size=6)
some_entries = st.lists(st.tuples(st.integers(1, 3), small_boxes, st.integers(1, 3), st.integers(1, 4)), max_size=12)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(some_objects, some_entries)
def test_any_small_case_is_as_the_development_kit_has_it(objects, found):
  images = []
  for image_id in (1, 2, 3):
    mine = [one for one in objects if one[0] == image_id]
    boxes, classes, difficult = ([one[column] for one in mine] for column in (1, 2, 3))
    images.append(annotations(image_id, boxes, classes, difficult=difficult))
  entries = [entry(i, CATEGORIES[k - 1].id, [float(v) for v in box], score / 4) for i, box, k, score in found]
  same_as_the_development_kit(images, entries, CATEGORIES)


BCCD = pathlib.Path(__file__).parents[2] / "shared" / "data" / "bccd"


@pytest.mark.skipif(not BCCD.is_dir(), reason="the blood-smear images (../shared/data/bccd) are not here")
@pytest.mark.parametrize("seed", [0, 1])
def test_detections_of_blood_cells_are_measured_as_the_development_kit_does(seed):
  source, draw = VocFolder(str(BCCD), "test").open(), np.random.default_rng(seed)
  images, entries = [], []
  for index in range(len(source)):
    image = source.annotations(index)
    marked = np.array(image.difficult) | (draw.random(len(image.boxes)) < 0.1)
    images.append(dataclasses.replace(image, difficult=marked))
    for box, k in zip(image.boxes.astype(np.float64), image.classes):
      for _ in range(draw.integers(0, 4)):
        near = box + draw.normal(0, 12, 4)
        near[2:] = np.maximum(near[2:], near[:2] + 1)
        k_found = draw.integers(1, 4) if draw.random() < 0.1 else k
        category = source.categories[k_found - 1].id
        entries.append(entry(image.image_id, category, near.tolist(), round(draw.random(), 2)))
  same_as_the_development_kit(images, entries, source.categories)

"""VOC's average precision, with examples that can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rcnn_jax.evaluation.coco import truth_dataset
from rcnn_jax.evaluation.voc import average_precision_11pt, average_precision_area, voc_metrics
from tests.scenes import CATEGORIES, annotations, entry

A, B, C = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]
NOWHERE = [70, 70, 90, 90]


def red(images, entries):
  """(11-point, area) AP of the class red."""
  numbers = voc_metrics(truth_dataset(images, CATEGORIES), entries)
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
  numbers = voc_metrics(truth_dataset([annotations(1, [A, B], [1, 2])], CATEGORIES), [entry(1, 7, A, 0.9)])
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
  nothing = voc_metrics(truth_dataset([annotations(1, [], [])], CATEGORIES), [entry(1, 7, A, 0.9)])
  assert set(nothing.values()) == {None}
  assert red([annotations(1, [A], [1])], []) == (0, 0)

"""The embedded data set: the same pictures each time, exact boxes and masks, nothing in a picture without a label."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rcnn_jax.data.errors import DataError
from rcnn_jax.data.shapes import Shapes
from rcnn_jax.data.shapes_builder import draw
from rcnn_jax.data.source import object_faults


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> Shapes:
  return Shapes(str(tmp_path_factory.mktemp("tfds")), "train", side=96, num_train=50, num_eval=4)


@pytest.fixture(scope="module")
def source(spec):
  return spec.open()


def test_sizes_classes_and_splits(spec, source):
  assert len(source) == 50
  assert len(Shapes(spec.data_dir, "eval", side=96, num_train=50, num_eval=4).open()) == 4
  assert [(category.id, category.name) for category in source.categories] == [
    (1, "circle"),
    (2, "square"),
    (3, "triangle"),
  ]
  assert source.image(0).shape == (96, 96, 3) and source.image(0).dtype == np.uint8


def test_needs_no_tensorflow(source):
  assert "tensorflow" not in sys.modules


def test_boxes_and_areas_are_those_of_the_masks(source):
  for index in range(len(source)):
    annotations = source.annotations(index)
    for row, segmentation in enumerate(annotations.segmentations):
      mask = coco_mask.decode(segmentation).astype(bool)
      assert mask.shape == annotations.size
      np.testing.assert_array_equal(annotations.boxes[row], draw.box_of(mask))
      assert annotations.areas[row] == mask.sum()


def test_objects_overlap_but_no_pixel_has_two_owners(source):
  overlapping_boxes = 0
  for index in range(len(source)):
    annotations = source.annotations(index)
    masks = np.array([coco_mask.decode(item) for item in annotations.segmentations]).reshape(-1, 96, 96)
    assert masks.sum(0).max(initial=0) <= 1
    assert not object_faults(annotations)
    for own, (x1, y1, x2, y2) in enumerate(annotations.boxes.astype(int)):
      overlapping_boxes += np.delete(masks, own, axis=0)[:, y1:y2, x1:x2].any((1, 2)).sum()
  assert overlapping_boxes >= 10


def test_all_classes_and_an_image_without_objects_occur(source):
  classes = [source.annotations(index).classes for index in range(len(source))]
  assert set(np.concatenate(classes).tolist()) == {1, 2, 3}
  assert min(len(found) for found in classes) == 0


def test_the_same_numbers_draw_the_same_pictures_and_another_seed_others(tmp_path, spec, source):
  again = Shapes(str(tmp_path), "eval", side=96, num_train=50, num_eval=4).open()
  first = Shapes(spec.data_dir, "eval", side=96, num_train=50, num_eval=4).open()
  np.testing.assert_array_equal(first.image(0), again.image(0))
  np.testing.assert_array_equal(first.annotations(0).boxes, again.annotations(0).boxes)
  other = Shapes(str(tmp_path), "eval", side=96, num_train=1, num_eval=4, seed=1).open()
  assert not np.array_equal(other.image(0), first.image(0))


def test_a_built_data_set_is_used_again(spec, source, monkeypatch):
  monkeypatch.setattr(Shapes, "_build", lambda self: pytest.fail("drawn a second time"))
  assert len(spec.open()) == len(source)


def test_unknown_split_names_those_there_are(spec, source):
  with pytest.raises(DataError, match="no split 'test'; it has train, eval"):
    Shapes(spec.data_dir, "test", side=96, num_train=50, num_eval=4).open()

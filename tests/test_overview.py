"""What is known of all images before the first is decoded: sizes and counts, of one source and of several."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.source import overview
from rcnn_jax.data.union import Union


def entry(image_id, box, **more):
  x, y, width, height = box
  square = [[x, y, x + width, y, x + width, y + height, x, y + height]]
  return {"image_id": image_id, "category_id": 1, "bbox": box, "segmentation": square, **more}


@pytest.fixture
def folder(tmp_path) -> CocoFolder:
  """Image 1: two objects, a crowd, a box without width. Image 2: nothing. Image 3: one object without a mask."""
  data = {
    "images": [
      {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
      for number, (height, width) in enumerate([(40, 60), (30, 20), (40, 60)], start=1)
    ],
    "categories": [{"id": 1, "name": "ant", "keypoints": ["head", "tail"]}],
    "annotations": [
      entry(1, [2, 3, 10, 10], id=1, keypoints=[2, 3, 2, 9, 9, 1]),
      entry(1, [20, 3, 10, 10], id=2, keypoints=[21, 3, 2, 0, 0, 0]),
      entry(1, [2, 20, 10, 10], id=3, iscrowd=1, keypoints=[2, 20, 2, 0, 0, 0]),
      entry(1, [2, 20, 0, 10], id=4, keypoints=[2, 20, 2, 0, 0, 0]),
      entry(3, [2, 3, 10, 10], id=5) | {"segmentation": []},
    ],
  }
  for image in data["images"]:
    cv2.imwrite(str(tmp_path / image["file_name"]), np.zeros((image["height"], image["width"], 3), np.uint8))
  (tmp_path / "all.json").write_text(json.dumps(data))
  return CocoFolder(str(tmp_path), str(tmp_path / "all.json"))


def test_counts_are_of_objects_that_are_not_faulty(folder):
  found = overview(folder.open(), masks=True)
  assert found.sizes.tolist() == [[40, 60], [30, 20], [40, 60]]
  assert found.num_objects.tolist() == [3, 0, 0]
  assert found.num_trainable.tolist() == [2, 0, 0]
  assert found.num_keypoints.tolist() == [3, 0, 0]
  assert found.num_faulty == 2
  assert found.first_fault == "1.png: object 4: degenerate box [2, 20, 2, 30]: width 0, height 10"
  without_masks = overview(folder.open(), masks=False)
  assert without_masks.num_trainable.tolist() == [2, 0, 1] and without_masks.num_faulty == 1


def test_the_overview_of_several_sources_is_theirs_one_behind_the_other(folder):
  one, two = overview(folder.open(), masks=True), overview(Union((folder, folder)).open(), masks=True)
  for name in ("sizes", "num_objects", "num_trainable", "num_keypoints"):
    np.testing.assert_array_equal(getattr(two, name), np.concatenate([getattr(one, name)] * 2))
  assert (two.num_faulty, two.first_fault) == (4, one.first_fault)


def test_masks_that_no_object_has_are_told_by_the_image(folder, tmp_path):
  data = json.loads((tmp_path / "all.json").read_text())
  for annotation in data["annotations"]:
    del annotation["segmentation"]
  (tmp_path / "all.json").write_text(json.dumps(data))
  source = folder.open()
  assert overview(source, masks=False).num_objects.tolist() == [3, 0, 1]
  with pytest.raises(DataError, match="^1.png: load_masks is set, but the objects have no masks$"):
    overview(source, masks=True)

"""Small inputs that failed once, each read from shared/cases: the right answers of COCO folders."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rcnn_jax.data import loader, transforms, validate
from rcnn_jax.data.coco import CocoFolder, CocoSource
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.source import clean

CASES = pathlib.Path(__file__).parents[2] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the inputs that failed (shared/cases) are not here")

# What nearly every case says: two objects on one image of 80 x 96, (height, width).
BOXES = [[21, 23, 51, 53], [22, 18, 53, 49]]


def folder(name: str, **choices) -> CocoFolder:
  return CocoFolder(str(CASES / name / "images"), str(CASES / name / "ann.json"), **choices)


def told(name: str) -> list[str]:
  """What validate_data prints of a case."""
  return [line.replace(f"{CASES / name}/", "") for line in validate.faults(folder(name))]


def sound(name: str) -> CocoSource:
  """A case without a fault, opened, with the two objects and their masks."""
  assert told(name) == []
  source = folder(name).open()
  annotations = source.annotations(0)
  assert annotations.size == (80, 96) and source.image(0).shape == (80, 96, 3)
  assert annotations.boxes.tolist() == BOXES and annotations.classes.tolist() == [1, 2]
  assert [int(coco_mask.area(one)) for one in annotations.segmentations] == [900, 961]
  return source


def test_annotation_id_null():
  assert sound("annotation_id_null").annotations(0).ids.tolist() == [1, 2]


def test_annotation_id_string():
  assert sound("annotation_id_string").annotations(0).ids.tolist() == [1, 2]


def test_annotations_null(caplog):
  null = "ann.json: annotations is null, not a list: read as an empty one"
  nothing = "no image has an object to train on: none of the 1 images has an object"
  assert told("annotations_null") == [null, nothing]
  source = folder("annotations_null").open()
  assert len(source) == 1 and len(source.annotations(0).boxes) == 0
  assert [record.getMessage().endswith(null) for record in caplog.records] == [True]


def test_area_negative():
  problem = "area -1.0 is negative: that of the box is taken"
  assert told("area_negative") == [f"im000.jpg: annotation {number}: {problem}" for number in (1, 2)]
  assert folder("area_negative").open().annotations(0).areas.tolist() == [900, 961]


def test_category_id_string_in_annotations_only():
  sound("category_id_string_in_annotations_only")


def test_category_name_number():
  assert [category.name for category in sound("category_name_number").categories] == ["1", "2"]


def test_coco_subfolders():
  assert told("coco_subfolders") == []
  source = folder("coco_subfolders").open()
  names = [source.annotations(row).file_name for row in range(3)]
  assert names == [f"batch {number}/über 照片 {number}.jpg" for number in range(3)]
  assert all(source.image(row).shape == (80, 96, 3) for row in range(3))


def test_duplicate_category_names():
  problem = "2 categories have the name 'square' (ids 0, 1): they stay classes of their own"
  assert told("duplicate_category_names") == [f"ann.json: {problem}"]
  source = folder("duplicate_category_names").open()
  assert [(one.id, one.name) for one in source.categories] == [(0, "square"), (1, "square"), (2, "disc")]
  assert source.annotations(0).classes.tolist() == [2, 3]
  # Chosen by name, both are meant; the one with objects has the id.
  chosen = folder("duplicate_category_names", class_names=("disc", "square")).open()
  assert [(one.id, one.name) for one in chosen.categories] == [(2, "disc"), (1, "square")]
  assert chosen.annotations(0).classes.tolist() == [2, 1]


def test_file_name_windows():
  assert sound("file_name_windows").annotations(0).file_name == "images\\im000.jpg"


def test_ignore_flag():
  assert sound("ignore_flag").annotations(0).difficult.tolist() == [True, False]


@pytest.mark.parametrize(
  "name, file_id", [("image_id_above_2_31", 2019000000903), ("image_id_string", "0000001_02999")]
)
def test_image_ids_that_are_no_number_below_2_31(name, file_id):
  source = sound(name)
  annotations = source.annotations(0)
  assert (annotations.image_id, annotations.file_id) == (1, file_id)
  assert source.overview(masks=False).image_ids.tolist() == [1]


def test_json_bom():
  annotations = sound("json_bom").annotations(0)
  assert (annotations.image_id, annotations.file_id) == (1, None)


def test_keypoint_names_capital():
  source = sound("keypoint_names_capital")
  assert source.keypoints.flip_pairs == ((0, 1),)
  annotations = source.annotations(0)
  objects = (annotations.boxes, annotations.classes, annotations.crowd, annotations.difficult)
  example = transforms.Example(
    source.image(0),
    *objects,
    canvas=annotations.size,
    keypoints=annotations.keypoints,
    flip_order=source.keypoints.flip_order,
  )
  flipped = transforms.flip(example)
  # Left_Eye at x = 21 and Right_Eye at 51 of 96 pixels: mirrored, the left one is where the right one was.
  assert flipped.keypoints[0, :, 0].tolist() == [96 - 51, 96 - 21]


def test_keypoints_two_skeletons():
  name = "keypoints_two_skeletons"
  problem = "only one skeleton is supported, that of 'square': objects of other joints (disc) are read without them"
  assert told(name) == [f"ann.json: {problem}"]
  source = folder(name).open()
  annotations = source.annotations(0)
  assert annotations.classes.tolist() == [1, 2, 1] and annotations.keypoints.shape == (3, 4, 3)
  assert annotations.keypoints[0].tolist() == [[21, 23, 2], [51, 23, 2], [51, 53, 2], [21, 53, 2]]
  assert not annotations.keypoints[1].any()
  assert source.overview(masks=False).num_keypoints[0] == 8
  # The other skeleton is read by choosing its class alone.
  other = folder(name, class_names=("disc",)).open()
  assert other.faults == () and other.annotations(0).keypoints[0, :, 0].tolist() == [37.5, 22, 53]


def test_percent_names():
  assert told("percent_names") == []
  source = folder("percent_names").open()
  assert source.annotations(1).file_name == "my%20photo%201.jpg" and source.image(1).shape == (80, 96, 3)


def test_polygon_flat():
  sound("polygon_flat")


@pytest.mark.parametrize("name", ["polygon_nan", "polygon_null"])
def test_polygons_of_what_is_no_number(name):
  assert told(name) == ["im000.jpg: annotation 1: polygon coordinate nan is not a finite number"]
  source = folder(name).open()
  assert source.annotations(0, masks=False).ids.tolist() == [1, 2]  # the box is sound
  assert clean(source.annotations(0)).ids.tolist() == [2]
  assert source.overview(masks=True).num_objects.tolist() == [1]


def test_rle_in_a_list():
  assert told("rle_in_a_list") == []
  pixels = coco_mask.decode(folder("rle_in_a_list").open().annotations(0).segmentations[0])
  # 50 pixels from the 100th on, column by column in columns of 80: rows 20 to 69 of the second column.
  assert np.argwhere(pixels).tolist() == [[row, 1] for row in range(20, 70)]


def test_rle_size_null():
  assert told("rle_size_null") == ["im000.jpg: annotation 1: the mask is None, the image is [80, 96] (height, width)"]
  assert folder("rle_size_null").open().annotations(0, masks=False).ids.tolist() == [1, 2]


def test_all_objects_crowds_cvat_masks(caplog):
  name, line = "all_objects_crowds_cvat_masks", "no image has an object to train on: all 6 objects are crowds"
  assert told(name) == [line]
  loader.training_epoch(Data(train=folder(name), eval=folder(name)), folder(name).open())
  assert [record.getMessage() for record in caplog.records] == [f"the training data: {line}"]

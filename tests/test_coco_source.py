"""COCO folders: boxes, the three spellings of a mask, category ids, keypoints and faults."""

from __future__ import annotations

import json
import pathlib

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rcnn_jax.data import coco
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.source import KeypointNames, object_faults

DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets (shared/data) are not here")
SQUARE = np.zeros((40, 60), np.uint8)
SQUARE[5:15, 10:30] = 1


def contents() -> dict:
  """Two images of 60 x 40, the second without objects; classes 7 and 90."""
  box = {"image_id": 10, "category_id": 90, "bbox": [10, 5, 20, 10], "iscrowd": 0}
  counts = [10 * 40 + 5] + [10, 30] * 19 + [10, 25 + 30 * 40]
  compressed = coco_mask.encode(np.asfortranarray(SQUARE))
  return {
    "images": [
      {"id": 10, "file_name": "a.png", "height": 40, "width": 60},
      {"id": 3, "file_name": "b.png", "height": 40, "width": 60},
    ],
    "categories": [{"id": 90, "name": "kite"}, {"id": 7, "name": "ant"}],
    "annotations": [
      {**box, "id": 1, "area": 111.5, "segmentation": [[10, 5, 30, 5, 30, 15, 10, 15]]},
      {**box, "id": 2, "segmentation": {"size": [40, 60], "counts": compressed["counts"].decode()}},
      {**box, "id": 3, "segmentation": {"size": [40, 60], "counts": counts}, "iscrowd": 1, "category_id": 7},
    ],
  }


def write(folder: pathlib.Path, data: dict) -> CocoFolder:
  (folder / "images").mkdir(exist_ok=True)
  for name in ("a.png", "b.png"):
    cv2.imwrite(str(folder / "images" / name), np.zeros((40, 60, 3), np.uint8))
  (folder / "instances.json").write_text(json.dumps(data))
  return CocoFolder(str(folder / "images"), str(folder / "instances.json"))


def test_boxes_classes_areas_and_crowds(tmp_path):
  source = write(tmp_path, contents()).open()
  assert [(category.id, category.name) for category in source.categories] == [(7, "ant"), (90, "kite")]
  annotations = source.annotations(0)
  assert annotations.image_id == 10 and annotations.size == (40, 60)
  assert annotations.boxes.tolist() == [[10, 5, 30, 15]] * 3
  assert annotations.classes.tolist() == [2, 2, 1]
  assert annotations.crowd.tolist() == [False, False, True]
  assert annotations.areas.tolist() == [111.5, 200, 200]  # the file's own where it has one
  assert annotations.ids.tolist() == [1, 2, 3]
  assert source.annotations(1).boxes.shape == (0, 4)
  assert source.keypoints is None


def test_polygons_and_both_run_lengths_are_the_same_mask(tmp_path):
  annotations = write(tmp_path, contents()).open().annotations(0)
  for segmentation in annotations.segmentations:
    np.testing.assert_array_equal(coco_mask.decode(segmentation), SQUARE)
    assert json.loads(json.dumps(segmentation)) == segmentation


def test_a_polygon_of_two_points_is_left_out_and_nothing_left_is_no_mask(tmp_path):
  data = contents()
  data["annotations"][0]["segmentation"].append([1, 1, 2, 2])
  data["annotations"][1]["segmentation"] = [[1, 1, 2, 2]]
  source = write(tmp_path, data).open()
  np.testing.assert_array_equal(coco_mask.decode(source.annotations(0).segmentations[0]), SQUARE)
  told = "a polygon of fewer than three points, or of an odd number of coordinates"
  assert [str(fault) for fault in source.faults] == [f"a.png: annotation 1: {told}", f"a.png: annotation 2: {told}"]
  # Where masks are needed, the second object is left out; it is named once.
  assert source.annotations(0).ids.tolist() == [1, 3] and not object_faults(source.annotations(0))
  assert source.annotations(0, masks=False).ids.tolist() == [1, 2, 3]


def test_keypoints_and_their_mirror_pairs(tmp_path):
  data = contents()
  data["categories"][0] |= {"keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [1, 3], [3, 4]]}
  data["annotations"][0]["keypoints"] = [1, 2, 2, 3, 4, 1, 0, 0, 0]
  source = write(tmp_path, data).open()
  assert source.keypoints == KeypointNames(("nose", "left_eye", "right_eye"), ((1, 2),), ((0, 1), (0, 2)))
  assert source.keypoints.flip_order.tolist() == [0, 2, 1]
  keypoints = source.annotations(0).keypoints
  assert keypoints[0].tolist() == [[1, 2, 2], [3, 4, 1], [0, 0, 0]]
  assert not keypoints[1:].any()  # objects without joints


def test_the_run_lengths_of_any_mask_are_legible_and_those_of_none_that_is_cut_short(tmp_path):
  data, rng = contents(), np.random.default_rng(0)
  one = data["annotations"].pop()
  data["annotations"] = []
  for number in range(60):
    # Runs from one pixel to hundreds: lengths of one to three characters, and differences of either sign.
    mask = np.kron(rng.random((40 // 8, 60 // 4)) < rng.random(), np.ones((8, 4))) * (rng.random((40, 60)) < 0.98)
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    segmentation = {"size": [40, 60], "counts": encoded["counts"].decode()}
    data["annotations"].append(one | {"id": number + 1, "segmentation": segmentation})
  assert write(tmp_path, data).open().faults == ()
  for entry in data["annotations"]:
    entry["segmentation"]["counts"] = entry["segmentation"]["counts"][:-1]
  cut = write(tmp_path, data).open()
  assert [fault.item for fault in cut.faults] == [f"annotation {number + 1}" for number in range(60)]
  assert len(cut.annotations(0).boxes) == 0


def named_joints(data, joints):
  data["categories"][0]["keypoints"] = ["nose", "left_eye", "right_eye"]
  data["annotations"][1]["keypoints"] = joints


CORRUPT = "a.png: annotation 2: the mask's run lengths are corrupt: they do not sum to the image's 2400 pixels"
JOINTS = "a.png: annotation 2: keypoints are not 9 numbers, three for each of 3 joints"


def change(**values):
  return lambda data: data["annotations"][1].update(values)


@pytest.mark.parametrize(
  "spoil, message, objects",
  [
    (change(category_id=4), "a.png: annotation 2: category id 4 is not in the table of categories", [1, 3]),
    (change(category_id=None), "a.png: annotation 2: has no category_id", [1, 3]),
    (change(image_id=99), "instances.json: annotation 2: belongs to image 99, which is not in the table", [1, 3]),
    (change(image_id=None), "instances.json: annotation 2: has no image_id", [1, 3]),
    (change(bbox=[1, 2, 3], segmentation=None), "a.png: annotation 2: bbox [1.0, 2.0, 3.0] is not four", [1, 3]),
    (change(bbox="box", segmentation=None), "a.png: annotation 2: bbox 'box' is not four numbers", [1, 3]),
    (change(bbox=None, segmentation=None), "a.png: annotation 2: has no bbox", [1, 3]),
    (change(segmentation={"size": [9, 9], "counts": [81]}), "a.png: annotation 2: the mask is [9, 9]", [1, 3]),
    (change(segmentation={"size": [40, 60], "counts": "no run lengths"}), CORRUPT, [1, 3]),
    (change(segmentation={"size": [40, 60], "counts": [2000, 401]}), CORRUPT, [1, 3]),
    (change(segmentation={"size": [40, 60], "counts": [2500, -100]}), CORRUPT, [1, 3]),
    (change(segmentation={"size": [40, 60]}), CORRUPT, [1, 3]),
    (change(segmentation="mask"), "a.png: annotation 2: segmentation 'mask' is neither polygons nor run", [1, 3]),
    (lambda data: named_joints(data, [1, 2, 2] * 2), JOINTS, [1, 2, 3]),
    (lambda data: named_joints(data, [1, 2, 2] * 2 + [1, 2, None]), JOINTS, [1, 2, 3]),
    (lambda data: named_joints(data, "nose"), JOINTS, [1, 2, 3]),
    (change(id=1), "instances.json: annotation 1: 2 annotations have this id", [1, 1, 3]),
    (change(iscrowd="perhaps"), "a.png: annotation 2: iscrowd 'perhaps' is neither 0 nor 1: taken for 0", [1, 2, 3]),
    (change(area="large"), "a.png: annotation 2: area 'large' is not a number: that of the box is taken", [1, 2, 3]),
    (lambda data: data["annotations"].append("bee"), "annotations: entry 4: is 'bee', no object", [1, 2, 3]),
    (lambda data: data["images"][1].update(file_name="c.png"), "images/c.png: no such image file", [1, 2, 3]),
    (lambda data: data["images"][1].pop("width"), "images: entry 2 has no width", [1, 2, 3]),
    (lambda data: data["images"][1].update(width=0), "images: entry 2 (b.png) has width 0, which is no", [1, 2, 3]),
    (lambda data: data["images"][1].update(width=10**9), "(b.png) has 1000000000 x 40 pixels, more", [1, 2, 3]),
    (lambda data: data["images"][1].update(height="x"), "images: entry 2 (b.png) has height 'x', which", [1, 2, 3]),
    (lambda data: data["images"].append(3), "images: entry 3 is 3, no object", [1, 2, 3]),
    (lambda data: data["categories"].append("bee"), "categories: entry 3 is 'bee', no object", [1, 2, 3]),
    (lambda data: data["categories"].append({"name": "bee"}), "categories: entry 3 has no id", [1, 2, 3]),
    (lambda data: data["categories"].append({"id": 7, "name": "bee"}), "category 7: a category before it", [1, 2, 3]),
    (lambda data: data["categories"][1].pop("name"), "category 7: has no name", [1, 2, 3]),
  ],
)
def test_what_makes_no_sense_is_left_out_and_told_by_one_line_naming_file_and_object(
  tmp_path, spoil, message, objects
):
  data = contents()
  spoil(data)
  source = write(tmp_path, data).open()
  assert len(source.faults) == 1 and message in str(source.faults[0]) and "\n" not in str(source.faults[0])
  annotations = source.annotations(0)
  assert annotations.ids.tolist() == objects
  assert annotations.keypoints is None or not annotations.keypoints.any()
  assert len(source) == 2 - any(told in message for told in ("c.png", "entry 2", "(b.png)"))


@pytest.mark.parametrize(
  "spoil, message",
  [
    (lambda data: data["images"][1].update(id=10), "none of its 2 images can be used: image 10: 2 images have"),
    (lambda data: data.update(images=[], annotations=[]), "instances.json: names no images"),
    (lambda data: data.update(categories=[]), "instances.json: names no categories"),
    (lambda data: data.update(categories=None), "instances.json: names no categories"),
    (lambda data: data.pop("categories"), "instances.json: has no categories: not a COCO annotation file"),
    (lambda data: data.update(annotations={"1": {}}), "instances.json: annotations is {'1': {}}, not a list: not a"),
    (
      lambda data: [image.update(file_name=f"{image['id']}.png") for image in data["images"]],
      "images: has none of the 2 images: .*/images/10.png: no such image file",
    ),
  ],
)
def test_what_leaves_nothing_is_an_error_of_one_line(tmp_path, spoil, message):
  data = contents()
  spoil(data)
  with pytest.raises(DataError, match=message) as error:
    write(tmp_path, data).open()
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "not readable as JSON: Input data was truncated"),
    ('{"images": [', "not readable as JSON: Input data was truncated"),
    ("<annotation/>", "not readable as JSON: JSON is malformed: invalid character"),
    ("[]", "holds a list, as a file of results does: not a COCO annotation file"),
    ("3", "holds no tables: not a COCO annotation file"),
    ('{"images": ' + "[" * 100_000 + "]" * 100_000 + "}", "not readable as JSON: nested too deeply"),
  ],
)
def test_files_that_are_no_annotation_files_are_told_by_one_line(tmp_path, text, message):
  spec = write(tmp_path, contents())
  (tmp_path / "instances.json").write_text(text)
  with pytest.raises(DataError, match=message) as error:
    spec.open()
  assert "\n" not in str(error.value)


def test_missing_folder_and_file(tmp_path):
  spec = write(tmp_path, contents())
  with pytest.raises(DataError, match="nowhere: no such folder"):
    CocoFolder(str(tmp_path / "nowhere"), spec.annotations).open()
  with pytest.raises(DataError, match="none.json: no such file"):
    CocoFolder(spec.images, str(tmp_path / "none.json")).open()
  with pytest.raises(DataError, match="images: is a directory"):
    CocoFolder(spec.images, spec.images).open()
  with pytest.raises(DataError, match="/dev/zero: not a file"):
    CocoFolder(spec.images, "/dev/zero").open()


def test_an_area_that_is_no_number_is_told_and_that_of_the_box_taken(tmp_path):
  data = contents()
  data["annotations"][0].update(area=None)
  source = write(tmp_path, data).open()
  assert [str(fault) for fault in source.faults] == [
    "a.png: annotation 1: area None is not a number: that of the box is taken"
  ]
  assert source.annotations(0).areas[0] == 200


def test_a_file_of_boxes_alone_has_no_masks_whichever_way_it_says_so(tmp_path):
  data = contents()
  for entry in data["annotations"]:
    entry["segmentation"] = []
  annotations = write(tmp_path, data).open().annotations(0)
  assert annotations.segmentations is None and not object_faults(annotations)
  data["annotations"][1]["segmentation"] = contents()["annotations"][1]["segmentation"]
  one_has_a_mask = write(tmp_path, data).open().annotations(0)
  assert list(object_faults(one_has_a_mask)) == [0, 2]


def test_missing_segmentation_is_an_empty_mask():
  assert coco_mask.area(coco.encode(None, (4, 5))) == 0


@needs_data
def test_nuclei():
  source = CocoFolder(str(DATA / "nuclei/val"), str(DATA / "nuclei/annotations/instances_val.json")).open()
  assert len(source) == 84 and not source.faults
  assert sum(len(source.annotations(index).boxes) for index in range(len(source))) == 2408


@needs_data
def test_coco_people():
  path = DATA / "coco_mini/annotations/person_keypoints_val2017.json"
  source = CocoFolder(str(DATA / "coco_mini/val2017"), str(path)).open()
  assert len(source) == 79 and len(source.keypoints.flip_pairs) == 8
  annotations = [source.annotations(index) for index in range(79)]
  assert sum(item.crowd.sum() for item in annotations) == 1
  assert not any(object_faults(item) for item in annotations)

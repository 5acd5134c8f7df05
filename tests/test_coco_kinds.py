"""COCO files as people's tools write them: encodings, types, nesting, ids; and whatever else, which never crashes."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from test_coco_source import SQUARE, contents, write

from rcnn_jax.data import columns, validate
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.source import KeypointNames, object_faults, overview
from rcnn_jax.weights.labels import CocoById

BOX = [10, 5, 30, 15]


def check(source, faults=0) -> None:
  """The three objects of `contents`, as they are there."""
  assert len(source.faults) == faults
  annotations = source.annotations(0)
  assert annotations.boxes.tolist() == [BOX] * 3 and annotations.size == (40, 60)
  assert annotations.classes.tolist() == [2, 2, 1] and annotations.crowd.tolist() == [False, False, True]
  for segmentation in annotations.segmentations:
    np.testing.assert_array_equal(coco_mask.decode(segmentation), SQUARE)


@pytest.mark.parametrize(
  "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"]
)
def test_encodings(tmp_path, encoding):
  data = contents()
  data["categories"][0]["name"] = "große Fläche"
  spec = write(tmp_path, data)
  (tmp_path / "instances.json").write_bytes(json.dumps(data, ensure_ascii=False).encode(encoding))
  check(spec.open())
  assert spec.open().categories[1].name == "große Fläche"


@pytest.mark.parametrize("encoding", ["gbk", "gb2312", "gb18030"])
def test_chinese_encodings(tmp_path, encoding):
  data = contents()
  data["categories"][0]["name"], data["categories"][1]["name"] = "红细胞", "白细胞 (大)"
  spec = write(tmp_path, data)
  (tmp_path / "instances.json").write_bytes(json.dumps(data, ensure_ascii=False).encode(encoding))
  assert [category.name for category in spec.open().categories] == ["白细胞 (大)", "红细胞"]


def as_text(value):
  """Every number as a text."""
  if isinstance(value, dict):
    return {key: as_text(item) for key, item in value.items()}
  return [as_text(item) for item in value] if isinstance(value, list) else str(value)


def as_float(value):
  """Every whole number with a fraction of zero."""
  if isinstance(value, dict):
    return {key: as_float(item) for key, item in value.items()}
  if isinstance(value, list):
    return [as_float(item) for item in value]
  return float(value) if isinstance(value, int) else value


@pytest.mark.parametrize("change", [as_text, as_float])
def test_numbers_written_as_texts_or_with_a_fraction_of_zero(tmp_path, change):
  data = contents()
  changed = {key: change(table) for key, table in data.items()}
  check(write(tmp_path, changed).open())


POLYGON = [10, 5, 30, 5, 30, 15, 10, 15]
PAIRS = [[10, 5], [30, 5], [30, 15], [10, 15]]


@pytest.mark.parametrize(
  "segmentation",
  [
    *(POLYGON, [POLYGON], [[POLYGON]], PAIRS, [PAIRS], [[PAIRS]], [[str(number) for number in POLYGON]]),
    *([[POLYGON], [POLYGON]], [POLYGON, []], [[POLYGON, POLYGON]]),
  ],
)
def test_polygons_nested_too_deep_or_too_flat(tmp_path, segmentation):
  data = contents()
  data["annotations"][0]["segmentation"] = segmentation
  check(write(tmp_path, data).open())


def test_boxes_and_joints_nested_too_deep(tmp_path):
  data = contents()
  data["categories"][0]["keypoints"] = ["nose", "eye"]
  data["annotations"][0].update(bbox=[[10, 5], [20, 10]], keypoints=[[1, 2, 2], [3, 4, 1]])
  source = write(tmp_path, data).open()
  check(source)
  assert source.annotations(0).keypoints[0].tolist() == [[1, 2, 2], [3, 4, 1]]


def test_masks_of_several_run_lengths_and_polygons_are_their_union(tmp_path):
  data = contents()
  left, right = np.zeros((2, 40, 60), np.uint8)
  left[5:15, 10:20] = right[5:15, 15:30] = 1
  parts = [coco_mask.encode(np.asfortranarray(part)) for part in (left, right)]
  parts = [{"size": part["size"], "counts": part["counts"].decode()} for part in parts]
  data["annotations"][0]["segmentation"] = parts
  data["annotations"][1]["segmentation"] = [parts[0], [15, 5, 30, 5, 30, 15, 15, 15]]
  check(write(tmp_path, data).open())


@pytest.mark.parametrize("bbox", [None, [], [1, 2, 3], "box", [1, 2, math.nan, 4], [math.inf] * 4])
@pytest.mark.parametrize("object_", [0, 1, 2])
def test_the_box_of_the_mask_is_taken_where_there_is_none(tmp_path, bbox, object_):
  data = contents()
  data["annotations"][object_].update(bbox=bbox, area=111.5)
  source = write(tmp_path, data).open()
  check(source, faults=1)
  assert str(source.faults[0]).endswith(": that of the mask is taken")
  assert source.annotations(0).areas[object_] == 111.5


def test_nan_and_infinity_are_told_from_texts_that_hold_these_words(tmp_path):
  data = contents()
  data["categories"][0]["name"] = 'NaN, "Infinity": -Infinity'
  data["annotations"][0].update(bbox=[math.nan, 5, 20, 10], segmentation=None)
  data["annotations"][1].update(area=math.inf)
  source = write(tmp_path, data).open()
  assert source.categories[1].name == 'NaN, "Infinity": -Infinity'
  assert [str(fault) for fault in source.faults] == [
    "a.png: annotation 2: area inf is not a number: that of the box is taken"
  ]
  assert object_faults(source.annotations(0)) == {0: "degenerate box [nan, 5, nan, 15]: not a number"}


@pytest.mark.parametrize("ids", [["x", "y"], [2**31, 5], [-1, 5], [10**30, 5], [1, "y"], ["1", "2"]])
def test_image_ids_of_any_kind_are_numbered_inside_and_kept(tmp_path, ids):
  data = contents()
  for image, number in zip(data["images"], ids):
    image["id"] = number
  for entry in data["annotations"]:
    entry["image_id"] = ids[0]
  source = write(tmp_path, data).open()
  check(source)
  assert [source.annotations(row).image_id for row in range(2)] == [1, 2]
  assert [source.annotations(row).file_id for row in range(2)] == ids
  assert overview(source, masks=True).image_ids.tolist() == [1, 2]


def test_annotations_find_their_image_and_category_by_a_text_or_a_number(tmp_path):
  data = contents()
  data["annotations"][0].update(image_id="10", category_id="90")
  check(write(tmp_path, data).open())
  data = contents()
  data["images"][0]["id"] = "10"
  data["categories"][0]["id"] = "90"
  check(write(tmp_path, data).open())


@pytest.mark.parametrize(
  "ids, expected", [([90, -7], [-7, 90]), ([0, 7], [0, 7]), (["9", "07"], [1, 2]), (["bee", "ant"], [1, 2])]
)
def test_category_ids_of_any_kind(tmp_path, ids, expected):
  data = contents()
  for category, number in zip(data["categories"], ids):
    category["id"] = number
  for entry, number in zip(data["annotations"], [ids[0], ids[0], ids[1]]):
    entry["category_id"] = number
  source = write(tmp_path, data).open()
  assert source.faults == () and [category.id for category in source.categories] == expected
  names = [source.categories[number - 1].name for number in source.annotations(0).classes]
  assert names == ["kite", "kite", "ant"]


def test_ids_of_annotations_are_names_alone(tmp_path):
  for ids, expected in (([None, None, 3], [1, 2, 3]), (["a", 5, 2**70], [1, 2, 3]), ([7, -1, 0], [7, -1, 0])):
    data = contents()
    for entry, number in zip(data["annotations"], ids):
      entry["id"] = number
    source = write(tmp_path, data).open()
    check(source)
    assert source.annotations(0).ids.tolist() == expected


def test_an_image_that_stands_twice_is_read_once_and_ambiguous_ones_not_at_all(tmp_path):
  data = contents()
  data["images"].append(dict(data["images"][0]))
  source = write(tmp_path, data).open()
  check(source, faults=1)
  assert len(source) == 2
  assert str(source.faults[0]).endswith("image 10: 2 images have this id: read once, as they name one file")
  data["images"][2]["file_name"] = "b.png"
  source = write(tmp_path, data).open()
  assert [source.annotations(row).file_name for row in range(len(source))] == ["b.png"]
  assert str(source.faults[0]).endswith("image 10: 2 images have this id: left out")


def test_two_images_of_one_file_are_both_read_and_told(tmp_path):
  data = contents()
  data["images"][1]["file_name"] = "a.png"
  source = write(tmp_path, data).open()
  check(source, faults=1)
  assert len(source) == 2
  assert str(source.faults[0]) == "a.png: 2 images are of this file (ids 10, 3): each of them is read"


def test_boxes_in_fractions_of_the_image_are_refused(tmp_path):
  data = contents()
  for entry in data["annotations"]:
    entry["bbox"] = [0.1, 0.2, 0.5, 0.25]
  with pytest.raises(DataError, match="instances.json: all boxes lie between 0 and 1: fractions, where pixels are"):
    write(tmp_path, data).open()
  data["annotations"][0]["bbox"] = [10, 5, 20, 10]
  assert write(tmp_path, data).open().faults == ()


def test_a_file_that_moved_is_named_by_its_new_path(tmp_path, monkeypatch):
  monkeypatch.setattr(columns, "SMALL", 0)
  monkeypatch.setenv("RCNN_JAX_CACHE", str(tmp_path / "cache"))
  data = contents()
  data["annotations"][0]["image_id"] = 77
  spec = write(tmp_path, data)
  (tmp_path / "link.json").symlink_to(spec.annotations)
  for path in (spec.annotations, f"{tmp_path}/link.json"):
    faults = CocoFolder(spec.images, path).open().faults
    assert [fault.file for fault in faults] == [path]


def test_classes_by_choice(tmp_path, caplog):
  spec = write(tmp_path, contents())
  choose = lambda *names: CocoFolder(spec.images, spec.annotations, class_names=names)
  source = choose("ant").open()
  assert [(one.id, one.name) for one in source.categories] == [(7, "ant")]
  assert source.annotations(0).ids.tolist() == [3] and source.annotations(0).classes.tolist() == [1]
  assert overview(source, masks=True).num_objects.tolist() == [1, 0] and source.faults == ()
  assert caplog.messages == [f"{spec.annotations}: objects of other classes than ant left out: 2"]
  caplog.clear()
  assert choose("kite", "ant").open().annotations(0).classes.tolist() == [1, 1, 2] and not caplog.messages
  with pytest.raises(DataError, match="no category has the name 'kit' of class_names: the nearest is 'kite'"):
    choose("ant", "kit").open()
  for names in ((), ("ant", "ant")):
    with pytest.raises(DataError, match="class_names must name at least one class, and none of them twice"):
      choose(*names).open()
  with pytest.raises(DataError, match="class_names are chosen, but the classes are the ids of the file"):
    CocoById(spec.images, spec.annotations, class_names=("ant",)).open()


def test_classes_by_id_are_class_numbers(tmp_path):
  for number in (0, -3, 10_001):
    data = contents()
    data["categories"][0]["id"] = number
    spec = write(tmp_path, data)
    with pytest.raises(DataError, match=f"category id {number} is no class number"):
      CocoById(spec.images, spec.annotations).open()


@pytest.mark.parametrize(
  "names, pairs",
  [
    (("left_eye", "right_eye"), ((0, 1),)),
    (("Right_Eye", "Left_Eye"), ((1, 0),)),
    (("l_eye", "r_eye", "nose"), ((0, 1),)),
    (("L", "R"), ((0, 1),)),
    (("leftEye", "rightEye"), ((0, 1),)),
    (("LEFT EYE", "RIGHT EYE"), ((0, 1),)),
    (("eye_left", "eye_right"), ((0, 1),)),
    (("eyeL", "eyeR"), ((0, 1),)),
    (("LEye", "REye"), ((0, 1),)),
    (("Eye (L)", "Eye (R)"), ((0, 1),)),
    (("lefteye", "righteye"), ((0, 1),)),
    (("lhip", "rhip"), ((0, 1),)),
    (("L1", "R1", "L2", "R2"), ((0, 1), (2, 3))),
    (("L_B_Paw", "R_F_Paw", "R_B_Paw", "L_F_Paw"), ((0, 2), (3, 1))),
    (("root", "leg", "bright", "tail"), ()),
    (("left_eye", "left_eye", "right_eye"), ()),
  ],
)
def test_joints_are_paired_by_the_usual_spellings_of_their_sides(names, pairs):
  assert KeypointNames.from_names(names).flip_pairs == pairs


def test_joints_of_a_side_without_a_counterpart_are_named(tmp_path):
  data = contents()
  data["categories"][0]["keypoints"] = ["nose", "left_eye", "l_ear", "r_ear"]
  source = write(tmp_path, data).open()
  assert source.keypoints.unpaired == ("left_eye",)
  assert "joints with a side and no counterpart" in str(source.faults[0]) and "'left_eye'" in str(source.faults[0])


def test_a_source_travels_to_another_process_without_its_faults(tmp_path):
  data = contents()
  data["annotations"][0]["area"] = "x"
  source = write(tmp_path, data).open()
  check(source, faults=1)
  source = pickle.loads(pickle.dumps(source))
  check(source)
  assert source.image(0).shape == (40, 60, 3)


# ---- whatever else -------------------------------------------------------------------------------------------------

ODD = (
  *(None, True, -1, 0, 3, 2**31, 2**63, 10**40, 1.5, 1e300, -1e9, math.nan, math.inf),
  *("", "x", "80", "NaN", "\ud800", "a\nb", "../../etc/passwd", "é"),
  *([], [[]], [None], [1], [1, 2, 3, 4], [[1, 2], [3, 4], [5, 6]], [1e9] * 8, [["x"]], [{}], [[[[]]]]),
  *({}, {"size": None}, {"size": [40, 60], "counts": None}, {"size": [40, 60], "counts": "\xff"}, {"a": {"b": []}}),
)


def places(value, path=()):
  """Every place in a JSON value."""
  yield path
  items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
  for key, item in items:
    yield from places(item, (*path, key))


def whole() -> dict:
  data = contents()
  data["categories"][0] |= {"keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2]]}
  data["annotations"][0] |= {"keypoints": [1, 2, 2, 3, 4, 1, 0, 0, 0], "ignore": 0}
  return data


PLACES = [path for path in places(whole()) if path]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(ODD)), min_size=1, max_size=3))
def test_a_file_with_odd_values_anywhere_is_read_or_told_in_one_line(tmp_path, changes):
  data = copy.deepcopy(whole())
  for path, value in changes:
    target = data
    try:
      for key in path[:-1]:
        target = target[key]
      target[path[-1]] = copy.deepcopy(value)  # which another change may change
    except (KeyError, IndexError, TypeError):  # an earlier change has removed the place
      pass
  spec = CocoFolder(str(tmp_path / "images"), str(tmp_path / "instances.json"))
  if not (tmp_path / "images").exists():
    write(tmp_path, contents())
  (tmp_path / "instances.json").write_text(json.dumps(data))
  lines = list(validate.faults(spec))
  assert all("\n" not in line and len(line) < 1000 for line in lines)
  try:
    source = spec.open()
  except DataError:
    assert lines
    return
  for index in range(len(source)):
    annotations = source.annotations(index)
    for segmentation in annotations.segmentations or ():
      assert coco_mask.decode(segmentation).shape == annotations.size
    source.image(index)
  found = overview(source, masks=source.has_masks)
  sound = [len(one.boxes) - len(object_faults(one)) for one in map(source.annotations, range(len(source)))]
  assert found.num_objects.tolist() == sound

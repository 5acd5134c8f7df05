"""What a prepared TFDS data set may be like: other features, ids of any kind, damaged records and files."""

from __future__ import annotations

import json
import pathlib
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rcnn_jax.data import validate
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.tfds import Tfds
from rcnn_jax.data.tfds_record import Form, form_of, parse
from tests.boxes_builder.boxes_builder import features, picture, prepare

FORM = Form(("square", "disc"))
PNG = picture().getvalue()
OTHER = "a.png: the record is not of the form of its features: "
FULL = "P[2"  # the run length of 40 x 60 = 2400 pixels that are 0


def objects(boxes=((0.1, 0.2, 0.5, 0.6),), labels=(1,), **more) -> dict:
  return {"bbox": [np.float32(box) for box in boxes], "label": np.array(labels)} | more


def record(**more) -> dict:
  return {"image": PNG, "image/id": 7, "image/filename": b"a.png", "objects": objects()} | more


def test_a_record():
  annotations, faults = parse(record(), 1, "boxes", FORM)
  assert faults == [] and (annotations.image_id, annotations.file_id, annotations.file_name) == (1, 7, "a.png")
  assert annotations.size == (40, 60) and annotations.boxes.tolist() == [[12, 4, 36, 20]]
  assert annotations.classes.tolist() == [2] and annotations.areas.tolist() == [24 * 16]
  nothing, faults = parse(record(objects=objects((), ())), 1, "boxes", FORM)
  assert faults == [] and nothing.boxes.shape == (0, 4)


@pytest.mark.parametrize(
  "change, problem",
  [
    ({"image": b""}, "a.png: not an image, or truncated (0 bytes)"),
    ({"image": b"<svg/>"}, "a.png: not an image, or truncated (6 bytes)"),
    ({"image": None}, OTHER + "cannot convert 'NoneType' object to bytes"),
    ({"objects": None}, OTHER),
    ({"objects": {"label": [1]}}, OTHER + "objects have no bbox"),
    ({"objects": {"bbox": [[0, 0, 1, 1]]}}, OTHER + "objects have no label"),
    ({"objects": objects(labels=(1, 0))}, OTHER + "2 label of 1 objects"),
    ({"objects": objects(labels=("disc",))}, OTHER + "objects/label is of"),
    ({"objects": objects(((1, 2, 3),))}, OTHER + "cannot reshape"),
    ({"objects": objects(is_crowd=[True, False])}, OTHER + "2 is_crowd of"),
  ],
)
def test_a_record_that_cannot_be_read_is_one_fault(change, problem):
  annotations, (fault,) = parse(record(**change), 1, "boxes", FORM)
  assert annotations is None and not fault.fatal
  assert str(fault).startswith(problem) and "\n" not in str(fault)


def test_a_record_that_is_none_at_all():
  for nonsense in (None, b"\0", 3, []):
    annotations, (fault,) = parse(nonsense, 4, "boxes", FORM)
    assert annotations is None and str(fault).startswith(OTHER.replace("a.png", "boxes, image 4"))


def test_objects_that_cannot_be_read_are_left_out():
  boxes = [(0.1, 0.2, 0.5, 0.6), (0, 0, 1, 1), (4, 12, 20, 36), (0, 0, 1.005, 1), (-0.2, 0, 1, 1)]
  annotations, faults = parse(record(objects=objects(boxes, (1, -1, 0, 1, 0))), 1, "boxes", FORM)
  assert annotations.ids.tolist() == [1, 4]
  assert [str(fault) for fault in faults] == [
    "a.png: object 2: label -1 is none of the 2 classes, which are counted from 0",
    "a.png: object 3: bbox [4, 12, 20, 36] is not in 0..1, fractions of the image",
    "a.png: object 5: bbox [-0.2, 0, 1, 1] is not in 0..1, fractions of the image",
  ]


def test_a_box_that_is_no_number_is_told_as_degenerate():
  annotations, faults = parse(record(objects=objects([(np.nan, 0, 1, 1)], (1,))), 1, "boxes", FORM)
  assert faults == [] and np.isnan(annotations.boxes).any()


def test_masks_that_are_corrupt_cost_their_objects():
  form = Form(FORM.names, has_masks=True)
  masks = [FULL.encode(), b"0", b"\xff\xfe", "é"]
  found = objects([(0, 0, 1, 1)] * 4, (0, 0, 0, 0), segmentation=masks)
  annotations, faults = parse(record(objects=found), 1, "boxes", form)
  assert annotations.ids.tolist() == [1] and annotations.segmentations == ({"size": [40, 60], "counts": FULL},)
  assert [fault.item for fault in faults] == ["object 2", "object 3", "object 4"]
  annotations, (fault,) = parse(record(objects=found | {"segmentation": masks[:2]}), 1, "boxes", form)
  assert annotations is None and "2 segmentations of 4 objects" in str(fault)


@pytest.mark.parametrize(
  "box_form, box", [("XYXY", (12, 4, 36, 20)), ("YXYX", (4, 12, 20, 36)), ("XYWH", (12, 4, 24, 16))]
)
def test_boxes_in_pixels(box_form, box):
  annotations, faults = parse(record(objects=objects([box])), 1, "boxes", Form(FORM.names, box_form))
  assert faults == [] and annotations.boxes.tolist() == [[12, 4, 36, 20]]


Tensor, Sequence, Label = tfds.features.Tensor, tfds.features.Sequence, tfds.features.ClassLabel
BOX = tfds.features.BBoxFeature()


@pytest.mark.parametrize(
  "more, problem",
  [
    ({"objects": Sequence({"bbox": BOX, "type": Label(num_classes=2)})}, "objects have no label, but bbox, type"),
    ({"objects": Sequence({"label": Label(num_classes=2)})}, "objects have no bbox, but label"),
    ({"objects": Sequence({"bbox": BOX, "label": np.int64})}, "objects/label is no ClassLabel: its classes have no"),
    ({"objects": Sequence({"bbox": BOX, "label": tfds.features.Text()})}, "objects/label is no ClassLabel"),
    ({"objects": Sequence(BOX)}, "its objects are BBoxFeature, no sequence of features"),
    ({"objects": Tensor(shape=(4,), dtype=np.float32)}, "its objects are Tensor, no sequence of features"),
    ({"image": Tensor(shape=(4, 4, 3), dtype=np.uint8)}, "its image is Tensor, no Image"),
    (
      {"objects": Sequence({"bbox": tfds.features.BBoxFeature(bbox_format=None), "label": Label(num_classes=2)})},
      "the bbox_format of objects/bbox is None",
    ),
  ],
)
def test_data_sets_of_another_form_are_refused_in_one_line(more, problem):
  with pytest.raises(DataError) as error:
    form_of(tfds.features.FeaturesDict(features(**more)), "boxes")
  assert str(error.value).startswith(f"boxes: not a detection data set of the usual form: {problem}")


def test_a_data_set_without_image_and_objects_names_its_features():
  with pytest.raises(DataError, match="it has no image and objects: its features are faces, image"):
    form_of(tfds.features.FeaturesDict({"image": tfds.features.Image(), "faces": Sequence({"bbox": BOX})}), "boxes")
  with pytest.raises(DataError, match="its features are Tensor"):
    form_of(Tensor(shape=(), dtype=np.int64), "boxes")


def test_a_segmentation_that_is_no_text_is_not_read():
  inside = {"bbox": BOX, "label": Label(names=["a"]), "segmentation": tfds.features.Image(shape=(None, None, 1))}
  assert form_of(tfds.features.FeaturesDict(features(objects=Sequence(inside))), "") == Form(("a",))


def example(number: int, **more) -> dict:
  found = [{"bbox": tfds.features.BBox(ymin=0.1, xmin=0.2, ymax=0.5, xmax=0.6), "label": "disc"}]
  return {"image": picture(number), "objects": found} | more


@pytest.mark.parametrize(
  "feature, ids, expected",
  [
    (np.int64, (7, 3, 5), [(7, None), (3, None), (5, None)]),
    (np.int64, (7, 2019000000900, 5), [(1, 7), (2, 2019000000900), (3, 5)]),
    (np.int64, (7, -1, 5), [(1, 7), (2, -1), (3, 5)]),
    (tfds.features.Text(), ("2007_01", "2007_02", "x"), [(1, "2007_01"), (2, "2007_02"), (3, "x")]),
  ],
)
def test_image_ids_of_any_kind(tmp_path, feature, ids, expected):
  examples = [example(number, **{"image/id": number_of}) for number, number_of in enumerate(ids)]
  prepare(tmp_path, features(**{"image/id": feature}), examples)
  source = Tfds("boxes", "train", str(tmp_path)).open()
  found = [source.annotations(index) for index in range(3)]
  # TFDS shuffles: the order is its own, and numbers follow it.
  assert {one.file_id or one.image_id for one in found} == {file_id or number for number, file_id in expected}
  numbered = expected[0][1] is not None
  assert [one.image_id for one in found] == ([1, 2, 3] if numbered else [one.image_id for one in found])
  assert all((one.file_id is not None) == numbered for one in found)
  assert list(validate.faults(Tfds("boxes", "train", str(tmp_path)))) == []


def test_an_id_that_stands_twice_is_told_and_the_images_are_numbered(tmp_path):
  prepare(tmp_path, features(**{"image/id": np.int64}), [example(n, **{"image/id": 5}) for n in range(2)])
  source = Tfds("boxes", "train", str(tmp_path)).open()
  assert [(one.image_id, one.file_id) for one in map(source.annotations, range(2))] == [(1, 5), (2, 5)]
  assert [str(fault).split(": ", 1)[1] for fault in source.faults] == ["image/id 5 stands twice: images are numbered"]


RECORDS = "boxes-train.array_record-00000-of-00001"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> pathlib.Path:
  return prepare(tmp_path_factory.mktemp("prepared"), features(), [example(number) for number in range(5)])


def copied(prepared: pathlib.Path, data_dir: pathlib.Path) -> pathlib.Path:
  folder = data_dir / "boxes" / "1.0.0"
  folder.mkdir(parents=True)
  for path in prepared.iterdir():
    (folder / path.name).write_bytes(path.read_bytes())
  return folder


@pytest.mark.parametrize(
  "name, spoil, problem",
  [
    ("dataset_info.json", lambda text: text[:40], "TFDS cannot read its description: "),
    ("dataset_info.json", lambda text: b"[]", "TFDS cannot read its description: "),
    ("dataset_info.json", lambda text: b"{}", "TFDS cannot read its description: "),
    ("features.json", lambda text: text[:100], "TFDS cannot read its description: "),
    ("features.json", lambda text: b"{}", "TFDS cannot read its description: "),
    ("features.json", lambda text: text.replace(b"BBoxFeature", b"BoxFeature"), "TFDS cannot read its description: "),
    (RECORDS, lambda data: None, "no record can be read: boxes, image 1: "),
    (RECORDS, lambda data: b"", "the split 'train' cannot be read: |no record can be "),
    (RECORDS, lambda data: data[:500], "the split 'train' cannot be read: |no record "),
    (RECORDS, lambda data: bytes(len(data)), "the split 'train' cannot be|no record"),
  ],
)
def test_damaged_files_end_in_one_line(prepared, tmp_path, name, spoil, problem):
  path = copied(prepared, tmp_path) / name
  contents = spoil(path.read_bytes())
  path.unlink() if contents is None else path.write_bytes(contents)
  with pytest.raises(DataError, match=problem) as error:
    Tfds("boxes", "train", str(tmp_path)).open()
  assert "\n" not in str(error.value)
  assert len(list(validate.faults(Tfds("boxes", "train", str(tmp_path))))) >= 1


def test_a_data_set_of_more_records_than_it_has(prepared, tmp_path):
  path = copied(prepared, tmp_path) / "dataset_info.json"
  info = json.loads(path.read_text())
  info["splits"][0]["shardLengths"] = ["7"]
  path.write_text(json.dumps(info))
  lines = list(validate.faults(Tfds("boxes", "train", str(tmp_path))))
  assert lines and all("cannot be read: " in line and "\n" not in line for line in lines)


def test_a_source_is_small_to_send_to_workers(prepared):
  source = Tfds("boxes", "train", str(prepared.parents[1])).open()
  again = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(again.image(3), source.image(3))
  assert again.annotations(3).boxes.tolist() == source.annotations(3).boxes.tolist() == [[12, 4, 36, 20]]
  assert len(pickle.dumps(source.table)) < 2000

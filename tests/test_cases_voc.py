"""Small inputs that failed once, each read from shared/cases: the right answers of VOC folders, images and TFDS."""

from __future__ import annotations

import pathlib
import sys
import types

import pytest
from PIL import Image

from rcnn_jax.data import images, pipeline, validate
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.tfds import Tfds
from rcnn_jax.data.voc import VocFolder, VocSource

CASES = pathlib.Path(__file__).parents[2] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the inputs that failed (shared/cases) are not here")

# What the two images of every VOC case say, as the first of its three objects is written: corners from 1.
FIRST = [[21, 23, 51, 53], [56, 44, 89, 77]]


def opened(name: str, **choices) -> VocSource:
  """The case, opened as training does; it must be without a fault in validate_data too."""
  spec = VocFolder(str(CASES / name), "train", **choices)
  assert list(validate.faults(spec)) == []
  return spec.open()


def check(source: VocSource, end: str, folder: str = "") -> None:
  assert [source.annotations(row).file_name for row in range(len(source))] == [
    f"{folder}im000{end}",
    f"{folder}im001.{end.split('.')[1].lower()}",
  ]
  for row in range(2):
    annotations = source.annotations(row)
    assert annotations.size == (80, 96) and source.image(row).shape == (80, 96, 3)
    assert len(annotations.boxes) == 3 and annotations.boxes[0].tolist() == FIRST[row]


def test_voc_bmp():
  check(opened("voc_bmp"), ".bmp")


def test_voc_webp():
  check(opened("voc_webp"), ".webp")


def test_voc_mixed_case_ext():
  check(opened("voc_mixed_case_ext"), ".Jpg")


def test_voc_difficult_false():
  source = opened("voc_difficult_false")
  check(source, ".jpg")
  assert not source.table.difficult.any()


def test_voc_names_with_spaces():
  source = opened("voc_names_with_spaces")
  assert source.table.file_names == ("my photo (0).jpg", "my photo (1).jpg")
  assert source.annotations(0).boxes[0].tolist() == FIRST[0] and source.image(1).shape == (80, 96, 3)


def test_voc_normalised_boxes():
  spec = VocFolder(str(CASES / "voc_normalised_boxes"), "train")
  lines = [line for line in validate.faults(spec) if "between 0 and 1" in line]
  assert len(lines) == 3 and "im000.xml" in lines[1] and "im001.xml" in lines[2]
  with pytest.raises(DataError, match="im000.xml: all its boxes lie between 0 and 1: fractions, where pixels are"):
    spec.open()


def test_voc_same_stem():
  source = opened("voc_same_stem")
  assert source.table.file_names == ("im000.jpg", "im001.jpg")


def test_voc_size_zero():
  check(opened("voc_size_zero"), ".jpg")


def test_voc_some_classes(caplog):
  source = opened("voc_some_classes", class_names=("square",))
  assert [category.name for category in source.categories] == ["square"]
  assert [source.annotations(row).ids.tolist() for row in range(2)] == [[1, 3], [1, 2]]  # the others are discs
  (line,) = caplog.messages
  assert line.endswith("train.txt: objects of other classes left out: 2 (disc)")


def test_voc_split_bom():
  check(opened("voc_split_bom"), ".jpg")


def test_voc_split_utf16():
  check(opened("voc_split_utf16"), ".jpg")


def test_voc_subfolders():
  source = opened("voc_subfolders")
  check(source, ".jpg", folder="cam1/")


def test_voc_xml_gb2312():
  source = opened("voc_xml_gb2312")
  check(source, ".jpg")
  assert [category.name for category in source.categories] == ["disc", "方块"]


def test_voc_xml_bogus_encoding():
  spec = VocFolder(str(CASES / "voc_xml_bogus_encoding"), "train")
  assert [line.split("Annotations/")[1] for line in validate.faults(spec)] == [
    "im000.xml: declares the unknown encoding 'utf8mb4': read as UTF-8",
    "im001.xml: declares the unknown encoding 'utf8mb4': read as UTF-8",
  ]
  check(spec.open(), ".jpg")


def coco(name: str, **choices) -> CocoFolder:
  return CocoFolder(str(CASES / name / "images"), str(CASES / name / "ann.json"), **choices)


def test_exif_upright_labels():
  explained = "that is the photograph turned as its EXIF orientation 6 says: set upright=True"
  lines = [line for line in validate.faults(coco("exif_upright_labels"))]
  assert lines == [
    f"im00{n}.jpg: the file is 80 x 96, its annotations are for 96 x 80: {explained}" for n in range(3)
  ]
  with pytest.raises(DataError, match="im000.jpg: the file is 80 x 96, .*EXIF orientation 6 says: set upright=True$"):
    source = coco("exif_upright_labels").open()
    pipeline.load(pipeline.Data(None, None), source, 0, (480, 640), 8, None)
  assert list(validate.faults(coco("exif_upright_labels", upright=True))) == []
  source = coco("exif_upright_labels", upright=True).open()
  assert all(source.image(row).shape[:2] == source.annotations(row).size == (80, 96) for row in range(3))


def test_exif_square_labels():
  flags = [images.orientation(CASES / f"exif_square_labels/images/s{n}.jpg") for n in range(3)]
  assert min(flags) > 1
  lines = list(validate.faults(coco("exif_square_labels")))
  assert [line.split(" is not followed")[0] for line in lines] == [
    f"s{n}.jpg: its EXIF orientation {flag}" for n, flag in enumerate(flags)
  ]
  assert all("upright=True" in line for line in lines)
  assert list(validate.faults(coco("exif_square_labels", upright=True))) == []


def test_tfds_kitti_like(tmp_path, monkeypatch):
  maker = types.ModuleType("make")  # what the case draws its pictures with
  items = [("square", 9, 8, 30, 20), ("disc", 50, 40, 10, 9)]
  maker.draw = lambda seed: (Image.new("RGB", (96, 80), (seed, 0, 0)), items)
  monkeypatch.setitem(sys.modules, "make", maker)
  monkeypatch.syspath_prepend(CASES / "tfds_kitti_like")
  import kittilike
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  expected = {
    "textid": ["2007_000000", "2007_000001", "2007_000002", "2007_000003"],
    "bigid": [2019000000901, 2019000000902, 2019000000903, 2019000000904],
  }
  for kind in ("kittilike", "textid", "bigid"):
    monkeypatch.setattr(kittilike, "KIND", kind)
    kittilike.Kittilike(data_dir=str(tmp_path / kind), file_format="array_record").download_and_prepare()
    spec = Tfds("kittilike", "train", str(tmp_path / kind))
    if kind == "kittilike":
      (line,) = validate.faults(spec)
      assert line.endswith("not a detection data set of the usual form: objects have no label, but bbox, type")
      continue
    source = spec.open()
    found = [source.annotations(row) for row in range(4)]
    assert [one.image_id for one in found] == [1, 2, 3, 4]  # in the order of the records, which TFDS shuffles
    assert sorted(one.file_id for one in found) == expected[kind]
    assert found[0].boxes.tolist() == [[9, 8, 39, 28], [50, 40, 60, 49]]

"""Prepared TFDS data sets, read without TensorFlow."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from rcnn_jax.data.errors import DataError
from rcnn_jax.data.shapes import Shapes
from rcnn_jax.data.tfds import Tfds


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> pathlib.Path:
  data_dir = tmp_path_factory.mktemp("prepared")
  Shapes(str(data_dir), "train", side=100, num_train=5, num_eval=1).open()
  return data_dir


def test_the_name_alone_finds_configuration_and_version(prepared):
  source = Tfds("drawn_shapes", "train", str(prepared)).open()
  full = next(prepared.glob("drawn_shapes/*/*")).relative_to(prepared)
  assert str(full).endswith("1.0.0")
  again = Tfds(str(full), "train", str(prepared)).open()
  assert len(source) == len(again) == 5
  np.testing.assert_array_equal(source.image(2), again.image(2))


def test_annotations_in_pixels(prepared):
  source = Tfds("drawn_shapes", "train", str(prepared)).open()
  boxes = np.concatenate([source.annotations(index).boxes for index in range(5)])
  np.testing.assert_array_equal(boxes, np.round(boxes))  # whole pixels survive the 0..1 that TFDS keeps
  annotations = source.annotations(0)
  assert annotations.size == (100, 100) and annotations.boxes.dtype == np.float32
  assert sorted(source.annotations(index).image_id for index in range(5)) == [1, 2, 3, 4, 5]
  assert set(annotations.classes.tolist()) <= {1, 2, 3}
  assert not annotations.crowd.any() and not annotations.difficult.any()
  assert source.annotations(0, masks=False).segmentations is None


def test_part_of_a_split(prepared):
  assert len(Tfds("drawn_shapes", "train[:3]", str(prepared)).open()) == 3
  assert len(Tfds("drawn_shapes", "train+eval", str(prepared)).open()) == 6
  with pytest.raises(DataError, match=r"the split 'train\[:0\]' has no images"):
    Tfds("drawn_shapes", "train[:0]", str(prepared)).open()
  with pytest.raises(DataError, match=r"no split 'train\[:few\]': Error parsing split"):
    Tfds("drawn_shapes", "train[:few]", str(prepared)).open()


def test_not_prepared_unknown_split_and_several_configurations(prepared, tmp_path):
  with pytest.raises(DataError, match="voc: no prepared TFDS data set"):
    Tfds("voc", "train", str(prepared)).open()
  with pytest.raises(DataError, match="no split 'test'; it has"):
    Tfds("drawn_shapes", "test", str(prepared)).open()
  for config in ("one", "two"):
    (tmp_path / "many" / config / "1.0.0").mkdir(parents=True)
    (tmp_path / "many" / config / "1.0.0" / "dataset_info.json").write_text("{}")
  with pytest.raises(DataError, match="several configurations, name one: one, two"):
    Tfds("many", "train", str(tmp_path)).open()


def test_tfrecord_asks_for_the_tensorflow_extra(prepared, tmp_path, monkeypatch):
  folder = next(prepared.glob("drawn_shapes/*/*"))
  copy = tmp_path / "drawn_shapes" / folder.parent.name / folder.name
  copy.mkdir(parents=True)
  for file in folder.glob("*.*"):
    (copy / file.name.replace("array_record", "tfrecord")).write_bytes(file.read_bytes())
  info = json.loads((copy / "dataset_info.json").read_text())
  info["fileFormat"] = "tfrecord"
  for split in info["splits"]:
    split["filepathTemplate"] = split["filepathTemplate"].replace("array_record", "tfrecord")
  (copy / "dataset_info.json").write_text(json.dumps(info))
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(DataError, match=r"stored as tfrecord, which needs TensorFlow \(pip install"):
    Tfds("drawn_shapes", "train", str(tmp_path)).open()

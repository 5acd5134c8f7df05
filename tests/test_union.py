"""Several data sets as one: images in order, ids of their own, one set of classes."""

from __future__ import annotations

import numpy as np
import pytest
from test_voc import write_image, write_object, write_squares

from rcnn_jax.data import pipeline, proposals
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.union import Union
from rcnn_jax.data.voc import VocFolder


@pytest.fixture
def parts(tmp_path) -> tuple[VocFolder, VocFolder]:
  for year in ("2007", "2012"):
    write_squares(tmp_path / year)
  return VocFolder(str(tmp_path / "2007"), "train"), VocFolder(str(tmp_path / "2012"), "val")


def test_images_come_part_by_part_with_ids_of_their_own(parts):
  union, first, second = Union(parts).open(), parts[0].open(), parts[1].open()
  assert len(union) == 4 + 2 and union.categories == first.categories and union.keypoints is None
  assert [union.annotations(index).image_id for index in range(6)] == [1, 2, 3, 4, 5, 6]
  for index, (source, place) in enumerate([*((first, n) for n in range(4)), (second, 0), (second, 1)]):
    assert union.annotations(index).file_name == source.annotations(place).file_name
    np.testing.assert_array_equal(union.annotations(index).boxes, source.annotations(place).boxes)
    np.testing.assert_array_equal(union.image(index), source.image(place))


def test_a_union_is_loaded_and_has_proposals_like_any_data_set(parts, tmp_path):
  union = Union(parts)
  data = Data(train=union, eval=parts[1], canvases=((48, 64),), augmentations=())
  source = union.open()
  loaded = pipeline.load(data, source, 4, (48, 64), 8, None)
  assert loaded.image_id == 5 and loaded.truth.boxes[0].tolist() == parts[1].open().annotations(0).boxes[0].tolist()
  assert pipeline.survey(data, source).num_trainable.tolist() == [1] * 6
  assert proposals.fingerprint(union, source) != proposals.fingerprint(parts[0], parts[0].open())


def test_parts_of_other_classes_or_of_none_are_refused(parts, tmp_path):
  write_image(tmp_path / "2012", "5", write_object("circle", (1, 1, 9, 9)))
  with pytest.raises(DataError, match="the categories of .*2007.* and .*2012.* differ: 1 square; 1 circle, 2 square"):
    Union(parts).open()
  with pytest.raises(DataError, match="a union of no data sets"):
    Union(()).open()
  (tmp_path / "2012" / "ImageSets/Main/val.txt").unlink()
  with pytest.raises(DataError, match="2012.*val.txt: no such split"):
    Union(parts).open()

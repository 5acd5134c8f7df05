"""A drawn set of COCO's shape, at a small size: sound, the same whenever it is drawn, and light for workers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from large_coco import JOINTS, make

from rcnn_jax.data import columns
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.source import object_faults, overview


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> CocoFolder:
  images, annotations = make(tmp_path_factory.mktemp("drawn") / "set", 300, 3000, keypoints=True)
  return CocoFolder(str(images), str(annotations))


def test_it_is_sound_and_of_cocos_shape(drawn):
  source = drawn.open()
  assert source.faults == () and len(source) == 300 and len(source.categories) == 80
  assert source.keypoints.names == tuple(JOINTS) and len(source.keypoints.flip_pairs) == 8
  annotations = [source.annotations(row) for row in range(300)]
  assert sum(len(one.boxes) for one in annotations) == 3000
  assert 10 <= sum(int(one.crowd.sum()) for one in annotations) <= 60
  assert sum(len(object_faults(one)) for one in annotations) <= 10  # slivers of two pixels
  sizes = {source.image(row).shape[:2] == annotations[row].size for row in range(0, 300, 30)}
  assert sizes == {True}


def test_the_same_arguments_give_the_same_files(drawn, tmp_path):
  images, annotations = make(tmp_path / "again", 300, 3000, keypoints=True)
  with open(drawn.annotations, "rb") as one, open(annotations, "rb") as two:
    assert one.read() == two.read()
  assert len(list(images.iterdir())) == 300


def test_the_overview_of_the_columns_is_that_of_the_annotations_one_by_one(drawn):
  class OneByOne:
    """The source without an overview of its own."""

    def __init__(self, source):
      self.annotations, self.keypoints, self.length = source.annotations, source.keypoints, len(source)

    def __len__(self):
      return self.length

  source = drawn.open()
  for masks in (False, True):
    fast, slow = overview(source, masks), overview(OneByOne(source), masks)
    for name in ("sizes", "num_objects", "num_trainable", "num_keypoints", "image_ids"):
      np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))
    for name in ("num_faulty", "first_fault", "file_names"):
      assert getattr(fast, name) == getattr(slow, name)


def test_a_cached_source_is_the_same_and_travels_as_a_path(drawn, tmp_path, monkeypatch):
  in_memory = drawn.open()
  monkeypatch.setattr(columns, "SMALL", 0)
  monkeypatch.setenv("RCNN_JAX_CACHE", str(tmp_path))
  built, cached = drawn.open(), drawn.open()
  assert len(pickle.dumps(cached)) < 20_000 < len(pickle.dumps(in_memory))
  for source in (built, cached, pickle.loads(pickle.dumps(cached))):
    for row in range(0, 300, 7):
      one, other = source.annotations(row), in_memory.annotations(row)
      assert one.segmentations == other.segmentations and one.file_name == other.file_name
      for name in ("boxes", "classes", "crowd", "difficult", "ids", "areas", "keypoints"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))

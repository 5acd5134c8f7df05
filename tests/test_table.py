"""A table gives back the annotations that it is made of."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from rcnn_jax.data.table import Table
from tests.scenes import Scenes


def same(first, second) -> bool:
  for field in dataclasses.fields(first):
    one, other = getattr(first, field.name), getattr(second, field.name)
    alike = np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
    if not alike or (isinstance(one, np.ndarray) and one.dtype != other.dtype):
      return False
  return True


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("file_ids", [(None,) * 5, ("a", "b", 7, "d", 2**40)])
def test_annotations_come_back_as_they_were(masks, file_ids):
  source = Scenes(num_images=5)
  images = [dataclasses.replace(source.annotations(row), file_id=file_ids[row]) for row in range(5)]
  images = [dataclasses.replace(one, ids=np.int64(one.ids)) for one in images]
  if not masks:
    images = [dataclasses.replace(one, segmentations=None) for one in images]
  table = pickle.loads(pickle.dumps(Table.of(images)))
  assert len(table) == 5
  assert all(same(table.annotations(row), images[row]) for row in range(5))
  assert table.annotations(1, masks=False).segmentations is None


def test_what_is_taken_out_may_be_changed_without_changing_the_table():
  table = Table.of([Scenes().annotations(1)])
  table.annotations(0).boxes[:] = 0
  assert table.annotations(0).boxes.any()


def test_a_table_of_no_image():
  assert len(Table.of([])) == 0

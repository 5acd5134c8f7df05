"""Keys: what they depend on, and what they do not."""

from __future__ import annotations

import jax
import numpy as np

from rcnn_jax.ops import random

KEY = jax.random.key(7)


def bits(keys):
  return np.asarray(jax.random.key_data(keys))


def test_names_give_different_keys_and_the_same_name_the_same():
  assert (bits(random.named(KEY, "rois")) == bits(random.named(KEY, "rois"))).all()
  assert (bits(random.named(KEY, "rois")) != bits(random.named(KEY, "anchors"))).any()


def test_the_key_of_an_image_depends_neither_on_its_place_nor_on_its_batch():
  together = bits(random.per_image(KEY, np.array([5, 9, 12])))
  elsewhere = bits(random.per_image(KEY, np.array([12, 5])))
  np.testing.assert_array_equal(together[[2, 0]], elsewhere)
  assert len(np.unique(together, axis=0)) == 3


def test_names_are_hashed_in_the_same_way_in_every_process():
  # Python's own hash of strings changes from run to run. crc32 of "rois", by zlib, zip or any other.
  expected = jax.random.fold_in(KEY, np.uint32(0xDECACB7E))
  np.testing.assert_array_equal(bits(random.named(KEY, "rois")), bits(expected))

"""What tells one data set from another."""

from __future__ import annotations

import dataclasses

import numpy as np

from rcnn_jax.data.fingerprint import fingerprint, of_file
from rcnn_jax.data.proposals import StoredProposals
from tests.scenes import Scenes


def changed(index: int, **changes):
  """The scenes with something else in the annotations of one image."""
  scenes = Scenes()
  scenes._all[index] = dataclasses.replace(scenes._all[index], **changes)
  return scenes


def test_the_same_data_have_the_same_and_others_another():
  found = fingerprint(Scenes())
  assert (found["images"], found["objects"]) == (5, 1 + 2 + 3 + 1)
  assert fingerprint(Scenes()) == found
  boxes = Scenes().annotations(1).boxes
  others = [
    Scenes(seed=1),
    Scenes(num_images=4),
    changed(1, file_name="other.png"),
    changed(1, image_id=999),
    changed(1, size=(33, 25)),
    changed(1, boxes=boxes + np.float32([[1, 0, 0, 0]] * len(boxes))),
    changed(1, classes=Scenes().annotations(1).classes[::-1].copy()),
  ]
  crcs = {fingerprint(other)["crc32"] for other in others}
  assert len(crcs | {found["crc32"]}) == len(others) + 1
  assert fingerprint(changed(1, boxes=boxes + np.float32(0.001))) == found  # less than a reader's own rounding


def test_proposals_are_told_by_their_settings_and_counts():
  def stored(mode, offsets):
    settings = {"version": 1, "method": "search", "parameters": {"mode": mode}, "data": {"spec": "anywhere"}}
    return StoredProposals("anywhere", settings, {"offsets": np.array(offsets)})

  scenes = Scenes()
  kinds = (stored("fast", [0, 2]), stored("quality", [0, 2]), stored("fast", [0, 3]))
  found = [fingerprint(scenes, each) for each in kinds]
  assert len({each["proposals_crc32"] for each in found}) == 3
  assert {each["crc32"] for each in found} == {fingerprint(scenes)["crc32"]}


def test_a_file_by_its_bytes(tmp_path):
  (tmp_path / "a").write_bytes(b"123456789")
  assert of_file(str(tmp_path / "a")) == {"bytes": 9, "crc32": 0xCBF43926}  # the checksum's own test value
  assert of_file(str(tmp_path / "b")) is None

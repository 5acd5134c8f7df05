"""Proposals on disk: the folder, what it refuses, how it stands in a batch, and recall by hand."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
from absl import flags
from test_loader import Rectangles, data

from rcnn_jax.data import loader, pipeline, proposals
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.proposals import Regions
from rcnn_jax.data.source import Annotations
from rcnn_jax.data.transforms import HorizontalFlip, Resize

SETTINGS = {"method": "by hand", "parameters": {"seed": 0}}


def regions(index: int) -> Regions:
  """Image i of `Rectangles` has i proposals; the j-th is [j, 1, j + 2, 4] with the score 1 / (j + 1)."""
  boxes = np.array([[j, 1, j + 2, 4] for j in range(index)], np.float32).reshape(-1, 4)
  return Regions(boxes, 1 / np.arange(1, index + 1, dtype=np.float32), seconds=index / 8)


def write(folder, source=Rectangles(), each=None):
  each = each or [regions(index) for index in range(len(source))]
  ids = [source.annotations(index, masks=False).image_id for index in range(len(source))]
  proposals.write(folder, proposals.header(SETTINGS, source, source), ids, each)
  return folder


# ---- the folder --------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_is_read_image_by_image(tmp_path):
  stored = proposals.open_folder(write(tmp_path / "p"), Rectangles(), Rectangles())
  assert len(stored) == 7 and stored.arrays["image_ids"].tolist() == [1, 2, 3, 4, 5, 6, 7]
  for index in range(7):
    expected = regions(index)
    np.testing.assert_array_equal(stored[index].boxes, expected.boxes)
    np.testing.assert_array_equal(stored[index].scores, expected.scores)
    assert stored[index].seconds == index / 8
  assert stored.settings["method"] == "by hand" and stored.settings["version"] == 1
  assert all(isinstance(array, np.memmap) for array in stored.arrays.values())
  assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_the_limit_keeps_the_best(tmp_path):
  stored = proposals.open_folder(write(tmp_path / "p"), Rectangles(), Rectangles(), limit=2)
  assert [len(stored[index].boxes) for index in range(7)] == [0, 1, 2, 2, 2, 2, 2]
  np.testing.assert_array_equal(stored[6].boxes, regions(6).boxes[:2])


def test_a_worker_process_maps_the_files_instead_of_getting_them(tmp_path):
  many = [Regions(np.ones((20_000, 4), np.float32), np.ones(20_000, np.float32))] * 7
  stored = proposals.open_folder(write(tmp_path / "p", each=many), Rectangles(), Rectangles(), limit=3)
  sent = pickle.dumps(stored)
  assert len(sent) < 1000
  assert len(pickle.loads(sent)[4].boxes) == 3


def test_images_without_any_proposal_can_be_stored(tmp_path):
  nothing = Regions(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
  stored = proposals.open_folder(write(tmp_path / "p", each=[nothing] * 7), Rectangles(), Rectangles())
  assert [len(stored[index].boxes) for index in range(7)] == [0] * 7


def test_a_failing_writer_leaves_no_folder(tmp_path):
  def breaking():
    yield regions(0)
    raise RuntimeError("full disk")

  with pytest.raises(RuntimeError):
    proposals.write(tmp_path / "p", proposals.header(SETTINGS, Rectangles(), Rectangles()), [1, 2], breaking())
  assert not (tmp_path / "p").exists()


# ---- what is refused ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fewer(Rectangles):
  """The same images but the last, as another split would have them."""

  split: str = "test"

  def __len__(self) -> int:
    return 6


@dataclasses.dataclass(frozen=True)
class Renamed(Rectangles):
  root: str = "elsewhere"

  def annotations(self, index: int, masks: bool = True) -> Annotations:
    annotations = super().annotations(index, masks)
    return dataclasses.replace(
      annotations, file_name=f"other_{annotations.file_name}" if index == 3 else annotations.file_name
    )


@dataclasses.dataclass(frozen=True)
class Drawn(Rectangles):
  seed: int = 0
  root: str = "here"


def test_proposals_of_another_split_are_refused_and_both_are_named(tmp_path):
  write(tmp_path / "p")
  with pytest.raises(DataError) as error:
    proposals.open_folder(tmp_path / "p", Fewer(), Fewer())
  assert str(error.value) == (
    f"{tmp_path}/p: these proposals are for Rectangles(broken=None, with_masks=True), "
    "not for Fewer(broken=None, with_masks=True, split='test') (7 images against 6)"
  )


def test_another_file_name_or_another_seed_is_another_data_set_and_another_folder_is_not(tmp_path):
  write(tmp_path / "renamed", Renamed())
  with pytest.raises(DataError, match="these proposals are for"):
    proposals.open_folder(tmp_path / "renamed", Renamed(), Rectangles())
  write(tmp_path / "drawn", Drawn())
  proposals.open_folder(tmp_path / "drawn", Drawn(root="moved"), Drawn(root="moved"))
  with pytest.raises(DataError, match=r"Drawn\(.*seed=0.*\), not for Drawn\(.*seed=1.*\)"):
    proposals.open_folder(tmp_path / "drawn", Drawn(seed=1), Drawn(seed=1))


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
  opened = lambda name: proposals.open_folder(tmp_path / name, Rectangles(), Rectangles())
  with pytest.raises(
    DataError, match=r"none: no proposals here \(no settings.json\); launch.prepare_data makes them"
  ):
    opened("none")
  settings = write(tmp_path / "old") / "settings.json"
  settings.write_text(json.dumps(json.loads(settings.read_text()) | {"version": 7}))
  with pytest.raises(DataError, match="old: proposals of format version 7, and this is version 1: make them anew"):
    opened("old")
  settings.write_text("{")
  with pytest.raises(DataError, match="settings.json: not readable as JSON"):
    opened("old")
  boxes = write(tmp_path / "torn") / "boxes.npy"
  boxes.write_bytes(boxes.read_bytes()[:150])
  with pytest.raises(DataError, match="boxes.npy: missing or damaged"):
    opened("torn")
  np.save(boxes, np.zeros((5, 4), np.float32))
  with pytest.raises(DataError, match="boxes.npy: 5 rows where offsets.npy speaks of 21"):
    opened("torn")


# ---- in a batch --------------------------------------------------------------------------------------------------


def stored_data(tmp_path, **values):
  folder = str(write(tmp_path / "p"))
  return data(proposals=(folder, folder), num_proposals=(5, 3), **values)


def test_proposals_are_padded_scaled_with_the_image_and_cut_to_the_best(tmp_path):
  settings = stored_data(tmp_path, resize=Resize((48,), 64), canvases=((48, 64), (64, 48)))
  found = {}
  for batch in loader.eval_batches(settings, Rectangles()):
    assert batch.proposals.boxes.shape == (2, 3, 4) and batch.proposals.scores.dtype == np.float32
    for row in np.flatnonzero(batch.valid):
      found[int(batch.image_id[row])] = (batch.proposals.boxes[row].tolist(), batch.proposals.valid[row].tolist())
    assert not batch.proposals.valid[~batch.valid].any()
  assert found[1] == ([[0, 0, 0, 0]] * 3, [False] * 3)
  assert found[3] == ([[0, 2, 4, 8], [2, 2, 6, 8], [0, 0, 0, 0]], [True, True, False])
  assert found[7] == ([[0, 2, 4, 8], [2, 2, 6, 8], [4, 2, 8, 8]], [True] * 3)


def test_a_mirrored_image_has_mirrored_proposals(tmp_path):
  settings = stored_data(tmp_path, augmentations=(HorizontalFlip(1.0),))
  batches = loader.train_loader(settings, Rectangles(), seed=0, num_steps=4)
  seen = {int(number): boxes for batch in batches for number, boxes in zip(batch.image_id, batch.proposals.boxes)}
  # Image 3 is 32 wide: [0, 1, 2, 4] and [1, 1, 3, 4] stand at its other end.
  assert seen[3].tolist() == [[30, 1, 32, 4], [29, 1, 31, 4], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_without_proposals_a_batch_has_none():
  assert next(iter(loader.eval_batches(data(), Rectangles()))).proposals is None


def test_worker_processes_give_the_same_batches(tmp_path):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  settings = stored_data(tmp_path)
  here = loader.train_loader(settings, Rectangles(), seed=0, num_steps=3)
  there = loader.train_loader(dataclasses.replace(settings, workers=1), Rectangles(), seed=0, num_steps=3)
  for one, two in zip(here, there, strict=True):
    np.testing.assert_array_equal(one.proposals.boxes, two.proposals.boxes)
  there.close()


def test_proposals_of_other_data_end_the_loading_before_it_begins(tmp_path):
  folder = str(write(tmp_path / "p"))
  with pytest.raises(DataError, match="these proposals are for Rectangles"):
    loader.eval_batches(data(eval=Fewer(), proposals=(folder, folder)), Fewer())


def test_bare_images_bring_their_proposals(tmp_path):
  images = [Rectangles().image(index) for index in (0, 3)]
  batch = pipeline.image_batch(images, stored_data(tmp_path), proposals=[regions(0), regions(3)])
  assert batch.proposals.valid.tolist() == [[False] * 3, [True] * 3]
  assert batch.proposals.boxes[1].tolist() == (2 * regions(3).boxes).tolist()  # 12 x 16 on a canvas of 24 x 32


# ---- recall ------------------------------------------------------------------------------------------------------


class Hand:
  """Two objects of 10 x 10 side by side, and a crowd below them, in an image of 20 x 20; then one without objects."""

  def __len__(self) -> int:
    return 2

  def annotations(self, index: int, masks: bool = True) -> Annotations:
    boxes = np.array([[0, 0, 10, 10], [10, 0, 20, 10], [0, 10, 5, 20]], np.float32)[: 3 * (1 - index)]
    none = np.zeros(len(boxes), bool)
    return Annotations(
      image_id=index + 1,
      file_name=f"{index}.png",
      size=(20, 20),
      boxes=boxes,
      classes=np.ones(len(boxes), np.int32),
      crowd=np.arange(len(boxes)) == 2,
      difficult=none,
      ids=np.arange(len(boxes)),
      areas=np.full(len(boxes), 100, np.float32),
    )


def recall_of(boxes, counts, ious=(0.5, 0.7)):
  boxes = np.array(boxes, np.float32).reshape(-1, 4)
  arrays = {"boxes": boxes, "scores": np.ones(len(boxes)), "offsets": np.array([0, len(boxes), len(boxes)])}
  stored = proposals.StoredProposals("by hand", {}, arrays | {"seconds": np.zeros(2), "image_ids": np.array([1, 2])})
  return proposals.recall(stored, Hand(), ious, counts)


def test_recall_by_hand():
  boxes = [
    [0, 0, 20, 20],  # IoU 1/4 with both
    [0, 0, 10, 6],  # 0.6 with the left one
    [11, 0, 20, 10],  # 0.9 with the right one
    [0, 0, 10, 8],  # 0.8 with the left one
  ]
  rows, num_objects = recall_of(boxes, counts=(1, 2, 3, 4, 100))
  assert num_objects == 2
  assert rows == [[0, 0.5, 1, 1, 1], [0, 0, 0.5, 1, 1]]


def test_one_proposal_may_cover_two_objects_and_none_covers_nothing():
  assert recall_of([[0, 0, 20, 10]], counts=(1,), ious=(0.5,))[0] == [[1.0]]
  assert recall_of([], counts=(1,), ious=(0.5,))[0] == [[0.0]]

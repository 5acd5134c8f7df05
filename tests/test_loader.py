"""Batches: a function of seed and step alone, one canvas each, every image once in evaluation."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import pickle
import time

import grain
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from absl import flags

from rcnn_jax import experiment
from rcnn_jax.data import loader, pipeline
from rcnn_jax.data.augment.copy_paste import CopyPaste
from rcnn_jax.data.augment.crop import RandomCrop
from rcnn_jax.data.augment.mosaic import Mosaic
from rcnn_jax.data.augment.rotate import QuarterTurns, Rotate
from rcnn_jax.data.augment.scale import LargeScaleJitter
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.loader import Epoch, TrainPlan
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.source import Annotations, Category, KeypointNames
from rcnn_jax.data.transforms import ColorJitter, HorizontalFlip, Resize
from rcnn_jax.data.voc import VocFolder
from rcnn_jax.training.stages import Sgd

BCCD = pathlib.Path(__file__).parents[2] / "shared" / "data" / "bccd"
SIZES = [(24, 32), (32, 24), (24, 32), (12, 16), (24, 32), (48, 32), (32, 24)]


@dataclasses.dataclass(frozen=True)
class Rectangles:
  """Image i (id i + 1) has i rectangles, is filled with the value 30 i, and has its size from SIZES."""

  categories = (Category(1, "rectangle"),)
  keypoints = KeypointNames(("left_end", "right_end"), ((0, 1),))
  faults = ()
  broken: int | None = None
  with_masks: bool = True

  def open(self, strict: bool = True) -> Rectangles:
    del strict
    return self

  def __len__(self) -> int:
    return len(SIZES)

  def annotations(self, index: int, masks: bool = True) -> Annotations:
    boxes = np.array([[row, 2, row + 4, 8] for row in range(index)], np.float32).reshape(-1, 4)
    ends = np.stack([np.stack([boxes[:, side], boxes[:, 1], boxes[:, 0] * 0 + 2], -1) for side in (0, 2)], 1)
    return Annotations(
      image_id=index + 1,
      file_name=f"{index}.png",
      size=SIZES[index],
      boxes=boxes,
      classes=np.ones(index, np.int32),
      crowd=np.arange(index) == 2,
      difficult=np.zeros(index, bool),
      ids=np.arange(1, index + 1),
      areas=np.full(index, 24, np.float32),
      keypoints=ends,
      segmentations=tuple(_rectangle(box, SIZES[index]) for box in boxes) if masks and self.with_masks else None,
    )

  def image(self, index: int) -> np.ndarray:
    if index == self.broken:
      raise DataError(f"{index}.png: not an image")
    return np.full((*SIZES[index], 3), 30 * index, np.uint8)


def _rectangle(box: np.ndarray, size: tuple[int, int]) -> dict:
  from rcnn_jax.data import coco

  x1, y1, x2, y2 = box.tolist()
  return coco.encode([[x1, y1, x2, y1, x2, y2, x1, y2]], size)


@pytest.fixture(autouse=True, scope="module")
def parsed_flags() -> None:
  """grain's worker processes are started with absl's flags."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def data(**values) -> Data:
  settings = dict(train=Rectangles(), eval=Rectangles(), resize=Resize((24,), 32), canvases=((24, 32), (32, 24)))
  return Data(**settings | {"batch_size": (2, 2)} | values)


def take(iterator, count: int) -> list:
  return [next(iterator) for _ in range(count)]


def assert_same(first, second) -> None:
  jax.tree.map(np.testing.assert_array_equal, first, second)


def train(settings: Data, num_steps: int = 12, seed: int = 0, **values):
  return loader.train_loader(settings, settings.train.open(), seed=seed, num_steps=num_steps, **values)


# ---- the plan ----------------------------------------------------------------------------------------------------


def epoch_of(canvases, batch_size: int) -> Epoch:
  """The epoch of images 0, 1, ... that stand on these canvases."""
  groups = {canvas: np.array([i for i, each in enumerate(canvases) if each == canvas]) for canvas in set(canvases)}
  return Epoch(groups, batch_size, max_objects=8)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  st.lists(st.sampled_from(("landscape", "portrait", "square")), min_size=1, max_size=40),
  st.integers(1, 16),
  st.integers(0, 9),
)
def test_an_epoch_holds_every_image_once_and_a_batch_none_twice(canvases, batch_size, seed):
  whole = epoch_of(canvases, batch_size)
  plan = TrainPlan(whole, seed=seed, num_steps=100)
  assert whole.num_images == len(canvases)
  for epoch in (0, 1, 7):
    batches = [plan[epoch * whole.num_steps + step] for step in range(whole.num_steps)]
    assert sorted(index for rows in batches for index in rows.indices) == list(range(len(canvases)))
    for rows in batches:
      assert rows.epoch == epoch and 1 <= len(rows.indices) <= batch_size
      assert {canvases[index] for index in rows.indices} == {rows.canvas}
    for canvas in set(canvases):  # only the last batch of a canvas is short
      assert sum(len(rows.indices) < batch_size for rows in batches if rows.canvas == canvas) <= 1


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
  st.lists(st.sampled_from(("landscape", "portrait")), min_size=1, max_size=30),
  st.integers(1, 16),
  st.lists(st.integers(0, 10_000), min_size=1, max_size=5),
)
def test_any_step_is_found_without_those_before_it(canvases, batch_size, steps):
  read_in_order = TrainPlan(epoch_of(canvases, batch_size), seed=5, num_steps=10_001)
  whole = {step: read_in_order[step] for step in range(min(max(steps) + 1, 300))}
  for step in steps:
    fresh = pickle.loads(pickle.dumps(TrainPlan(epoch_of(canvases, batch_size), seed=5, num_steps=10_001)))
    assert fresh[step] == whole.get(step, read_in_order[step])


@pytest.mark.parametrize(
  "num_images, batch_size, steps",
  [
    ({"landscape": 292}, 2, 146),  # the blood cells
    ({"landscape": 250}, 2, 125),  # the nuclei
    ({"landscape": 10}, 16, 1),
    ({"landscape": 29, "portrait": 3}, 16, 3),
    ({"landscape": 88_321, "portrait": 28_945}, 16, 7331),  # COCO's with an object: 5521 batches and 1810
  ],
)
def test_the_steps_of_an_epoch(num_images, batch_size, steps):
  whole = Epoch({canvas: np.arange(count) for canvas, count in num_images.items()}, batch_size, 8)
  assert whole.num_steps == steps
  assert Sgd(epochs=12).num_steps(whole.num_steps) == 12 * steps


def test_a_hundred_thousand_images_are_planned_in_no_time_from_any_step():
  plan = TrainPlan(Epoch({(8, 8): np.arange(118_287)}, 16, 8), seed=0, num_steps=10**7)
  began = time.perf_counter()
  assert plan[9_999_999].epoch == 9_999_999 // 7393
  assert time.perf_counter() - began < 2


def test_epochs_differ_and_the_order_is_a_function_of_the_seed():
  whole = Epoch({"one": np.arange(16)}, 4, 8)
  first, again = (TrainPlan(whole, seed=3, num_steps=40) for _ in range(2))
  other = TrainPlan(whole, seed=4, num_steps=40)
  order = [first[step].indices for step in range(8)]
  assert [again[step].indices for step in reversed(range(8))] == order[::-1]
  assert order[:4] != order[4:] and order != [other[step].indices for step in range(8)]


def test_an_epoch_counts_the_images_that_are_trained_on():
  """Of seven images of rectangles four are landscapes; the first of these has no object."""
  everything, some = (loader.training_epoch(data(skip_empty=skip), Rectangles()) for skip in (False, True))
  assert (everything.num_images, everything.num_steps) == (7, 2 + 2)  # four landscapes, three portraits, by twos
  assert (some.num_images, some.num_steps) == (6, 2 + 2)
  few = loader.training_epoch(data(load_keypoints=True, min_keypoints=5), Rectangles())
  assert (few.num_images, few.num_steps) == (3, 1 + 1)
  with pytest.raises(DataError, match="no images to train on"):
    loader.training_epoch(data(load_keypoints=True, min_keypoints=99), Rectangles())


# ---- training batches --------------------------------------------------------------------------------------------


def test_a_training_batch_by_shape_and_type():
  batch = next(train(data(load_masks=True, load_keypoints=True)))
  shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), batch)
  assert shapes.image in (((2, 24, 32, 3), "uint8"), ((2, 32, 24, 3), "uint8"))
  assert shapes.image_size == ((2, 2), "int32") and shapes.scale == ((2, 2), "float32")
  assert shapes.image_id == ((2,), "int32") and shapes.valid == ((2,), "bool")
  assert shapes.truth.boxes == ((2, 8, 4), "float32") and shapes.truth.classes == ((2, 8), "int32")
  for name in ("crowd", "difficult", "valid"):
    assert getattr(shapes.truth, name) == ((2, 8), "bool")
  assert shapes.truth.masks == ((2, 8, 112, 112), "uint8")
  assert shapes.truth.keypoints == ((2, 8, 2, 3), "float32")


def test_rows_beyond_the_objects_are_invalid_and_an_empty_image_has_none():
  found = {}
  for batch in take(train(data(augmentations=())), 5):
    found |= {int(number): row for number, row in zip(batch.image_id, batch.truth.valid.sum(1))}
  assert found == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6}


def test_same_seed_same_batches_other_seed_others():
  settings = data(augmentations=(HorizontalFlip(0.5), ColorJitter()))
  first, again, other = (take(train(settings, seed=seed), 8) for seed in (0, 0, 1))
  for one, two in zip(first, again):
    assert_same(one, two)
  assert [batch.image_id.tolist() for batch in first] != [batch.image_id.tolist() for batch in other]


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_goes_on_with_the_very_next_batch_whatever_the_workers(workers):
  settings = data(augmentations=(HorizontalFlip(0.5), ColorJitter()))
  whole = take(train(settings), 12)
  interrupted = train(settings)
  take(interrupted, 5)
  resumed = train(dataclasses.replace(settings, workers=workers))
  resumed.set_state(json.loads(json.dumps(interrupted.get_state())))
  for one, two in zip(whole[5:], resumed, strict=True):
    assert_same(one, two)
  resumed.close()


def test_rows_that_fill_up_a_batch_are_not_valid_and_repeat_its_images_with_other_draws():
  """Three portrait images at batch 8: each of them once in an epoch."""
  settings = data(batch_size=(8, 2), augmentations=(ColorJitter(),))
  batches = take(train(settings), 4)
  for first in (0, 2):  # two batches an epoch, one of each canvas
    ids = [int(number) for batch in batches[first : first + 2] for number in batch.image_id[batch.valid]]
    assert sorted(ids) == [1, 2, 3, 4, 5, 6, 7]
  portraits = next(batch for batch in batches if batch.image.shape[1:3] == (32, 24))
  assert portraits.valid.tolist() == [True] * 3 + [False] * 5
  assert portraits.image_id[3:].tolist() == [*portraits.image_id[:3], *portraits.image_id[:2]]
  brightest = portraits.image.max(axis=(1, 2, 3))
  assert len({*brightest[[0, 3, 6]].tolist()}) == 3  # three draws of one image


def test_the_batches_end_after_num_steps():
  assert len(list(train(data(), num_steps=3))) == 3


def test_processes_share_each_batch_without_changing_a_draw():
  settings = data(batch_size=(4, 2), augmentations=(HorizontalFlip(0.5), ColorJitter()), load_masks=True)
  whole = take(train(settings), 6)
  shares = [take(train(settings, process_index=index, process_count=2), 6) for index in (0, 1)]
  for batch, *parts in zip(whole, *shares):
    assert_same(batch, jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))
  with pytest.raises(DataError, match="a batch of 4 cannot be shared equally by 3 processes"):
    train(settings, process_count=3)


def test_scale_jitter_draws_from_the_short_sides_and_scale_maps_to_the_original():
  settings = data(resize=Resize((12, 18, 24), 32), augmentations=())
  heights = set()
  for batch in take(train(settings, num_steps=40), 40):
    for size, scale, number in zip(batch.image_size, batch.scale, batch.image_id):
      heights.add(int(min(size)))
      np.testing.assert_allclose(size / scale, SIZES[number - 1], rtol=1e-5)
  assert heights == {12, 18, 24, 21}  # 21: the tall image of 48 x 32 must fit 32
  evaluated = next(iter(loader.eval_batches(settings, Rectangles())))
  assert evaluated.image_size.tolist() == [[24, 32], [24, 32]]


def test_every_batch_has_the_pixels_of_the_experiment():
  settings = data(resize=Resize((24,), 32, pixels="float32"), batch_size=(4, 4))
  images = [np.full((24, 28, 3), 9, np.uint8)]
  evaluated = list(loader.eval_batches(settings, Rectangles()))
  assert any(not batch.valid.all() for batch in evaluated)  # filled up with blank images
  for batch in (next(train(settings)), pipeline.image_batch(images, settings), *evaluated):
    assert batch.image.dtype == np.float32


def test_the_picture_stands_in_the_top_left_corner_with_zeros_beyond():
  batch = pipeline.image_batch([np.full((24, 28, 3), 9, np.uint8)], data())
  assert batch.image_size.tolist() == [[24, 28]]
  assert (batch.image[0, :, :28] == 9).all() and not batch.image[0, :, 28:].any()


def test_boxes_masks_and_joints_go_with_the_scale():
  settings = data(resize=Resize((48,), 64), canvases=((48, 64), (64, 48)), load_masks=True, load_keypoints=True)
  batch = pipeline.load(settings, Rectangles(), 2, (48, 64), 8, None)
  assert batch.scale.tolist() == [2, 2]
  assert batch.truth.boxes[:2].tolist() == [[0, 4, 8, 16], [2, 4, 10, 16]]
  assert batch.truth.keypoints[1].tolist() == [[2, 4, 2], [10, 4, 2]]
  shares = batch.truth.masks.mean(axis=(1, 2))
  assert (shares[:2] > 0.98).all() and not shares[2:].any()  # bilinear samples round the corners off


def test_a_mirrored_image_has_the_crops_and_joints_of_the_stored_one_bit_for_bit():
  settings = data(resize=Resize((40,), 60), canvases=((48, 64),), load_masks=True, load_keypoints=True)
  settings = dataclasses.replace(settings, augmentations=(HorizontalFlip(1.0), ColorJitter(0, 0, 0)))
  for index in range(len(SIZES)):
    stored = pipeline.load(settings, Rectangles(), index, (48, 64), 8, None)
    mirrored = pipeline.load(settings, Rectangles(), index, (48, 64), 8, np.random.default_rng(index))
    valid, (height, width) = stored.truth.valid, stored.image_size
    np.testing.assert_array_equal(mirrored.truth.masks, stored.truth.masks[:, :, ::-1])
    np.testing.assert_array_equal(mirrored.image[:height, :width], stored.image[:height, :width][:, ::-1])
    np.testing.assert_array_equal(mirrored.truth.boxes[valid, 2], width - stored.truth.boxes[valid, 0])
    np.testing.assert_array_equal(mirrored.truth.keypoints[valid, 0, 0], width - stored.truth.keypoints[valid, 1, 0])
    for name in ("classes", "crowd", "difficult", "valid"):
      np.testing.assert_array_equal(getattr(mirrored.truth, name), getattr(stored.truth, name))


def test_images_without_trainable_objects_can_be_skipped():
  ids = {int(number) for batch in take(train(data(skip_empty=True)), 12) for number in batch.image_id}
  assert ids == {2, 3, 4, 5, 6, 7}


def test_images_with_few_labelled_joints_can_be_skipped():
  settings = data(load_keypoints=True, min_keypoints=5)  # rectangles have two, and the third of an image is a crowd
  assert {int(number) for batch in take(train(settings), 12) for number in batch.image_id} == {5, 6, 7}


# ---- evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_evaluation_sees_every_image_once(batch_size):
  batches = loader.eval_batches(data(), Rectangles(), batch_size=batch_size)
  ids = [int(number) for batch in batches for number, valid in zip(batch.image_id, batch.valid) if valid]
  assert sorted(ids) == [1, 2, 3, 4, 5, 6, 7]
  assert len(list(batches)) == len(batches)  # and again: it can be walked through more than once


def test_filled_up_rows_are_invalid_and_without_objects():
  last = list(loader.eval_batches(data(load_masks=True, load_keypoints=True), Rectangles(), batch_size=8))[-1]
  assert last.valid.tolist() == [True] * 3 + [False] * 5
  assert not last.truth.valid[3:].any() and not last.image[3:].any()
  assert (last.scale > 0).all()


def test_processes_share_the_evaluation():
  ids = []
  for index in (0, 1):
    for batch in loader.eval_batches(data(), Rectangles(), batch_size=4, process_index=index, process_count=2):
      assert batch.image.shape[0] == 2
      ids += batch.image_id[batch.valid].tolist()
  assert sorted(ids) == [1, 2, 3, 4, 5, 6, 7]


# ---- images alone, and what is reported --------------------------------------------------------------------------


def test_bare_images_are_prepared_as_for_evaluation():
  images = [Rectangles().image(index) for index in (0, 3)]
  batch = pipeline.image_batch(images, data(), image_ids=[1, 4])
  expected = [pipeline.load(data(), Rectangles(), index, (24, 32), 8, None) for index in (0, 3)]
  for name in ("image", "image_size", "scale", "image_id", "valid"):
    np.testing.assert_array_equal(getattr(batch, name), np.stack([getattr(item, name) for item in expected]))
  assert not batch.truth.valid.any()


def test_too_many_objects_are_dropped_and_told_once(caplog):
  with caplog.at_level(logging.WARNING):
    batches = take(train(data(max_objects=4)), 8)
  assert all(batch.truth.boxes.shape == (2, 4, 4) for batch in batches)
  assert caplog.messages == ["objects beyond max_objects=4 dropped: 3 (first: 5.png)"]


def test_faulty_objects_are_dropped_and_told_once(caplog):

  class Faulty(Rectangles):
    def annotations(self, index: int, masks: bool = True) -> Annotations:
      annotations = super().annotations(index, masks)
      annotations.boxes[1:2, 2] = -1
      return annotations

  with caplog.at_level(logging.WARNING):
    batches = list(loader.eval_batches(data(), Faulty()))
  counts = {
    int(number): int(count)
    for batch in batches
    for number, count in zip(batch.image_id[batch.valid], batch.truth.valid.sum(1))
  }
  assert counts == {1: 0, 2: 1, 3: 1, 4: 2, 5: 3, 6: 4, 7: 5}
  assert caplog.messages == [
    "faulty objects dropped: 5 (first: 2.png: object 2: degenerate box [1, 2, -1, 8]: width -2, height 6)"
  ]


def test_what_the_data_cannot_give_is_refused():
  with pytest.raises(DataError, match="load_masks is set, but the objects have no masks"):
    train(data(train=Rectangles(with_masks=False), load_masks=True))
  with pytest.raises(DataError, match="the seed is -1: it must not be negative"):
    train(data(), seed=-1)

  class Jointless(Rectangles):
    keypoints = None

  with pytest.raises(DataError, match="load_keypoints is set, but the data set names no keypoints"):
    train(data(train=Jointless(), load_keypoints=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_ends_the_batches_with_its_name(workers):
  iterator = train(data(train=Rectangles(broken=4), workers=workers))
  with pytest.raises(DataError, match="4.png: not an image"):
    take(iterator, 8)
  iterator.close()


def test_a_file_of_another_size_than_its_annotations_is_refused():

  class Resized(Rectangles):
    def image(self, index: int) -> np.ndarray:
      return np.zeros((10, 20, 3), np.uint8)

  with pytest.raises(DataError, match="0.png: the file is 20 x 10, its annotations are for 32 x 24"):
    next(iter(loader.eval_batches(data(), Resized())))


def test_the_training_iterator_runs_on_grain():
  assert isinstance(train(data())._start(), grain.DatasetIterator)


@pytest.mark.skipif(not BCCD.is_dir(), reason="the blood-smear images (shared/data/bccd) are not here")
def test_blood_smears_are_not_resampled():
  spec = VocFolder(str(BCCD), "test")
  settings = Data(spec, spec)
  source = spec.open()
  batch = next(iter(loader.eval_batches(settings, source)))
  assert batch.image.shape == (2, 480, 640, 3) and (batch.scale == 1).all()
  np.testing.assert_array_equal(batch.image[0], source.image(0))


# ---- augmentations that change the set of objects ----------------------------------------------------------------

MANY = (LargeScaleJitter((0.3, 2.0)), HorizontalFlip(0.5), CopyPaste(1.0), Mosaic(0.5), RandomCrop(), Rotate())


def test_batches_of_other_objects_have_the_same_shapes_and_are_a_function_of_seed_epoch_and_image():
  settings = data(augmentations=MANY, load_masks=True, load_keypoints=True, batch_size=(4, 2))
  assert pipeline.room_for_objects(settings, 8) == 8 * 2 * 4  # a pair, in each quarter of a mosaic
  assert pipeline.room_for_objects(dataclasses.replace(settings, max_objects=5), 5) == 5
  whole, again = (take(train(settings), 3) for _ in range(2))
  shares = [take(train(settings, process_index=index, process_count=2), 3) for index in (0, 1)]
  for batch, other, *parts in zip(whole, again, *shares):
    assert batch.truth.boxes.shape == (4, 64, 4) and batch.truth.masks.shape == (4, 64, 112, 112)
    assert_same(batch, other)
    assert_same(batch, jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))
    for row in range(4):
      boxes, (height, width) = batch.truth.boxes[row][batch.truth.valid[row]], batch.image_size[row]
      assert (boxes >= 0).all() and (boxes <= np.array([width, height] * 2) + 1e-3).all()


def test_an_augmentation_that_resizes_takes_the_place_of_the_resizing():
  assert pipeline.operations(data(augmentations=(HorizontalFlip(),))) == (Resize((24,), 32), HorizontalFlip())
  settings = data(augmentations=(LargeScaleJitter((0.5, 0.5)),))
  assert pipeline.operations(settings) == (LargeScaleJitter((0.5, 0.5)),)
  half = pipeline.load(settings, Rectangles(), 5, (24, 32), 8, np.random.default_rng(0))  # 48 x 32 fits as 24 x 16
  assert half.image_size.tolist() == [12, 8] and half.scale.tolist() == [0.25, 0.25]


def test_a_turned_landscape_is_shrunk_to_its_canvas():
  settings = data(augmentations=(QuarterTurns(),))
  sizes = {
    tuple(pipeline.load(settings, Rectangles(), 2, (24, 32), 8, np.random.default_rng(seed)).image_size.tolist())
    for seed in range(8)
  }
  assert sizes == {(24, 32), (24, 18)}


def test_others_are_drawn_from_the_images_that_are_trained_on():
  """Without joints enough, four images are left out; their grey values must not be pasted into a mosaic."""
  settings = data(augmentations=(Mosaic(),), load_keypoints=True, min_keypoints=5, batch_size=(1, 2))
  values = {value for batch in take(train(settings, num_steps=30), 30) for value in np.unique(batch.image).tolist()}
  assert values == {0, 120, 150, 180}


def test_augmentations_that_lack_their_data_are_refused_in_one_line():
  with pytest.raises(DataError, match="data.augmentations: CopyPaste needs the objects' masks: set data.load_masks"):
    train(data(augmentations=(CopyPaste(),)))
  with pytest.raises(DataError, match="data.augmentations: Mosaic makes images of which data.proposals"):
    train(data(augmentations=(Mosaic(),), proposals=("here", "there")))


def test_augmentations_are_values_that_json_holds_and_the_command_line_changes():
  settings = data(train=None, eval=None, augmentations=MANY)
  assert experiment.from_json(json.loads(json.dumps(experiment.to_json(settings)))) == settings
  changed = experiment.override(settings, {"augmentations.0.scale": (0.5, 1.0)})
  assert changed.augmentations[0] == LargeScaleJitter((0.5, 1.0))
  with pytest.raises(experiment.ExperimentError, match="augmentations.2.probability: CopyPaste: probability is 2"):
    experiment.override(settings, {"augmentations.2.probability": 2.0})

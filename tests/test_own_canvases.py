"""A canvas for each image: its own resized size, padded to a multiple, as torchvision and Detectron2 have it."""

from __future__ import annotations

import dataclasses
import logging

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from rcnn_jax import experiment as experiments
from rcnn_jax.data import loader, pipeline, transforms
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import PaddedToMultiple, Resize
from rcnn_jax.evaluation import detect
from rcnn_jax.models.proposers import Rpn
from tests import scenes

TORCHVISION, DETECTRON2 = Resize((800,), 1333), Resize((640, 800), 1333, rounding="nearest")


@pytest.mark.parametrize(
  "size, resized, canvas",
  [
    ((320, 640), (666, 1333), (672, 1344)),  # 666.5 x 1333: the long side decides
    ((640, 460), (1113, 800), (1120, 800)),  # 1113.04
    ((480, 640), (800, 1066), (800, 1088)),  # 1066.67
    ((427, 640), (800, 1199), (800, 1216)),  # 1199.06
    ((1333, 800), (1333, 800), (1344, 800)),
    ((31, 2000), (20, 1333), (32, 1344)),  # 20.66
    ((800, 800), (800, 800), (800, 800)),
  ],
)
def test_torchvisions_canvases(size, resized, canvas):
  """What torchvision's GeneralizedRCNNTransform(800, 1333) makes of one image alone, by its arithmetic."""
  data = Data(None, None, resize=TORCHVISION, canvases=PaddedToMultiple(32))
  assert transforms.resized_size(size, TORCHVISION) == resized
  assert pipeline.canvas_of(size, data) == canvas
  batch = pipeline.image_batch([np.ones((*size, 3), np.uint8)], data)
  assert batch.image.shape[1:3] == canvas and tuple(batch.image_size[0]) == resized


@pytest.mark.parametrize("multiple, canvas", [(32, (672, 1344)), (1, (667, 1333))])  # 666.5, rounded up
def test_detectron2s_canvases(multiple, canvas):
  """With a pyramid and without."""
  data = Data(None, None, resize=DETECTRON2, canvases=PaddedToMultiple(multiple))
  assert pipeline.canvas_of((320, 640), data) == canvas


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.integers(1, 128))
def test_no_image_is_shrunk_and_none_has_more_than_it_needs(size, multiple):
  data = Data(None, None, resize=TORCHVISION, canvases=PaddedToMultiple(multiple))
  canvas, resized = pipeline.canvas_of(size, data), transforms.resized_size(size, TORCHVISION)
  assert transforms.fit(resized, canvas) == resized
  for side, needed in zip(canvas, resized):
    assert side % multiple == 0 and needed <= side < needed + multiple


def test_a_multiple_is_at_least_one_pixel():
  with pytest.raises(ValueError, match="the multiple is 0"):
    PaddedToMultiple(0)


def test_the_anchors_of_torchvision_stand_right_on_such_a_canvas():
  """672 x 1344: the last level has 11 x 21 cells, which lie 672 // 11 = 61 and 1344 // 21 = 64 pixels apart."""
  rpn = Rpn(anchor_sizes=((256.0,), (512.0,)), anchor_ratios=(1.0,), canvas_strides=True)
  fine, coarse = rpn.grids([(21, 42), (11, 21)], (32, 64), (672, 1344))
  assert fine.reshape(21, 42, 4)[2, 1].tolist() == [32 - 128, 64 - 128, 32 + 128, 64 + 128]
  assert coarse.reshape(11, 21, 4)[2, 1].tolist() == [64 - 256, 122 - 256, 64 + 256, 122 + 256]


# ---- evaluation and training ---------------------------------------------------------------------------------------

SIZES = [(24, 32), (30, 32), (24, 32), (24, 20), (24, 32), (24, 20), (9, 64)]
# The long side becomes 64; to multiples of 8, and how many images have each.
CANVASES = {(48, 64): 3, (64, 64): 1, (64, 56): 2, (16, 64): 1}


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Images of SIZES with a bright rectangle in each."""

  categories = scenes.CATEGORIES
  keypoints = None
  faults = ()

  def __len__(self):
    return len(SIZES)

  def annotations(self, index, masks=True):
    return scenes.annotations(index + 1, [[2, 3, 12, 8]], [1], size=SIZES[index])

  def image(self, index):
    image = np.full((*SIZES[index], 3), 20, np.uint8)
    image[3:8, 2:12, 0] = 255
    return image


SETTINGS = Data(None, None, resize=Resize((64,), 64), canvases=PaddedToMultiple(8), batch_size=(2, 2))


def test_evaluation_puts_equal_shapes_together_and_compiles_each_once():
  batches = list(loader.eval_batches(SETTINGS, Pictures()))
  shapes = [tuple(batch.image.shape[1:3]) for batch in batches]
  images = {canvas: sum(int(b.valid.sum()) for b, s in zip(batches, shapes) if s == canvas) for canvas in shapes}
  assert images == CANVASES
  assert len(batches) == 2 + 1 + 1 + 1  # by twos
  detect._detect_step.clear_cache()
  sizes = {index + 1: size for index, size in enumerate(SIZES)}
  found = detect.detect(scenes.ColourFinder(), scenes.VARIABLES, batches, sizes, [c.id for c in scenes.CATEGORIES])
  assert detect._detect_step._cache_size() == len(CANVASES)
  assert [entry["image_id"] for entry in found.entries] == [7, 1, 3, 5, 4, 6, 2]
  np.testing.assert_allclose([entry["bbox"] for entry in found.entries], [[2, 3, 10, 5]] * 7, atol=1)


def test_training_has_a_few_canvases_where_they_are_named():
  named = dataclasses.replace(SETTINGS, canvases=PaddedToMultiple(8, training=((64, 64), (32, 64))))
  assert set(loader.training_epoch(named, Pictures()).groups) == {(64, 64), (32, 64)}
  assert pipeline.example_canvas(named) == (64, 64)
  assert set(loader.training_epoch(SETTINGS, Pictures()).groups) == set(CANVASES)
  for batch in (next(loader.train_loader(each, Pictures(), seed=0, num_steps=1)) for each in (named, SETTINGS)):
    assert batch.truth.valid.sum() >= 1


def test_many_canvases_in_training_are_told_with_few_that_would_do(caplog, monkeypatch):
  monkeypatch.setattr(loader, "MANY_CANVASES", 2)
  with caplog.at_level(logging.WARNING):
    found = loader.training_epoch(SETTINGS, Pictures())
  assert set(found.groups) == set(CANVASES)
  assert caplog.messages == [
    "the training images have 4 canvases, and the step is compiled for each of them; "
    "all images fit into data.canvases.training=((64, 64),)"
  ]
  caplog.clear()
  monkeypatch.setattr(loader, "MANY_CANVASES", 1)
  with caplog.at_level(logging.WARNING):
    loader.training_epoch(dataclasses.replace(SETTINGS, resize=Resize((12,), 64)), Pictures())
  assert caplog.messages[0].endswith("all images fit into data.canvases.training=((16, 64), (64, 16))")


def test_the_experiments_of_imported_models_have_them_and_train_on_few():
  for name in experiments.names():
    data = experiments.load(name).data
    if name.startswith(("torchvision_", "detectron2_")):
      padded = 1 if "C4" in name or "DC5" in name else 32
      assert data.canvases.multiple == padded and len(data.canvases.training) == 7, name
      assert pipeline.example_canvas(data) == (800, 800)
  changed = experiments.load("torchvision_fasterrcnn_resnet50_fpn").set(["data.canvases=((64, 64),)"])
  assert pipeline.example_canvas(changed.data) == (64, 64)

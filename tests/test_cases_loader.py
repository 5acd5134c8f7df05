"""Small inputs of which a training said nothing, each read from shared/cases: the one line that it says now."""

from __future__ import annotations

import logging
import pathlib

import numpy as np
import pytest

from rcnn_jax.data import loader, validate
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.source import Overview, untrainable
from rcnn_jax.evaluation.limits import warn_of_few_detections
from rcnn_jax.experiment import Evaluation
from rcnn_jax.models.heads import BoxHead
from tests import scenes
from tests.small_detector import small_detector

CASES = pathlib.Path(__file__).parents[2] / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the inputs that failed (shared/cases) are not here")


def case(name: str) -> CocoFolder:
  return CocoFolder(str(CASES / name / "images"), str(CASES / name / "ann.json"))


@needs_cases
def test_all_objects_crowds_cvat_masks(caplog):
  spec = case("all_objects_crowds_cvat_masks")
  said = "no image has an object to train on: all 6 objects are crowds"
  assert list(validate.faults(spec)) == [said]
  with caplog.at_level(logging.WARNING):
    epoch = loader.training_epoch(Data(spec, spec), spec.open())
  assert epoch.num_images == 2 and caplog.messages == [f"the training data: {said}"]
  with pytest.raises(DataError, match=f"^no images to train on: {said}$"):
    loader.training_epoch(Data(spec, spec, skip_empty=True), spec.open())


@needs_cases
def test_more_objects_than_detections(caplog):
  source = case("more_objects_than_detections").open()
  with caplog.at_level(logging.WARNING):
    warn_of_few_detections(small_detector(box=BoxHead(max_detections=100)), Evaluation(), source)
  assert caplog.messages == [
    "images have up to 320 objects, and at most 100 detections are given (model.box.max_detections), "
    "at most 100 of a class are counted (evaluation.max_detections): AP and AR cannot reach 1"
  ]


# ---- others of their kinds ----------------------------------------------------------------------------------------


def overview_of(num_objects: list[int], num_trainable: list[int], num_faulty: int = 0) -> Overview:
  arrays = (np.array(counts, np.int32) for counts in (num_objects, num_trainable, [0] * len(num_objects)))
  sizes = np.full((len(num_objects), 2), 8, np.int32)
  ids, names = np.arange(len(sizes)), tuple(f"{number}.png" for number in range(len(sizes)))
  return Overview(sizes, *arrays, num_faulty, "1.png: object 3: why" if num_faulty else None, ids, names)


@pytest.mark.parametrize(
  "found, why",
  [
    (overview_of([1, 0], [1, 0]), None),
    (overview_of([0, 0], [0, 0]), "none of the 2 images has an object"),
    (overview_of([3, 2], [0, 0]), "all 5 objects are crowds"),
    (overview_of([0, 0], [0, 0], 4), "all 4 objects are faulty (first: 1.png: object 3: why)"),
    (overview_of([3], [0], 4), "all 7 objects are crowds (3) or faulty (4; first: 1.png: object 3: why)"),
  ],
)
def test_why_there_is_nothing_to_train_on(found, why):
  assert untrainable(found) == (None if why is None else f"no image has an object to train on: {why}")


class Crowded(scenes.Scenes):
  """One image of 12 objects: 7 of class 1, 3 of class 2 and 2 crowds of class 1."""

  def __init__(self):
    classes, boxes = [1] * 9 + [2] * 3, [[2, 2, 9, 9]] * 12
    self._all = [scenes.annotations(1, boxes, classes, crowd=[True] * 2 + [False] * 10)]


@pytest.mark.parametrize(
  "given, counted, said",
  [
    (10, 7, []),
    (9, 7, ["at most 9 detections are given (model.box.max_detections)"]),
    (10, 6, ["at most 6 of a class are counted (evaluation.max_detections)"]),
  ],
)
def test_few_detections_are_told_by_what_limits_them(given, counted, said, caplog):
  with caplog.at_level(logging.WARNING):
    model = small_detector(box=BoxHead(max_detections=given))
    warn_of_few_detections(model, Evaluation(max_detections=counted), Crowded())
  assert caplog.messages == [f"images have up to 10 objects, and {each}: AP and AR cannot reach 1" for each in said]

"""The class numbers of published detectors, and COCO read in them.

torchvision's detectors were trained with COCO's category ids as class numbers: 90 classes, of which ten never occur.
Detectron2's number the 80 that occur, in the order of their ids, as CocoFolder does.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rcnn_jax.data.coco import CocoFolder, CocoSource
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.source import Category, KeypointNames

UNUSED = "N/A"
MOST_CLASSES = 10_000
# COCO's categories by id, from 1 on, as torchvision lists them beside its weights.
COCO = (
  "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,N/A,stop sign,"
  "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,N/A,backpack,umbrella,N/A,N/A,"
  "handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
  "tennis racket,bottle,N/A,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
  "hot dog,pizza,donut,cake,chair,couch,potted plant,bed,N/A,dining table,N/A,N/A,toilet,N/A,tv,laptop,mouse,"
  "remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,N/A,book,clock,vase,scissors,teddy bear,"
  "hair drier,toothbrush"
)
COCO_JOINTS = (
  "nose,left_eye,right_eye,left_ear,right_ear,left_shoulder,right_shoulder,left_elbow,right_elbow,left_wrist,"
  "right_wrist,left_hip,right_hip,left_knee,right_knee,left_ankle,right_ankle"
)
COCO_LIMBS = (
  *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10)),
  *((1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
)


def joints(detector: Any) -> KeypointNames | None:
  """COCO's names of a detector's joints, without its data; None where there are not as many, or none at all."""
  names = COCO_JOINTS.split(",")
  known = any(head.field == "keypoints" and head.num_keypoints == len(names) for head in detector.heads)
  return KeypointNames.from_names(names, COCO_LIMBS) if known else None


def categories(num_classes: int, keypoints: KeypointNames | None = None) -> tuple[Category, ...]:
  """The classes of an imported detector without its data: the ids are its labels, 1..K; 90 and 80 are COCO's.

  A sole class of which COCO's `keypoints` are found is its people.
  """
  if num_classes == 1 and keypoints is not None:
    return (Category(1, "person"),)
  every = tuple(Category(number, name) for number, name in enumerate(COCO.split(","), start=1))
  occurring = tuple(category for category in every if category.name != UNUSED)
  known = {len(every): every, len(occurring): occurring}
  return known.get(num_classes) or tuple(Category(k, f"label {k}") for k in range(1, num_classes + 1))


@dataclasses.dataclass(frozen=True)
class CocoById(CocoFolder):
  """A COCO folder in which class k is the category of id k; ids that the file does not name are 'N/A'."""

  def open(self, strict: bool = True) -> CocoSource:
    """As CocoFolder's, with one category for each id up to the greatest.

    Raises:
      DataError: as that does; `class_names` are chosen; an id is no class number (1 to 10,000).
    """
    if self.class_names is not None:
      raise DataError(f"{self.annotations}: class_names are chosen, but the classes are the ids of the file")
    source = super().open(strict)
    ids = np.array([category.id for category in source.categories], np.int64)
    wrong = ids[(ids < 1) | (ids > MOST_CLASSES)]
    if len(wrong):
      raise DataError(f"{self.annotations}: category id {wrong[0]} is no class number (1 to {MOST_CLASSES})")
    names = {category.id: category.name for category in source.categories}
    numbers = range(1, int(ids.max(initial=0)) + 1)
    categories = tuple(Category(k, names.get(k, UNUSED)) for k in numbers)
    return dataclasses.replace(source, categories=categories, class_of=ids.astype(np.int32))

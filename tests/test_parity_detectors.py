"""torchvision's whole detectors on photographs: the experiment files themselves, through the path of launch.predict.

torchvision's answers are recorded (tests/record_torchvision_models.py), for images one by one and in fours. What an
experiment is changed in here is the size of the images, of its canvases, and a few counts.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from pycocotools import mask as rle

from rcnn_jax import experiment as experiments
from rcnn_jax.data import pipeline
from rcnn_jax.data.transforms import PaddedToMultiple
from rcnn_jax.evaluation import detect
from rcnn_jax.experiment import Experiment
from rcnn_jax.models.detector import variable_shapes
from tests import filling
from tests.parity import filled_detector, needs_photographs, pair_up, photographs, recorded

K = {"maskrcnn": 90, "keypointrcnn": 1}  # classes of a kind of model
SHORT, LONG = filling.MODEL_LIMITS["short_side"], filling.MODEL_LIMITS["long_side"]
# torchvision pads to multiples of 32. Each four photographs hold a landscape and a portrait.
CANVASES = {1: PaddedToMultiple(32), 4: ((160, 160),)}

pytestmark = needs_photographs


def experiment(name: str, batch_size: int) -> Experiment:
  """The experiment of torchvision's model, with small images and few regions."""
  return experiments.load(f"torchvision_{name}").override(
    {
      "data.resize.short_side": (SHORT,),
      "data.resize.long_side": LONG,
      "data.canvases": CANVASES[batch_size],
      "model.num_classes": K[name.partition("_")[0]],
      "model.precision": "highest",  # the recorded products are float32's own
      "model.proposer.num_post_nms": (2000, filling.MODEL_LIMITS["num_proposals"]),
      "model.box.max_detections": filling.MODEL_LIMITS["max_detections"],
    }
  )


@functools.lru_cache(maxsize=1)
def variables(name: str) -> dict:
  """Filled by the names of the parameters; the class scores are calibrated as the recording says."""
  model = experiment(name, 1).model
  filled = filled_detector(variable_shapes(model, (64, 64)), model)
  scores = filled["params"]["box"]["classes"]
  scores["kernel"], scores["bias"] = scores["kernel"] * recorded(name)["gain"], recorded(name)["bias"]
  return jax.device_put(filled)


@functools.cache
def found(name: str, batch_size: int) -> list[dict]:
  """Results entries of all photographs; image_id is the number in COCO, category_id torchvision's label."""
  read = photographs(recorded(name))
  ids = list(read)
  groups = [ids[first : first + batch_size] for first in range(0, len(ids), batch_size)]
  setting = experiment(name, batch_size)
  batches = (pipeline.image_batch([read[i] for i in group], setting.data, group) for group in groups)
  sizes = {i: image.shape[:2] for i, image in read.items()}
  return detect.detect(
    setting.model, variables(name), batches, sizes, range(1, setting.model.num_classes + 1)
  ).entries


def rows(entries: list[dict]) -> np.ndarray:
  """f32[D, 6] of box (xyxy), score and class."""
  columns = [[*e["bbox"], e["score"], e["category_id"]] for e in entries]
  table = np.array(columns, np.float32).reshape(-1, 6)
  table[:, 2:4] += table[:, :2]
  return table


MASK_MODELS = [
  "maskrcnn_resnet18_fpn",
  pytest.param("maskrcnn_resnet34_fpn", marks=pytest.mark.long),
  pytest.param("maskrcnn_resnet50_fpn", marks=pytest.mark.long),
  pytest.param("maskrcnn_resnet101_fpn", marks=pytest.mark.long),
  pytest.param("maskrcnn_resnet50_fpn_v2", marks=pytest.mark.long),
]
KEYPOINT_MODEL = pytest.param("keypointrcnn_resnet50_fpn", marks=pytest.mark.long)


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.long), 4])
@pytest.mark.parametrize("name", [*MASK_MODELS, KEYPOINT_MODEL])
def test_detections(name, batch_size):
  twins, total, classes = 0, 0, set()
  for photo in filling.COCO_IMAGES:
    theirs = filling.unpacked(recorded(name)[f"{photo}_batch{batch_size}"])
    ours = rows([e for e in found(name, batch_size) if e["image_id"] == int(photo)])
    twins += pair_up(ours, theirs).sum()
    total += len(theirs)
    classes |= set(theirs[:, 5])
  print(f"{name}, batch {batch_size}: {twins} of {total} detections of {len(classes)} classes have a twin")
  assert total > 300 and len(classes) >= min(10, experiment(name, 1).model.num_classes) and twins >= 0.99 * total


@pytest.mark.long
@pytest.mark.parametrize("name", MASK_MODELS)
def test_masks(name):
  """The pasted masks of the two best detections of each photograph."""
  equal, inside, filled = [], [], []
  for photo in filling.COCO_IMAGES:
    theirs = filling.unpacked(recorded(name)[f"{photo}_batch1"])[:2]
    bits = np.unpackbits(recorded(name)[f"{photo}_masks"])
    for rank, detection in enumerate(theirs):
      entries = [e for e in found(name, 1) if e["image_id"] == int(photo)]
      twins = [e for e in entries if pair_up(rows([e]), detection[None])[0]]
      if not twins:
        continue
      ours = rle.decode(twins[0]["segmentation"])
      same = ours == bits[rank * ours.size : (rank + 1) * ours.size].reshape(ours.shape)
      x1, y1, x2, y2 = np.rint(detection[:4]).astype(int)
      equal.append(same.mean())
      inside.append(same[y1 : y2 + 1, x1 : x2 + 1].mean())
      filled.append(ours[y1 : y2 + 1, x1 : x2 + 1].mean())
  print(f"{name}: equal pixels of {len(equal)} masks: {np.mean(equal):.5f}, within boxes {np.mean(inside):.5f}")
  assert 0.1 < np.mean(filled) < 0.9
  assert len(equal) >= 0.99 * 2 * len(filling.COCO_IMAGES) - 1 and np.mean(equal) >= 0.995 and np.mean(inside) >= 0.99


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", [KEYPOINT_MODEL])
def test_joints(name, batch_size):
  """The joints of the two best detections of each photograph."""
  distances = []
  for photo in filling.COCO_IMAGES:
    theirs = filling.unpacked(recorded(name)[f"{photo}_batch{batch_size}"])[:2]
    joints = recorded(name)[f"{photo}_batch{batch_size}_joints"]
    entries = [e for e in found(name, batch_size) if e["image_id"] == int(photo)]
    for detection, points in zip(theirs, joints):
      twins = [e for e in entries if pair_up(rows([e]), detection[None])[0]]
      if twins:
        ours = np.reshape(twins[0]["keypoints"], (-1, 3))[:, :2]
        distances.append(np.abs(ours - points).max(axis=1))
  near = np.mean(np.concatenate(distances) <= 0.5)
  print(f"{name}, batch {batch_size}: {near:.5f} of the joints of {len(distances)} people within half a pixel")
  assert len(distances) >= 0.99 * 2 * len(filling.COCO_IMAGES) - 1 and near >= 0.99


@pytest.mark.parametrize(
  "family", ["resnet18_fpn", "resnet34_fpn", "resnet50_fpn", "resnet101_fpn", "resnet50_fpn_v2"]
)
def test_a_faster_rcnn_is_the_mask_rcnn_without_its_masks(family):
  """Which is so in torchvision too: what holds for the boxes of the one holds for the other's."""
  masks, boxes = (experiments.load(f"torchvision_{kind}_{family}") for kind in ("maskrcnn", "fasterrcnn"))
  changes = {"name": boxes.name, "model.heads.mask": None, "data.load_masks": False}
  assert masks.override(changes) == boxes

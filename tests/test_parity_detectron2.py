"""Detectron2's detectors on photographs: the experiment files themselves, through the path of launch.predict.

Detectron2's answers are recorded (tests/record_detectron2.py), for images one by one and in fours. What an experiment
is changed in here is the size of the images, of its canvases, and a few counts.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as rle

from rcnn_jax import experiment as experiments
from rcnn_jax.data import pipeline, transforms
from rcnn_jax.data.pipeline import Data
from rcnn_jax.evaluation import detect
from rcnn_jax.experiment import Experiment
from rcnn_jax.models.detector import Detector, RoiSampler, blank_batch, variable_shapes
from rcnn_jax.types import Batch
from rcnn_jax.weights import detectron2
from tests import filling
from tests.parity import filled_detector, needs_photographs, pair_up, photographs
from tests.parity import recorded as recorded_of

recorded = functools.partial(recorded_of, peer="detectron2")


def experiment(name: str) -> Experiment:
  """The experiment of Detectron2's model, with small images and few regions."""
  short, long = filling.DETECT_SIDES
  return experiments.load(f"detectron2_{name}").override(
    {
      "data.resize.short_side": (short,),
      "data.resize.long_side": long,
      "model.proposer.num_post_nms": (1000, filling.DETECTRON2["MODEL.RPN.POST_NMS_TOPK_TEST"]),
      "model.box.score_threshold": filling.DETECTRON2["MODEL.ROI_HEADS.SCORE_THRESH_TEST"],
      "model.box.max_detections": filling.DETECTRON2["TEST.DETECTIONS_PER_IMAGE"],
      "model.precision": "highest",  # the recorded products are float32's own
    }
  )


@functools.lru_cache(maxsize=1)
def variables(name: str) -> dict:
  """Filled by the names of the parameters; class scores are calibrated as the recording says."""
  model = experiment(name).model
  shapes = variable_shapes(model, (64, 64))
  filled = filled_detector(shapes, model, detectron2.LIBRARY)
  if name in filling.DETECTRON2_CALIBRATED:
    scores = filled["params"]["box"]["classes"]
    scores["kernel"] = scores["kernel"] * recorded(name)["gain"]
    scores["bias"] = np.roll(recorded(name)["bias"], 1)  # the background is the last class there
  return jax.device_put(filled)


def canvas(data: Data, group: list[np.ndarray], multiple: int) -> tuple[int, int]:
  """Detectron2's: that of the largest sides of a batch, to multiples of 32 where there is a pyramid."""
  sizes = [transforms.resized_size(image.shape[:2], data.resize, max(data.resize.short_side)) for image in group]
  return tuple(math.ceil(max(sides) / multiple) * multiple for sides in zip(*sizes))


@functools.lru_cache(maxsize=1)
def found(name: str, batch_size: int, count: int) -> list[dict]:
  """Results entries of the first photographs; image_id is the number in COCO, category_id the class from 1 on."""
  read = photographs(recorded(name), count)
  ids = list(read)
  setting = experiment(name)
  multiple = 32 if "FPN" in name else 1

  def batch(group: list[int]):
    pictures = [read[i] for i in group]
    data = setting.override({"data.canvases": (canvas(setting.data, pictures, multiple),)}).data
    return pipeline.image_batch(pictures, data, group)

  batches = (batch(ids[first : first + batch_size]) for first in range(0, len(ids), batch_size))
  sizes = {i: image.shape[:2] for i, image in read.items()}
  labels = range(1, setting.model.num_classes + 1)
  return detect.detect(setting.model, variables(name), batches, sizes, labels).entries


def rows(entries: list[dict]) -> np.ndarray:
  """f32[D, 6] of box (xyxy), score and class."""
  columns = [[*e["bbox"], e["score"], e["category_id"]] for e in entries]
  table = np.array(columns, np.float32).reshape(-1, 6)
  table[:, 2:4] += table[:, :2]
  return table


def twin(entries: list[dict], detection: np.ndarray) -> dict | None:
  """The entry that is the twin of a detection f32[6], if any."""
  return next((entry for entry in entries if pair_up(rows([entry]), detection[None])[0]), None)


# (model, images a batch, how many of the photographs)
COMPARISONS = [
  ("mask_rcnn_R_50_FPN_3x", 4, 12),
  ("mask_rcnn_R_50_C4_3x", 4, 4),
]
COMPARISONS += [pytest.param("faster_rcnn_R_50_DC5_3x", 4, 4, marks=pytest.mark.long)]
COMPARISONS += [
  pytest.param(name, batch_size, 20, marks=pytest.mark.long)
  for name in filling.DETECTRON2_RECORDED
  for batch_size in (1, 4)
]


@needs_photographs
@pytest.mark.parametrize("name, batch_size, count", COMPARISONS)
def test_detections_masks_and_keypoints(name, batch_size, count):
  twins, total, classes, equal, distances = 0, 0, set(), [], []
  for photo in filling.COCO_IMAGES[:count]:
    theirs = {
      kind: recorded(name).get(f"{photo}_batch{batch_size}_{kind}") for kind in ("boxes", "masks", "keypoints")
    }
    entries = [entry for entry in found(name, batch_size, count) if entry["image_id"] == int(photo)]
    twins += pair_up(rows(entries), theirs["boxes"]).sum()
    total += len(theirs["boxes"])
    classes |= set(theirs["boxes"][:, 5])
    for row, detection in enumerate(theirs["boxes"]):
      ours = twin(entries, detection)
      if ours and theirs["masks"] is not None and row < len(theirs["masks"]):
        size = ours["segmentation"]["size"]
        mask = rle.decode({"size": size, "counts": bytes(theirs["masks"][row])})
        equal.append((rle.decode(ours["segmentation"]) == mask).mean())
      if ours and theirs["keypoints"] is not None:
        points = np.reshape(ours["keypoints"], (-1, 3))
        distances.append(np.abs(points - theirs["keypoints"][row])[:, :2].max(axis=1))
  masks = f"; {len(equal)} masks, of whose pixels {np.mean(equal):.5f} are equal" if equal else ""
  joints = f"; {(np.ravel(distances) <= 0.5).mean():.4f} of the joints within 0.5 px" if distances else ""
  print(
    f"{name}, batch {batch_size}: {twins} of {total} detections of {len(classes)} classes have a twin{masks}{joints}"
  )
  assert total > 10 * count and len(classes) >= (1 if "keypoint" in name else 5) and twins >= 0.99 * total
  assert ("mask" in name) == bool(equal) and np.mean(equal or [1]) >= 0.995
  assert ("keypoint" in name) == bool(distances) and (np.ravel(distances or [0]) <= 0.5).mean() >= 0.99


@pytest.mark.parametrize("kind", ["C4", "FPN"])
def test_a_faster_rcnn_is_the_mask_rcnn_without_its_masks(kind):
  """Which is so in Detectron2 too: what holds for the boxes of the one holds for the other's."""
  masks, boxes = (experiments.load(f"detectron2_{task}_rcnn_R_50_{kind}_3x") for task in ("mask", "faster"))
  assert masks.override({"name": boxes.name, "model.heads.mask": None, "data.load_masks": False}) == boxes


LOSSES = {
  "rpn_objectness": "loss_rpn_cls",
  "rpn_box": "loss_rpn_loc",
  "roi_class": "loss_cls",
  "roi_box": "loss_box_reg",
}


def small(name: str, **changes) -> tuple[Detector, dict]:
  """The detector of filling.DETECTRON2_LOSSES and its variables, filled by the names of the parameters."""
  setting = filling.DETECTOR
  changes |= {
    "model.backbone.bottom_up.depth": 18,
    "model.num_classes": setting["num_classes"],
    "model.precision": "highest",  # the recorded products are float32's own
    "model.proposer.anchor_sizes": setting["anchor_sizes"],
    "model.proposer.num_pre_nms": setting["num_pre_nms"],
    "model.proposer.num_post_nms": setting["num_post_nms"],
    "model.proposer.num_samples": filling.EVERY_ANCHOR,
    "model.sampler": RoiSampler(num_samples=filling.EVERY_ROI, foreground_fraction=0.5),
  }
  model = experiments.load(f"detectron2_{name}").override(changes).model
  shapes = variable_shapes(model, (64, 64))
  return model, filled_detector(shapes, model, detectron2.LIBRARY)


def loss_batch() -> Batch:
  """filling.loss_case on its canvas."""
  pictures, boxes, classes = filling.loss_case()
  batch = blank_batch(2, (96, 128), max_objects=3)
  pixels = np.zeros(batch.image.shape, np.uint8)
  for row, image in zip(pixels, pictures):
    row[: image.shape[0], : image.shape[1]] = image
  truth = batch.truth.replace(boxes=jnp.array(boxes), classes=jnp.array(classes), valid=jnp.ones((2, 3), bool))
  return batch.replace(image=pixels, image_size=jnp.array(filling.LOSS_IMAGES), truth=truth)


def test_losses_of_the_same_samples():
  model, filled = small("faster_rcnn_R_50_FPN_3x")
  terms = jax.jit(lambda batch: model.apply(filled, batch, jax.random.key(0), method="losses"))(loss_batch())
  for ours, theirs in LOSSES.items():
    np.testing.assert_allclose(terms[ours], recorded("losses")[theirs], rtol=1e-4, err_msg=ours)


def small_cascade() -> tuple[Detector, dict]:
  """Without its mask head, which is the Mask R-CNN's."""
  return small("cascade_mask_rcnn_R_50_FPN_3x", **{"model.heads.mask": None})


def test_a_cascades_losses_of_the_same_samples():
  model, filled = small_cascade()
  terms = jax.jit(lambda batch: model.apply(filled, batch, jax.random.key(0), method="losses"))(loss_batch())
  of_stages = {
    f"{LOSSES[term]}_stage{stage}": f"{term}_{stage + 1}" for term in ("roi_class", "roi_box") for stage in range(3)
  }
  names = {"loss_rpn_cls": "rpn_objectness", "loss_rpn_loc": "rpn_box"} | of_stages
  assert set(terms) == set(names.values())
  for theirs, ours in names.items():
    assert recorded("cascade")[theirs] > 0
    np.testing.assert_allclose(terms[ours], recorded("cascade")[theirs], rtol=1e-4, err_msg=ours)


@pytest.mark.long
def test_a_cascades_detections():
  model, filled = small_cascade()
  found = jax.jit(lambda batch: model.apply(filled, batch, method="detect"))(loss_batch())
  for i in range(2):
    theirs = recorded("cascade")[f"detections{i}"]
    columns = [found.boxes[i], found.scores[i][:, None], found.classes[i][:, None]]
    ours = np.concatenate(columns, axis=1)[np.asarray(found.valid[i])]
    assert len(theirs) == 100 and set(theirs[:, 5]) == {1, 2, 3, 4}
    assert pair_up(ours, theirs).mean() >= 0.99

"""hotcoco against the referee: on drawn sets of every kind, each number of its arrays is pycocotools' own.

The sets have crowds, difficult objects, areas on the borders of the ranges, equal scores and boxes, images without
objects or without results, ids from 0 to far beyond 2 ** 31, and joints of other numbers than COCO's 17.
"""

from __future__ import annotations

import contextlib
import io
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rcnn_jax.evaluation import coco
from rcnn_jax.evaluation.evaluate import measure
from rcnn_jax.evaluation.results import Found, Results
from rcnn_jax.evaluation.voc import precision_recall
from tests.scenes import Category, annotations

IMAGE_IDS = (0, 1, 2, 9, 77, 2**31 - 1, 2**40)
CATEGORY_IDS = (0, 1, 2, 7, 90, 10**6)


class Drawn:
  """A set in COCO's form and entries, drawn from a seed."""

  def __init__(self, seed: int, joints: int):
    self.draw, self.joints = np.random.default_rng(seed), joints
    self.size = tuple(int(side) for side in self.draw.integers(4, 120, 2))
    self.whole = self.draw.random() < 0.5  # boxes of whole pixels: equal IoUs, and IoUs on the thresholds
    image_ids = self.draw.choice(IMAGE_IDS, self.draw.integers(1, 6), replace=False).tolist()
    self.category_ids = self.draw.choice(CATEGORY_IDS, self.draw.integers(1, 5), replace=False).tolist()
    height, width = self.size
    images = [{"id": i, "file_name": str(i), "height": height, "width": width} for i in image_ids]
    objects = [self.object(i) for i in image_ids for _ in range(self.draw.integers(0, 7))]
    for number, one in enumerate(objects, start=1):
      one["id"] = number
    categories = [{"id": k, "name": str(k)} for k in self.category_ids]
    self.truth = {"info": {}, "images": images, "annotations": objects, "categories": categories}
    self.entries = [self.entry(i) for i in image_ids for _ in range(self.draw.integers(0, 22))]

  def object(self, image_id: int) -> dict:
    mask, points = self.mask(), self.points()
    points[:, 2] = 0 if self.draw.random() < 0.2 else self.draw.integers(0, 3, self.joints)
    areas = [int(mask.sum()), self.draw.uniform(1, 20000), 32**2, 96**2, 0]
    return {
      "image_id": image_id,
      "category_id": int(self.draw.choice(self.category_ids)),
      "bbox": self.box(),
      "area": float(np.float32(self.draw.choice(areas))),
      "iscrowd": int(self.draw.random() < 0.2),
      "difficult": int(self.draw.random() < 0.2),
      "segmentation": encoded(mask),
      "keypoints": points.reshape(-1).tolist(),
      "num_keypoints": int((points[:, 2] > 0).sum()),
    }

  def entry(self, image_id: int) -> dict:
    """Near an object of the image, or anywhere."""
    near = [one for one in self.truth["annotations"] if one["image_id"] == image_id]
    if near and self.draw.random() < 0.7:
      one = near[self.draw.integers(len(near))]
      box = np.array(one["bbox"]) + self.draw.choice([0, 1, 3]) * self.draw.normal(0, 2, 4)
      box[2:] = np.maximum(box[2:], 0)
      mask = np.roll(rle.decode(one["segmentation"]), self.draw.integers(-3, 4, 2), (0, 1))
      points = np.reshape(one["keypoints"], (-1, 3)) + self.draw.normal(0, 3, (self.joints, 3))
      box, category_id = box.tolist(), one["category_id"]
    else:
      box, mask, points = self.box(), self.mask(), self.points()
      category_id = int(self.draw.choice(self.category_ids))
    return {
      "image_id": image_id,
      "category_id": category_id,
      "bbox": box,
      "score": float(np.float32(self.draw.choice([self.draw.random(), 0.5, 0.25]))),
      "segmentation": encoded(mask),
      "keypoints": points.reshape(-1).tolist(),
    }

  def box(self) -> list[float]:
    low, sides = self.draw.uniform(-5, 120, 2), self.draw.uniform(0.1, 150, 2)
    if self.whole:
      low, sides = (low / 4).round() * 4, np.maximum((sides / 4).round() * 4, 1)
    return [*low.tolist(), *sides.tolist()]

  def mask(self) -> np.ndarray:
    mask = np.zeros(self.size, np.uint8)
    y, x = (self.draw.integers(0, side) for side in self.size)
    window = mask[y : y + self.draw.integers(1, 120), x : x + self.draw.integers(1, 120)]
    window[:] = self.draw.random(window.shape) >= self.draw.choice([0, 0.2, 1])
    return mask

  def points(self) -> np.ndarray:
    return np.concatenate([self.draw.uniform(0, 150, (self.joints, 2)).round(), np.ones((self.joints, 1))], axis=1)


def encoded(mask: np.ndarray) -> dict:
  found = rle.encode(np.asfortranarray(mask))
  return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode()}


class Referee(COCOeval):
  """pycocotools' evaluation, which forgets a file's `ignore` flag: difficult objects are ignored beside crowds."""

  def _prepare(self):
    super()._prepare()
    for truths in self._gts.values():
      for truth in truths:
        truth["ignore"] = truth["ignore"] or truth["difficult"]


def referee(truth: dict, entries: list[dict], kind: str, most: int) -> dict[str, np.ndarray]:
  """pycocotools' arrays; masks are as large as they are, not as their boxes."""

  def indexed(rows: list[dict]) -> COCO:
    loaded = COCO()
    loaded.dataset = {**truth, "annotations": [dict(row) for row in rows]}
    loaded.createIndex()
    return loaded

  rows = []
  for number, entry in enumerate(entries, start=1):
    area = float(rle.area(entry["segmentation"])) if kind == "segm" else entry["bbox"][2] * entry["bbox"][3]
    rows.append({**entry, "id": number, "iscrowd": 0, "area": area})
  with contextlib.redirect_stdout(io.StringIO()):
    evaluation = Referee(indexed(truth["annotations"]), indexed(rows), kind)
    if kind == "keypoints":
      joints = next((len(one["keypoints"]) // 3 for one in truth["annotations"]), 17)
      if joints != 17:
        evaluation.params.kpt_oks_sigmas = np.full(joints, 0.05)
    else:
      evaluation.params.maxDets = [*(count for count in (1, 10) if count < most), most]
    evaluation.evaluate()
    evaluation.accumulate()
  return evaluation.eval


@pytest.mark.parametrize(
  "kind, most, joints",
  [("bbox", 1, 1), ("bbox", 10, 1), ("bbox", 100, 1), ("bbox", 300, 1)]
  + [("segm", 5, 1), ("segm", 100, 1)]
  + [("keypoints", 20, 17), ("keypoints", 20, 3), ("keypoints", 20, 1)],
)
@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_every_number_is_pycocotools_own(kind, most, joints, seed):
  drawn = Drawn(seed, joints)
  results = Results.from_entries(drawn.entries, ("bbox", kind))
  ours, theirs = coco.run(drawn.truth, results, kind, most).eval, referee(drawn.truth, drawn.entries, kind, most)
  for name in ("precision", "recall", "scores"):
    np.testing.assert_array_equal(ours[name], theirs[name], strict=True)


def test_scores_that_differ_only_beyond_float32_are_told_apart():
  truth = coco.truth_dataset([annotations(1, [[0, 0, 10, 10]], [1])], [Category(1, "a")])
  right, wrong = ({"image_id": 1, "category_id": 1, "bbox": [x, 0, 10, 10]} for x in (0, 50))
  for sign, ap in ((1, 1.0), (-1, 0.5)):
    entries = [{**wrong, "score": 0.5}, {**right, "score": 0.5 + sign * 1e-12}]
    assert coco.coco_metrics(truth, Results.from_entries(entries))[0]["bbox/AP"] == pytest.approx(ap)


# --------------------------------------------------------------------------------------------------- VOC, and size


def one_by_one(objects: list[dict], found: list[dict], min_iou: float) -> list[bool]:
  """VOC's hits and misses of one class, one detection after the other."""
  hits, taken = [], set()
  for entry in sorted(found, key=lambda one: -one["score"]):
    best, best_iou = None, -1.0
    for number, one in enumerate(objects):
      if one["image_id"] == entry["image_id"]:
        (x, y, w, h), (u, v, s, t) = entry["bbox"], one["bbox"]
        shared = max(0.0, min(x + w, u + s) - max(x, u)) * max(0.0, min(y + h, v + t) - max(y, v))
        iou = shared / max((x + w - x) * (y + h - y) + (u + s - u) * (v + t - v) - shared, 1e-300)
        if iou > best_iou:
          best, best_iou = number, iou
    if best_iou < min_iou:
      hits.append(False)
    elif not (objects[best]["difficult"] or objects[best]["iscrowd"]):
      hits.append(best not in taken)
      taken.add(best)
  return hits


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.integers(0, 2**32 - 1))
def test_voc_s_columns_are_what_one_comparison_after_the_other_gives(seed):
  drawn = Drawn(seed, 1)
  results = Results.from_entries(drawn.entries)
  for category_id, recall, precision in precision_recall(drawn.truth, results, 0.5):
    every = drawn.truth["annotations"], drawn.entries
    objects, found = ([one for one in group if one["category_id"] == category_id] for group in every)
    hits = np.cumsum(one_by_one(objects, found, 0.5))
    counted = sum(not (one["difficult"] or one["iscrowd"]) for one in objects)
    assert precision.tolist() == (hits / np.arange(1, len(hits) + 1)).tolist()
    assert (recall is None) == (counted == 0)
    if counted:
      assert recall.tolist() == (hits / counted).tolist()


def large_set(num_images: int, per_image: int = 100, num_classes: int = 80):
  """(truth, results): seven objects an image, two thirds of the detections near one of them."""
  draw = np.random.default_rng(0)
  categories = [Category(k, f"class {k}") for k in range(1, num_classes + 1)]
  images, found = [], []
  for image_id in range(num_images):
    low = draw.uniform(0, 400, (7, 2))
    boxes = np.concatenate([low, low + draw.uniform(8, 200, (7, 2))], axis=1).astype(np.float32)
    classes = draw.integers(1, num_classes + 1, 7)
    images.append(annotations(image_id, boxes, classes, size=(640, 640), crowd=draw.random(7) < 0.02))
    which = draw.integers(0, 7, per_image)
    near = boxes[which] + draw.normal(0, 8, (per_image, 4)) + (draw.random((per_image, 1)) < 0.3) * 100
    near[:, 2:] = np.maximum(near[:, 2:] - near[:, :2], 1)
    scores = np.sort(draw.random(per_image).astype(np.float32))[::-1].astype(np.float64)
    found.append(Found(image_id, (640, 640), near, scores, classes[which]))
  return coco.truth_dataset(images, categories), found


def test_a_large_set_takes_seconds_and_gives_pycocotools_numbers():
  truth, found = large_set(60)
  results = Results.of(found)
  ours, theirs = coco.run(truth, results, "bbox").eval, referee(truth, results.entries, "bbox", 100)
  for name in ("precision", "recall", "scores"):
    np.testing.assert_array_equal(ours[name], theirs[name], strict=True)


def test_five_thousand_images_with_half_a_million_boxes_of_eighty_classes():
  truth, found = large_set(5000)
  began = time.process_time()
  results = Results.of(found)
  metrics, _ = measure(truth, results)
  seconds = time.process_time() - began
  print(f"{len(results):,} boxes of {len(found):,} images, COCO's and VOC's AP: {seconds:.2f} s of processor time")
  assert 0.2 < metrics["bbox/AP"] < 0.9 and 0.2 < metrics["voc/mAP_area"] < 0.9
  assert seconds < 10  # of both cores together: 5 s

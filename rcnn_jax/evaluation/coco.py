"""COCO's metrics of boxes, masks and keypoints, computed by pycocotools.

Ground truth and results are handed over in COCO's own form, whatever the data set was written in.

Decisions where pycocotools leaves a choice:
- VOC's `difficult` objects are ignored (matched by plain IoU, neither a hit nor a miss). pycocotools forgets a file's
  `ignore` flag; `_Evaluation` puts it back. Without difficult objects the numbers are those of plain `COCOeval`.
- Masks are evaluated without the results' boxes, as COCO's server and Detectron2 do, so that small, medium and large
  go by the area of the mask; keypoints go by the area of the box.
- The number of detections counted in an image is a parameter; with 100 the summary is `COCOeval.summarize()`'s.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rcnn_jax.data.source import Annotations, Category, box_fault
from rcnn_jax.evaluation.classes import class_keys

# The standard deviation, relative to the object's size, given to joints that are not COCO's 17.
OTHER_JOINT_SIGMA = 0.05


def truth_dataset(annotations: Sequence[Annotations], categories: Sequence[Category]) -> dict:
  """A data set in COCO's form, of plain values.

  Degenerate boxes are dropped, by the rule that drops them in training. Ids of objects start at 1: pycocotools takes
  a match with object 0 for no match.

  Args:
    annotations: of every image.
    categories: in class order.

  Returns:
    COCO's images, annotations and categories; `difficult` stands beside `iscrowd` in each annotation.
  """
  images, objects = [], []
  for one in annotations:
    height, width = (int(v) for v in one.size)
    images.append({"id": int(one.image_id), "file_name": one.file_name, "height": height, "width": width})
    for row, box in enumerate(one.boxes):
      if box_fault(box, one.size) is None:
        objects.append({"id": len(objects) + 1, **_truth_object(one, row, categories)})
  named = [{"id": int(c.id), "name": c.name} for c in categories]
  return {"info": {}, "images": images, "annotations": objects, "categories": named}


def _truth_object(one: Annotations, row: int, categories: Sequence[Category]) -> dict:
  x1, y1, x2, y2 = (float(v) for v in one.boxes[row])
  truth = {
    "image_id": int(one.image_id),
    "category_id": int(categories[int(one.classes[row]) - 1].id),
    "bbox": [x1, y1, x2 - x1, y2 - y1],
    "area": float(one.areas[row]),
    "iscrowd": int(one.crowd[row]),
    "difficult": int(one.difficult[row]),
  }
  if one.segmentations is not None:
    truth["segmentation"] = one.segmentations[row]
  if one.keypoints is not None:
    truth["keypoints"] = one.keypoints[row].astype(float).reshape(-1).tolist()
    truth["num_keypoints"] = int(np.count_nonzero(one.keypoints[row][:, 2] > 0))
  return truth


def coco_metrics(
  truth: dict,
  entries: Sequence[dict],
  kind: str = "bbox",
  max_detections: int = 100,
) -> tuple[dict[str, float | None], dict[str, list[float]]]:
  """AP and AR of one kind.

  Args:
    truth: of `truth_dataset`.
    entries: COCO results entries; there may be none.
    kind: "bbox", "segm" or "keypoints".
    max_detections: in each image and class; keypoints always count 20, as COCO does.

  Returns:
    Flat metrics `KIND/AP`, `KIND/AP50`, ..., `KIND/AP/<class key>`, 0..1, None where nothing is to be found; and by
    class key the precision at recalls 0, 0.01, ..., 1 and IoU (or OKS) 0.5, for plots. The key of a class is its
    name, made distinct where another class has the same (`classes.class_keys`).
  """
  with contextlib.redirect_stdout(io.StringIO()):
    results = _prepare_results(entries, kind)
    evaluation = _Evaluation(_index(truth, truth["annotations"]), _index(truth, results), kind)
    if kind == "keypoints":
      joints = next((len(a["keypoints"]) // 3 for a in truth["annotations"]), 17)
      if joints != len(evaluation.params.kpt_oks_sigmas):
        evaluation.params.kpt_oks_sigmas = np.full(joints, OTHER_JOINT_SIGMA)
    else:
      evaluation.params.maxDets = [*(m for m in (1, 10) if m < max_detections), max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
  keys = class_keys((c["id"], c["name"]) for c in truth["categories"])
  ordered = [keys[i] for i in evaluation.params.catIds]
  return _summary(evaluation, kind, ordered), _curves(evaluation, ordered)


class _Evaluation(COCOeval):
  """pycocotools' evaluation, with `difficult` objects ignored beside crowds."""

  def _prepare(self):
    super()._prepare()
    for truths in self._gts.values():
      for truth in truths:
        truth["ignore"] = truth["ignore"] or truth.get("difficult", 0)


def _index(truth: dict, annotations: list[dict]) -> COCO:
  # Not COCO.loadRes: it fails on an empty list of results. pycocotools writes into annotations, hence the copies.
  coco = COCO()
  coco.dataset = {**truth, "annotations": [dict(a) for a in annotations]}
  coco.createIndex()
  return coco


def _prepare_results(entries: Sequence[dict], kind: str) -> list[dict]:
  """What `COCO.loadRes` adds to results: an id, iscrowd, and the area of the box or of the mask."""
  prepared = []
  for number, entry in enumerate(entries, start=1):
    width, height = entry["bbox"][2:]
    area = float(rle.area(entry["segmentation"])) if kind == "segm" else width * height
    prepared.append({**entry, "id": number, "iscrowd": 0, "area": area})
  return prepared


def _summary(evaluation: COCOeval, kind: str, names: Sequence[str]) -> dict[str, float | None]:
  params = evaluation.params
  precision = evaluation.eval["precision"][..., -1]  # [IoU thresholds, recalls, classes, area ranges]
  recall = evaluation.eval["recall"]  # [IoU thresholds, classes, area ranges, detections counted]
  letters = {"small": "s", "medium": "m", "large": "l"}
  areas = [(letters[label], n) for n, label in enumerate(params.areaRngLbl) if label in letters]
  half, three_quarters = (int(np.argmin(np.abs(params.iouThrs - t))) for t in (0.5, 0.75))
  metrics = {"AP": precision[..., 0], "AP50": precision[half, ..., 0], "AP75": precision[three_quarters, ..., 0]}
  metrics |= {f"AP{letter}": precision[..., n] for letter, n in areas}
  metrics |= {f"AR{count}": recall[..., 0, n] for n, count in enumerate(params.maxDets)}
  metrics |= {f"AR{letter}": recall[..., n, -1] for letter, n in areas}
  if kind == "keypoints":  # which alone have these in COCO's summary
    metrics |= {"AR50": recall[half, :, 0, -1], "AR75": recall[three_quarters, :, 0, -1]}
  metrics |= {f"AP/{name}": precision[:, :, k, 0] for k, name in enumerate(names)}
  return {f"{kind}/{name}": _mean(values) for name, values in metrics.items()}


def _mean(values: np.ndarray) -> float | None:
  """The mean of what is there: -1 stands for a class or area range without an object."""
  present = values[values > -1]
  return float(present.mean()) if present.size else None


def _curves(evaluation: COCOeval, names: Sequence[str]) -> dict[str, list[float]]:
  precision = evaluation.eval["precision"][0, :, :, 0, -1]
  return {name: precision[:, k].tolist() for k, name in enumerate(names) if precision[0, k] > -1}

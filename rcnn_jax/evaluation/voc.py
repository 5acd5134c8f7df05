"""Pascal VOC's average precision, by 11 points (VOC 2007) and by area (VOC 2010 on).

Everingham et al., The Pascal Visual Object Classes Challenge: A Retrospective, IJCV 2015. Only these two metrics,
over the same ground truth and results entries as COCO's, may live here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rcnn_jax.evaluation.classes import class_keys


def voc_metrics(truth: dict, entries: Sequence[dict], min_iou: float = 0.5) -> dict[str, float | None]:
  """mAP at one IoU, over the classes of which there is an object that counts.

  Args:
    truth: a data set in COCO's form (`coco.truth_dataset`); objects marked difficult or crowd are ignored.
    entries: COCO results entries.
    min_iou: a detection hits the object of highest IoU if it is at least this.

  Returns:
    voc/mAP_11pt, voc/mAP_area, voc/AP_11pt/<class key> and voc/AP_area/<class key>, 0..1, None without an object.
    The key of a class is its name, made distinct where another class has the same (`classes.class_keys`).
  """
  keys = class_keys((c["id"], c["name"]) for c in truth["categories"])
  values = {"11pt": {}, "area": {}}
  for category_id in keys:
    objects = [a for a in truth["annotations"] if a["category_id"] == category_id]
    found = [e for e in entries if e["category_id"] == category_id]
    recall, precision = precision_recall(objects, found, min_iou)
    counted = recall is not None
    values["11pt"][category_id] = average_precision_11pt(recall, precision) if counted else None
    values["area"][category_id] = average_precision_area(recall, precision) if counted else None
  metrics = {}
  for points, of_class in values.items():
    present = [value for value in of_class.values() if value is not None]
    metrics[f"voc/mAP_{points}"] = float(np.mean(present)) if present else None
  for points, of_class in values.items():
    metrics |= {f"voc/AP_{points}/{keys[category_id]}": value for category_id, value in of_class.items()}
  return metrics


def precision_recall(
  objects: Sequence[dict],
  found: Sequence[dict],
  min_iou: float,
) -> tuple[np.ndarray | None, np.ndarray]:
  """Recall and precision after each detection of one class, by falling score.

  Each detection goes to the object of its image with the highest IoU. If that one is ignored, so is the detection; if
  it is taken already by a detection of higher score, this one is false: it does not go to the second best.

  Returns:
    recall f64[N] (None where no object counts) and precision f64[N] of the N detections that are not ignored.
  """
  truths = defaultdict(list)
  for one in objects:
    truths[one["image_id"]].append(one)
  num_objects = sum(not _is_ignored(one) for one in objects)
  boxes = {image_id: _xyxy([t["bbox"] for t in of_image]) for image_id, of_image in truths.items()}
  taken, hits = set(), []
  for n in np.argsort([-e["score"] for e in found], kind="stable"):
    image_id = found[n]["image_id"]
    ious = _iou(_xyxy([found[n]["bbox"]])[0], boxes.get(image_id, np.zeros((0, 4))))
    best = int(np.argmax(ious)) if ious.size else -1
    if best < 0 or ious[best] < min_iou:
      hits.append(False)
    elif not _is_ignored(truths[image_id][best]):
      hits.append((image_id, best) not in taken)
      taken.add((image_id, best))
  true = np.cumsum(np.asarray(hits, np.float64))
  recall = true / num_objects if num_objects else None
  return recall, true / np.arange(1, len(hits) + 1)


def average_precision_11pt(recall: np.ndarray, precision: np.ndarray) -> float:
  """VOC 2007: the mean, over recalls 0, 0.1, ..., 1, of the best precision at that recall or a higher one."""
  # n / 10, not n * 0.1: three of ten objects are a recall of 0.3, and 3 * 0.1 is a little more than that.
  best = [precision[recall >= n / 10].max(initial=0.0) for n in range(11)]
  return float(np.mean(best))


def average_precision_area(recall: np.ndarray, precision: np.ndarray) -> float:
  """VOC 2010 on: the area under the precision, made to fall monotonically with recall."""
  envelope = np.maximum.accumulate(precision[::-1])[::-1]
  steps = np.diff(recall, prepend=0.0)
  return float(np.sum(steps * envelope))


def _is_ignored(one: dict) -> bool:
  return bool(one["difficult"] or one["iscrowd"])


def _xyxy(boxes: Sequence[Sequence[float]]) -> np.ndarray:
  """COCO's [x, y, w, h] -> f64[N, 4] xyxy."""
  boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
  return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
  """f64[4] and f64[N, 4] xyxy -> f64[N], in continuous pixels (VOC's `+ 1` belongs to its reader)."""
  overlap = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
  intersection = np.prod(np.maximum(overlap, 0.0), axis=1)
  union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - intersection
  return intersection / np.maximum(union, np.finfo(np.float64).tiny)

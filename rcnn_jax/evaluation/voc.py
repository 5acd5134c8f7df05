"""Pascal VOC's average precision, by 11 points (VOC 2007) and by area (VOC 2010 on).

Everingham et al., The Pascal Visual Object Classes Challenge: A Retrospective, IJCV 2015. Only these two metrics,
over the same ground truth and results as COCO's, may live here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rcnn_jax.evaluation.classes import class_keys
from rcnn_jax.evaluation.results import Results

_PAIRS = 1 << 21  # of a detection and an object that are compared at a time


def voc_metrics(truth: dict, results: Results, min_iou: float = 0.5) -> dict[str, float | None]:
  """mAP at one IoU, over the classes of which there is an object that counts.

  Args:
    truth: a data set in COCO's form (`coco.truth_dataset`); objects marked difficult or crowd are ignored.
    results: of any images and categories.
    min_iou: a detection hits the object of highest IoU if it is at least this.

  Returns:
    voc/mAP_11pt, voc/mAP_area, voc/AP_11pt/<class key> and voc/AP_area/<class key>, 0..1, None without an object.
    The key of a class is its name, made distinct where another class has the same (`classes.class_keys`).
  """
  keys = class_keys((c["id"], c["name"]) for c in truth["categories"])
  values = {"11pt": {}, "area": {}}
  for category_id, recall, precision in precision_recall(truth, results, min_iou):
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
  truth: dict, results: Results, min_iou: float
) -> Iterator[tuple[int, np.ndarray | None, np.ndarray]]:
  """Recall and precision after each detection of a class, by falling score; yields them class by class.

  Each detection goes to the object of its image and class with the highest IoU. If that one is ignored, so is the
  detection; if it is taken already by a detection of higher score, this one is false: it does not go to the second
  best.

  Yields:
    category id, recall f64[N] (None where no object counts) and precision f64[N] of the N detections of the class
    that are not ignored.
  """
  objects = truth["annotations"]
  object_classes = np.array([one["category_id"] for one in objects], np.int64)
  ignored = np.array([bool(one["difficult"] or one["iscrowd"]) for one in objects], bool)
  best, ious = _best_objects(objects, results)
  matched = ious >= min_iou
  counted = ~matched | ~ignored[best] if len(objects) else ~matched
  for category in truth["categories"]:
    rows = np.flatnonzero(counted & (results.category_ids == category["id"]))
    rows = rows[np.argsort(-results.scores[rows], kind="stable")]
    hits = np.zeros(len(rows))
    matches = np.flatnonzero(matched[rows])
    hits[matches[np.unique(best[rows[matches]], return_index=True)[1]]] = 1.0  # the first of each object
    true, num_objects = np.cumsum(hits), np.count_nonzero((object_classes == category["id"]) & ~ignored)
    yield category["id"], true / num_objects if num_objects else None, true / np.arange(1, len(rows) + 1)


def _best_objects(objects: Sequence[dict], results: Results) -> tuple[np.ndarray, np.ndarray]:
  """For each detection the object of its image and class with the highest IoU, the first of equals.

  Returns:
    i64[N], places in `objects`; and f64[N], the IoU, -1 where there is no object.
  """
  best, ious = np.zeros(len(results), np.int64), np.full(len(results), -1.0)
  if not objects:
    return best, ious
  boxes = _xyxy(np.array([one["bbox"] for one in objects], np.float64))
  images, classes = (np.array([one[name] for one in objects], np.int64) for name in ("image_id", "category_id"))
  # A number for each image and class that has objects; the objects sorted by it, in their order; and where the
  # detections' own number stands among these, if anywhere.
  known, numbers = np.unique(np.concatenate([classes, results.category_ids]), return_inverse=True)
  numbers += np.concatenate([images, results.image_ids]) * len(known)
  groups, group_of = np.unique(numbers[: len(objects)], return_inverse=True)
  order = np.argsort(group_of, kind="stable")
  starts = np.searchsorted(group_of[order], np.arange(len(groups) + 1))
  place = np.minimum(np.searchsorted(groups, numbers[len(objects) :]), len(groups) - 1)
  rows = np.flatnonzero(groups[place] == numbers[len(objects) :])
  found = _xyxy(results.boxes)
  sizes = np.diff(starts)[place[rows]]
  chunks = np.searchsorted(np.cumsum(sizes), np.arange(_PAIRS, sizes.sum(), _PAIRS))
  for part in np.split(np.arange(len(rows)), chunks):
    if len(part):
      mine, counts = rows[part], sizes[part]
      begins = np.cumsum(counts) - counts
      pairs = order[np.repeat(starts[place[mine]] - begins, counts) + np.arange(counts.sum())]
      values = _iou(np.repeat(found[mine], counts, axis=0), boxes[pairs])
      ious[mine] = np.maximum.reduceat(values, begins)
      candidates = np.where(values == np.repeat(ious[mine], counts), pairs, len(objects))
      best[mine] = np.minimum.reduceat(candidates, begins)
  return best, ious


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


def _xyxy(boxes: np.ndarray) -> np.ndarray:
  """f64[N, 4], COCO's [x, y, w, h] -> xyxy."""
  return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
  """f64[N, 4], f64[N, 4] xyxy, pair by pair -> f64[N], in continuous pixels (VOC's `+ 1` belongs to its reader)."""
  overlap = np.maximum(np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2]), 0.0)
  area = lambda sides: sides[:, 0] * sides[:, 1]
  intersection = area(overlap)
  union = area(boxes[:, 2:] - boxes[:, :2]) + area(others[:, 2:] - others[:, :2]) - intersection
  return intersection / np.maximum(union, np.finfo(np.float64).tiny)

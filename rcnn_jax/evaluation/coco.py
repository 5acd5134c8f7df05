"""COCO's metrics of boxes, masks and keypoints: pycocotools' numbers to the last digit, computed by hotcoco.

Ground truth is handed over in COCO's own form, whatever the data set was written in; results are columns. The tests
hold every number against pycocotools'.

Decisions where pycocotools leaves a choice:
- Difficult objects are ignored (matched by plain IoU, neither a hit nor a miss). pycocotools and hotcoco forget a
  file's `ignore` flag, but ignore an object whose area lies in no range, or that has no labelled joint. Without
  difficult objects the numbers are those of plain `COCOeval`.
- Masks are evaluated without the results' boxes, as COCO's server and Detectron2 do, so that small, medium and large
  go by the area of the mask; keypoints go by the area of the box.
- The number of detections counted in an image is a parameter; with 100 the summary is `COCOeval.summarize()`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import hotcoco
import numpy as np

from rcnn_jax.data.source import Annotations, Category, box_fault
from rcnn_jax.evaluation.classes import class_keys
from rcnn_jax.evaluation.results import Results

# The standard deviation, relative to the object's size, given to joints that are not COCO's 17.
OTHER_JOINT_SIGMA = 0.05
COCO_JOINTS = 17
KEYPOINT_DETECTIONS = 20  # that COCO counts in an image and class


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
  results: Results,
  kind: str = "bbox",
  max_detections: int = 100,
) -> tuple[dict[str, float | None], dict[str, list[float]]]:
  """AP and AR of one kind.

  Args:
    truth: of `truth_dataset`.
    results: of images and categories of `truth`; there may be none.
    kind: "bbox", "segm" or "keypoints".
    max_detections: in each image and class; keypoints always count 20, as COCO does.

  Returns:
    Flat metrics `KIND/AP`, `KIND/AP50`, ..., `KIND/AP/<class key>`, 0..1, None where nothing is to be found; and by
    class key the precision at recalls 0, 0.01, ..., 1 and IoU (or OKS) 0.5, for plots. The key of a class is its
    name, made distinct where another class has the same (`classes.class_keys`).
  """
  evaluation = run(truth, results, kind, max_detections)
  keys = class_keys((c["id"], c["name"]) for c in truth["categories"])
  ordered = [keys[number] for number in evaluation.params.cat_ids]
  arrays = evaluation.eval
  return _summary(arrays, evaluation.params, kind, ordered), _curves(arrays, ordered)


def run(truth: dict, results: Results, kind: str, max_detections: int = 100) -> hotcoco.COCOeval:
  """The evaluation of `coco_metrics`, accumulated: `eval` holds pycocotools' arrays of precision and recall."""
  objects = [_engine_object(one, kind) for one in truth["annotations"]]
  known = hotcoco.COCO({**truth, "annotations": objects})
  evaluation = hotcoco.COCOeval(known, _engine_results(known, truth, results, kind), kind)
  if kind == "keypoints":
    joints = next((len(one["keypoints"]) // 3 for one in truth["annotations"]), COCO_JOINTS)
    if joints != COCO_JOINTS:
      evaluation.params.kpt_oks_sigmas = [OTHER_JOINT_SIGMA] * joints
  else:
    evaluation.params.max_dets = [*(m for m in (1, 10) if m < max_detections), max_detections]
  evaluation.evaluate()
  evaluation.accumulate()
  return evaluation


def _engine_object(one: dict, kind: str) -> dict:
  """An object with what an evaluation of this kind asks for; a difficult one such that it is ignored."""
  names = ["id", "image_id", "category_id", "bbox", "area", "iscrowd"]
  names += {"bbox": [], "segm": ["segmentation"], "keypoints": ["keypoints", "num_keypoints"]}[kind]
  asked_for = {name: one[name] for name in names}
  if one["difficult"]:
    asked_for |= {"num_keypoints": 0} if kind == "keypoints" else {"area": -1.0}
  return asked_for


def _engine_results(known: hotcoco.COCO, truth: dict, results: Results, kind: str) -> hotcoco.COCO:
  if kind == "keypoints":
    return hotcoco.COCO({**truth, "annotations": _keypoint_results(results)})
  scores, ids = results.scores[:, None], results.category_ids[:, None]
  rows = np.concatenate([results.image_ids[:, None], results.boxes, scores, ids], axis=1, dtype=np.float64)
  if kind == "bbox":
    return known.load_res(rows)
  masks = [{"size": size, "counts": counts} for size, counts in zip(results.sizes.tolist(), results.counts)]
  loaded = known.load_res(rows, segmentation=masks)
  if masks:  # which would else be as large as their boxes
    loaded.update_anns(ids=np.arange(1, len(masks) + 1), area=hotcoco.mask.area(masks).astype(np.float64))
  return loaded


def _keypoint_results(results: Results) -> list[dict]:
  """Those that are counted, as dictionaries: an image's best of a class."""
  ranks = _ranks(results)
  boxes = results.boxes.tolist()
  return [
    {
      "id": row + 1,
      "image_id": int(results.image_ids[row]),
      "category_id": int(results.category_ids[row]),
      "bbox": boxes[row],
      "area": boxes[row][2] * boxes[row][3],
      "iscrowd": 0,
      "score": float(results.scores[row]),
      "keypoints": results.keypoints[row].reshape(-1).tolist(),
    }
    for row in np.flatnonzero(ranks < KEYPOINT_DETECTIONS).tolist()
  ]


def _ranks(results: Results) -> np.ndarray:
  """i64[N]: the place of each detection among those of its image and class, by falling score; equals keep theirs."""
  order = np.lexsort((-results.scores, results.category_ids, results.image_ids))
  images, categories = results.image_ids[order], results.category_ids[order]
  first = np.append(True, (images[1:] != images[:-1]) | (categories[1:] != categories[:-1]))[: len(order)]
  starts = np.flatnonzero(first)
  ranks = np.empty(len(order), np.int64)
  ranks[order] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
  return ranks


def _summary(
  arrays: Mapping[str, np.ndarray], params: hotcoco.Params, kind: str, keys: Sequence[str]
) -> dict[str, float | None]:
  precision = arrays["precision"][..., -1]  # [IoU thresholds, recalls, classes, area ranges]
  recall = arrays["recall"]  # [IoU thresholds, classes, area ranges, detections counted]
  letters = {"small": "s", "medium": "m", "large": "l"}
  areas = [(letters[label], n) for n, label in enumerate(params.area_rng_lbl) if label in letters]
  half, three_quarters = (int(np.argmin(np.abs(np.array(params.iou_thrs) - t))) for t in (0.5, 0.75))
  metrics = {"AP": precision[..., 0], "AP50": precision[half, ..., 0], "AP75": precision[three_quarters, ..., 0]}
  metrics |= {f"AP{letter}": precision[..., n] for letter, n in areas}
  metrics |= {f"AR{count}": recall[..., 0, n] for n, count in enumerate(params.max_dets)}
  metrics |= {f"AR{letter}": recall[..., n, -1] for letter, n in areas}
  if kind == "keypoints":  # which alone have these in COCO's summary
    metrics |= {"AR50": recall[half, :, 0, -1], "AR75": recall[three_quarters, :, 0, -1]}
  metrics |= {f"AP/{key}": precision[:, :, k, 0] for k, key in enumerate(keys)}
  return {f"{kind}/{name}": _mean(values) for name, values in metrics.items()}


def _mean(values: np.ndarray) -> float | None:
  """The mean of what is there: -1 stands for a class or area range without an object."""
  present = values[values > -1]
  return float(present.mean()) if present.size else None


def _curves(arrays: Mapping[str, np.ndarray], keys: Sequence[str]) -> dict[str, list[float]]:
  precision = arrays["precision"][0, :, :, 0, -1]
  return {key: precision[:, k].tolist() for k, key in enumerate(keys) if precision[0, k] > -1}

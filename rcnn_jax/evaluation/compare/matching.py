"""Who finds what: the detections of one detector matched with the truth, once, as columns that all statistics read.

The rules are pycocotools' (`COCOeval.evaluateImg`), which is their referee in the tests. In each image and class the
detections, best score first, take the free object with which they overlap most, if that is at least the threshold.
Ignored objects (crowds, difficult ones, those outside the range of areas) are taken only where no other is left, and
make a detection neither a hit nor a miss; a crowd may be taken many times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import hotcoco
import numpy as np

from rcnn_jax.evaluation.classes import class_keys
from rcnn_jax.evaluation.coco import KEYPOINT_DETECTIONS
from rcnn_jax.evaluation.compare import overlaps
from rcnn_jax.evaluation.results import Results

THRESHOLDS = np.linspace(0.5, 0.95, 10)
# pycocotools' ranges of areas, in square pixels; both ends belong to them.
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
# Of width over height: objects outside are ignored, and so are unmatched detections outside, as with areas.
ASPECTS = {"tall": (0, 1 / 1.5), "square": (1 / 1.5, 1.5), "wide": (1.5, np.inf)}
RANGES = (*AREAS, *ASPECTS)
KINDS = ("bbox", "segm", "boundary", "keypoints")


@dataclasses.dataclass(frozen=True)
class Matches:
  """One detector's detections of one kind, D in all: by class, by falling score, by image.

  Attributes:
    kind: "bbox", "segm", "boundary" or "keypoints".
    image_ids: i64[I], rising; images are counted by their place here.
    class_names: K names (`classes.class_keys`), in class order.
    thresholds: f64[T], of the overlap.
    ranges: names of the A ranges of areas and aspects (RANGES).
    images: i32[D]; classes: i32[D]; scores: f64[D]; rows: i64[D], in the `Results` that they come from.
    hit: bool[A, T, D]: has taken an object that counts.
    ignored: bool[A, T, D]: neither a hit nor a miss.
    inside: bool[A, D]: whether the detection's own area or aspect lies in the range.
    objects: i32[D]: the object taken at the first threshold in the first range, a row of the truth's annotations;
      -1 for none.
    overlap: f64[D]: with that object; 0 for none.
    num_objects: i32[A, K, I]: objects that count.
  """

  kind: str
  image_ids: np.ndarray
  class_names: tuple[str, ...]
  thresholds: np.ndarray
  ranges: tuple[str, ...]
  images: np.ndarray
  classes: np.ndarray
  scores: np.ndarray
  rows: np.ndarray
  hit: np.ndarray
  ignored: np.ndarray
  inside: np.ndarray
  objects: np.ndarray
  overlap: np.ndarray
  num_objects: np.ndarray

  def starts(self) -> np.ndarray:
    """i64[K + 1]: where the detections of each class begin; the last one is D."""
    return np.searchsorted(self.classes, np.arange(len(self.class_names) + 1))


@dataclasses.dataclass(frozen=True)
class Objects:
  """The objects of a data set as columns, G in all, in the order of its annotations.

  Attributes:
    images: i64[G], places among the rising image ids; classes: i64[G], places in the list of categories.
    boxes: f64[G, 4], [x, y, w, h]; areas: f64[G], square pixels.
    crowd: bool[G]; ignored: bool[G]: crowds, difficult ones, and for keypoints those without a labelled joint.
    masks: run lengths, for "segm" and "boundary"; keypoints: f64[G, J, 3], for "keypoints".
  """

  images: np.ndarray
  classes: np.ndarray
  boxes: np.ndarray
  areas: np.ndarray
  crowd: np.ndarray
  ignored: np.ndarray
  masks: Sequence[dict] | None = None
  keypoints: np.ndarray | None = None


def match(
  truth: dict, results: Results, kind: str = "bbox", max_detections: int = 100, thresholds: np.ndarray = THRESHOLDS
) -> Matches:
  """Matches all detections of one kind.

  Args:
    truth: of `coco.truth_dataset`.
    results: of images and categories of `truth`.
    kind: of KINDS; "boundary" matches masks by boundary IoU.
    max_detections: counted in each image and class; of keypoints 20, as COCO does.
    thresholds: f64[T], rising.
  """
  image_ids = np.sort(np.array([one["id"] for one in truth["images"]], np.int64))
  categories = np.array([one["id"] for one in truth["categories"]], np.int64)
  objects = objects_of(truth, kind)
  limit = min(max_detections, KEYPOINT_DETECTIONS) if kind == "keypoints" else max_detections
  rows, images, classes = _counted(results, image_ids, categories, limit)
  inside = _in_ranges(detection_areas(results, kind)[rows], results.boxes[rows])
  ignore = ~_in_ranges(objects.areas, objects.boxes) | objects.ignored
  taken = np.full((len(RANGES), len(thresholds), len(rows)), -1, np.int32)
  overlap = np.zeros(len(rows))
  for found, there in _pairs(images, classes, objects, len(image_ids)):
    table = overlap_table(results, rows[found], objects, there, kind)
    chosen = assign(table, objects.crowd[there], ignore[:, there], thresholds)
    taken[:, :, found] = np.where(chosen >= 0, there[chosen], -1)
    first = chosen[0, 0]
    overlap[found] = np.where(first >= 0, table[np.arange(len(found)), first], 0.0)
  places = np.arange(len(RANGES))[:, None, None]
  of_ignored = ignore[places, taken] & (taken >= 0) if len(objects.classes) else np.zeros(taken.shape, bool)
  hit = (taken >= 0) & ~of_ignored
  ignored = np.where(taken >= 0, of_ignored, ~inside[:, None])
  counts = np.zeros((len(RANGES), len(categories), len(image_ids)), np.int32)
  for number, row in enumerate(ignore):
    np.add.at(counts[number], (objects.classes[~row], objects.images[~row]), 1)
  order = np.lexsort((images, -results.scores[rows], classes))
  names = class_keys((one["id"], one["name"]) for one in truth["categories"])
  return Matches(
    kind=kind,
    image_ids=image_ids,
    class_names=tuple(names.values()),
    thresholds=np.asarray(thresholds, np.float64),
    ranges=RANGES,
    images=images[order].astype(np.int32),
    classes=classes[order].astype(np.int32),
    scores=results.scores[rows][order],
    rows=rows[order],
    hit=hit[:, :, order],
    ignored=ignored[:, :, order],
    inside=inside[:, order],
    objects=taken[0, 0, order],
    overlap=overlap[order],
    num_objects=counts,
  )


def objects_of(truth: dict, kind: str) -> Objects:
  """The truth's annotations as columns, with what a kind needs."""
  annotations = truth["annotations"]
  image_ids = np.sort(np.array([one["id"] for one in truth["images"]], np.int64))
  places = {one["id"]: n for n, one in enumerate(truth["categories"])}
  column = lambda name, dtype: np.array([one[name] for one in annotations], dtype)
  crowd = column("iscrowd", bool)
  ignored = crowd | np.array([bool(one.get("difficult")) for one in annotations], bool)
  masks = keypoints = None
  if kind in ("segm", "boundary"):
    masks = [one["segmentation"] for one in annotations]
  if kind == "keypoints":
    keypoints = np.array(
      [np.reshape(one["keypoints"], (-1, 3)) for one in annotations] or np.zeros((0, 1, 3)), np.float64
    )
    ignored |= ~(keypoints[:, :, 2] > 0).any(1)
  return Objects(
    images=np.searchsorted(image_ids, column("image_id", np.int64)),
    classes=np.array([places[one["category_id"]] for one in annotations], np.int64),
    boxes=column("bbox", np.float64).reshape(-1, 4),
    areas=column("area", np.float64),
    crowd=crowd,
    ignored=ignored,
    masks=masks,
    keypoints=keypoints,
  )


def detection_areas(results: Results, kind: str) -> np.ndarray:
  """f64[N], square pixels: of the mask for "segm" and "boundary", else of the box."""
  if kind in ("segm", "boundary"):
    return hotcoco.mask.area(result_masks(results, range(len(results)))).astype(np.float64)
  return results.boxes[:, 2] * results.boxes[:, 3]


def result_masks(results: Results, rows: Sequence[int]) -> list[dict]:
  """Masks of some rows in run lengths."""
  sizes = results.sizes.tolist()
  return [{"size": sizes[row], "counts": results.counts[row]} for row in rows]


def overlap_table(results: Results, rows: np.ndarray, objects: Objects, there: np.ndarray, kind: str) -> np.ndarray:
  """f64[D, G]: the overlap of some rows of the results and some rows of the objects, all of one image."""
  crowd = objects.crowd[there]
  if kind == "bbox":
    return overlaps.box_iou(results.boxes[rows], objects.boxes[there], crowd)
  if kind == "keypoints":
    return overlaps.oks(results.keypoints[rows], objects.keypoints[there], objects.boxes[there], objects.areas[there])
  measure = overlaps.mask_iou if kind == "segm" else overlaps.boundary_iou
  return measure(result_masks(results, rows), [objects.masks[row] for row in there], crowd)


def _in_ranges(areas: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """bool[A, N]: whether each lies in each of RANGES."""
  aspects = boxes[:, 2] / np.maximum(boxes[:, 3], 1e-9)
  values = [*((areas, limits) for limits in AREAS.values()), *((aspects, limits) for limits in ASPECTS.values())]
  return np.stack([(of >= low) & (of <= high) for of, (low, high) in values])


def assign(table: np.ndarray, crowd: np.ndarray, ignore: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
  """Which object each detection of one image and class takes, at each threshold and in each range of areas.

  Args:
    table: f64[D, G], the overlaps, best detection first.
    crowd: bool[G].
    ignore: bool[A, G]: objects that do not count, crowds among them.
    thresholds: f64[T].

  Returns:
    i64[A, T, D]: the object's column; -1 for none.
  """
  limits = np.minimum(thresholds, 1 - 1e-10)[:, None]
  chosen = np.full((len(ignore), len(thresholds), len(table)), -1)
  free = np.ones((len(ignore), len(thresholds), table.shape[1]), bool)
  counts, aside = ~ignore[:, None], ignore[:, None]
  a, t = np.indices(chosen.shape[:2])
  for row in np.flatnonzero(table.max(1, initial=0.0) >= limits[0, 0]):
    reach = (table[row] >= limits) & (free | crowd)
    best = _last_best(table[row], reach & counts)
    best = np.where(best >= 0, best, _last_best(table[row], reach & aside))
    chosen[:, :, row] = best
    done = best >= 0
    free[a[done], t[done], best[done]] = False
  return chosen


def _last_best(overlap: np.ndarray, allowed: np.ndarray) -> np.ndarray:
  """i64[A, T]: the last one of the allowed columns of the highest overlap, -1 where none is allowed."""
  values = np.where(allowed, overlap, -1.0)[..., ::-1]
  best = values.shape[-1] - 1 - values.argmax(-1)
  return np.where(allowed.any(-1), best, -1)


def _counted(
  results: Results, image_ids: np.ndarray, categories: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Rows that count, by image, class and falling score, with the places of their images and classes."""
  images = np.searchsorted(image_ids, results.image_ids)
  by_id = np.argsort(categories, kind="stable")
  classes = by_id[np.searchsorted(categories[by_id], results.category_ids)] if len(categories) else results.image_ids
  order = np.lexsort((-results.scores, classes, images))
  pair = images[order] * (len(categories) + 1) + classes[order]
  starts = np.searchsorted(pair, pair)  # pairs rise: the first row of each one's own
  kept = order[np.arange(len(order)) - starts < limit]
  return kept, images[kept], classes[kept]


def _pairs(
  images: np.ndarray, classes: np.ndarray, objects: Objects, num_images: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """For each image and class that has both: the places of its detections, and the rows of its objects."""
  key = classes * num_images + images
  there = objects.classes * num_images + objects.images
  order, by_pair = np.argsort(key, kind="stable"), np.argsort(there, kind="stable")
  shared = np.intersect1d(key, there)
  bounds = [
    np.searchsorted(sorted_keys, shared, side)
    for sorted_keys in (key[order], there[by_pair])
    for side in ("left", "right")
  ]
  for a, b, c, d in zip(*bounds):
    yield order[a:b], by_pair[c:d]

"""COCO metrics: the same numbers as pycocotools by hand, and the decisions where it leaves a choice."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import pathlib

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.evaluation.coco import coco_metrics, truth_dataset
from rcnn_jax.evaluation.detect import in_the_original
from rcnn_jax.evaluation.evaluate import measure, tables
from rcnn_jax.evaluation.results import Results
from rcnn_jax.types import Detections
from tests.scenes import CATEGORIES, annotations, entry

PEOPLE = pathlib.Path(__file__).parents[2] / "shared/data/coco_mini/annotations/person_keypoints_val2017.json"
BOX, FAR = [10, 10, 50, 40], [60, 60, 90, 90]
# pycocotools' summaries, in their order.
DETECTION = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR{most}", "ARs", "ARm", "ARl"]
KEYPOINTS = ["AP", "AP50", "AP75", "APm", "APl", "AR20", "AR50", "AR75", "ARm", "ARl"]


def numbers_of(truth, entries, kind="bbox", *options):
  return coco_metrics(truth, Results.from_entries(entries, ("bbox", kind)), kind, *options)[0]


def metrics_of(images, entries, kind="bbox", max_detections=100):
  return numbers_of(truth_dataset(images, CATEGORIES), entries, kind, max_detections)


def blob(box, size=(240, 240)):
  """The run lengths of a box without its lower right quarter."""
  x1, y1, x2, y2 = (int(v) for v in box)
  mask = np.zeros(size, np.uint8, order="F")
  mask[y1:y2, x1:x2] = 1
  mask[(y1 + y2) // 2 : y2, (x1 + x2) // 2 : x2] = 0
  encoded = rle.encode(mask)
  return {"size": list(size), "counts": encoded["counts"].decode()}


def random_set(seed, num_images=12):
  """Truth with crowds and all sizes, and results that are moved truth."""
  draw = np.random.default_rng(seed)
  images, entries = [], []
  for image_id in range(num_images):
    low = draw.uniform(0, 100, (draw.integers(0, 6), 2)).round()
    boxes = np.concatenate([low, low + draw.uniform(3, 135, low.shape).round()], axis=1)
    crowd = draw.random(len(boxes)) < 0.2
    masks = tuple(blob(b) for b in boxes)
    keypoints = np.concatenate(
      [draw.uniform(0, 200, (len(boxes), 17, 2)), draw.integers(0, 3, (len(boxes), 17, 1))], axis=2
    )
    keypoints[crowd] = 0
    images.append(
      annotations(
        image_id,
        boxes,
        draw.integers(1, 4, len(boxes)),
        size=(240, 240),
        crowd=crowd,
        areas=[float(rle.area(m)) for m in masks],
        segmentations=masks,
        keypoints=keypoints.astype(np.float32),
      )
    )
    entries += moved(images[-1], draw)
  return images, entries


def moved(one, draw):
  """Two results near each object, some of a wrong class."""
  entries = []
  for box, k, points in zip(one.boxes, one.classes, one.keypoints):
    for _ in range(2):
      new = np.clip(box + draw.normal(0, 2, 4), 0, 239)
      new[2:] = np.maximum(new[2:], new[:2] + 2)
      category = CATEGORIES[(k - 1 + (draw.random() < 0.1)) % 3].id
      near = points + draw.normal(0, 2, points.shape)
      entries.append(
        entry(
          one.image_id,
          category,
          new.tolist(),
          round(draw.random(), 2),
          segmentation=blob(new),
          keypoints=near.reshape(-1).tolist(),
        )
      )
  return entries


def summary_of_pycocotools(truth, entries, kind):
  """`COCOeval.summarize()` by the usual four lines; masks without the results' boxes, as COCO's server has them."""
  entries = copy.deepcopy(entries)
  if kind == "segm":
    entries = [{name: value for name, value in e.items() if name != "bbox"} for e in entries]
  with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(entries), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  return evaluation.stats.tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_twelve_numbers_are_those_of_pycocotools(kind, seed):
  images, entries = random_set(seed)
  truth = truth_dataset(images, CATEGORIES)
  numbers = numbers_of(truth, entries, kind)
  names = [name.format(most=100) for name in DETECTION]
  ours = [-1 if numbers[f"{kind}/{name}"] is None else numbers[f"{kind}/{name}"] for name in names]
  assert ours == pytest.approx(summary_of_pycocotools(truth, entries, kind), abs=1e-12)


def test_the_ten_keypoint_numbers_are_those_of_pycocotools():
  images, entries = random_set(3)
  truth = truth_dataset(images, CATEGORIES)
  numbers = numbers_of(truth, entries, "keypoints")
  theirs = summary_of_pycocotools(truth, entries, "keypoints")
  names = {name: number for number, name in enumerate(KEYPOINTS)}
  assert {n: numbers[f"keypoints/{n}"] for n in names} == pytest.approx({n: theirs[i] for n, i in names.items()})


# ---------------------------------------------------------------------------------------------- on COCO's own images

COCO_MINI = pathlib.Path(__file__).parents[2] / "shared" / "data" / "coco_mini"


@functools.cache
def coco_mini(kind: str):
  """(truth, categories, results): each object found some times, moved, now and then as another class."""
  name = "person_keypoints" if kind == "keypoints" else "instances"
  source = CocoFolder(str(COCO_MINI / "val2017"), str(COCO_MINI / f"annotations/{name}_val2017.json")).open()
  draw = np.random.default_rng(0)
  images = [source.annotations(index) for index in range(len(source))]
  truth = truth_dataset(images, source.categories)
  assert any(one["iscrowd"] for one in truth["annotations"])
  found = []
  for one in truth["annotations"]:
    for _ in range(draw.integers(0, 3)):
      found.append(_moved_object(one, draw, [category.id for category in source.categories]))
  crowded = [one for one in truth["annotations"] if one["iscrowd"]]
  for one in 30 * crowded[:3]:  # more detections in an image than are counted
    found.append(_moved_object(one, draw, [one["category_id"]]))
  return truth, source.categories, found


def _moved_object(one: dict, draw, category_ids: list[int]) -> dict:
  shift = draw.normal(0, 0.06 * np.sqrt(one["area"]), 2).round().astype(int)
  box = np.array(one["bbox"])
  box[:2] += shift
  box[2:] *= draw.uniform(0.8, 1.2, 2)
  found = {
    "image_id": one["image_id"],
    "category_id": int(draw.choice(category_ids)) if draw.random() < 0.1 else one["category_id"],
    "bbox": box.tolist(),
    "score": round(draw.random(), 2),
  }
  if "segmentation" in one:
    mask = np.roll(rle.decode(one["segmentation"]), shift[::-1], axis=(0, 1))
    encoded = rle.encode(np.asfortranarray(mask))
    found["segmentation"] = {"size": encoded["size"], "counts": encoded["counts"].decode()}
  if "keypoints" in one:
    points = np.reshape(one["keypoints"], (-1, 3))
    found["keypoints"] = (points + draw.normal(0, 0.03 * np.sqrt(one["area"]), points.shape)).reshape(-1).tolist()
  return found


def pycocotools_on(truth, found, kind, max_detections, category=None) -> COCOeval:
  """An evaluation of all classes or of one, accumulated and summarised."""
  if kind == "segm":
    found = [{name: value for name, value in one.items() if name != "bbox"} for one in found]
  with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(found)), kind)
    if kind != "keypoints":
      evaluation.params.maxDets = [1, 10, max_detections]
    if category is not None:
      evaluation.params.catIds = [category]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  return evaluation


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="COCO's images (../shared/data/coco_mini) are not here")
@pytest.mark.parametrize(
  "kind, most, names",
  [
    ("bbox", 100, DETECTION),
    ("bbox", 200, DETECTION),
    ("segm", 100, DETECTION),
    ("segm", 200, DETECTION),
    ("keypoints", 20, KEYPOINTS),
  ],
)
def test_every_number_on_coco_s_images_is_that_of_pycocotools_to_the_last_digit(kind, most, names):
  truth, categories, found = coco_mini("keypoints" if kind == "keypoints" else "instances")
  numbers = numbers_of(truth, found, kind, most)
  theirs = pycocotools_on(truth, found, kind, most)
  expected = dict(zip([f"{kind}/{name.format(most=most)}" for name in names], theirs.stats, strict=True))
  if most == 200:  # summarize() asks for 100 in its first line, whatever is counted, and finds nothing
    assert theirs.stats[0] == -1
    precision = theirs.eval["precision"][..., 0, -1]
    expected[f"{kind}/AP"] = np.mean(precision[precision > -1])
  assert 0.2 < expected[f"{kind}/AP"] < 0.9
  for category in categories:
    alone = pycocotools_on(truth, found, kind, most, category.id).eval["precision"][..., 0, -1]
    alone = alone[alone > -1]
    expected[f"{kind}/AP/{category.name}"] = np.mean(alone) if alone.size else -1
  assert {name: -1 if value is None else value for name, value in numbers.items()} == expected


def test_joints_that_are_not_coco_s_are_measured_too():
  points = np.float32([[[12, 12, 2], [40, 30, 1], [0, 0, 0]]])
  images = [annotations(1, [BOX], [1], keypoints=points)]
  numbers = metrics_of(images, [entry(1, 7, BOX, 0.9, keypoints=points.reshape(-1).tolist())], kind="keypoints")
  assert numbers["keypoints/AP"] == pytest.approx(1)


@pytest.mark.skipif(not PEOPLE.exists(), reason="needs ../shared/data, which is not part of the project")
def test_the_joints_of_coco_s_people_given_as_detections_have_an_ap_of_one():
  source = CocoFolder(str(PEOPLE.parents[1] / "val2017"), str(PEOPLE)).open()
  every = [source.annotations(i, masks=False) for i in range(len(source))]
  sizes = {one.image_id: one.size for one in every}
  images = []
  for one in every:
    people = one.take(np.flatnonzero(one.keypoints[:, :, 2].any(axis=1)))  # without joints, COCO asks for none
    scale = np.float32([0.5, 0.75])  # canvas pixels per original pixel, (vertical, horizontal)
    found = Detections(
      boxes=people.boxes * np.tile(scale[::-1], 2),
      scores=np.full(len(people.boxes), 0.9, np.float32),
      classes=people.classes,
      valid=np.ones(len(people.boxes), bool),
      keypoints=people.keypoints * np.append(scale[::-1], 1),
    )
    ids = [category.id for category in source.categories]
    images.append(in_the_original(found, one.image_id, scale, sizes[one.image_id], ids)[0])
  metrics, _ = measure(truth_dataset(every, source.categories), Results.of(images))
  # COCO counts 20 detections an image, which in a crowded one are not all.
  assert metrics["keypoints/AP"] >= 0.98
  assert "keypoints" in tables(metrics, ["person"])


def test_perfect_results():
  images = [annotations(1, [BOX], [1]), annotations(2, [BOX, FAR], [2, 1])]
  entries = [entry(1, 7, BOX, 0.9), entry(2, 9, BOX, 0.8), entry(2, 7, FAR, 0.7)]
  numbers = metrics_of(images, entries)
  assert numbers["bbox/AP"] == pytest.approx(1)
  assert numbers["bbox/AP/red"] == pytest.approx(1)
  assert numbers["bbox/AP/green"] == pytest.approx(1)
  assert numbers["bbox/AP/blue"] is None  # there is no blue object
  assert numbers["bbox/APl"] is None  # there is no large object


def test_half_of_the_objects_found_by_hand():
  # Recalls 0 to 0.50 (51 of 101 points) at precision 1, none beyond.
  numbers = metrics_of([annotations(1, [BOX, FAR], [1, 1])], [entry(1, 7, BOX, 0.9)])
  assert numbers["bbox/AP"] == pytest.approx(51 / 101)
  assert numbers["bbox/AR100"] == pytest.approx(0.5)


def test_no_results_at_all_are_zero():
  numbers = metrics_of([annotations(1, [BOX], [1])], [])
  assert numbers["bbox/AP"] == numbers["bbox/AR100"] == numbers["bbox/AP/red"] == 0
  masks = [annotations(1, [BOX], [1], segmentations=(blob(BOX),))]
  assert metrics_of(masks, [], kind="segm")["segm/AP"] == 0


def test_no_objects_at_all_are_none():
  numbers = metrics_of([annotations(1, [], [])], [entry(1, 7, BOX, 0.9)])
  assert set(numbers.values()) == {None}


def test_detections_in_a_crowd_are_neither_right_nor_wrong():
  objects = annotations(1, [BOX, [55, 55, 100, 100]], [1, 1], crowd=[False, True])
  entries = [entry(1, 7, [60, 60, 80, 80], 0.9), entry(1, 7, [62, 62, 82, 82], 0.8), entry(1, 7, BOX, 0.7)]
  assert metrics_of([objects], entries)["bbox/AP"] == pytest.approx(1)


def test_a_difficult_object_is_neither_missed_nor_found():
  objects = annotations(1, [BOX, FAR], [1, 1], difficult=[False, True])
  hit = entry(1, 7, BOX, 0.7)
  assert metrics_of([objects], [hit])["bbox/AP"] == pytest.approx(1)
  assert metrics_of([objects], [hit, entry(1, 7, FAR, 0.9)])["bbox/AP"] == pytest.approx(1)
  # Unlike a crowd it is matched by plain IoU: a detection of a part of it is wrong.
  part = entry(1, 7, [60, 60, 70, 70], 0.9)
  assert metrics_of([objects], [hit, part])["bbox/AP"] == pytest.approx(0.5)


def test_degenerate_boxes_are_not_evaluated():
  degenerate = [[10, 10, 10, 40], [30, 30, 20, 40], [np.nan, 0, 5, 5], [200, 0, 210, 5]]
  images = [annotations(1, [BOX, *degenerate], [1] * 5)]
  assert [a["bbox"] for a in truth_dataset(images, CATEGORIES)["annotations"]] == [[10, 10, 40, 30]]
  assert metrics_of(images, [entry(1, 7, BOX, 0.9)])["bbox/AP"] == pytest.approx(1)


def test_the_number_of_detections_counted_can_be_chosen():
  images = [annotations(1, [BOX, FAR], [1, 1])]
  entries = [entry(1, 7, BOX, 0.9), entry(1, 7, FAR, 0.8)]
  assert metrics_of(images, entries, max_detections=1)["bbox/AP"] == pytest.approx(51 / 101)
  assert set(n for n in metrics_of(images, entries, max_detections=200) if n.startswith("bbox/AR")) == {
    "bbox/AR1",
    "bbox/AR10",
    "bbox/AR200",
    "bbox/ARs",
    "bbox/ARm",
    "bbox/ARl",
  }


def test_neither_truth_nor_results_are_changed():
  images, entries = random_set(0, num_images=2)
  truth = truth_dataset(images, CATEGORIES)
  before = copy.deepcopy((truth, entries))
  numbers_of(truth, entries, "segm")
  assert (truth, entries) == before


def test_curves_are_precision_over_recall_at_half():
  truth = truth_dataset([annotations(1, [BOX, FAR], [1, 1])], CATEGORIES)
  curves = coco_metrics(truth, Results.from_entries([entry(1, 7, BOX, 0.9)]))[1]
  assert curves == {"red": pytest.approx([1] * 51 + [0] * 50)}


def test_a_kind_is_measured_where_model_and_truth_both_have_it():
  boxes = truth_dataset([annotations(1, [BOX], [1])], CATEGORIES)
  masks = truth_dataset([annotations(1, [BOX], [1], segmentations=(blob(BOX),))], CATEGORIES)
  both = Results.from_entries([entry(1, 7, BOX, 0.9, segmentation=blob(BOX))], ("bbox", "segm"))
  assert "segm/AP" not in measure(boxes, both)[0]
  assert measure(masks, both)[0]["segm/AP"] == pytest.approx(1)
  assert "segm/AP" not in measure(masks, Results.from_entries(both.entries))[0]


def test_tables_name_their_metrics():
  truth = truth_dataset([annotations(1, [BOX, FAR], [1, 2])], CATEGORIES)
  text = tables(measure(truth, Results.from_entries([entry(1, 7, BOX, 0.9)]))[0], ["red", "green", "blue"])
  lines = {line.split("  ")[0]: line.split() for line in text.splitlines() if line}
  assert lines["COCO metric, %"][-1] == "bbox"
  assert lines["AP"] == "AP mean over IoU 0.50:0.95 50.0".split()
  assert lines["class, %"] == "class, % COCO bbox AP VOC AP area, IoU 0.5 VOC AP 11 points, IoU 0.5".split()
  assert lines["red"] == ["red", "100.0", "100.0", "100.0"]
  assert lines["green"] == ["green", "0.0", "0.0", "0.0"]
  assert lines["blue"] == ["blue", "-", "-", "-"]
  assert lines["mean over classes"] == ["mean", "over", "classes", "50.0", "50.0", "50.0"]

"""The loop from batches to COCO results entries, and masks pasted into the image."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from rcnn_jax.data import pipeline
from rcnn_jax.data.source import Category, KeypointNames
from rcnn_jax.evaluation.detect import EvaluationError, detect, in_the_original
from rcnn_jax.evaluation.evaluate import check_categories, evaluate
from rcnn_jax.evaluation.paste import paste, paste_rounded, run_lengths
from rcnn_jax.experiment import Evaluation
from rcnn_jax.types import Detections
from tests import scenes

SOURCE = scenes.Scenes(num_images=5)


def run(batch_size=2, model=scenes.ColourFinder(), source=SOURCE, **options):
  return detect(
    model, scenes.VARIABLES, scenes.batches(source, batch_size), source.sizes(), scenes.CATEGORY_IDS, **options
  )


def expected_entries():
  """The truth itself, as a perfect model gives it back."""
  found = []
  for i in range(len(SOURCE)):
    one = SOURCE.annotations(i)
    found += [
      scenes.entry(one.image_id, scenes.CATEGORY_IDS[k - 1], box.tolist(), pytest.approx(1 - k / 10))
      for box, k in zip(one.boxes, one.classes)
    ]
  return found


def test_boxes_come_back_in_pixels_of_the_original_with_the_ids_of_the_data_set():
  assert run().entries == expected_entries()


@pytest.mark.parametrize("batch_size", [1, 3, 5, 8])
def test_the_batch_size_changes_nothing(batch_size):
  assert run(batch_size).entries == run(2).entries


def test_sharing_a_batch_over_devices_changes_nothing():
  mesh = jax.sharding.Mesh(jax.devices()[:4], ("data",))
  assert run(4, mesh=mesh).entries == run(2).entries


def test_a_model_finding_nothing_gives_no_entries():
  black = scenes.Scenes(num_images=1)
  assert run(source=black).entries == []


def test_kinds_tell_what_the_model_gives_even_where_it_finds_nothing():
  black = scenes.Scenes(num_images=1)
  assert run(source=black).kinds == ("bbox",)
  everything = scenes.ColourFinder(masks=True, keypoints=True)
  assert run(source=black, model=everything).kinds == ("bbox", "segm", "keypoints")


def test_masks_are_run_lengths_of_the_original_image():
  results = run(model=scenes.ColourFinder(masks=True))
  pasted = [rle.decode(e["segmentation"]) for e in results.entries]
  truth = [rle.decode(s) for i in range(len(SOURCE)) for s in SOURCE.annotations(i).segmentations]
  assert all(np.array_equal(a, b) for a, b in zip(pasted, truth, strict=True))


def test_keypoints_are_scaled_back_and_keep_their_score():
  results = run(model=scenes.ColourFinder(keypoints=True))
  for e in results.entries:
    assert e["keypoints"] == pytest.approx([e["bbox"][0], e["bbox"][1], 1.0])


def test_an_image_seen_twice_missed_or_unknown_is_an_error():
  batches = scenes.batches(SOURCE, 5)
  check = functools.partial(detect, scenes.ColourFinder(), scenes.VARIABLES, category_ids=scenes.CATEGORY_IDS)
  with pytest.raises(EvaluationError, match=r"more than once: \[100"):
    check(batches * 2, sizes=SOURCE.sizes())
  with pytest.raises(EvaluationError, match=r"missed 1 of 6 images: \[999\]"):
    check(batches, sizes=SOURCE.sizes() | {999: (8, 8)})
  with pytest.raises(EvaluationError, match="image 100 .* not an image of the data source"):
    check(batches, sizes={})


def test_the_next_batch_is_dispatched_before_the_last_one_is_converted():
  events = []

  class Sizes(dict):
    def __getitem__(self, image_id):
      events.append(f"converted {image_id}")
      return super().__getitem__(image_id)

  def told(batches):
    for batch in batches:
      events.append(f"fetched {batch.image_id[0]}")
      yield batch

  source = scenes.Scenes(num_images=3)
  detect(
    scenes.ColourFinder(),
    scenes.VARIABLES,
    told(scenes.batches(source, 1)),
    Sizes(source.sizes()),
    scenes.CATEGORY_IDS,
  )
  assert events == ["fetched 100", "fetched 101", "converted 100", "fetched 102", "converted 101", "converted 102"]


@pytest.mark.parametrize("batch_size, devices", [(1, 1), (3, 4)])
def test_a_whole_evaluation(tmp_path, capsys, batch_size, devices):
  mesh = jax.sharding.Mesh(jax.devices()[:devices], ("data",))
  data = dataclasses.replace(scenes.DATA, batch_size=(1, batch_size))
  metrics = evaluate(
    scenes.ColourFinder(masks=True), scenes.VARIABLES, data, SOURCE, tmp_path, Evaluation(pictures=3), mesh
  )
  assert [metrics[name] for name in ("bbox/AP", "segm/AP", "voc/mAP_11pt", "voc/mAP_area")] == pytest.approx([1] * 4)
  assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
  by_image = sorted(json.loads((tmp_path / "detections.json").read_text()), key=lambda e: e["image_id"])
  assert [{k: e[k] for k in ("image_id", "category_id", "bbox", "score")} for e in by_image] == expected_entries()
  assert {p.name for p in (tmp_path / "pictures").iterdir()} == {"100.png", "102.png", "104.png"}
  assert "5 images, 7 detections" in capsys.readouterr().out


def test_an_evaluation_that_finds_nothing(tmp_path):
  blind = scenes.ColourFinder(masks=True, blind=True)
  metrics = evaluate(blind, scenes.VARIABLES, scenes.DATA, SOURCE, tmp_path, Evaluation(pictures=0))
  assert [metrics[name] for name in ("bbox/AP", "segm/AP", "voc/mAP_area")] == [0, 0, 0]
  assert json.loads((tmp_path / "detections.json").read_text()) == []


def test_pictures_of_an_earlier_evaluation_do_not_stay(tmp_path):
  whole = lambda count: evaluate(
    scenes.ColourFinder(), scenes.VARIABLES, scenes.DATA, SOURCE, tmp_path, Evaluation(pictures=count)
  )
  drawn = lambda: {path.name for path in (tmp_path / "pictures").iterdir()}
  whole(5)
  assert len(drawn()) == 5
  whole(2)
  assert drawn() == {"100.png", "104.png"}


def found(boxes, **changes):
  rows = len(boxes)
  one = Detections(
    boxes=np.asarray(boxes, np.float32),
    scores=np.full(rows, 0.5, np.float32),
    classes=np.ones(rows, np.int32),
    valid=np.ones(rows, bool),
  )
  return one.replace(**changes)


def test_boxes_are_clipped_to_the_original():
  image, before, _ = in_the_original(found([[-8, 4, 60, 90]]), 1, np.float32([2, 4]), (40, 12), [7])
  assert image.entries[0]["bbox"] == [0, 2, 12, 38]
  assert before.tolist() == [[-2, 2, 15, 45]]


def test_what_stands_in_rows_that_are_not_valid_changes_nothing():
  one = found([[0, 0, 4, 4], [np.nan, 0, np.inf, 9]], valid=np.array([True, False]), classes=np.array([1, 99]))
  image = in_the_original(one, 1, np.float32([1, 1]), (9, 9), [7])[0]
  assert [e["bbox"] for e in image.entries] == [[0, 0, 4, 4]]


def test_a_number_that_is_not_finite_is_told_with_its_image():
  joints = np.full((1, 2, 3), np.inf, np.float32)
  for one in (found([[0, 0, np.nan, 4]]), found([[0, 0, 4, 4]], keypoints=joints)):
    with pytest.raises(EvaluationError, match="image 31: the model gave a box, a score or a joint that is not fin"):
      in_the_original(one, 31, np.float32([1, 1]), (9, 9), [7])


class Jointed(scenes.Scenes):
  """Objects have a joint half a pixel to the upper left of their boxes' corners; that of green ones is unlabelled."""

  keypoints = KeypointNames.from_names(["corner"])

  def annotations(self, index, masks=True):
    found = super().annotations(index, masks)
    corners = np.insert(found.boxes[:, None, :2] - 0.5, 2, 2, axis=2)
    corners[found.classes == 2] = 0
    return dataclasses.replace(found, keypoints=corners)


MOVED = dataclasses.replace(scenes.DATA, load_keypoints=True, joint_offset=0.5)


def test_the_labelled_joints_alone_are_moved_for_the_model():
  truth = pipeline.load(MOVED, Jointed(), 1, (48, 64), 2, None).truth
  red, green = truth.keypoints
  assert red.tolist() == [[*truth.boxes[0, :2], 2]]
  assert green.tolist() == [[0, 0, 0]]


def test_joints_are_moved_back_where_they_are_evaluated_and_written(tmp_path):
  def metrics_of(data):
    metrics = evaluate(
      scenes.ColourFinder(keypoints=True), scenes.VARIABLES, data, Jointed(), tmp_path, Evaluation(pictures=0)
    )
    return metrics["keypoints/AP"]

  assert metrics_of(dataclasses.replace(MOVED, joint_offset=0.0)) < 1
  assert metrics_of(MOVED) == pytest.approx(1)
  for written in json.loads((tmp_path / "detections.json").read_text()):
    assert written["keypoints"][:2] == [written["bbox"][0] - 0.5, written["bbox"][1] - 0.5]


class Folders(scenes.Scenes):
  """Images of one name in folders of their own."""

  def annotations(self, index, masks=True):
    found = super().annotations(index, masks)
    return dataclasses.replace(found, file_name=f"day{index}/cam.1.png")


def test_pictures_of_images_of_one_name_in_two_folders_are_two(tmp_path, caplog):
  data = dataclasses.replace(scenes.DATA, max_objects=1)  # a limit of training: not one of evaluation
  settings = Evaluation(pictures=2)
  metrics = evaluate(scenes.ColourFinder(), scenes.VARIABLES, data, Folders(num_images=3), tmp_path, settings)
  assert {p.name for p in (tmp_path / "pictures").iterdir()} == {"day0_cam.1.png", "day2_cam.1.png"}
  assert metrics["bbox/AP"] == 1.0 and not caplog.messages


# ---------------------------------------------------------------------------------------------------- paste


def test_a_full_mask_fills_its_box():
  expected = [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
  assert paste(np.ones((7, 7), np.float32), np.float32([1, 1, 4, 3]), (4, 5)).tolist() == expected


def test_a_mask_of_half_its_box():
  left = np.float32([[1, 0], [1, 0]])
  expected = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
  assert paste(left, np.float32([0, 0, 4, 4]), (4, 4)).tolist() == expected


def test_the_part_of_a_box_beyond_the_image_is_cut_off():
  expected = [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
  assert paste(np.ones((4, 4), np.float32), np.float32([-5, -3, 2, 2]), (3, 3)).tolist() == expected


@pytest.mark.parametrize("box", [[5, 5, 5, 9], [5, 5, 2, 2], [-9, -9, -2, -2], [90, 90, 99, 99]])
def test_an_empty_box_or_one_outside_the_image_gives_an_empty_mask(box):
  assert not paste(np.ones((4, 4), np.float32), np.float32(box), (20, 20)).any()


def test_the_rounded_paste_takes_whole_pixels_and_the_last_of_them_too():
  # 2 to 6 grows by a cell of 1/28 on each side, to 1.86..6.14: pixels 1 to 6 hold the 30 cells, 0.2 of a pixel each.
  pasted = paste_rounded(np.ones((28, 28), np.float32), np.float32([2, 2, 6, 6]), (8, 9))
  assert np.flatnonzero(pasted.any(axis=0)).tolist() == [1, 2, 3, 4, 5, 6]
  assert pasted.sum() == 36
  assert paste(np.ones((28, 28), np.float32), np.float32([2, 2, 6, 6]), (8, 9)).sum() == 16
  # Exactly half is not enough, where the exact paste takes it.
  assert not paste_rounded(np.full((28, 28), 0.5, np.float32), np.float32([2, 2, 6, 6]), (8, 9)).any()


@pytest.mark.parametrize("box", [[-9, -9, -3, -3], [90, 90, 99, 99], [-9, 2, -4, 8]])
def test_a_rounded_box_outside_the_image_gives_an_empty_mask(box):
  assert not paste_rounded(np.ones((4, 4), np.float32), np.float32(box), (20, 20)).any()


@dataclasses.dataclass(frozen=True)
class Pasting:
  """Stands for a mask head."""

  pasting: str
  field = "masks"


@dataclasses.dataclass(frozen=True)
class MaskFinder(scenes.ColourFinder):
  heads: tuple[Pasting, ...] = (Pasting("exact"),)


def test_how_masks_become_pixels_is_the_models_own():
  exact, rounded = (run(model=MaskFinder(masks=True, heads=(Pasting(kind),))) for kind in ("exact", "rounded"))
  assert exact.entries == run(model=scenes.ColourFinder(masks=True)).entries
  areas = [[rle.area(e["segmentation"]) for e in results.entries] for results in (exact, rounded)]
  assert all(larger > smaller for smaller, larger in zip(*areas, strict=True))


def paste_slowly(mask, box, size):
  """Each pixel's centre by itself: bilinear between the centres of the cells, 0 beyond them."""
  x1, y1, x2, y2 = (float(v) for v in box)
  padded = np.pad(mask, 1)
  pasted = np.zeros(size)
  for row in range(size[0]):
    for column in range(size[1]):
      y = (row + 0.5 - y1) / (y2 - y1) * mask.shape[0] - 0.5
      x = (column + 0.5 - x1) / (x2 - x1) * mask.shape[1] - 0.5
      if -1 < y < mask.shape[0] and -1 < x < mask.shape[1]:
        i, j = int(np.floor(y)), int(np.floor(x))
        v, u = y - i, x - j
        four = padded[i + 1 : i + 3, j + 1 : j + 3]
        pasted[row, column] = np.array([1 - v, v]) @ four @ np.array([1 - u, u])
  return pasted


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_paste_samples_every_pixel_centre_bilinearly(seed):
  draw = np.random.default_rng(seed)
  mask = draw.random((5, 5)).astype(np.float32)
  low = draw.uniform(-6, 10, 2)
  box = np.concatenate([low, low + draw.uniform(0.5, 16, 2)]).astype(np.float32)
  slow = paste_slowly(mask, box, (12, 14))
  clear = np.abs(slow - 0.5) > 1e-4  # the rest may fall to either side by rounding
  assert np.array_equal(paste(mask, box, (12, 14))[clear], (slow >= 0.5)[clear])


@settings(deadline=None, max_examples=300)
@given(
  st.sampled_from([("exact", paste), ("rounded", paste_rounded)]),
  st.tuples(st.integers(1, 24), st.integers(1, 24)),
  st.sampled_from([1, 2, 5, 14]),
  st.lists(st.sampled_from(["whole", "empty", "noise", "blob"]), min_size=0, max_size=4),
  st.integers(0, 2**32 - 1),
)
def test_run_lengths_are_those_that_pycocotools_gives_the_whole_mask(pasting, size, side, looks, seed):
  """At the borders of the image, across them, beyond them, over all of it, and with a window of nothing."""
  draw, (name, whole) = np.random.default_rng(seed), pasting
  masks, boxes = np.zeros((len(looks), side, side), np.float32), np.zeros((len(looks), 4))
  for mask, box, look in zip(masks, boxes, looks):
    low = draw.choice([0.0, *draw.uniform(-9, 24, 3)], 2)
    box[:] = [*low, *(low + draw.choice([-1.0, 0.0, *draw.uniform(0, 40, 4)], 2))]
    if draw.random() < 0.3:
      box[:] = [0, 0, size[1], size[0]]
    mask[:] = {"whole": 1.0, "empty": 0.0, "noise": draw.random((side, side)), "blob": 0.2}[look]
    if look == "blob":
      mask[side // 3 : side - side // 3, :] = 0.9
  expected = [rle.encode(np.asfortranarray(whole(mask, box, size)))["counts"] for mask, box in zip(masks, boxes)]
  assert list(run_lengths(masks, boxes, size, name)) == expected


ENCODING = """
import time
import numpy as np
from rcnn_jax.evaluation.paste import run_lengths
draw, (y, x) = np.random.default_rng(0), np.mgrid[:28, :28] - 13.5
masks = np.stack([1 / (1 + np.exp((y**2 + x**2 - r) / 20)) for r in draw.uniform(40, 150, 100)]).astype(np.float32)
low = draw.uniform(0, 400, (100, 2))
boxes, times = np.concatenate([low, low + draw.uniform(10, 300, (100, 2))], axis=1), []
for _ in range(10):
  began = time.process_time()
  run_lengths(masks, boxes, (480, 640))
  times.append(time.process_time() - began)
print(min(times))
"""


def test_a_hundred_masks_of_a_photograph_take_a_twentieth_of_a_second_of_one_core():
  environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
  command = [sys.executable, "-c", ENCODING]
  ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
  assert float(ended.stdout) < 0.05


def test_a_mask_costs_its_window_not_its_image():
  """The window of a small object takes as long in a small image as in one ten thousand times as large."""
  masks, boxes = np.ones((100, 28, 28), np.float32), np.tile([10.0, 20.0, 50.0, 70.0], (100, 1))

  def seconds(size):
    times = []
    for _ in range(5):
      began = time.process_time()
      run_lengths(masks, boxes, size)
      times.append(time.process_time() - began)
    return min(times)

  small, large = seconds((100, 100)), seconds((10_000, 10_000))
  assert large < 3 * small


def test_a_model_is_evaluated_on_its_own_classes_alone():
  check_categories(scenes.CATEGORIES, scenes.CATEGORIES)
  renamed = (*scenes.CATEGORIES[:2], Category(11, "violet"))
  with pytest.raises(EvaluationError, match=r"class 3 of the model is 'blue' \(id 11\), .* 'violet' \(id 11\)"):
    check_categories(scenes.CATEGORIES, renamed)
  with pytest.raises(EvaluationError, match="the model has 3 classes, the evaluation data have 2"):
    check_categories(scenes.CATEGORIES, scenes.CATEGORIES[:2])


class Named(scenes.Scenes):
  """Images with ids of the data set's own, of which the model knows nothing."""

  def __init__(self, file_ids):
    super().__init__(num_images=len(file_ids))
    self._file_ids = file_ids

  def annotations(self, index, masks=True):
    return dataclasses.replace(super().annotations(index, masks), file_id=self._file_ids[index])


@pytest.mark.parametrize("file_ids", [["a.b", "b", "\ud800"], [2019000000903, -5, 0], [7, None, "x"]])
def test_detections_are_written_with_the_data_sets_own_ids(tmp_path, file_ids):
  metrics = evaluate(
    scenes.ColourFinder(), scenes.VARIABLES, scenes.DATA, Named(file_ids), tmp_path, Evaluation(pictures=0)
  )
  assert metrics["bbox/AP"] == pytest.approx(1)
  written = json.loads((tmp_path / "detections.json").read_text())
  expected = [100 + n if file_id is None else file_id for n, file_id in enumerate(file_ids)]
  objects = {expected[n]: len(Named(file_ids).annotations(n).boxes) for n in range(3)}
  assert {one: sum(e["image_id"] == one for e in written) for one in objects} == objects

"""Test-time augmentation: views lie where they should, and what was found in them becomes one answer."""

from __future__ import annotations

import dataclasses
import json
import types

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from rcnn_jax import experiment as experiments
from rcnn_jax import ranges
from rcnn_jax.data.pipeline import Data, image_batch
from rcnn_jax.data.proposals import Regions
from rcnn_jax.data.source import KeypointNames
from rcnn_jax.data.transforms import PaddedToMultiple, Resize
from rcnn_jax.evaluation import evaluate
from rcnn_jax.evaluation.detect import EvaluationError, in_the_original
from rcnn_jax.evaluation.image_files import matching_files
from rcnn_jax.evaluation.predict import predict
from rcnn_jax.evaluation.results import Found
from rcnn_jax.evaluation.tiles import Tiles
from rcnn_jax.evaluation.view_masks import Masker, split
from rcnn_jax.evaluation.views import Merging, View, check_views, views_of
from rcnn_jax.experiment import Evaluation, ExperimentError, Views
from rcnn_jax.models.heads import BoxHead, KeypointHead, MaskHead, SoftNms
from rcnn_jax.models.pooling import RoiAlign
from tests import scenes, small_detector

SIZE = (40, 100)
PLAIN, MIRRORED = View(scenes.DATA, False), View(scenes.DATA, True)
DATA = Data(None, None, Resize((480,), 640), canvases=((480, 640), (640, 480)))
merge = Merging(BoxHead(nms_iou=0.5, max_detections=3))


def found(*rows, keypoints=None) -> Found:
  """Rows (box x, y, w, h), score, category."""
  columns = [np.array(column, np.float64) for column in zip(*rows)] or [np.zeros((0, 4)), np.zeros(0), np.zeros(0)]
  return Found(7, SIZE, *columns[:2], columns[2].astype(np.int64), None, keypoints)


@dataclasses.dataclass(frozen=True)
class ColourFinder(scenes.ColourFinder):
  """Finds colours, has the settings of a box head, and describes what is given."""

  box: BoxHead = BoxHead(max_detections=3)
  heads: tuple = ()

  def clone(self, heads):
    return dataclasses.replace(self, heads=heads)

  def apply(self, variables, batch, *objects, method):
    if method == "detect":
      return super().apply(variables, batch, method)
    (found,) = objects  # a mask is full where its box is full in its view
    return found.replace(masks=jax.vmap(jax.vmap(_red, (None, 0)), (0, 0))(batch.image, found.boxes))


def _red(image, box):
  """f32[2, 2]: whether a box is red about the middle of each quarter."""
  x, y = (box[low] + (box[low + 2] - box[low]) * jax.numpy.array([0.25, 0.75]) for low in (0, 1))
  return 1.0 * (image[y.astype(int)[:, None], x.astype(int), 0] > 128)


# ------------------------------------------------------------------------------------------------ where views lie


def test_by_default_there_is_one_view_the_experiments_own():
  assert views_of(Views(), DATA) == (View(DATA, False),)
  assert views_of(Views(short_sides=(480,), long_side=640), DATA) == (View(DATA, False),)


def test_canvases_grow_with_the_sides_in_multiples_of_32():
  views = views_of(Views(short_sides=(240, 600), flip=True), DATA)
  assert [view.flip for view in views] == [False, True, False, True]
  assert [view.data.resize.short_side for view in views] == [(240,), (240,), (600,), (600,)]
  assert [view.data.resize.long_side for view in views] == [320, 320, 800, 800]
  assert [view.data.canvases[0] for view in views] == [(256, 320)] * 2 + [(608, 800)] * 2
  assert views[3].data.canvases[1] == (800, 608)
  (wide,) = views_of(Views(short_sides=(480,), long_side=960), DATA)
  assert wide.data.canvases == ((480, 960), (960, 480))
  square = dataclasses.replace(DATA, canvases=((640, 640),))
  assert views_of(Views(short_sides=(480,), long_side=960), square)[0].data.canvases == ((960, 960),)
  padded = dataclasses.replace(DATA, canvases=PaddedToMultiple(32))
  assert views_of(Views(short_sides=(600,)), padded)[0].data.canvases == PaddedToMultiple(32)


def test_a_mirrored_view_shows_the_mirror_image_and_its_proposals():
  plain, mirrored = views_of(Views(flip=True), scenes.DATA)
  image = np.random.default_rng(0).integers(0, 256, (20, 32, 3), np.uint8)
  regions = [Regions(np.array([[2, 3, 10, 8]], np.float32), np.ones(1, np.float32))]
  expected = image_batch([image[:, ::-1]], plain.data, proposals=regions)
  seen = image_batch([image], mirrored.data, proposals=regions)
  np.testing.assert_array_equal(seen.image, expected.image)
  assert seen.image_size.tolist() == [[40, 64]] and seen.image.shape == (1, 48, 64, 3)
  assert seen.proposals.boxes[0, 0].tolist() == [64 - 20, 6, 64 - 4, 16]


# ------------------------------------------------------------------------------------------------ how they are merged


def test_duplicates_go_by_class_and_the_best_of_the_rest_stay():
  plain = found(([10, 10, 20, 20], 0.8, 5), ([60, 10, 20, 20], 0.4, 5))
  mirrored = found(([70, 10, 20, 20], 0.9, 5), ([70, 11, 20, 20], 0.7, 9), ([0, 0, 5, 5], 0.1, 5))
  merged = merge([(PLAIN, plain), (MIRRORED, mirrored)])
  assert (merged.image_id, merged.size) == (7, SIZE)
  assert merged.boxes.tolist() == [[10, 10, 20, 20], [10, 11, 20, 20], [60, 10, 20, 20]]  # at most three
  np.testing.assert_allclose(merged.scores, [0.9, 0.7, 0.4], rtol=1e-6)
  assert merged.category_ids.tolist() == [5, 9, 5]


def test_soft_nms_of_a_model_is_soft_in_merging_too():
  soft = Merging(BoxHead(max_detections=3, soft_nms=SoftNms("linear", score_threshold=0.1), nms_iou=0.3))
  parts = [(PLAIN, found(([10, 10, 20, 20], 0.8, 5))), (MIRRORED, found(([70, 20, 20, 20], 0.9, 5)))]  # IoU 1/3
  np.testing.assert_allclose(soft(parts).scores, [0.9, 0.8 * 2 / 3], rtol=1e-6)


@hypothesis.given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 40)), min_size=1), st.integers(0, 3))
def test_mirrored_twice_is_as_it_was(spans, offset):
  one = found(*(([x, 3, width, 8], 0.5, 1) for x, width in spans))
  one = dataclasses.replace(one, keypoints=np.tile([[2.0, 5, 0.5], [7, 9, 0.25]], (len(one), 1, 1)))
  both = Merging(BoxHead(), KeypointNames.from_names(("left_ear", "right_ear")), offset / 2)
  back = both.mirrored(both.mirrored(one))
  np.testing.assert_array_equal(back.boxes, one.boxes)
  np.testing.assert_array_equal(back.keypoints, one.keypoints)


def test_nothing_found_in_any_view_is_nothing():
  merged = merge([(PLAIN, found()), (MIRRORED, found())])
  assert len(merged) == 0 and merged.boxes.shape == (0, 4)


def test_joints_of_a_mirrored_view_come_back():
  joints = np.array([[[4.0, 6, 0.9], [20, 7, 0.8], [12, 20, 0.7]]])
  names = KeypointNames.from_names(("left_eye", "right_eye", "nose"))
  one = found(([3, 5, 27, 20], 0.9, 1), keypoints=joints)
  nothing = dataclasses.replace(found(), keypoints=np.zeros((0, 3, 3)))
  merged = Merging(BoxHead(max_detections=3), names)([(PLAIN, nothing), (MIRRORED, one)])
  assert merged.boxes.tolist() == [[70, 5, 27, 20]]
  assert merged.keypoints.tolist() == [[[80, 7, 0.8], [96, 6, 0.9], [88, 20, 0.7]]]
  # Where joints are numbers of pixels, pixel 4 of 100 is pixel 95 of the mirror image.
  numbered = Merging(BoxHead(max_detections=3), names, joint_offset=0.5)([(PLAIN, nothing), (MIRRORED, one)])
  assert numbered.keypoints[0, 1, 0] == 95
  with pytest.raises(EvaluationError, match="which joints a mirror exchanges is said nowhere in the data"):
    check_views(Views(flip=True), None, types.SimpleNamespace(heads=(KeypointHead(),)), None)
  check_views(Views(flip=True), None, types.SimpleNamespace(heads=(KeypointHead(),)), names)


@pytest.mark.long
def test_what_a_detector_finds_in_a_mirrored_view_is_what_it_finds_in_the_mirror_image():
  image = np.ascontiguousarray(small_detector.scene_batch(3, batch_size=1).image[0, :36, :48])
  data = Data(None, None, Resize((36,), 48), canvases=(small_detector.CANVAS,))
  plain, mirrored = views_of(Views(flip=True), data)
  detect = small_detector.compiled("detect")

  def seen(view, image):
    batch = image_batch([image], view.data)
    one = jax.tree.map(
      lambda rows: np.asarray(rows[0]), detect(small_detector.variables(), batch.replace(truth=None))
    )
    return in_the_original(one, 1, batch.scale[0], image.shape[:2], [3, 4])[0]

  here, there = seen(mirrored, image), seen(plain, image[:, ::-1])
  assert len(here)
  np.testing.assert_array_equal(here.boxes, there.boxes)
  back = merge.mirrored(here).boxes
  np.testing.assert_allclose(back[:, 0] + back[:, 2], 48 - there.boxes[:, 0])
  np.testing.assert_array_equal(back[:, 1:], there.boxes[:, 1:])


# ------------------------------------------------------------------------------------------------ masks

CORNER = np.full((24, 32, 3), 20, np.uint8)
CORNER[4:16, 4:20, 0] = 255  # red, but
CORNER[4:10, 12:20, 0] = 20  # for the upper right quarter
CORNER[4, 19, 0] = 255  # of which a corner is left, so that the box is found whole
MASKS = (MaskHead(pasting="exact"),)


def test_masks_are_made_of_merged_boxes_in_all_views(tmp_path):
  Image.fromarray(CORNER).save(tmp_path / "a.png")
  (one,) = predicted(tmp_path, Views(short_sides=(24, 48), flip=True), heads=MASKS)
  assert one["bbox"] == [4, 4, 16, 12]
  seen = coco_mask.decode(one["segmentation"])
  assert seen[4:16, 4:20].sum() == seen.sum()
  assert seen[5:9, 5:11].all() and seen[11:15, 5:19].all() and not seen[5:9, 13:19].any()


def test_masks_are_the_mean_of_all_views():
  views = views_of(Views(short_sides=(24, 48), flip=True), scenes.DATA)
  masker = Masker(ColourFinder(heads=MASKS), scenes.VARIABLES, scenes.CATEGORY_IDS, views)
  box = dataclasses.replace(found(([4, 4, 16, 12], 0.9, 7)), size=(24, 32))
  of_view = [next(masker.seen(view, image_batch([CORNER], view.data, [7]), {7: box}))[1] for view in views]
  assert np.mean(of_view, axis=0).tolist() == [[[1, 0], [1, 1]]]
  batches = [(view, [image_batch([CORNER], view.data, [7])]) for view in views]
  assert masker.of_source([box], batches)[0].counts == masker.of_image(box, CORNER).counts


@pytest.mark.long
def test_a_detector_describes_its_own_detections_as_it_did():
  model = small_detector.small_detector(heads=(MaskHead(num_convs=1, channels=8, pool=RoiAlign(output_size=4)),))
  variables, batch = small_detector.fresh(model), small_detector.scene_batch(3, batch_size=1)
  seen = jax.device_get(small_detector.compiled("detect", model)(variables, batch))
  without, of_masks = split(model)
  assert without.heads == () and of_masks.heads == model.heads
  again = small_detector.compiled("describe", of_masks)(variables, batch, seen.replace(masks=None))
  assert seen.valid.any()
  np.testing.assert_allclose(again.masks, seen.masks, atol=1e-6)


# ------------------------------------------------------------------------------------------------ whole


def test_evaluation_by_views_finds_what_evaluation_finds(tmp_path):
  source, model = scenes.Scenes(), ColourFinder()
  arguments = (model, scenes.VARIABLES, scenes.DATA, source)
  whole = evaluate.detect_source(*arguments)
  same = evaluate.detect_by_views(*arguments, Views(short_sides=(48,), long_side=64))
  assert same.entries == whole.entries
  settings = Evaluation(pictures=0, views=Views(short_sides=(48, 72), flip=True))
  views = evaluate.detect_by_views(*arguments, settings.views)  # each colour is found where it is in all of them
  assert views.entries == sorted(whole.entries, key=lambda one: one["image_id"])
  evaluate.evaluate(*arguments, tmp_path, settings)
  assert json.loads((tmp_path / "detections.json").read_text()) == views.entries
  with pytest.raises(EvaluationError, match="tiles are looked at by one view each"):
    evaluate.evaluate(*arguments, tmp_path, settings, None, Tiles(20))


def predicted(folder, views: Views, tiles=None, heads=()):
  settings = types.SimpleNamespace(
    model=ColourFinder(heads=heads), data=scenes.DATA, evaluation=Evaluation(views=views)
  )
  run = types.SimpleNamespace(
    experiment=settings, categories=scenes.CATEGORIES, keypoints=None, variables=scenes.VARIABLES
  )
  output = folder / "out"
  assert predict(run, matching_files(str(folder / "*.png"), output), output, 0.05, 2, tiles) == []
  return sorted(
    json.loads((output / "detections.json").read_text()), key=lambda one: (one["image_id"], -one["score"])
  )


def test_images_are_predicted_by_views(tmp_path):
  source = scenes.Scenes()
  for index in range(len(source)):
    Image.fromarray(source.image(index)).save(tmp_path / f"{index}.png")
  plain = predicted(tmp_path, Views())
  assert predicted(tmp_path, Views(short_sides=(24, 48, 72), flip=True)) == plain
  assert len({one["file_name"] for one in plain}) == len(source) - 1
  with pytest.raises(EvaluationError, match="tiles are looked at by one view each"):
    predicted(tmp_path, Views(flip=True), Tiles(20))


@pytest.mark.parametrize(
  "change, message",
  [
    ("evaluation.views.short_sides=()", "evaluation.views.short_sides is empty: it needs at least one value"),
    ("evaluation.views.short_sides=(480,0)", r"evaluation.views.short_sides is \(480, 0\): it must be at least 1"),
    ("evaluation.views.long_side=0", "evaluation.views.long_side is 0: it must be at least 1"),
    ("evaluation.views.flip=2", "evaluation.views.flip: expected bool"),
  ],
)
def test_views_that_make_no_sense_are_told(change, message):
  with pytest.raises(ExperimentError, match=message):
    ranges.check(experiments.load("demo").set([change]))


def test_views_are_set_on_the_command_line():
  changed = experiments.load("demo").set(["evaluation.views.flip=true", "evaluation.views.short_sides=(48,64)"])
  assert changed.evaluation.views == Views(short_sides=(48, 64), flip=True)
  assert experiments.from_json(experiments.to_json(changed)) == changed

"""Operations against torchvision's recorded answers (tests/record_torchvision.py): the same inputs, the same numbers.

Continuous values agree to 1e-5 of their size, choices (of a level, a match, a surviving box) exactly. Where the
project differs from torchvision on purpose, a test says so.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcnn_jax.data import transforms
from rcnn_jax.evaluation.paste import paste, paste_rounded
from rcnn_jax.models.detector import blank_batch
from rcnn_jax.models.heads import BoxHead
from rcnn_jax.models.proposers import Rpn
from rcnn_jax.ops import anchors, assign, boxes, max_pooling, nms, pooling
from rcnn_jax.types import Proposals
from tests import filling
from tests.parity import close, recorded


def test_fixtures_say_what_recorded_them():
  versions = [name.split()[0] for name in recorded("roi_align")["recorded"][:-1]]
  assert versions == ["torch", "torchvision", "numpy"]


@pytest.mark.parametrize("ratio", filling.SAMPLING_RATIOS)
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align(aligned, ratio):
  features = filling.uniform("roi.features", filling.ROI_MAP)
  options = dict(spatial_scale=1 / filling.ROI_STRIDE, sampling_ratio=ratio, aligned=aligned)
  align = jax.jit(functools.partial(pooling.roi_align, output_size=filling.ROI_OUTPUT, **options))
  close(align(features, filling.roi_boxes()), recorded("roi_align")[f"aligned{int(aligned)}_ratio{ratio}"])


def test_roi_max_pooling():
  features = filling.uniform("roi.features", filling.ROI_MAP)
  options = dict(output_size=filling.ROI_OUTPUT, spatial_scale=1 / filling.ROI_STRIDE)
  pool = jax.jit(functools.partial(max_pooling.roi_max_pool, **options))
  np.testing.assert_array_equal(pool(features, filling.roi_boxes()), recorded("roi_pool")["pooled"])


@pytest.mark.parametrize("answer, grouped", [("kept", False), ("kept_by_group", True)])
def test_nms_keeps_the_same_boxes_in_the_same_order_though_scores_are_equal(answer, grouped):
  case, scores, groups = filling.nms_case()
  groups = jnp.asarray(groups) if grouped else None
  every = np.ones(len(case), bool)
  index, kept = nms.nms(case, scores, every, iou_threshold=0.5, max_output=60, groups=groups)
  expected = recorded("nms")[answer]
  np.testing.assert_array_equal(np.asarray(index)[np.asarray(kept)], expected)
  assert len(np.unique(scores[expected])) < len(expected) < len(case)


def grids_of(setting: dict) -> list[np.ndarray]:
  """Our anchors of each level of a setting."""
  height, width = setting["canvas"]
  return [
    anchors.grid((height // stride, width // stride), stride, sizes, filling.RATIOS)
    for sizes, stride in zip(setting["sizes"], setting["strides"])
  ]


@pytest.mark.parametrize("name, setting", [("single", filling.SINGLE), ("pyramid", filling.PYRAMID)])
def test_anchors(name, setting):
  for level, grid in enumerate(grids_of(setting)):
    np.testing.assert_array_equal(grid, recorded("anchors")[f"{name}{level}"])


def test_anchors_of_levels_whose_stride_does_not_divide_the_canvas():
  sizes, strides, cells = zip(*filling.UNEVEN["levels"])
  rpn = Rpn(anchor_sizes=sizes, canvas_strides=True)
  grids = rpn.grids(cells, strides, filling.UNEVEN["canvas"])
  np.testing.assert_array_equal(np.concatenate(grids), recorded("anchors_of_uneven_levels")["anchors"])
  # By their own strides, as Detectron2's, those of the coarser level lie elsewhere.
  fine, coarse = rpn.clone(canvas_strides=False).grids(cells, strides, filling.UNEVEN["canvas"])
  np.testing.assert_array_equal(fine, grids[0])
  assert coarse.shape == grids[1].shape and not np.array_equal(coarse, grids[1])


@pytest.mark.parametrize("name, weights", [("rpn", (1.0, 1.0, 1.0, 1.0)), ("heads", (10.0, 10.0, 5.0, 5.0))])
def test_box_coder_in_both_directions_and_beyond_the_clamp(name, weights):
  case, origins, deltas = filling.coder_case()
  assert (deltas[:, 2:] > boxes.MAX_LOG_SCALE).any()
  close(boxes.encode(case, origins, weights), recorded("box_coder")[f"encoded_{name}"])
  close(boxes.decode(deltas * np.float32(weights), origins, weights), recorded("box_coder")[f"decoded_{name}"])


@pytest.mark.parametrize("measure", [boxes.giou, boxes.diou, boxes.ciou], ids=["giou", "diou", "ciou"])
def test_losses_of_overlap_and_their_gradients(measure):
  predicted, targets = filling.overlap_case()
  name = measure.__name__
  close(1 - measure(predicted, targets), recorded("overlap_losses")[name])
  gradient = jax.grad(lambda predicted: (1 - measure(predicted, targets)).sum())(predicted)
  # Where both boxes are equal, a corner's gradient is any between its two sides': each side takes its own convention.
  close(gradient[:-3], recorded("overlap_losses")[f"gradient_{name}"][:-3])


def as_torchvision(match: assign.Match) -> np.ndarray:
  """The object of each region; -1 for background, -2 for what is neither."""
  return np.where(match.foreground, match.matched, np.where(match.background, -1, -2))


@pytest.mark.parametrize("answer, low, high", [("with_low_quality", 0.3, 0.7), ("without", 0.5, 0.5)])
def test_matcher(answer, low, high):
  regions, objects = filling.matcher_case()
  match = assign.match(
    boxes.iou(regions, objects),
    np.ones(len(objects), bool),
    foreground_iou=high,
    background_iou=low,
    allow_low_quality=answer == "with_low_quality",
  )
  np.testing.assert_array_equal(as_torchvision(match), recorded("matcher")[answer])


def test_an_object_that_no_region_touches_makes_everything_foreground_in_torchvision_and_nothing_here():
  regions, objects = filling.matcher_case()
  objects = np.concatenate([objects, np.float32([[500, 500, 510, 510]])])
  theirs = recorded("matcher")["with_an_untouched_object"]
  overlaps = boxes.iou(regions, objects)
  match = assign.match(
    overlaps, np.ones(len(objects), bool), foreground_iou=0.7, background_iou=0.3, allow_low_quality=True
  )
  np.testing.assert_array_equal(as_torchvision(match), recorded("matcher")["with_low_quality"])
  assert (theirs >= 0).all()


@pytest.mark.parametrize("answer, low, high", [("two_to_five", 2, 5), ("three_to_four", 3, 4)])
def test_each_box_is_routed_to_the_same_level(answer, low, high):
  found = pooling.level_of(filling.level_boxes(), min_level=low, max_level=high)
  np.testing.assert_array_equal(found, recorded("levels")[answer])


def images_of_two_sizes(canvas: tuple[int, int]):
  """A batch of blank images of IMAGE_SIZES."""
  return blank_batch(2, canvas).replace(image_size=jnp.array(filling.IMAGE_SIZES))


def same_rows(found, answers: dict, prefix: str = "") -> None:
  """The valid rows of each image are the recorded ones, in their order."""
  for i, valid in enumerate(np.asarray(found.valid)):
    expected = {name: answers[f"{prefix}{name}{i}"] for name in ("boxes", "scores")}
    assert valid.sum() == len(expected["boxes"])
    close(found.boxes[i][valid], expected["boxes"])
    close(found.scores[i][valid], expected["scores"])


@pytest.mark.parametrize("name, setting", [("single", filling.SINGLE), ("pyramid", filling.PYRAMID)])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_proposals_of_given_logits_and_deltas(name, setting, mode):
  before, after = (tuple(counts.values()) for counts in filling.PROPOSAL_COUNTS)
  rpn = Rpn(anchor_sizes=setting["sizes"], num_pre_nms=before, num_post_nms=after, nms_iou=filling.PROPOSAL_NMS)
  propose = jax.jit(functools.partial(rpn.propose, train=mode == "train"))
  found = propose(*filling.proposal_case(setting), grids_of(setting), images_of_two_sizes(setting["canvas"]))
  same_rows(found, recorded("proposals"), f"{name}_{mode}_")


def test_detections_of_given_logits_and_deltas():
  logits, deltas, regions = filling.detection_case()
  head = BoxHead(score_threshold=0.05, nms_iou=0.5, max_detections=filling.MAX_DETECTIONS)
  proposals = Proposals(regions, np.ones((2, 40), np.float32), np.ones((2, 40), bool))
  # torchvision also regresses boxes of the background.
  found = jax.jit(head.detections)(logits, deltas[:, :, 1:], proposals, images_of_two_sizes((64, 96)))
  answers = recorded("detections")
  same_rows(found, answers)
  for i, valid in enumerate(np.asarray(found.valid)):
    np.testing.assert_array_equal(found.classes[i][valid], answers[f"classes{i}"])


@pytest.mark.parametrize("case", range(len(filling.RESIZED)))
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-3), (np.uint8, 1.0)])
def test_resizing_floats_is_torchvisions_and_bytes_are_within_one_level(case, dtype, tolerance):
  old, new = filling.RESIZED[case]
  resized = transforms.resize(filling.image(f"resize.{case}", old).astype(dtype), new)
  assert np.abs(resized - recorded("resize")[f"pixels{case}"]).max() < tolerance


@pytest.mark.parametrize("short, long", filling.RESIZE_RULES)
def test_resized_images_have_the_same_size(short, long):
  found = [transforms.resized_size(size, transforms.Resize((short,), long)) for size in filling.ORIGINAL_SIZES]
  np.testing.assert_array_equal(found, recorded("resize")[f"sizes_{short}_{long}"])


def test_masks_are_pasted_into_the_same_pixels():
  probabilities, cases, size = filling.paste_case()
  theirs = np.unpackbits(recorded("pasting")["bits"])[: len(cases) * size[0] * size[1]].reshape(-1, *size)
  ours = np.stack([paste_rounded(mask, box, size) for mask, box in zip(probabilities, cases)])
  assert (ours != theirs).mean() <= 1e-5  # ties of float32
  exact = np.stack([paste(mask, box, size) for mask, box in zip(probabilities, cases)])
  assert 0.005 < (exact != theirs).mean() < 0.03  # Detectron2's pixels are others

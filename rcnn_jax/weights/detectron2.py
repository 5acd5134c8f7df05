"""Detectron2's detectors: names and layouts of their parameters, both ways (see `library`).

The name follows from the path by rule: `backbone/bottom_up/layer1/block0/conv1/kernel` is
`backbone.bottom_up.res2.0.conv1.weight`. Images are BGR there, so that the first convolution's inputs are reversed;
the background is the last class; the anchors of a cell are ordered by size, then ratio, here by ratio, then size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rcnn_jax.ops import anchors
from rcnn_jax.weights import backbone
from rcnn_jax.weights.errors import WeightsError
from rcnn_jax.weights.library import DECONVOLUTION, FIRST_OF_ROI, Layout, Library, Tensors, renamed

BLOCK = r"layer(\d)/block(\d+)"
stage = lambda match: f"res{int(match[1]) + 1}.{match[2]}"
# A module of the residual network and Detectron2's name; norms belong to their convolution there.
RESNET = (
  (r"conv1", "stem.conv1"),
  (r"bn1(?:/norm)?", "stem.conv1.norm"),
  (rf"{BLOCK}/conv(\d)", lambda match: f"{stage(match)}.conv{match[3]}"),
  (rf"{BLOCK}/bn(\d)(?:/norm)?", lambda match: f"{stage(match)}.conv{match[3]}.norm"),
  (rf"{BLOCK}/downsample", lambda match: f"{stage(match)}.shortcut"),
  (rf"{BLOCK}/downsample_bn(?:/norm)?", lambda match: f"{stage(match)}.shortcut.norm"),
)
# Our path before such a module and Detectron2's: below a pyramid, bare, over each RoI.
PREFIXES = (
  ("backbone/bottom_up/", "backbone.bottom_up."),
  ("backbone/", "backbone."),
  ("trunk/", "roi_heads."),
)
MODULES = (
  (r"backbone/lateral(\d+)", lambda match: f"backbone.fpn_lateral{int(match[1]) + 2}"),
  (r"backbone/output(\d+)", lambda match: f"backbone.fpn_output{int(match[1]) + 2}"),
  (r"proposer/conv", "proposal_generator.rpn_head.conv"),
  (r"proposer/objectness", "proposal_generator.rpn_head.objectness_logits"),
  (r"proposer/deltas", "proposal_generator.rpn_head.anchor_deltas"),
  (r"trunk/fc(\d+)", lambda match: f"roi_heads.box_head.fc{int(match[1]) - 5}"),
  (r"box/classes", "roi_heads.box_predictor.cls_score"),
  (r"box/deltas", "roi_heads.box_predictor.bbox_pred"),
  (r"mask/conv(\d+)", r"roi_heads.mask_head.mask_fcn\1"),
  (r"mask/deconv", "roi_heads.mask_head.deconv"),
  (r"mask/masks", "roi_heads.mask_head.predictor"),
  (r"keypoint/conv(\d+)", r"roi_heads.keypoint_head.conv_fcn\1"),
  (r"keypoint/deconv", "roi_heads.keypoint_head.score_lowres"),
)
# In a cascade these come first: there each stage has its number, here those after the first one.
CASCADE = (
  (r"trunk/fc(\d+)", lambda match: f"roi_heads.box_head.0.fc{int(match[1]) - 5}"),
  (r"trunks_(\d+)/fc(\d+)", lambda match: f"roi_heads.box_head.{match[1]}.fc{int(match[2]) - 5}"),
  (r"box/classes", "roi_heads.box_predictor.0.cls_score"),
  (r"box_heads_(\d+)/classes", r"roi_heads.box_predictor.\1.cls_score"),
  (r"box/deltas", "roi_heads.box_predictor.0.bbox_pred"),
  (r"box_heads_(\d+)/deltas", r"roi_heads.box_predictor.\1.bbox_pred"),
)
REVERSED_INPUTS = Layout(lambda tensor, detector: tensor[:, ::-1], lambda tensor, detector: tensor[:, ::-1])
BACKGROUND_LAST = Layout(
  lambda tensor, detector: np.roll(tensor, 1, axis=0), lambda tensor, detector: np.roll(tensor, -1, axis=0)
)
BY_SIZE = Layout(
  lambda tensor, detector: _transposed(tensor, _anchor_counts(detector)),
  lambda tensor, detector: _transposed(tensor, _anchor_counts(detector)[::-1]),
)
LAYOUTS = (
  (r"backbone/(bottom_up/)?conv1/kernel", REVERSED_INPUTS),
  (r"proposer/(objectness|deltas)/.*", BY_SIZE),
  (r"trunk(s_\d+)?/fc6/kernel", FIRST_OF_ROI),
  (r"box(_heads_\d+)?/classes/.*", BACKGROUND_LAST),
  (r"(mask|keypoint)/deconv/kernel", DECONVOLUTION),
)
CELL_ANCHORS = "proposal_generator.anchor_generator.cell_anchors."


def name_of(path: str, detector: Any) -> str | None:
  """Detectron2's name of a path: 'trunk/fc6/bias' -> 'roi_heads.box_head.fc1.bias'; None for what it has not."""
  module, _, leaf = path.rpartition("/")
  theirs = renamed(CASCADE + MODULES if detector.cascade else MODULES, module)
  for ours, prefix in PREFIXES:
    if theirs is None and module.startswith(ours):
      inner = renamed(RESNET, module.removeprefix(ours))
      theirs = inner and prefix + inner
  return theirs and f"{theirs}.{backbone.LEAVES[leaf]}"


def prepare(tensors: Tensors, detector: Any) -> Tensors:
  """The parameters alone, once the constants that older files hold beside them are those of the detector.

  Raises:
    WeightsError: other pixel statistics or other anchors.
  """
  net, proposer = detector.backbone, detector.proposer
  constants = {"pixel_mean": net.pixel_mean[::-1], "pixel_std": net.pixel_std[::-1]}
  for level, sizes in enumerate(getattr(proposer, "anchor_sizes", ())):
    cell = anchors.cell_anchors(sizes, proposer.anchor_ratios, rounded=proposer.rounded_anchors)
    constants[f"{CELL_ANCHORS}{level}"] = _transposed(cell, (len(proposer.anchor_ratios), len(sizes)))
  for name, ours in constants.items():
    theirs = tensors.get(name)
    if theirs is not None and not _same(theirs, np.asarray(ours)):
      raise WeightsError(f"{name} is {_rounded(theirs)}, the model's, in the file's order, {_rounded(ours)}")
  return {k: v for k, v in tensors.items() if k not in constants and not k.endswith(".num_batches_tracked")}


LIBRARY = Library(
  title="Detectron2",
  mark="proposal_generator.",
  classes=("roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.0.cls_score.weight"),
  name_of=name_of,
  layouts=LAYOUTS,
  prepare=prepare,
  class_agnostic=True,
)
load, export = LIBRARY.load, LIBRARY.export


def _anchor_counts(detector: Any) -> tuple[int, int]:
  """(sizes, ratios) of a cell."""
  return len(detector.proposer.anchor_sizes[0]), len(detector.proposer.anchor_ratios)


def _transposed(rows: np.ndarray, counts: tuple[int, int]) -> np.ndarray:
  """Rows that go by the first of two indices and then by the second, the other way round."""
  return rows.reshape(*counts, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def _same(theirs: np.ndarray, ours: np.ndarray) -> bool:
  return theirs.size == ours.size and bool(np.allclose(theirs.reshape(ours.shape), ours, rtol=0, atol=1e-2))


def _rounded(numbers: Any) -> list[float]:
  return np.round(np.asarray(numbers, np.float64), 3).reshape(-1).tolist()

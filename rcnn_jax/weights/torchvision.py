"""torchvision's detectors: names and layouts of their parameters, both ways (see `library`).

The name follows from the path by rule: `backbone/bottom_up/layer1/block0/conv1/kernel` is
`backbone.body.layer1.0.conv1.weight`. The predictors of boxes and masks have rows for the background.
"""

from __future__ import annotations

from typing import Any

from rcnn_jax.weights import backbone
from rcnn_jax.weights.library import DECONVOLUTION, FIRST_OF_ROI, Library, Tensors, renamed, unused_rows

# Our module's path and torchvision's, of all parts but the network below the pyramid.
MODULES = (
  (r"backbone/lateral(\d+)", r"backbone.fpn.inner_blocks.\1.0"),
  (r"backbone/output(\d+)", r"backbone.fpn.layer_blocks.\1.0"),
  (r"backbone/lateral(\d+)_bn", r"backbone.fpn.inner_blocks.\1.1"),
  (r"backbone/output(\d+)_bn", r"backbone.fpn.layer_blocks.\1.1"),
  (r"proposer/conv", "rpn.head.conv.0.0"),
  (r"proposer/conv(\d+)", lambda match: f"rpn.head.conv.{int(match[1]) - 1}.0"),
  (r"proposer/objectness", "rpn.head.cls_logits"),
  (r"proposer/deltas", "rpn.head.bbox_pred"),
  (r"trunk/fc([67])", r"roi_heads.box_head.fc\1"),
  (r"trunk/conv(\d+)", lambda match: f"roi_heads.box_head.{int(match[1]) - 1}.0"),
  (r"trunk/bn(\d+)", lambda match: f"roi_heads.box_head.{int(match[1]) - 1}.1"),
  (r"trunk/fc1", "roi_heads.box_head.5"),  # behind four convolutions and the flattening
  (r"box/classes", "roi_heads.box_predictor.cls_score"),
  (r"box/deltas", "roi_heads.box_predictor.bbox_pred"),
  (r"mask/conv(\d+)", lambda match: f"roi_heads.mask_head.{int(match[1]) - 1}.0"),
  (r"mask/bn(\d+)", lambda match: f"roi_heads.mask_head.{int(match[1]) - 1}.1"),
  (r"mask/deconv", "roi_heads.mask_predictor.conv5_mask"),
  (r"mask/masks", "roi_heads.mask_predictor.mask_fcn_logits"),
  (r"keypoint/conv(\d+)", lambda match: f"roi_heads.keypoint_head.{2 * (int(match[1]) - 1)}"),
  (r"keypoint/deconv", "roi_heads.keypoint_predictor.kps_score_lowres"),
)
LAYOUTS = (
  (r"trunk/fc[16]/kernel", FIRST_OF_ROI),
  (r"(mask|keypoint)/deconv/kernel", DECONVOLUTION),
  (r"box/deltas/.*", unused_rows(4)),
  (r"mask/masks/.*", unused_rows(1)),
)
# Names of files from before torchvision 0.15, and what they have become.
FORMER = (
  (r"backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(weight|bias)", r"backbone.fpn.\1_blocks.\2.0.\3"),
  (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
  (
    r"roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)",
    lambda match: f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}",
  ),
)


def name_of(path: str, detector: Any) -> str | None:
  """torchvision's name of a path: 'trunk/fc6/bias' -> 'roi_heads.box_head.fc6.bias'; None for what it has not."""
  del detector
  if path.startswith("backbone/bottom_up/"):
    return f"backbone.body.{backbone.torchvision_name(path.removeprefix('backbone/bottom_up/'), {})}"
  module, _, leaf = path.rpartition("/")
  theirs = renamed(MODULES, module)
  return theirs and f"{theirs}.{backbone.LEAVES[leaf]}"


def prepare(tensors: Tensors, detector: Any) -> Tensors:
  """The tensors by their present names, without the counters of batch norm."""
  del detector
  kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}
  return {renamed(FORMER, name) or name: tensor for name, tensor in kept.items()}


LIBRARY = Library(
  title="torchvision",
  mark="rpn.",
  classes=("roi_heads.box_predictor.cls_score.weight",),
  name_of=name_of,
  layouts=LAYOUTS,
  prepare=prepare,
  class_agnostic=False,
)
load, export = LIBRARY.load, LIBRARY.export

"""torchvision's detectors: names and layouts of their parameters, both ways.

The name follows from the path by rule: `backbone/bottom_up/layer1/block0/conv1/kernel` is
`backbone.body.layer1.0.conv1.weight`. Kernels are transposed (OIHW, [out, in] there; HWIO, [in, out] here). Some
layers differ by more than that. The first one over a pooled RoI reads its cells channel by channel there (CHW) and
cell by cell here (HWC). The predictors of boxes and masks have rows for the background there, which nothing ever
reads: they are left out here, and are zeros in what is exported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from flax import traverse_util

from rcnn_jax.weights import backbone
from rcnn_jax.weights.errors import WeightsError, listed

CLASSES = "roi_heads.box_predictor.cls_score.weight"
# Our module's path and torchvision's, of all parts but the network below the pyramid.
MODULES = (
  (r"backbone/lateral(\d+)", r"backbone.fpn.inner_blocks.\1.0"),
  (r"backbone/output(\d+)", r"backbone.fpn.layer_blocks.\1.0"),
  (r"proposer/conv", "rpn.head.conv.0.0"),
  (r"proposer/objectness", "rpn.head.cls_logits"),
  (r"proposer/deltas", "rpn.head.bbox_pred"),
  (r"trunk/fc([67])", r"roi_heads.box_head.fc\1"),
  (r"box/classes", "roi_heads.box_predictor.cls_score"),
  (r"box/deltas", "roi_heads.box_predictor.bbox_pred"),
  (r"mask/conv(\d+)", lambda match: f"roi_heads.mask_head.{int(match[1]) - 1}.0"),
  (r"mask/deconv", "roi_heads.mask_predictor.conv5_mask"),
  (r"mask/masks", "roi_heads.mask_predictor.mask_fcn_logits"),
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
# The layers whose layouts differ by more than one transposition (see above), by path.
FIRST_OF_ROI = "trunk/fc6/kernel"
DECONVOLUTION = "mask/deconv/kernel"  # IOHW there
BACKGROUND_ROWS = {"box/deltas": 4, "mask/masks": 1}


def num_classes(tensors: dict[str, np.ndarray]) -> int:
  """K, without the background; raises WeightsError where the tensors are not a detector's."""
  if CLASSES not in tensors:
    raise WeightsError(f"no tensor {CLASSES}: not a detector of torchvision's")
  return tensors[CLASSES].shape[0] - 1


def load(tensors: dict[str, np.ndarray], variables: dict, detector: Any, skip: str | None = None) -> dict:
  """`variables` with the values of a detector of torchvision's.

  Args:
    tensors: all of them, by torchvision's names (those of older files too).
    variables: of the same architecture; only shapes and dtypes are read, but for what is skipped.
    detector: the Detector that they belong to.
    skip: a regular expression; variables whose whole path ('box/classes/kernel') matches it stay as they are.

  Raises:
    WeightsError: naming every kind of misfit: a tensor that is missing or has another shape, holds NaN, or that
      nothing here answers to.
  """
  tensors = {_present_name(name): t for name, t in tensors.items() if not name.endswith(".num_batches_tracked")}
  flat = traverse_util.flatten_dict(variables, sep="/")
  names = _names(flat, detector)
  skipped = _matching(skip, flat) if skip else set()
  taken = {path: name for path, name in names.items() if path not in skipped}
  missing = sorted(f"no tensor {name} (for {path})" for path, name in taken.items() if name not in tensors)
  unused = sorted(f"nothing here answers to {name}" for name in set(tensors) - set(names.values()))
  present = {path: tensors[name] for path, name in taken.items() if name in tensors}
  unfit = [_misfit(path, names[path], tensor, flat[path], detector) for path, tensor in present.items()]
  faults = [fault for fault in unfit if fault], missing, unused
  if any(faults):
    raise WeightsError("; ".join(listed(kind) for kind in faults if kind))
  loaded = {path: _to_ours(path, tensor, detector) for path, tensor in present.items()}
  return traverse_util.unflatten_dict(flat | loaded, sep="/")


def export(variables: dict, detector: Any) -> dict[str, np.ndarray]:
  """The variables as torchvision's state dict, float32; `load` gives them back to the last bit.

  Raises:
    WeightsError: a part that torchvision's detectors do not have.
  """
  flat = traverse_util.flatten_dict(variables, sep="/")
  theirs = {path: _to_theirs(path, np.asarray(leaf), detector) for path, leaf in flat.items()}
  return {name: np.ascontiguousarray(theirs[path]) for path, name in _names(flat, detector).items()}


def _matching(skip: str, paths: Iterable[str]) -> set[str]:
  try:
    found = {path for path in paths if re.fullmatch(skip, path.partition("/")[2])}
  except re.error as error:
    raise WeightsError(f"{skip!r} is no regular expression: {error}") from error
  if not found:
    raise WeightsError(f"{skip!r} matches no parameter's path, such as 'box/classes/kernel'")
  return found


def _names(paths: Iterable[str], detector: Any) -> dict[str, str]:
  if any(head is not None and head.class_agnostic for head in (detector.box, detector.mask)):
    raise WeightsError("torchvision's predictors are not class-agnostic")
  return {path: name_of(path) for path in paths}


def name_of(path: str) -> str:
  """torchvision's name of a variable: 'params/trunk/fc6/bias' -> 'roi_heads.box_head.fc6.bias'.

  Raises:
    WeightsError: torchvision's detectors have no such part.
  """
  _, _, inner = path.partition("/")
  if inner.startswith("backbone/bottom_up/"):
    return f"backbone.body.{backbone.torchvision_name(inner.removeprefix('backbone/bottom_up/'), {})}"
  module, _, leaf = inner.rpartition("/")
  for pattern, theirs in MODULES:
    if re.fullmatch(pattern, module):
      return f"{re.sub(pattern, theirs, module)}.{backbone.LEAVES[leaf]}"
  raise WeightsError(f"torchvision's detectors have nothing like {inner}")


def _present_name(name: str) -> str:
  for former, present in FORMER:
    name = re.sub(f"^{former}$", present, name)
  return name


def _misfit(path: str, name: str, tensor: np.ndarray, leaf: Any, detector: Any) -> str | None:
  """Why a tensor cannot become the variable `leaf`, or None."""
  expected = _to_theirs(path, np.broadcast_to(np.float32(0), leaf.shape), detector).shape
  if tensor.shape != expected:
    return f"{name} is {tensor.shape}, the model has {expected}"
  if not np.isfinite(tensor).all():
    return f"{name} holds NaN or infinity"
  return None


def _to_ours(path: str, tensor: np.ndarray, detector: Any) -> np.ndarray:
  """A tensor in torchvision's layout, as ours; float32."""
  inner = path.partition("/")[2]
  if inner == DECONVOLUTION:
    tensor = tensor.swapaxes(0, 1)
  if inner == FIRST_OF_ROI:
    side = detector.pool.output_size
    tensor = tensor.reshape(len(tensor), -1, side, side).transpose(0, 2, 3, 1).reshape(tensor.shape)
  tensor = tensor[_background_rows(inner) :]
  return np.ascontiguousarray(backbone.to_flax(tensor))


def _to_theirs(path: str, leaf: np.ndarray, detector: Any) -> np.ndarray:
  """The inverse of `_to_ours`."""
  inner = path.partition("/")[2]
  tensor = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
  rows = _background_rows(inner)
  if rows:
    tensor = np.concatenate([np.zeros_like(tensor[:1]).repeat(rows, axis=0), tensor])
  if inner == FIRST_OF_ROI:
    side = detector.pool.output_size
    tensor = tensor.reshape(len(tensor), side, side, -1).transpose(0, 3, 1, 2).reshape(tensor.shape)
  return tensor.swapaxes(0, 1) if inner == DECONVOLUTION else tensor


def _background_rows(inner: str) -> int:
  return BACKGROUND_ROWS.get(inner.rpartition("/")[0], 0)

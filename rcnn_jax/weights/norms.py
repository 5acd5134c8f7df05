"""The epsilon of a detector's batch norms, which no tensor of a file holds, and what tells it.

torchvision builds its first detectors (Faster, Mask and Keypoint R-CNN on a ResNet-50-FPN) with three kinds of norms:

- with its published weights, FrozenBatchNorm2d, whose epsilon it sets to 0;
- with an ImageNet backbone, FrozenBatchNorm2d, whose epsilon is 1e-5;
- without any weights, BatchNorm2d, whose epsilon is 1e-5 and which counts its batches in `num_batches_tracked`.

Their other detectors, and all of Detectron2's, have 1e-5.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

from rcnn_jax.weights.library import Library

EPSILON = 1e-5  # of PyTorch's norms, torchvision's frozen ones and Detectron2's
COUNTER = ".num_batches_tracked"
# What the published files with an epsilon of 0 begin with, as SHA-256, in hexadecimal; it is part of their names.
PUBLISHED = ("258fb6c6", "bf2d0c1e", "fc266e95")  # fasterrcnn, maskrcnn and keypointrcnn_resnet50_fpn_coco-*.pth


def implied_epsilon(library: Library, names: Iterable[str], path: str) -> tuple[float, str] | None:
  """(the epsilon of the norms of a detector's residual network, what tells it); None where nothing does.

  Args:
    library: whose detector it is.
    names: of the file's tensors.
    path: of the file.
  """
  if library.title == "Detectron2":
    return EPSILON, "Detectron2's norms"
  if any(name.startswith("backbone.body.") and name.endswith(COUNTER) for name in names):
    return EPSILON, f"PyTorch's batch norms, by their {COUNTER.removeprefix('.')}"
  if digest(path).startswith(PUBLISHED):
    return 0.0, "torchvision's published weights"
  return None


def digest(path: str) -> str:
  """The SHA-256 of a file, in hexadecimal."""
  with open(os.path.expanduser(path), "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()

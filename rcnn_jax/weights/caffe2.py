"""MSRA's ResNets, as Caffe2 named them and Detectron2 starts from them (R-50.pkl), by torchvision's names.

Their batch norms are a scale and a shift, in which the statistics are already contained; their images are BGR.
"""

from __future__ import annotations

import re

import numpy as np

MARK = "res2_0_branch2a_w"  # which every ResNet of theirs has
EPSILON = 1e-5  # of the norms here: with a variance of 1 less this, they divide by 1 exactly
BRANCHES = {"1": "downsample", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
NORMS = {"downsample": "downsample.1", "conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}


def as_torchvision(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors of the network by torchvision's names and in its layout; the classifier's are left out."""
  named: dict[str, np.ndarray] = {}
  for name, tensor in tensors.items():
    stem = re.fullmatch(r"(?:res_)?conv1_(?:bn_)?([wsb])", name)
    inner = re.fullmatch(r"res(\d)_(\d+)_branch(1|2[abc])_(?:bn_)?([wsb])", name)
    if stem and name != "conv1_b":  # the first convolution's bias is zero: its norm's shift follows
      named |= _layer("conv1", "bn1", stem[1], tensor[:, ::-1] if tensor.ndim == 4 else tensor)
    elif inner:
      block, layer = f"layer{int(inner[1]) - 1}.{inner[2]}", BRANCHES[inner[3]]
      kernel = "downsample.0" if layer == "downsample" else layer
      named |= _layer(f"{block}.{kernel}", f"{block}.{NORMS[layer]}", inner[4], tensor)
  return named


def _layer(convolution: str, norm: str, kind: str, tensor: np.ndarray) -> dict[str, np.ndarray]:
  """What a tensor is of a convolution (w, its kernel) or of the norm behind it (s and b, its scale and shift)."""
  if kind == "w":
    return {f"{convolution}.weight": tensor}
  if kind == "b":
    return {f"{norm}.bias": tensor, f"{norm}.running_mean": np.zeros_like(tensor)}
  return {f"{norm}.weight": tensor, f"{norm}.running_var": np.full_like(tensor, 1 - EPSILON)}

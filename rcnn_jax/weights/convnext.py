"""The names that torchvision and timm give to the parameters of a ConvNeXt."""

from __future__ import annotations

import re

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
TORCHVISION = {"dwconv": "block.0", "norm": "block.2", "pwconv1": "block.3", "pwconv2": "block.5"}
TIMM = {"dwconv": "conv_dw", "norm": "norm", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"}


def is_convnext(paths) -> bool:
  """Whether these are the paths of a ConvNeXt's parameters."""
  return any(path.startswith("stem_norm/") for path in paths)


def torchvision_name(path: str) -> str | None:
  """'stage1/block0/dwconv/kernel' -> 'features.1.0.block.0.weight'; None for a norm of the outputs."""
  module, _, leaf = path.rpartition("/")
  if block := re.fullmatch(r"stage(\d)/block(\d+)(?:/(\w+))?", module):
    stage, number, layer = block.groups()
    below = f"features.{2 * int(stage) - 1}.{number}"
    return f"{below}.layer_scale" if layer is None else f"{below}.{TORCHVISION[layer]}.{LEAVES[leaf]}"
  if module.startswith("output_norm"):
    return None
  if module.startswith("stem"):
    return f"features.0.{int(module == 'stem_norm')}.{LEAVES[leaf]}"
  number = int(module.removeprefix("downsample")[0])
  return f"features.{2 * number - 2}.{0 if module.endswith('_norm') else 1}.{LEAVES[leaf]}"


def timm_name(path: str) -> str | None:
  """'stage1/block0/dwconv/kernel' -> 'stages.0.blocks.0.conv_dw.weight'; None as for torchvision."""
  module, _, leaf = path.rpartition("/")
  if block := re.fullmatch(r"stage(\d)/block(\d+)(?:/(\w+))?", module):
    stage, number, layer = block.groups()
    below = f"stages.{int(stage) - 1}.blocks.{number}"
    return f"{below}.gamma" if layer is None else f"{below}.{TIMM[layer]}.{LEAVES[leaf]}"
  if module.startswith("output_norm"):
    return None
  if module.startswith("stem"):
    return f"stem.{int(module == 'stem_norm')}.{LEAVES[leaf]}"
  number = int(module.removeprefix("downsample")[0])
  return f"stages.{number - 1}.downsample.{0 if module.endswith('_norm') else 1}.{LEAVES[leaf]}"

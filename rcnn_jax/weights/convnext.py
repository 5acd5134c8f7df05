"""The names that torchvision and timm give to the parameters of a ConvNeXt."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class _Names:
  """How a library names the parts, by our numbers: stages and downsamplings from 1, blocks from 0."""

  block: Callable[[int, int], str]  # of (stage, block)
  layers: dict[str, str]
  layer_scale: str
  stem: str
  downsample: Callable[[int], str]


TORCHVISION = _Names(
  block=lambda stage, block: f"features.{2 * stage - 1}.{block}",
  layers={"dwconv": "block.0", "norm": "block.2", "pwconv1": "block.3", "pwconv2": "block.5"},
  layer_scale="layer_scale",
  stem="features.0",
  downsample=lambda number: f"features.{2 * number - 2}",
)
TIMM = _Names(
  block=lambda stage, block: f"stages.{stage - 1}.blocks.{block}",
  layers={"dwconv": "conv_dw", "norm": "norm", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"},
  layer_scale="gamma",
  stem="stem",
  downsample=lambda number: f"stages.{number - 1}.downsample",
)


def is_convnext(paths: Iterable[str]) -> bool:
  """Whether these are the paths of a ConvNeXt's parameters."""
  return any(path.startswith("stem_norm/") for path in paths)


def torchvision_name(path: str) -> str | None:
  """'stage1/block0/dwconv/kernel' -> 'features.1.0.block.0.weight'; None for a norm of the outputs."""
  return _name(path, TORCHVISION)


def timm_name(path: str) -> str | None:
  """'stage1/block0/dwconv/kernel' -> 'stages.0.blocks.0.conv_dw.weight'; None as for torchvision."""
  return _name(path, TIMM)


def _name(path: str, names: _Names) -> str | None:
  module, _, leaf = path.rpartition("/")
  if module.startswith("output_norm"):
    return None
  if block := re.fullmatch(r"stage(\d)/block(\d+)(?:/(\w+))?", module):
    stage, number, layer = block.groups()
    below = names.block(int(stage), int(number))
    return f"{below}.{names.layer_scale}" if layer is None else f"{below}.{names.layers[layer]}.{LEAVES[leaf]}"
  part = module.removesuffix("_norm")
  is_norm = part != module
  if part == "stem":  # the convolution stands before its norm, and where the maps get smaller, behind it
    return f"{names.stem}.{int(is_norm)}.{LEAVES[leaf]}"
  return f"{names.downsample(int(part.removeprefix('downsample')))}.{int(not is_norm)}.{LEAVES[leaf]}"

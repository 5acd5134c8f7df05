"""ResNet-18, 34, 50 and 101 (arXiv:1512.03385)."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn

from rcnn_jax.models.layers import Conv, Norm, max_pool, norm
from rcnn_jax.models.protocols import Context
from rcnn_jax.types import Array

Depth = Literal[18, 34, 50, 101]
# Blocks a stage, and whether a block is a bottleneck.
DEPTHS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True), 101: ((3, 4, 23, 3), True)}


class Block(nn.Module):
  """A residual block: two 3×3 convolutions, or 1×1, 3×3, 1×1 with four times the channels (bottleneck)."""

  width: int
  bottleneck: bool
  stride: int = 1
  dilation: int = 1
  norm: Norm = "frozen"
  norm_epsilon: float = 1e-5
  stride_in_1x1: bool = False

  @nn.compact
  def __call__(self, x: Array, train: bool, valid: Array | None = None) -> Array:
    def layer(y: Array, index: int, features: int, **kwargs) -> Array:
      y = Conv(features, use_bias=False, name=f"conv{index}", **kwargs)(y)
      return norm(self.norm, f"bn{index}", self.norm_epsilon)(y, train, valid)

    first, second = (self.stride, 1) if self.stride_in_1x1 and self.bottleneck else (1, self.stride)
    spatial = dict(kernel_size=3, stride=second, dilation=self.dilation)
    if self.bottleneck:
      out = 4 * self.width
      y = nn.relu(layer(x, 1, self.width, stride=first))
      y = nn.relu(layer(y, 2, self.width, **spatial))
      y = layer(y, 3, out)
    else:
      out = self.width
      y = nn.relu(layer(x, 1, out, **spatial))
      y = layer(y, 2, out, kernel_size=3)
    if x.shape[-1] != out or self.stride != 1:
      x = Conv(out, stride=self.stride, use_bias=False, name="downsample")(x)
      x = norm(self.norm, "downsample_bn", self.norm_epsilon)(x, train, valid)
    return nn.relu(x + y)


class Stage(nn.Module):
  """One of a ResNet's four stages, conv2_x to conv5_x in the paper, layer1 to layer4 in torchvision."""

  depth: Depth
  index: int  # 1..4
  stride: int
  dilation: int = 1
  norm: Norm = "frozen"
  norm_epsilon: float = 1e-5
  stride_in_1x1: bool = False

  @nn.compact
  def __call__(self, x: Array, train: bool = False, valid: Array | None = None) -> Array:
    """x: f[B, H, W, C] -> f[B, H/stride, W/stride, C']; valid: bool[B], the rows that batch norm learns from."""
    blocks, bottleneck = DEPTHS[self.depth]
    width = 64 * 2 ** (self.index - 1)
    for i in range(blocks[self.index - 1]):
      stride = self.stride if i == 0 else 1
      options = (self.dilation, self.norm, self.norm_epsilon, self.stride_in_1x1)
      x = Block(width, bottleneck, stride, *options, name=f"block{i}")(x, train, valid)
    return x


class ResNet(nn.Module):
  """A ResNet's features: `levels` names the stages (2 for C2 to 5 for C5) whose outputs are handed on.

  levels=(4,) is the C4 backbone, (5,) C5, (2, 3, 4, 5) what an FPN needs; stages beyond the last level are not
  built. `norm` is 'frozen' (fixed statistics and affine), 'batch' (trainable, synchronised) or 'group'.
  """

  depth: Depth = 50
  levels: tuple[Literal[2, 3, 4, 5], ...] = (2, 3, 4, 5)
  norm: Norm = "frozen"
  norm_epsilon: float = 1e-5  # the weights' own: torchvision's first detectors have 0
  dilate_c5: bool = False  # DC5: stage 5 keeps stride 16 and is dilated instead, its first block too (Detectron2)
  stride_in_1x1: bool = False  # a bottleneck's; True: MSRA's ResNets, from which Detectron2 starts
  remat: tuple[Literal[2, 3, 4, 5], ...] = ()  # stages computed anew in the backward pass: less memory, more time
  pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
  pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

  @property
  def strides(self) -> tuple[int, ...]:
    """Canvas pixels per feature cell, a level."""
    return tuple(16 if level == 5 and self.dilate_c5 else 2**level for level in self.levels)

  @nn.compact
  def __call__(self, x: Array, context: Context = Context()) -> tuple[Array, ...]:
    """x: normalised images f[B, H, W, 3] -> one f[B, H/stride, W/stride, C] a level."""
    x = Conv(64, kernel_size=7, stride=2, use_bias=False, name="conv1")(x)
    x = max_pool(nn.relu(norm(self.norm, "bn1", self.norm_epsilon)(x, context.train, context.valid)), 3, 2, padding=1)
    outputs = {}
    for level in range(2, max(self.levels) + 1):
      dilated = level == 5 and self.dilate_c5
      stride = 1 if level == 2 or dilated else 2
      options = (2 if dilated else 1, self.norm, self.norm_epsilon, self.stride_in_1x1)
      # `train` of the call, counted from `self`, decides what is traced.
      cls = nn.remat(Stage, static_argnums=(2,)) if level in self.remat else Stage
      stage = cls(self.depth, level - 1, stride, *options, name=f"layer{level - 1}")
      x = outputs[level] = stage(x, context.train, context.valid)
    return tuple(outputs[level] for level in self.levels)

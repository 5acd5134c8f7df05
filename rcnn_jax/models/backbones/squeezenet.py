"""SqueezeNet 1.1 (arXiv:1602.07360; the 1.1 revision of its authors, torchvision's layout)."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from rcnn_jax.models.layers import Conv, max_pool
from rcnn_jax.models.protocols import Context
from rcnn_jax.types import Array

# (squeeze, expand) channels of fire2 to fire9.
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
# Pooling stands after conv1, fire3 and fire5: the levels are fire3 (stride 4), fire5 (8) and fire9 (16).
LEVELS = {3: 4, 5: 8, 9: 16}


class Fire(nn.Module):
  """Squeeze to few channels, expand by 1×1 and 3×3 convolutions side by side."""

  squeeze: int
  expand: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = nn.relu(Conv(self.squeeze, name="squeeze")(x))
    pair = Conv(self.expand, name="expand1x1")(x), Conv(self.expand, kernel_size=3, name="expand3x3")(x)
    return nn.relu(jnp.concatenate(pair, axis=-1))


class SqueezeNet(nn.Module):
  """SqueezeNet 1.1's features: `levels` names the fires whose outputs are handed on.

  As published, neither conv1 nor a pooling pads, so that cell j of a level looks at the pixels about
  stride * j + stride - 1, nearly a whole cell from where anchors and RoI Align (not aligned) expect it. `padded`, it
  looks at stride * j, as a ResNet's does. The weights fit both.
  """

  levels: tuple[Literal[3, 5, 9], ...] = (9,)
  padded: bool = False
  pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
  pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

  @property
  def strides(self) -> tuple[int, ...]:
    """Canvas pixels per feature cell, a level."""
    return tuple(LEVELS[level] for level in self.levels)

  @nn.compact
  def __call__(self, x: Array, context: Context = Context()) -> tuple[Array, ...]:
    """x: normalised images f[B, H, W, 3] -> one f[B, H/stride, W/stride, C] a level."""
    padding = int(self.padded)
    pool = lambda x: max_pool(x, 3, 2, padding, ceil_mode=not self.padded)
    x = pool(nn.relu(Conv(64, kernel_size=3, stride=2, padding=padding, name="conv1")(x)))
    outputs = {}
    for number, (squeeze, expand) in enumerate(FIRES, start=2):
      x = Fire(squeeze, expand, name=f"fire{number}")(x)
      outputs[number] = x
      if number in (3, 5):
        x = pool(x)
    return tuple(outputs[level] for level in self.levels)

"""ConvNeXt-T, S and B (arXiv:2201.03545)."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from rcnn_jax.models.depthwise import DepthwiseConv
from rcnn_jax.models.layers import Dense, dropped_path
from rcnn_jax.models.protocols import Context
from rcnn_jax.types import Array

# Blocks and channels of each of the four stages (section 3, "ConvNeXt-T: C = (96, 192, 384, 768), B = (3, 3, 9, 3)").
VARIANTS = {
  "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
  "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
  "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
}
EPSILON = 1e-6  # of all layer norms
initial = nn.initializers.truncated_normal(0.02)


class ConvNeXt(nn.Module):
  """ConvNeXt's features: `levels` names the stages (2 for stride 4 to 5 for stride 32) whose outputs are handed on.

  In detection each of them goes through a layer norm of its own (`output_norms`), as in the authors' code; ImageNet's
  weights have none, and these begin anew. Stages beyond the last level are not built.
  """

  variant: Literal["tiny", "small", "base"] = "tiny"
  levels: tuple[Literal[2, 3, 4, 5], ...] = (2, 3, 4, 5)
  drop_path: float = 0.0  # how often the last block is left out in training; the first one never is
  output_norms: bool = True
  remat: tuple[Literal[2, 3, 4, 5], ...] = ()  # stages computed anew in the backward pass: less memory, more time
  pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
  pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

  @property
  def strides(self) -> tuple[int, ...]:
    """Canvas pixels per feature cell, a level."""
    return tuple(2**level for level in self.levels)

  @nn.compact
  def __call__(self, x: Array, context: Context = Context()) -> tuple[Array, ...]:
    """x: normalised images f[B, H, W, 3] -> one f[B, H/stride, W/stride, C] a level; what fills no cell is left."""
    depths, widths = VARIANTS[self.variant]
    rates = [self.drop_path * i / (sum(depths) - 1) for i in range(sum(depths))]
    outputs = {}
    for number, (depth, width) in enumerate(zip(depths, widths), start=1):
      if number == 1:
        x = layer_norm("stem_norm")(Patches(4, width, name="stem")(x))
      else:
        x = Patches(2, width, name=f"downsample{number}")(layer_norm(f"downsample{number}_norm")(x))
      first = sum(depths[: number - 1])
      cls = nn.remat(Stage) if number + 1 in self.remat else Stage
      x = outputs[number + 1] = cls(width, tuple(rates[first : first + depth]), name=f"stage{number}")(x, context)
      if number + 1 == max(self.levels):
        break
    norm = lambda level: layer_norm(f"output_norm{level - 1}") if self.output_norms else lambda y: y
    return tuple(norm(level)(outputs[level]) for level in self.levels)


class Stage(nn.Module):
  """Blocks of one resolution; `drop_rates` has one number for each."""

  width: int
  drop_rates: tuple[float, ...]

  @nn.compact
  def __call__(self, x: Array, context: Context) -> Array:
    """x: f[B, H, W, C] -> f[B, H, W, C]."""
    for i, rate in enumerate(self.drop_rates):
      x = Block(self.width, rate, name=f"block{i}")(x, context)
    return x


class Block(nn.Module):
  """7×7 depthwise convolution, layer norm, and two fully connected layers with GELU between them (figure 4)."""

  width: int
  drop_rate: float

  @nn.compact
  def __call__(self, x: Array, context: Context) -> Array:
    """x: f[B, H, W, C] -> f[B, H, W, C]."""
    y = layer_norm("norm")(DepthwiseConv(7, name="dwconv")(x))
    y = nn.gelu(Dense(4 * self.width, kernel_init=initial, name="pwconv1")(y), approximate=False)
    y = Dense(self.width, kernel_init=initial, name="pwconv2")(y)
    scale = self.param("layer_scale", nn.initializers.constant(1e-6), (self.width,))
    y = (y.astype(jnp.float32) * scale).astype(x.dtype)
    return x + dropped_path(y, context, "/".join(self.path), self.drop_rate)


class Patches(nn.Module):
  """A convolution whose stride is its kernel's side: a product for each patch."""

  side: int
  features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x: f[B, H, W, C] -> f[B, H/side, W/side, features]; rows and columns that fill no patch are left."""
    side, channels = self.side, x.shape[-1]
    kernel = self.param("kernel", initial, (side, side, channels, self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    height, width = x.shape[1] // side, x.shape[2] // side
    patches = x[:, : height * side, : width * side].reshape(-1, height, side, width, side, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, side * side * channels)
    y = jnp.matmul(patches, kernel.reshape(-1, self.features).astype(x.dtype))
    return (y.astype(jnp.float32) + bias).astype(x.dtype)


def layer_norm(name: str):
  """f[..., C] -> f[..., C], normalised over the channels in float32."""
  norm = nn.LayerNorm(EPSILON, name=name)
  return lambda x: norm(x.astype(jnp.float32)).astype(x.dtype)

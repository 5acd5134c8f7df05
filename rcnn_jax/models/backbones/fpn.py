"""Feature pyramid network (arXiv:1612.03144)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from rcnn_jax.models.layers import Conv, Norm, norm
from rcnn_jax.models.protocols import Context
from rcnn_jax.types import Array

xavier = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class Fpn(nn.Module):
  """A top-down pyramid over `bottom_up`'s levels, with one more level by subsampling (P6, for the RPN alone)."""

  bottom_up: nn.Module
  channels: int = 256
  extra_level: bool = True
  norm: Norm | None = None  # after each convolution; None: biases instead

  @property
  def strides(self) -> tuple[int, ...]:
    """Canvas pixels per feature cell, finest level first."""
    strides = self.bottom_up.strides
    return (*strides, 2 * strides[-1]) if self.extra_level else strides

  @property
  def pixel_mean(self) -> tuple[float, float, float]:
    return self.bottom_up.pixel_mean

  @property
  def pixel_std(self) -> tuple[float, float, float]:
    return self.bottom_up.pixel_std

  @nn.compact
  def __call__(self, x: Array, context: Context = Context()) -> tuple[Array, ...]:
    """x: normalised images f[B, H, W, 3] -> one f[B, H/stride, W/stride, channels] a level, finest first."""
    features = self.bottom_up(x, context)

    def convolution(y: Array, name: str, kernel_size: int) -> Array:
      plain = self.norm is None
      y = Conv(self.channels, kernel_size=kernel_size, use_bias=plain, kernel_init=xavier, name=name)(y)
      return y if plain else norm(self.norm, f"{name}_bn")(y, context.train, context.valid)

    top_down, outputs = None, []
    for i in reversed(range(len(features))):
      lateral = convolution(features[i], f"lateral{i}", 1)
      top_down = lateral if top_down is None else lateral + upsample(top_down, lateral.shape[1:3])
      outputs.append(convolution(top_down, f"output{i}", 3))
    outputs.reverse()
    if self.extra_level:
      outputs.append(outputs[-1][:, ::2, ::2])
    return tuple(outputs)


def upsample(x: Array, size: tuple[int, int]) -> Array:
  """Nearest-neighbour enlargement of f[B, h, w, C] to (H, W) = size; sizes need not be doubles of each other."""
  for axis, (old, new) in enumerate(zip(x.shape[1:3], size), start=1):
    if new == 2 * old:
      x = jnp.repeat(x, 2, axis=axis)
    else:
      x = jnp.take(x, jnp.arange(new) * old // new, axis=axis)
  return x

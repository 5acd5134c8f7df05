"""The same network over the image at several sizes: the levels are scales, not depths (SPPnet, section 4)."""

from __future__ import annotations

import flax.linen as nn
import jax

from rcnn_jax.models.protocols import Context
from rcnn_jax.types import Array


class Scales(nn.Module):
  """A backbone's last level for each scale of the image, with one set of parameters.

  Scales are relative to the image on its canvas: 688 pixels enlarged to 864 are 864 / 688.
  """

  network: nn.Module
  scales: tuple[float, ...] = (480 / 688, 576 / 688, 1.0, 864 / 688, 1200 / 688)

  @property
  def pixel_mean(self) -> tuple[float, float, float]:
    """The network's."""
    return self.network.pixel_mean

  @property
  def pixel_std(self) -> tuple[float, float, float]:
    """The network's."""
    return self.network.pixel_std

  @property
  def strides(self) -> tuple[float, ...]:
    """Canvas pixels per feature cell, a scale."""
    return tuple(self.network.strides[-1] / scale for scale in self.scales)

  @nn.compact
  def __call__(self, x: Array, context: Context = Context()) -> tuple[Array, ...]:
    """x: normalised images f[B, H, W, 3] -> one f[B, scale * H/stride, scale * W/stride, C] a scale."""
    batch, height, width, channels = x.shape
    sizes = [(round(scale * height), round(scale * width)) for scale in self.scales]
    return tuple(
      self.network(jax.image.resize(x, (batch, *size, channels), "linear", antialias=False), context)[-1]
      for size in sizes
    )

"""R-CNN's way to a region's features: the image itself is the map, and a network runs over each warped crop of it."""

from __future__ import annotations

import flax.linen as nn

from rcnn_jax.models.layers import adaptive_max_pool
from rcnn_jax.models.pooling import WarpCrop, pool_batch
from rcnn_jax.models.protocols import Context
from rcnn_jax.types import Array


class Pixels(nn.Module):
  """The backbone that computes nothing: its only level is the normalised image."""

  pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
  pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

  @property
  def strides(self) -> tuple[int, ...]:
    """Canvas pixels per feature cell, a level."""
    return (1,)

  @nn.compact
  def __call__(self, x: Array, context: Context = Context()) -> tuple[Array, ...]:
    """x: normalised images f[B, H, W, 3] -> (x,)."""
    del context
    return (x,)


class CropNetwork(nn.Module):
  """Warped crops through a network of their own: R-CNN's pool5 (arXiv:1311.2524, section 2.1).

  A batch norm in the network uses its running statistics and leaves them as they are.
  """

  network: nn.Module  # a backbone; its last level counts
  crop: WarpCrop = WarpCrop()
  output_size: int = 6  # P: the network's last map becomes P x P maxima of its cells

  @nn.compact
  def __call__(self, features: tuple[Array, ...], rois: Array, strides: tuple[int, ...]) -> Array:
    """features (f[B, H, W, 3],), rois f32[B, R, 4] in canvas pixels -> f[B * R, P, P, C]."""
    maps = self.network(pool_batch(self.crop, features, rois, strides))
    return adaptive_max_pool(maps[-1], self.output_size)

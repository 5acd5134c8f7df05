"""VGG-16 (arXiv:1409.1556, configuration D), the backbone of Fast and Faster R-CNN's published results.

With batch norm it is torchvision's vgg16_bn: a norm behind each convolution, which keeps its bias.
"""

from __future__ import annotations

import flax.linen as nn

from rcnn_jax.models.layers import Conv, Norm, max_pool, norm
from rcnn_jax.models.protocols import Context
from rcnn_jax.types import Array

# (convolutions, channels) of conv1_x to conv5_x.
BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class Vgg16(nn.Module):
  """VGG-16 up to conv5_3: the last pooling is left out, RoI pooling takes its place (Fast R-CNN, section 2.2).

  `norm` is None, 'frozen' (fixed statistics and affine), 'batch' (trainable, synchronised) or 'group'.
  """

  norm: Norm | None = None
  pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
  pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

  @property
  def strides(self) -> tuple[int, ...]:
    """Canvas pixels per feature cell, a level."""
    return (16,)

  @nn.compact
  def __call__(self, x: Array, context: Context = Context()) -> tuple[Array, ...]:
    """x: normalised images f[B, H, W, 3] -> (f[B, H/16, W/16, 512],)."""
    for block, (convolutions, channels) in enumerate(BLOCKS, start=1):
      if block > 1:
        x = max_pool(x, 2, 2)
      for i in range(1, convolutions + 1):
        x = Conv(channels, kernel_size=3, name=f"conv{block}_{i}")(x)
        if self.norm is not None:
          x = norm(self.norm, f"bn{block}_{i}")(x, context.train, context.valid)
        x = nn.relu(x)
    return (x,)

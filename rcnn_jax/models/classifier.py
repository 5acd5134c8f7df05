"""Image classification over a spatial pyramid: one set of parameters for images of any size."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcnn_jax.models.layers import Dense
from rcnn_jax.models.pooling import SpatialPyramid, pool_batch
from rcnn_jax.models.protocols import Context
from rcnn_jax.types import Array


class PyramidClassifier(nn.Module):
  """A backbone whose last map is pooled whole into the pyramid (SPPnet, sections 2.2 and 2.3)."""

  backbone: nn.Module
  trunk: nn.Module  # fully connected layers, FcTrunk
  num_classes: int
  pool: SpatialPyramid = SpatialPyramid()

  @nn.compact
  def __call__(self, images: Array, key: Array | None = None) -> Array:
    """images: normalised f[B, H, W, 3], any H and W -> logits f32[B, num_classes].

    `key` draws the dropout, by the images' places in the batch.
    """
    features = self.backbone(images, Context(train=key is not None))[-1]
    stride = self.backbone.strides[-1]
    height, width = features.shape[1:3]
    whole = jnp.array([[0.0, 0.0, width * stride, height * stride]])
    pooled = pool_batch(self.pool, (features,), jnp.tile(whole, (len(images), 1, 1)), (stride,))
    keys = None if key is None else jax.random.split(key, len(images))
    embedded = self.trunk(pooled, keys, jnp.ones(len(images), bool))
    return Dense(self.num_classes, logits=True, name="classes")(embedded)

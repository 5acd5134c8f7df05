"""How a region's features are cut out of the backbone: values of `Detector.pool` and of the heads that pool anew."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from rcnn_jax.ops import pooling
from rcnn_jax.types import Array


@dataclass(frozen=True)
class RoiAlign:
  """RoI Align (Mask R-CNN, section 3), from the level that FPN's equation 1 gives each RoI."""

  output_size: int = 7
  sampling_ratio: int = 2
  aligned: bool = False  # torchvision: False; Detectron2: True (a shift of half a cell)
  num_levels: int = 1  # the finest levels, those that RoIs are pooled from

  def __call__(self, features: tuple[Array, ...], rois: Array, strides: tuple[int, ...]) -> Array:
    """One image: features f[h, w, C] a level, rois f32[R, 4] in canvas pixels -> f[R, P, P, C]."""
    features, strides = features[: self.num_levels], strides[: self.num_levels]
    options = dict(output_size=self.output_size, sampling_ratio=self.sampling_ratio, aligned=self.aligned)
    if len(features) == 1:
      return pooling.roi_align(features[0], rois, spatial_scale=1 / strides[0], **options)
    return pooling.multilevel_roi_align(features, rois, strides=strides, **options)


@dataclass(frozen=True)
class RoiMaxPool:
  """RoI max pooling (Fast R-CNN, section 2.1), on a single level."""

  output_size: int = 7

  def __call__(self, features: tuple[Array, ...], rois: Array, strides: tuple[int, ...]) -> Array:
    """One image: features (f[h, w, C],), rois f32[R, 4] in canvas pixels -> f[R, P, P, C]."""
    return pooling.roi_max_pool(features[0], rois, output_size=self.output_size, spatial_scale=1 / strides[0])


def pool_batch(
  pool: RoiAlign | RoiMaxPool, features: tuple[Array, ...], rois: Array, strides: tuple[int, ...]
) -> Array:
  """features f[B, h, w, C] a level, rois f32[B, R, 4] -> f[B * R, P, P, C], the rows of one image after another's."""
  pooled = jax.vmap(lambda feature, roi: pool(feature, roi, strides))(features, rois)
  return pooled.reshape(-1, *pooled.shape[2:])

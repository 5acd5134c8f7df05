"""How a region's features are cut out of the backbone: values of `Detector.pool` and of the heads that pool anew."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcnn_jax.ops import boxes, max_pooling, pooling
from rcnn_jax.ops.errors import ModelError
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

  def of_images(self, features: tuple[Array, ...], rois: Array, image: Array, strides: tuple[int, ...]) -> Array:
    """features f[B, h, w, C] a level, rois f32[R, 4] of the images i32[R], 0..B-1 -> f[R, P, P, C]."""
    features, strides = features[: self.num_levels], strides[: self.num_levels]
    options = dict(output_size=self.output_size, sampling_ratio=self.sampling_ratio, aligned=self.aligned)
    return pooling.multilevel_roi_align(features, rois, strides=strides, image=image, **options)


@dataclass(frozen=True)
class RoiWarp:
  """Bilinear samples of RoIs that are rounded to whole cells (RoIWarp in Mask R-CNN, table 2c; arXiv:1512.04412)."""

  output_size: int = 7
  sampling_ratio: int = 2
  num_levels: int = 1  # as for RoiAlign

  def __call__(self, features: tuple[Array, ...], rois: Array, strides: tuple[int, ...]) -> Array:
    """One image: features f[h, w, C] a level, rois f32[R, 4] in canvas pixels -> f[R, P, P, C]."""
    features, strides = features[: self.num_levels], strides[: self.num_levels]
    options = dict(output_size=self.output_size, sampling_ratio=self.sampling_ratio)
    return pooling.roi_warp(features, rois, strides=strides, **options)


@dataclass(frozen=True)
class RoiMaxPool:
  """RoI max pooling (Fast R-CNN, section 2.1)."""

  output_size: int = 7
  num_levels: int = 1  # as for RoiAlign

  def __call__(self, features: tuple[Array, ...], rois: Array, strides: tuple[int, ...]) -> Array:
    """One image: features f[h, w, C] a level, rois f32[R, 4] in canvas pixels -> f[R, P, P, C]."""
    features, strides = features[: self.num_levels], strides[: self.num_levels]
    return max_pooling.multilevel_roi_max_pool(features, rois, strides=strides, output_size=self.output_size)


@dataclass(frozen=True)
class WarpCrop:
  """The region itself, warped to a square with its surroundings about it (R-CNN, appendix A), on a single level."""

  output_size: int = 227
  context: int = 16  # pixels of the crop about the region, on each side

  def __call__(self, features: tuple[Array, ...], rois: Array, strides: tuple[int, ...]) -> Array:
    """One image: features (f[H, W, C],) of stride 1, rois f32[R, 4] in canvas pixels -> f[R, P, P, C]."""
    if strides != (1,):
      raise ModelError(f"crops are cut out of the image (backbone=Pixels()), not of a map of strides {strides}")
    return pooling.warp_crop(features[0], rois, output_size=self.output_size, context=self.context)


@dataclass(frozen=True)
class SpatialPyramid:
  """Spatial pyramid pooling (SPPnet, sections 2.2 and 4).

  Where the levels are scales of the image (backbone=Scales(...)), each region is pooled from the one on which its
  area is nearest to `canonical_cells` squared: 224 pixels at stride 16 are 14 cells.
  """

  bins: tuple[int, ...] = (1, 2, 3, 6)
  canonical_cells: float = 14.0

  def __call__(self, features: tuple[Array, ...], rois: Array, strides: tuple[float, ...]) -> Array:
    """One image: features f[h, w, C] a level, rois f32[R, 4] in canvas pixels -> f[R, 50, C] for the usual bins."""
    maps = [
      max_pooling.spatial_pyramid(feature, rois, bins=self.bins, spatial_scale=1 / stride)
      for feature, stride in zip(features, strides)
    ]
    level = self.level_of(rois, strides)
    return sum(jnp.where((level == index)[:, None, None], pooled, 0) for index, pooled in enumerate(maps))

  def level_of(self, rois: Array, strides: tuple[float, ...]) -> Array:
    """i32[R]: the scale of each region; ties, and regions without an area, go to the first."""
    cells = boxes.area(rois)[:, None] / jnp.array(strides) ** 2
    distance = jnp.abs(jnp.where(cells > 0, cells, 0.0) - self.canonical_cells**2)
    return jnp.argmin(distance, axis=1)


Pool = RoiAlign | RoiWarp | RoiMaxPool | WarpCrop | SpatialPyramid


def pool_batch(pool: Pool | nn.Module, features: tuple[Array, ...], rois: Array, strides: tuple[int, ...]) -> Array:
  """features f[B, h, w, C] a level, rois f32[B, R, 4] -> f[B * R, P, P, C], the rows of one image after another's.

  A module, which has parameters, takes the whole batch at once.
  """
  if isinstance(pool, nn.Module):
    return pool(features, rois, strides)
  pooled = jax.vmap(lambda feature, roi: pool(feature, roi, strides))(features, rois)
  return pooled.reshape(-1, *pooled.shape[2:])


def pool_rows(
  pool: Pool | nn.Module, features: tuple[Array, ...], rois: Array, rows: Array, strides: tuple[int, ...]
) -> Array:
  """f[r, P, P, C]: what is pooled for some rows i32[r] of all the batch's rois f32[B, R, 4], taken as B * R.

  RoI Align reads from all images at once, for these rows alone. Another pool is applied to every row.
  """
  if not isinstance(pool, RoiAlign):
    return pool_batch(pool, features, rois, strides)[rows]
  return pool.of_images(features, rois.reshape(-1, 4)[rows], rows // rois.shape[1], strides)

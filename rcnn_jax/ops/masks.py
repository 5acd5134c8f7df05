"""Masks between the frame of their object's box and the frame of a region."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rcnn_jax.ops import boxes as box_ops

_SAMPLES = 2  # along each axis of a target cell, which spans about 4 cells of a 112 x 112 crop at 28 x 28


def crop_targets(
  masks: jax.Array, truth_boxes: jax.Array, matched: jax.Array, rois: jax.Array, *, size: int
) -> jax.Array:
  """f32[S, size, size] in {0, 1}: what the mask head is to predict for each region (Mask R-CNN, section 3).

  A cell is 1 where at least half of it is mask, by bilinear samples; outside of the object's box nothing is.

  Args:
    masks: u8[M, P, P] in {0, 1}, each in the frame of its object's box.
    truth_boxes: f32[M, 4], canvas pixels.
    matched: i32[S], the object of each region.
    rois: f32[S, 4], canvas pixels.
    size: cells along each side of the target.
  """
  frames = truth_boxes[matched]
  y = _crop_weights(rois[:, 1], rois[:, 3], frames[:, 1], box_ops.heights(frames), masks.shape[1], size)
  x = _crop_weights(rois[:, 0], rois[:, 2], frames[:, 0], box_ops.widths(frames), masks.shape[2], size)
  crops = masks[matched].astype(jnp.float32)
  covered = jnp.einsum("sih,shw,sjw->sij", y, crops, x, precision="highest")
  return (covered >= 0.5).astype(jnp.float32)


def _crop_weights(low, high, frame_low, frame_extent, length: int, size: int) -> jax.Array:
  """f32[S, size, length]: what each cell of a crop contributes to each target cell, along one axis."""
  offsets = (jnp.arange(size * _SAMPLES, dtype=jnp.float32) + 0.5) / (size * _SAMPLES)
  positions = low[:, None] + offsets * (high - low)[:, None]
  extent = jnp.where(frame_extent > 0, frame_extent, 1.0)[:, None]
  share = (positions - frame_low[:, None]) / extent  # 0..1 within the object's box
  inside = (share >= 0.0) & (share <= 1.0) & (frame_extent > 0)[:, None]
  # Cell k of the crop has its centre at k + 0.5; beyond the first and last centre their values hold.
  nearest = jnp.clip(share * length - 0.5, 0.0, length - 1.0)
  distance = jnp.abs(nearest[..., None] - jnp.arange(length, dtype=jnp.float32))
  weights = jnp.where(inside[..., None], jnp.maximum(1.0 - distance, 0.0), 0.0)
  return weights.reshape(-1, size, _SAMPLES, length).mean(axis=2)

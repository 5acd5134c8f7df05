"""Random keys by name and by image, so that no draw depends on the order of calls or on the number of devices."""

from __future__ import annotations

import zlib

import jax
import numpy as np


def named(key: jax.Array, name: str) -> jax.Array:
  """The key of one purpose ("rois", "dropout"), derived from the key of the step."""
  return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def per_image(key: jax.Array, image_ids: jax.Array) -> jax.Array:
  """keys[B]: one key for each of image_ids i32[B], the same wherever in whichever batch the image stands."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, image_ids)

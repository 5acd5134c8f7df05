"""Checksums of arrays, computed where the arrays are: by them a checkpoint is known to be what was saved."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def checksums(tree: Any) -> dict[str, int]:
  """A number for each array, by its path; of the global array, whatever devices hold it.

  The number is the sum of the array's words, each times an odd number of its own, modulo 2^32: one word that changes
  always changes it, and so do two that change places.
  """
  found = jax.device_get(_checksums(tree))
  return {jax.tree_util.keystr(path): int(value) for path, value in jax.tree_util.tree_leaves_with_path(found)}


def differing(tree: Any, expected: dict[str, int]) -> list[str]:
  """The paths of the arrays that are not what they were when `expected` was computed."""
  found = checksums(tree)
  return [path for path, number in expected.items() if found.get(path) != number]


@jax.jit
def _checksums(tree: Any) -> Any:
  return jax.tree.map(_checksum, tree)


def _checksum(leaf: jax.Array) -> jax.Array:
  """u32[] of an array whose elements have at most 32 bits."""
  bits = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
  bits = jax.lax.bitcast_convert_type(bits, f"uint{8 * bits.dtype.itemsize}").astype(jnp.uint32)
  odd = jnp.ones((), jnp.uint32)
  for axis, size in enumerate(bits.shape):
    stride = 1
    for longer in bits.shape[axis + 1 :]:
      stride *= longer
    odd += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32((2 * stride) % 2**32)
  return (bits * odd).sum(dtype=jnp.uint32)

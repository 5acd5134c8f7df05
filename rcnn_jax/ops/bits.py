"""Flags as the bits of whole numbers, which are combined a word at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

WORD = 32  # bits of a number


def packed(flags: jax.Array) -> jax.Array:
  """u32[..., ceil(N / WORD)]: a bit for each of bool[..., N], the first the lowest of its word; those beyond are 0."""
  flags = jnp.pad(flags, ((0, 0),) * (flags.ndim - 1) + ((0, -flags.shape[-1] % WORD),))
  words = flags.reshape(*flags.shape[:-1], -1, WORD).astype(jnp.uint32)
  return (words << jnp.arange(WORD, dtype=jnp.uint32)).sum(axis=-1, dtype=jnp.uint32)


def unpacked(words: jax.Array) -> jax.Array:
  """bool[..., N * WORD]: the bits of words u32[..., N], the lowest of each first."""
  bits = (words[..., None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1
  return bits.astype(bool).reshape(*words.shape[:-1], -1)

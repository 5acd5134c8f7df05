"""Heads over the rows that exist: what they cost follows the work, while every shape stays static.

Of the rows of all images, padded to a fixed number, often few exist: 16 of 256 that train masks, 10 of 200 detections.
They are moved to the front, over the whole batch. In training a head then runs over the smallest of a few static sizes
that holds them (`lax.switch`), in detection over one chunk after another for as long as there are rows. The device
chooses; nothing is compiled anew, nothing calls back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcnn_jax.types import Array

SHARES = (8, 4, 2, 1)  # a head in training has room for this part of the rows: an eighth, a quarter, a half, all
SMALLEST = 8  # rows; below, a room of its own is not worth the time to compile it

# What is run: (module, row numbers i32[r] of B * R, which of them exist bool[r]) -> f[r, ...].
Run = Callable[[nn.Module, Array, Array], Array]
# (module, rois f32[B, r, 4], which of them exist bool[B, r]) -> arrays f[B, r, ...].
RunImages = Callable[[nn.Module, Array, Array], Any]


def over_existing(module: nn.Module, run: Run, exists: Array, train: bool) -> Array:
  """What `run` makes of each row that exists, f[B, R, ...]; 0 in the other rows.

  Args:
    module: the Flax module whose submodules `run` calls.
    run: its result for a row depends on this row alone, but for statistics over the rows that exist.
    exists: bool[B, R].
    train: whether gradients pass through it.
  """
  flat = jnp.asarray(exists).reshape(-1)
  order = jnp.argsort(~flat, stable=True)  # those that exist first, in their order
  count = flat.sum()
  if module.is_initializing():
    found = run(module, order, flat[order])
  else:
    found = (_smallest_room if train else _in_chunks)(module, run, order, flat[order], count)
  # Each row's place in the order; a gather, whose gradient is one too where the places are unique.
  place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)), unique_indices=True)
  found = found.at[place].get(unique_indices=True, mode="promise_in_bounds")
  found = jnp.where(flat.reshape(-1, *(1,) * (found.ndim - 1)), found, 0)
  return found.reshape(*exists.shape, *found.shape[1:])


def in_chunks(module: nn.Module, run: RunImages, rois: Array, exists: Array, size: int | None) -> Any:
  """What `run` makes of each RoI, arrays f[B, R, ...], chunk by chunk up to the last one that exists; 0 behind it.

  A chunk has RoIs of every image, so that any pool can serve; proposals that exist stand in the first rows. It is for
  detection: no gradient passes through it.

  Args:
    module: the Flax module whose submodules `run` calls.
    run: its result for a RoI depends on this RoI alone.
    rois: f32[B, R, 4].
    exists: bool[B, R].
    size: RoIs of an image in a chunk; None: an eighth of them.
  """
  num_rois = rois.shape[1]
  size = min(num_rois, size or rooms(num_rois)[0])
  if module.is_initializing() or size == num_rois:
    return run(module, rois, exists)
  count = jnp.max(jnp.where(exists, jnp.arange(1, num_rois + 1), 0))
  room = -(-num_rois // size) * size
  rois, exists = (jnp.pad(x, ((0, 0), (0, room - num_rois), *((0, 0),) * (x.ndim - 2))) for x in (rois, exists))
  shapes = jax.eval_shape(lambda: run(module, rois[:, :size], exists[:, :size]))

  def chunk(module, state):
    done, found = state
    rows = (jax.lax.dynamic_slice_in_dim(x, done, size, axis=1) for x in (rois, exists))
    put = lambda all, new: jax.lax.dynamic_update_slice_in_dim(all, new, done, axis=1)
    return done + size, jax.tree.map(put, found, run(module, *rows))

  blank = jax.tree.map(lambda x: jnp.zeros((rois.shape[0], room, *x.shape[2:]), x.dtype), shapes)
  _, found = nn.while_loop(lambda _, state: state[0] < count, chunk, module, (jnp.int32(0), blank))
  return jax.tree.map(lambda x: x[:, :num_rois], found)


def rooms(num_rows: int) -> list[int]:
  """The static sizes that a head runs at in training, rising: parts of the number of rows, the last one all."""
  return sorted({min(num_rows, max(SMALLEST, -(-num_rows // share))) for share in SHARES})


def _smallest_room(module: nn.Module, run: Run, order: Array, exists: Array, count: Array) -> Array:
  """f[B * R, ...] in the order given, by the branch of the smallest room that holds `count` rows."""
  sizes = rooms(len(order))

  def branch(size):
    # In the backward pass the branch is computed anew: kept, its values would stand there for every branch.
    @nn.remat
    def run_rows(module, order, exists):
      found = run(module, order[:size], exists[:size])
      return jnp.pad(found, ((0, len(order) - size), *((0, 0),) * (found.ndim - 1)))

    return run_rows

  index = jnp.searchsorted(jnp.array(sizes), count)
  return nn.switch(index, [branch(size) for size in sizes], module, order, exists)


def _in_chunks(module: nn.Module, run: Run, order: Array, exists: Array, count: Array) -> Array:
  """f[B * R, ...] in the order given, an eighth of the rows at a time, until all that exist are done."""
  size = rooms(len(order))[0]
  room = -(-len(order) // size) * size
  order, exists = (jnp.pad(x, (0, room - len(x))) for x in (order, exists))
  shape = jax.eval_shape(lambda: run(module, order[:size], exists[:size]))

  def chunk(module, state):
    done, found = state
    rows = (jax.lax.dynamic_slice_in_dim(x, done, size) for x in (order, exists))
    return done + size, jax.lax.dynamic_update_slice_in_dim(found, run(module, *rows), done, axis=0)

  start = jnp.int32(0), jnp.zeros((room, *shape.shape[1:]), shape.dtype)
  _, found = nn.while_loop(lambda _, state: state[0] < count, chunk, module, start)
  return found

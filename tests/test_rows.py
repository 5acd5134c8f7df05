"""Heads run over the rows that exist, of all images together: the same answers, losses and gradients as over all."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rcnn_jax.models.layers import Conv, OwnLogits
from rcnn_jax.models.pooling import RoiAlign, RoiMaxPool, pool_batch, pool_rows
from rcnn_jax.models.rows import in_chunks, over_existing, rooms

NUM_IMAGES, NUM_ROWS = 2, 9


class Doubled(nn.Module):
  """A head of one layer over rows of one number."""

  train: bool

  @nn.compact
  def __call__(self, x, exists):
    layer = nn.Dense(3, name="layer")

    def run(self, rows, exists):
      del exists
      return layer(x.reshape(-1, 1)[rows])

    return over_existing(self, run, exists, self.train)


PARAMS = Doubled(True).init(jax.random.key(0), jnp.zeros((1, 2, 1)), jnp.ones((1, 2), bool))


@pytest.mark.parametrize("rows, sizes", [(256, [32, 64, 128, 256]), (18, [8, 9, 18]), (1, [1])])
def test_rooms_are_an_eighth_a_quarter_a_half_and_all_of_the_rows_and_none_is_tiny(rows, sizes):
  assert rooms(rows) == sizes


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=NUM_IMAGES * NUM_ROWS, max_size=NUM_IMAGES * NUM_ROWS), st.booleans())
def test_rows_that_exist_are_computed_and_the_others_are_zero(exists, train):
  exists = np.array(exists).reshape(NUM_IMAGES, NUM_ROWS)
  x = np.arange(exists.size, dtype=np.float32).reshape(*exists.shape, 1) + 1
  garbage = np.where(exists[..., None], x, np.nan)
  found = applied(train)(PARAMS, garbage, exists)
  layer = PARAMS["params"]["layer"]
  expected = np.where(exists[..., None], x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)
  assert_allclose(found, expected, rtol=1e-6)


APPLIED = {train: jax.jit(Doubled(train).apply) for train in (True, False)}


def applied(train):
  return APPLIED[train]


def test_gradients_are_those_of_the_rows_that_exist():
  exists = np.zeros((NUM_IMAGES, NUM_ROWS), bool)
  exists[0, :2] = exists[1, 4] = True
  x = np.linspace(1, 2, exists.size, dtype=np.float32).reshape(*exists.shape, 1)

  def loss(params, x):
    return (Doubled(True).apply(params, x, exists) ** 2).sum()

  def plainly(params, x):
    layer = params["params"]["layer"]
    return (jnp.where(exists[..., None], x @ layer["kernel"] + layer["bias"], 0) ** 2).sum()

  found, expected = (jax.jit(jax.grad(f, (0, 1)))(PARAMS, x) for f in (loss, plainly))
  jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5), found, expected)
  assert_array_equal(np.asarray(found[1])[~exists], 0)


def test_a_chunk_runs_as_often_as_there_are_rows_for_it():
  """The loop of detection is a `while` whose end depends on data; that of training is one choice of four."""
  x, exists = jnp.zeros((NUM_IMAGES, NUM_ROWS, 1)), jnp.ones((NUM_IMAGES, NUM_ROWS), bool)
  programs = {train: str(jax.make_jaxpr(Doubled(train).apply)(PARAMS, x, exists)) for train in (True, False)}
  assert "cond[" in programs[True] and "while[" not in programs[True]
  assert "while[" in programs[False] and "cond[" not in programs[False]


@pytest.mark.parametrize("pool", [RoiAlign(3, num_levels=2), RoiAlign(3), RoiMaxPool(2)])
def test_rows_of_all_images_are_pooled_as_image_by_image(pool):
  rng = np.random.default_rng(0)
  features = tuple(rng.normal(size=(3, 32 // s, 48 // s, 4)).astype(np.float32) for s in (4, 8))
  corner = rng.uniform(0, 20, (3, 5, 2))
  rois = np.concatenate([corner, corner + rng.uniform(1, 30, (3, 5, 2))], -1).astype(np.float32)
  rows = jnp.array([14, 0, 7, 7])
  found = jax.jit(lambda *args: pool_rows(pool, *args, (4, 8)))(features, rois, rows)
  expected = jax.jit(lambda *args: pool_batch(pool, *args, (4, 8)))(features, rois)[rows]
  assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_the_logits_of_a_rows_own_class_are_that_channel_of_the_convolution():
  x = np.random.default_rng(0).normal(size=(4, 3, 3, 5)).astype(np.float32)
  channels = np.array([0, 6, 2, 2])
  variables = OwnLogits(7).init(jax.random.key(0), x, channels)
  variables["params"]["bias"] = jnp.arange(7.0)
  with jax.default_matmul_precision("highest"):  # a GPU's products of float32 are TensorFloat-32 else
    every = Conv(7, logits=True).apply(variables, x)
    own = OwnLogits(7).apply(variables, x, channels)
  assert_allclose(own, np.take_along_axis(np.asarray(every), channels[:, None, None, None], -1)[..., 0], rtol=1e-5)


@pytest.mark.parametrize(
  "size, padding, canvas", [(3, 1, (5, 6)), (3, 0, (5, 6)), (5, 2, (4, 7)), (3, 1, (50, 70)), (3, 1, (1, 1700))]
)
@pytest.mark.parametrize("num_images", [2, 60])
def test_the_gradients_of_a_convolution_are_those_that_jax_derives(size, padding, canvas, num_images):
  rng = np.random.default_rng(0)
  # Of whole numbers sums are exact, in whatever order they are taken.
  draw = lambda *shape: rng.integers(-2, 3, shape).astype(np.float32)
  x, kernel = draw(num_images, *canvas, 3), draw(size, size, 3, 4)
  layer = Conv(4, kernel_size=size, padding=padding, use_bias=False)

  def ours(x, kernel):
    return layer.apply({"params": {"kernel": kernel}}, x)

  def plainly(x, kernel):
    around = ((padding, padding),) * 2
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), around, dimension_numbers=("NHWC", "HWIO", "NHWC"))

  cotangent = draw(*ours(x, kernel).shape)
  found, expected = (jax.jit(lambda x, k, f=f: jax.vjp(f, x, k)[1](cotangent))(x, kernel) for f in (ours, plainly))
  jax.tree.map(assert_array_equal, found, expected)


class Halved(nn.Module):
  """Half of each RoI's sides, chunk by chunk, and 1 beside it."""

  size: int | None = None

  @nn.compact
  def __call__(self, rois, exists):
    factor = self.param("factor", nn.initializers.constant(0.5), ())
    run = lambda module, rois, exists: (factor * (rois[..., 2:] - rois[..., :2]), jnp.ones(exists.shape))
    return in_chunks(self, run, rois, exists, self.size)


@settings(max_examples=30, deadline=None)
@given(
  st.lists(st.booleans(), min_size=2 * 20, max_size=2 * 20), st.sampled_from([None, 1, 7, 20, 99]), st.integers(0, 20)
)
def test_chunks_are_run_up_to_the_last_roi_that_exists(exists, size, last):
  exists = np.array(exists).reshape(2, 20) & (np.arange(20) < last)
  rois = np.random.default_rng(0).uniform(0, 9, (2, 20, 4)).astype(np.float32)
  halves, ones = halved(size)({"params": {"factor": 0.5}}, rois, exists)
  expected = (rois[..., 2:] - rois[..., :2]) / 2
  assert_allclose(halves[exists], expected[exists], rtol=1e-6)
  step = min(20, size or rooms(20)[0])
  count = max(np.flatnonzero(exists.any(0)), default=-1) + 1  # the RoIs of an image up to the last one
  done = 20 if step == 20 else min(20, -(-count // step) * step)
  assert_array_equal(ones, np.broadcast_to(np.arange(20) < done, ones.shape))


@functools.cache
def halved(size):
  return jax.jit(Halved(size).apply)

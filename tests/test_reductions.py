"""Jitted reductions against numpy, at the sizes of full images: some releases of jaxlib add up wrongly on the CPU.

jaxlib 0.10.2 gave wrong sums behind a vmapped product of a small matrix (jax-ml/jax#39103); 0.10.2 and 0.11.0 crashed
on some reductions of high rank (#39257, #40412). pyproject.toml excludes both.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcnn_jax.models.layers import _moments
from rcnn_jax.ops import assign, boxes, losses
from rcnn_jax.training import optim

NUM_ANCHORS = 268_569  # of a pyramid over a canvas of 800 x 1344 pixels, three a cell


@pytest.mark.parametrize("num_rows", [32_768, 32_769, 40_000])
def test_squared_products_of_a_small_matrix_with_many_rows(num_rows):
  rows = np.zeros((num_rows, 3), np.float32)
  rows[:, 0] = np.arange(num_rows)
  matrix = np.eye(3, dtype=np.float32)
  with jax.default_matmul_precision("highest"):  # a GPU's products of float32 are TensorFloat-32 else
    sums = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)
  np.testing.assert_array_equal(sums, rows[:, 0] ** 2)


def test_a_product_of_rank_seven_reduced_over_one_axis():
  draw = np.random.default_rng(0)
  a, b = draw.integers(-4, 5, (2, 3, 1, 2, 2, 8, 8, 8)).astype(np.float32)
  np.testing.assert_array_equal(jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(a, b), (a * b).sum(axis=3))


def anchors_and_objects() -> tuple[np.ndarray, np.ndarray]:
  """f32[A, 4] and f32[8, 4], whole pixels: products and quotients are the same in every order of arithmetic."""
  draw = np.random.default_rng(1)
  corners = draw.integers(0, 800, (NUM_ANCHORS + 8, 2))
  every = np.concatenate([corners, corners + draw.integers(8, 256, corners.shape)], axis=1).astype(np.float32)
  return every[:NUM_ANCHORS], every[NUM_ANCHORS:]


def iou_in_numpy(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """f64[N, M] of f32[N, 4] and f32[M, 4]."""
  a, b = a.astype(np.float64), b.astype(np.float64)
  sides = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
  overlap = np.maximum(sides, 0).prod(axis=-1)
  return overlap / ((a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1) - overlap)


def test_iou_of_all_anchors_and_the_best_anchor_of_each_object():
  grid, objects = anchors_and_objects()
  expected = iou_in_numpy(grid, objects)
  iou = jax.jit(jax.vmap(boxes.iou))(grid[None], objects[None])[0]
  np.testing.assert_allclose(iou, expected, rtol=1e-6)
  match = jax.jit(jax.vmap(lambda iou, valid: assign.match(iou, valid, foreground_iou=0.7, background_iou=0.3)))(
    iou[None], np.ones((1, 8), bool)
  )
  best = expected.max(axis=1)
  np.testing.assert_array_equal(match.foreground[0], best >= 0.7)
  np.testing.assert_array_equal(match.background[0], best < 0.3)
  np.testing.assert_allclose(match.iou[0], best, rtol=1e-6)


def test_losses_over_all_anchors_and_over_all_classes():
  draw = np.random.default_rng(2)
  logits = draw.normal(0, 3, (2, NUM_ANCHORS)).astype(np.float32)
  labels, valid = draw.random((2, NUM_ANCHORS)) < 0.1, draw.random((2, NUM_ANCHORS)) < 0.5
  summed = jax.jit(jax.vmap(losses.sigmoid_cross_entropy))(logits, labels, valid)
  of_each = np.logaddexp(0, logits.astype(np.float64)) - logits * labels
  np.testing.assert_allclose(summed, (of_each * valid).sum(axis=1), rtol=1e-5)

  logits = draw.normal(0, 3, (2, 2000, 91)).astype(np.float32)
  classes, valid = draw.integers(0, 91, (2, 2000)), draw.random((2, 2000)) < 0.5
  summed = jax.jit(jax.vmap(losses.softmax_cross_entropy))(logits, classes, valid)
  exact = logits.astype(np.float64)
  of_each = np.log(np.exp(exact).sum(-1)) - np.take_along_axis(exact, classes[..., None], -1)[..., 0]
  np.testing.assert_allclose(summed, (of_each * valid).sum(axis=1), rtol=1e-5)


def test_the_moments_of_a_large_map_and_the_norm_of_many_gradients():
  draw = np.random.default_rng(3)
  features = draw.normal(2, 3, (2, 200, 336, 16)).astype(np.float32)
  mean, var, count = jax.jit(_moments)(features, np.ones((2, 1, 1, 1), bool))
  assert count == 2 * 200 * 336
  np.testing.assert_allclose(mean, features.mean((0, 1, 2), np.float64), rtol=1e-4)
  np.testing.assert_allclose(var, features.var((0, 1, 2), np.float64), rtol=1e-4)
  norm = jax.jit(optim.global_norm)({"fc6": np.ones((2**12, 2**10), np.float32), "fc7": np.ones(2**22, np.float32)})
  np.testing.assert_allclose(norm, np.sqrt(2.0**23), rtol=1e-6)

"""Losses against closed forms, and their indifference to rows that are not valid."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcnn_jax.ops import losses

BOTH = np.array([True, True])
FIRST = np.array([True, False])


def test_softmax_cross_entropy_of_even_odds_is_log_of_their_number():
  got = losses.softmax_cross_entropy(np.zeros((2, 4), np.float32), np.array([0, 3]), BOTH)
  np.testing.assert_allclose(got, 2 * np.log(4), rtol=1e-6)


def test_softmax_cross_entropy_by_hand():
  logits = np.log(np.float32([[1, 2, 5], [6, 1, 1]]))
  got = losses.softmax_cross_entropy(logits, np.array([2, 0]), BOTH)
  np.testing.assert_allclose(got, -np.log(5 / 8) - np.log(6 / 8), rtol=1e-6)


def test_sigmoid_cross_entropy_by_hand():
  odds = np.float32([[3, 1 / 3], [1, 1]])
  got = losses.sigmoid_cross_entropy(np.log(odds), np.float32([[1, 1], [0, 1]]), BOTH)
  np.testing.assert_allclose(got, -np.log(3 / 4) - np.log(1 / 4) - 2 * np.log(1 / 2), rtol=1e-6)


def test_sigmoid_cross_entropy_is_finite_for_extreme_logits():
  got = losses.sigmoid_cross_entropy(np.float32([1e4, -1e4]), np.float32([0, 0]), BOTH)
  np.testing.assert_allclose(got, 1e4)


@pytest.mark.parametrize(
  "beta, expected",
  [
    (1.0, [0, 0.125, 0.5, 2.5]),
    (0.0, [0, 0.5, 1, 3]),
    (1 / 9, [0, 0.5 - 1 / 18, 1 - 1 / 18, 3 - 1 / 18]),
  ],
)
def test_smooth_l1_is_a_parabola_inside_beta_and_a_line_outside(beta, expected):
  distances = np.float32([0, 0.5, -1, 3])
  got = [losses.smooth_l1(d[None], np.zeros(1, np.float32), np.array([True]), beta=beta) for d in distances]
  np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
  "kind, expected",
  [
    ("smooth_l1", 10 - 0.5),  # dx = 1 anchor width, ten-fold; beta 1
    ("giou", 1),
    ("diou", 1 + 4**2 / (8**2 + 2**2)),
    ("ciou", 1 + 4**2 / (8**2 + 2**2)),
  ],
)
def test_box_regression_of_a_box_beside_its_target(kind, expected):
  anchors, targets = np.float32([[0, 0, 4, 2]] * 2), np.float32([[4, 0, 8, 2]] * 2)
  options = dict(kind=kind, beta=1.0, weights=(10.0, 10.0, 5.0, 5.0))
  got = losses.box_regression(np.zeros((2, 4), np.float32), anchors, targets, FIRST, **options)
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  exact = losses.box_regression(np.float32([[10, 0, 0, 0]] * 2), anchors, targets, BOTH, **options)
  np.testing.assert_allclose(exact, 0, atol=1e-6)


@pytest.mark.parametrize(
  "loss",
  [
    lambda x, targets: losses.softmax_cross_entropy(x, jnp.array([1, -(2**31)]), FIRST),
    lambda x, targets: losses.sigmoid_cross_entropy(x, targets, FIRST),
    lambda x, targets: losses.smooth_l1(x, targets, FIRST, beta=1.0),
    lambda x, targets: losses.smooth_l1(x, targets, FIRST, beta=0.0),
  ],
  ids=["softmax", "sigmoid", "smooth_l1", "l1"],
)
def test_garbage_in_rows_that_are_not_valid_reaches_neither_value_nor_gradient(loss):
  both = jax.jit(jax.value_and_grad(loss))
  expected, expected_gradient = both(np.float32([[1, 2, 3], [0, 0, 0]]), np.float32([[0, 1, 1], [0, 0, 0]]))
  for garbage in (np.nan, np.inf, -np.inf, 3e38):
    value, gradient = both(np.float32([[1, 2, 3], [garbage] * 3]), np.float32([[0, 1, 1], [garbage] * 3]))
    assert np.isfinite(value) and value == expected
    np.testing.assert_array_equal(gradient, expected_gradient)
    assert not gradient[1].any()


def test_bfloat16_logits_are_summed_in_float32():
  logits = jnp.zeros((4096, 2), jnp.bfloat16)
  got = losses.softmax_cross_entropy(logits, jnp.zeros(4096, jnp.int32), jnp.ones(4096, bool))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, 4096 * np.log(2), rtol=1e-5)


def test_divide_by_nothing_is_zero():
  np.testing.assert_array_equal(losses.divide(jnp.float32(0), 0), 0)
  np.testing.assert_array_equal(losses.divide(jnp.float32(6), jnp.int32(4)), 1.5)

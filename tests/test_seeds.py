"""Mean and spread over seeds, and the interval of a difference: by hand, with Student's t of a table."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn_jax.evaluation.seeds import difference, spread

T2, T4 = 4.302653, 2.776445  # the 97.5 % points of t with two and with four degrees of freedom
ONE_TWO_THREE = {0: 1.0, 1: 2.0, 2: 3.0}

samples = st.dictionaries(st.integers(0, 9), st.floats(0, 1).map(lambda x: round(x, 4)), min_size=1, max_size=5)


def test_mean_and_deviation():
  assert spread(ONE_TWO_THREE) == {"mean": 2.0, "sd": 1.0, "n": 3}
  assert spread({4: 0.5}) == {"mean": 0.5, "sd": None, "n": 1}


def test_independent_samples_of_equal_variance_and_size_have_two_times_n_minus_one_degrees_of_freedom():
  found = difference({seed: 10 + value for seed, value in ONE_TWO_THREE.items()}, ONE_TWO_THREE, paired=False)
  half = T4 * math.sqrt(1 / 3 + 1 / 3)
  assert found == pytest.approx({"mean": 10, "low": 10 - half, "high": 10 + half}, rel=1e-6)


def test_a_sample_without_variance_leaves_the_freedom_of_the_other():
  found = difference(ONE_TWO_THREE, {5: 1.0, 6: 1.0}, paired=False)
  half = T2 / math.sqrt(3)
  assert found == pytest.approx({"mean": 1, "low": 1 - half, "high": 1 + half}, rel=1e-6)


def test_pairs_are_made_of_the_seeds_that_both_have():
  base = {2: 20.0, 1: 11.0, 0: 0.0, 7: 1e6}
  found = difference(
    {seed: base[seed] + value for seed, value in ONE_TWO_THREE.items()} | {8: -1e6}, base, paired=True
  )
  half = T2 / math.sqrt(3)
  assert found == pytest.approx({"mean": 2, "low": 2 - half, "high": 2 + half}, rel=1e-6)


@pytest.mark.parametrize("paired", [False, True])
def test_without_spread_there_is_no_interval(paired):
  assert difference({0: 0.5}, {0: 0.25}, paired) == {"mean": 0.25, "low": None, "high": None}
  assert difference({0: 0.5, 1: 0.5}, {0: 0.25, 1: 0.25}, paired) == {"mean": 0.25, "low": None, "high": None}


def test_nothing_to_compare():
  assert difference({}, ONE_TWO_THREE, paired=False) is None
  assert difference({0: 1.0}, {1: 1.0}, paired=True) is None


@given(samples, samples, st.booleans())
def test_the_interval_is_around_the_mean_and_turns_about_with_the_order(ours, theirs, paired):
  found, turned = difference(ours, theirs, paired), difference(theirs, ours, paired)
  if found is None:
    assert turned is None
    return
  assert turned["mean"] == pytest.approx(-found["mean"])
  if found["low"] is None:
    assert turned["low"] is None
  else:
    assert found["low"] <= found["mean"] <= found["high"]
    assert (turned["low"], turned["high"]) == pytest.approx((-found["high"], -found["low"]), abs=1e-9)

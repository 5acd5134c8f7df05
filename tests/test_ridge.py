"""Ridge regression against scikit-learn's Ridge, in the primal and in the dual."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from rcnn_jax.training import ridge


def pairs(count, size, seed=0):
  rng = np.random.default_rng(seed)
  features = rng.normal(1.0, 2.0, (count, size)).astype(np.float32)
  targets = features @ rng.normal(size=(size, 4)) + 3 + rng.normal(size=(count, 4))
  return features, targets.astype(np.float32)


@pytest.mark.parametrize("count, size", [(200, 12), (30, 90), (12, 12)], ids=["primal", "dual", "square"])
@pytest.mark.parametrize("penalty", [1000.0, 1.0])
def test_it_is_scikit_learns(count, size, penalty, monkeypatch):
  monkeypatch.setattr(ridge, "BLOCK", 17)
  features, targets = pairs(count, size)
  got = ridge.fit(features, targets, penalty)
  expected = Ridge(alpha=penalty, solver="svd").fit(features.astype(np.float64), targets.astype(np.float64))
  np.testing.assert_allclose(got.kernel, expected.coef_.T, atol=1e-5)
  np.testing.assert_allclose(got.bias, expected.intercept_, atol=1e-5)
  left = targets - expected.predict(features.astype(np.float64))
  np.testing.assert_allclose(got.residual, (left**2).mean(), rtol=1e-5)


def test_a_penalty_makes_up_for_dependent_features():
  features, targets = pairs(50, 6)
  twice = np.concatenate([features, features], axis=1)
  expected = Ridge(alpha=10.0, solver="svd").fit(twice.astype(np.float64), targets)
  np.testing.assert_allclose(ridge.fit(twice, targets, 10.0).kernel, expected.coef_.T, atol=1e-5)


@pytest.mark.parametrize("fault", ["no rows", "dependent", "too few rows"])
def test_a_system_without_a_unique_solution_is_told(fault):
  features, targets = pairs(0 if fault == "no rows" else 20, 6 if fault == "dependent" else 30)
  if fault == "dependent":
    features = np.concatenate([features, features], axis=1)
  with pytest.raises(ridge.Singular, match="no pair" if fault == "no rows" else "linearly dependent"):
    ridge.fit(features, targets, 0.0)

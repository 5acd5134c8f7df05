"""SVMs against scikit-learn's LinearSVC, and mined negatives against all of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from rcnn_jax.training import svm
from rcnn_jax.training.stages import FitSvms

NUM_CLASSES = 3
SETTINGS = FitSvms(cost=0.001, positive_weight=2.0, intercept=10.0, max_new=40)


def regions(seed=0, count=900, size=24):
  """Rows of features of norm 20 on average, as R-CNN scales them; class k + 1 leans towards axis k."""
  rng = np.random.default_rng(seed)
  truth = np.where(rng.uniform(size=count) < 0.1, rng.integers(1, NUM_CLASSES + 1, count), 0)
  leaning = rng.integers(0, NUM_CLASSES + 1, count)  # proposals look like something too
  features = rng.normal(size=(count, size)) + 2 * np.eye(NUM_CLASSES + 1, size)[np.where(truth, truth - 1, leaning)]
  overlaps = np.where(rng.uniform(size=(count, NUM_CLASSES)) < 0.1, 0.5, 0.1)
  overlaps[np.arange(count)[truth > 0], truth[truth > 0] - 1] = 1
  features *= 20 / np.linalg.norm(features, axis=1).mean()
  return svm.Rows(features.astype(np.float32), truth.astype(np.int32), overlaps.astype(np.float32))


def in_chunks(rows, size=250):
  fields = [f.name for f in dataclasses.fields(rows)]
  starts = range(0, len(rows.truth), size)
  return [svm.Rows(**{name: getattr(rows, name)[at : at + size] for name in fields}) for at in starts]


def linear_svc(rows, k):
  """scikit-learn's decision values for all rows, fitted to every negative of the class."""
  positive = rows.truth == k + 1
  used = positive | (rows.overlaps[:, k] < 0.3)
  model = LinearSVC(C=0.001, class_weight={1: 2.0}, intercept_scaling=10.0, tol=1e-10, max_iter=1_000_000)
  model.fit(rows.features[used].astype(np.float64), np.where(positive[used], 1, -1))
  return model.decision_function(rows.features.astype(np.float64))


def mined(rows, settings=SETTINGS, scale=1.0):
  lines = []
  svms, numbers = svm.mine(lambda: iter(in_chunks(rows)), NUM_CLASSES, settings, scale, lines.append)
  return svms, numbers, lines


def test_mined_svms_are_linear_svcs_of_all_negatives():
  rows = regions()
  svms, numbers, lines = mined(rows)
  assert numbers["converged"] and numbers["rounds"] > 2 and len(lines) == numbers["rounds"]
  assert numbers["hard_negatives"] < numbers["negatives"]
  expected = np.stack([linear_svc(rows, k) for k in range(NUM_CLASSES)], axis=1)
  np.testing.assert_allclose(svms.decisions(rows.features), expected, atol=1e-3)


def test_the_scale_is_that_of_the_features():
  rows = regions()
  small = dataclasses.replace(rows, features=rows.features / 8)
  svms, expected = mined(small, scale=8.0)[0], mined(rows)[0]
  np.testing.assert_allclose(svms.kernel, expected.kernel, atol=1e-4)


def test_a_class_without_positives_never_scores():
  rows = regions()
  svms, numbers, _ = mined(dataclasses.replace(rows, truth=np.where(rows.truth == 2, 0, rows.truth)))
  decisions = svms.decisions(rows.features)
  assert (decisions[:, 1] == svm.NEVER).all() and np.isfinite(decisions).all()
  np.testing.assert_allclose(decisions[:, 0], linear_svc(rows, 0), atol=1e-3)
  assert numbers["positives"] == (rows.truth > 0).sum() - (rows.truth == 2).sum()


@pytest.mark.parametrize("lacking", ["positives", "negatives"])
def test_nothing_to_learn_from_is_no_nan(lacking):
  rows = regions(count=60)
  if lacking == "positives":
    rows = dataclasses.replace(rows, truth=np.zeros_like(rows.truth))
  else:
    rows = dataclasses.replace(rows, overlaps=np.ones_like(rows.overlaps))
  svms, numbers, _ = mined(rows)
  assert np.isfinite(svms.decisions(rows.features)).all() and np.isfinite(list(numbers.values())).all()


def test_mining_that_is_cut_short_says_so():
  _, numbers, lines = mined(regions(), dataclasses.replace(SETTINGS, max_rounds=1))
  assert not numbers["converged"] and "not known to have converged after 1 rounds" in lines[-1]

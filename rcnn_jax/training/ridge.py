"""Ridge regression in closed form, in the primal or in the dual, whichever system is smaller.

The objective is scikit-learn's Ridge: |Y - X W - b|² + penalty · |W|², the intercept b not penalised. Host numpy in
float64, since the normal equations square the condition of the features.
"""

from __future__ import annotations

import dataclasses

import numpy as np

BLOCK = 4096  # rows that are turned into float64 at a time


class Singular(ValueError):
  """There is no row to fit, or no unique solution."""


@dataclasses.dataclass(frozen=True)
class Fit:
  """Y = X kernel + bias."""

  kernel: np.ndarray  # f64[C, T]
  bias: np.ndarray  # f64[T]
  num_rows: int
  residual: float  # mean square of what is left of the targets


def fit(x: np.ndarray, y: np.ndarray, penalty: float) -> Fit:
  """The regression of targets y [R, T] on features x [R, C].

  Raises:
    Singular: for no rows at all, and for linearly dependent features with a penalty of 0.
  """
  count, size = x.shape
  if not count:
    raise Singular("there is no pair to fit")
  mean_x, mean_y = np.mean(x, axis=0, dtype=np.float64), np.mean(y, axis=0, dtype=np.float64)
  if size <= count:
    gram, cross = np.zeros((size, size)), np.zeros((size, y.shape[1]))
    for at in range(0, count, BLOCK):
      rows = x[at : at + BLOCK] - mean_x
      gram += rows.T @ rows
      cross += rows.T @ (y[at : at + BLOCK] - mean_y)
    kernel = _solve(gram, penalty, cross)
  else:
    rows = x - mean_x
    kernel = rows.T @ _solve(rows @ rows.T, penalty, y - mean_y)
  bias = mean_y - mean_x @ kernel
  residual = ((y - x @ kernel - bias) ** 2).mean()
  return Fit(kernel, bias, count, float(residual))


def _solve(gram: np.ndarray, penalty: float, right: np.ndarray) -> np.ndarray:
  """(gram + penalty)^-1 right; Cholesky's decomposition tells whether there is one."""
  system = gram + penalty * np.eye(len(gram))
  try:
    pivots = np.diag(np.linalg.cholesky(system)) ** 2
  except np.linalg.LinAlgError:
    pivots = np.zeros(1)
  if pivots.min() <= len(gram) * np.finfo(np.float64).eps * pivots.max():
    raise Singular(f"the features are linearly dependent, and a penalty of {penalty} does not make up for it")
  return np.linalg.solve(system, right)

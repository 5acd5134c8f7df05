"""Ridge regression in closed form, in the primal or in the dual, whichever system is smaller.

The objective is scikit-learn's Ridge: |Y - X W - b|² + penalty · |W|², the intercept b not penalised. Host numpy in
float64, since the normal equations square the condition of the features; rows are read chunk by chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

Chunk = tuple[np.ndarray, np.ndarray]  # (features [R, C], targets [R, T]), may be memory-mapped


class Singular(ValueError):
  """There is no row to fit, or no unique solution."""


@dataclasses.dataclass(frozen=True)
class Fit:
  """Y = X kernel + bias."""

  kernel: np.ndarray  # f64[C, T]
  bias: np.ndarray  # f64[T]
  num_rows: int
  residual: float  # mean square of what is left of the targets


def fit(chunks: list[Chunk], penalty: float) -> Fit:
  """The regression of T targets on C features.

  Raises:
    Singular: for no rows at all, and for linearly dependent features with a penalty of 0.
  """
  count = sum(len(x) for x, _ in chunks)
  if not count:
    raise Singular("there is no pair to fit")
  mean_x = sum(np.sum(x, axis=0, dtype=np.float64) for x, _ in chunks) / count
  mean_y = sum(np.sum(y, axis=0, dtype=np.float64) for _, y in chunks) / count
  if len(mean_x) <= count:
    gram, cross = _sums((x - mean_x, y - mean_y) for x, y in chunks)
    kernel = _solve(gram, penalty, cross)
  else:
    x = np.concatenate([x for x, _ in chunks]) - mean_x
    y = np.concatenate([y for _, y in chunks]) - mean_y
    kernel = x.T @ _solve(x @ x.T, penalty, y)
  bias = mean_y - mean_x @ kernel
  residual = sum(((y - x @ kernel - bias) ** 2).sum() for x, y in chunks) / (count * len(bias))
  return Fit(kernel, bias, count, float(residual))


def _sums(chunks: Iterable[Chunk]) -> tuple[np.ndarray, np.ndarray]:
  """X^T X and X^T Y over all chunks."""
  gram, cross = 0.0, 0.0
  for x, y in chunks:
    gram, cross = gram + x.T @ x, cross + x.T @ y
  return gram, cross


def _solve(gram: np.ndarray, penalty: float, right: np.ndarray) -> np.ndarray:
  """(gram + penalty)^-1 right, by Cholesky's decomposition."""
  system = gram + penalty * np.eye(len(gram))
  try:
    lower = np.linalg.cholesky(system)
  except np.linalg.LinAlgError:
    lower = np.zeros((1, 1))
  pivots = np.diag(lower) ** 2
  if pivots.min() <= len(gram) * np.finfo(np.float64).eps * pivots.max():
    raise Singular(f"the features are linearly dependent, and a penalty of {penalty} does not make up for it")
  return np.linalg.solve(lower.T, np.linalg.solve(lower, right))

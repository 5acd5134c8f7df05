"""Linear support vector machines, one for each class against the rest, and the mining of hard negatives for them.

The objective is that of scikit-learn's LinearSVC with its default loss, the squared hinge: for each class

    1/2 (|w|² + b²) + sum over rows of weight · max(0, 1 - y (x·w + intercept · b))²,

with the bias b regularised as liblinear does. R-CNN used the plain hinge (arXiv:1311.2524, section 2.3): the squared
one has the same margin and a unique smooth minimum, which Newton's method finds for all classes at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from rcnn_jax.training.stages import FitSvms

Array = jax.Array

NEVER = np.float32(-1e6)  # the decision value of a class that has nothing to learn from


@dataclasses.dataclass(frozen=True)
class Svms:
  """K linear classifiers on features of C numbers."""

  kernel: np.ndarray  # f32[C, K]
  bias: np.ndarray  # f32[K]
  objective: np.ndarray  # f32[K]

  def decisions(self, features: np.ndarray) -> np.ndarray:
    """f32[R, K] for features f32[R, C]."""
    return features @ self.kernel + self.bias


@jax.jit
def solve(features: Array, signs: Array, weights: Array, intercept: float, start: Array) -> tuple[Array, Array]:
  """(kernels f32[K, C + 1], the bias' column last; objectives f32[K]): the minimum for every class.

  The products are float32's own on every device: with those of a TPU's default the minimum is not reached.

  Args:
    features: f32[R, C], the rows of all classes.
    signs: f32[K, R], 1 for a class' positives, -1 for its negatives.
    weights: f32[K, R], the cost of each row, 0 for those that do not count.
    intercept: the constant feature that the bias is the weight of.
    start: f32[K, C + 1], where Newton's method starts.
  """
  constant = jnp.full((features.shape[0], 1), intercept, features.dtype)
  rows = jnp.concatenate([features, constant], axis=1)
  with jax.default_matmul_precision("highest"):
    return jax.vmap(lambda y, c, w: _newton(rows, y, c, w))(signs, weights, start)


def _newton(rows: Array, signs: Array, weights: Array, start: Array, steps: int = 50) -> tuple[Array, Array]:
  """Minimises one class' objective: w f32[C + 1] and its value."""

  def objective(w, margins):
    return 0.5 * w @ w + (weights * jnp.maximum(1 - margins, 0) ** 2).sum()

  def improve(state):
    w, margins, step, _ = state
    slack = jnp.maximum(1 - margins, 0)
    gradient = w - 2 * rows.T @ (weights * slack * signs)
    active = 2 * weights * (slack > 0)
    hessian = lambda v: v + rows.T @ (active * (rows @ v))
    direction, _ = jax.scipy.sparse.linalg.cg(hessian, -gradient, tol=1e-6, maxiter=rows.shape[1])
    change = signs * (rows @ direction)
    shares = 0.5 ** jnp.arange(12.0)
    values = jax.vmap(lambda t: objective(w + t * direction, margins + t * change))(shares)
    share = jnp.where(values.min() < objective(w, margins), shares[values.argmin()], 0.0)
    w = w + share * direction
    moved = jnp.abs(share * change).max()
    return w, signs * (rows @ w), step + 1, moved > 1e-5  # of a margin: where no decision moves, the end is reached

  state = (start, signs * (rows @ start), 0, jnp.array(True))
  w, margins, _, _ = jax.lax.while_loop(lambda s: s[3] & (s[2] < steps), improve, state)
  return w, objective(w, margins)


@dataclasses.dataclass(frozen=True)
class Rows:
  """Some regions of the training images, in the order in which they are stored."""

  features: np.ndarray  # f32[R, C], may be memory-mapped
  truth: np.ndarray  # i32[R], the class of an object's own box, 0 for a proposal
  overlaps: np.ndarray  # f32[R, K], the highest IoU with an object of each class


def mine(
  chunks: Callable[[], Iterable[Rows]],
  num_classes: int,
  settings: FitSvms,
  scale: float,
  log_line: Callable[[str], None],
) -> tuple[Svms, dict[str, float]]:
  """Fits the SVMs to all positives and all hard negatives: to what fitting them to every negative would give.

  Rounds of fitting to the negatives found so far and of a pass over all regions, until that finds no new hard one.

  Args:
    chunks: starts a pass over the training regions; every pass gives the same.
    num_classes: K.
    settings: costs and thresholds.
    scale: the factor on the features, beforehand.
    log_line: logs a line of progress.

  Returns:
    The SVMs, whose biases are NEVER for a class without a positive, and how the mining went.
  """
  cache = _Cache.positives(chunks(), num_classes, settings, scale)
  svms, rounds, converged = None, 0, False
  while rounds < settings.max_rounds and not converged:
    found = cache.add_negatives(chunks, svms, scale)
    converged = svms is not None and not found
    if not converged:
      svms, rounds = cache.fit(svms), rounds + 1
      log_line(f"SVMs, round {rounds}: {found:,} negatives added, {cache.num_negatives:,} of {cache.seen:,} held")
      cache.drop_easy(svms)
  if not converged:
    log_line(f"SVMs: not known to have converged after {rounds} rounds (FitSvms.max_rounds)")
  none = ~cache.has_positives
  kernel, bias = np.where(none, 0, svms.kernel), np.where(none, NEVER, svms.bias)
  return dataclasses.replace(svms, kernel=kernel, bias=bias), {
    "positives": int(cache.is_positive.sum()),
    "hard_negatives": cache.num_negatives,
    "negatives": cache.seen,
    "rounds": rounds,
    "converged": float(converged),
    "objective": float(svms.objective[~none].sum()),
  }


@dataclasses.dataclass
class _Cache:
  """The rows that the SVMs are fitted to: each once, though it may count for several classes."""

  settings: FitSvms
  features: np.ndarray  # f32[U, C], scaled
  row: np.ndarray  # i64[U], the number of each in a pass over all rows
  is_positive: np.ndarray  # bool[U, K]
  is_negative: np.ndarray  # bool[U, K]
  seen: int = 0  # negatives of the last pass, of all classes

  @classmethod
  def positives(cls, chunks: Iterable[Rows], num_classes: int, settings: FitSvms, scale: float) -> _Cache:
    features, rows, classes, first = [], [], [], 0
    for chunk in chunks:
      kept = np.flatnonzero(chunk.truth)
      features.append(scale * chunk.features[kept])
      rows.append(first + kept)
      classes.append(chunk.truth[kept])
      first += len(chunk.truth)
    is_positive = np.concatenate(classes)[:, None] == np.arange(1, num_classes + 1)
    nothing = np.zeros_like(is_positive)
    return cls(settings, np.concatenate(features), np.concatenate(rows), is_positive, nothing)

  @property
  def has_positives(self) -> np.ndarray:
    return self.is_positive.any(0)

  @property
  def num_negatives(self) -> int:
    return int(self.is_negative.sum())

  def add_negatives(self, chunks: Callable[[], Iterable[Rows]], svms: Svms | None, scale: float) -> int:
    """Adds the hardest new negatives of each class, evenly spaced ones where there are no SVMs yet; counts them."""
    none = np.zeros(0, np.float32), np.zeros(0, np.int64)
    best = {k: none for k in np.flatnonzero(self.has_positives)}
    held = {k: self.row[self.is_negative[:, k]] for k in best}
    self.seen, first = 0, 0
    for chunk in chunks():
      numbers = first + np.arange(len(chunk.truth))
      decisions = None if svms is None else svms.decisions(scale * chunk.features)
      for k in best:
        negative = (chunk.overlaps[:, k] < self.settings.negative_iou) & (chunk.truth != k + 1)
        self.seen += int(negative.sum())
        score = _evenly(numbers) if svms is None else decisions[:, k]
        new = negative & (score > self.settings.hard_score) & ~np.isin(numbers, held[k])
        best[k] = _best(best[k], (score[new], numbers[new]), self.settings.max_new)
      first += len(chunk.truth)
    self._take_in(chunks(), np.unique(np.concatenate([none[1], *(numbers for _, numbers in best.values())])), scale)
    for k, (_, numbers) in best.items():
      self.is_negative[np.isin(self.row, numbers), k] = True
    return sum(len(numbers) for _, numbers in best.values())

  def _take_in(self, chunks: Iterable[Rows], numbers: np.ndarray, scale: float) -> None:
    """Reads those of the rows that the cache does not hold."""
    numbers = numbers[~np.isin(numbers, self.row)]
    features, first = [self.features], 0
    for chunk in chunks:
      here = numbers[(numbers >= first) & (numbers < first + len(chunk.truth))] - first
      features.append(scale * chunk.features[here])
      first += len(chunk.truth)
    more = np.zeros((len(numbers), self.is_positive.shape[1]), bool)
    self.features, self.row = np.concatenate(features), np.concatenate([self.row, numbers])
    self.is_positive = np.concatenate([self.is_positive, more])
    self.is_negative = np.concatenate([self.is_negative, more])

  def fit(self, svms: Svms | None) -> Svms:
    """The minimum for the rows held, started from the last one; padded to a power of two, to be compiled seldom."""
    length = max(1 << (len(self.row) - 1).bit_length(), 1024)
    pad = lambda x: np.pad(x, ((0, length - len(x)), (0, 0)))
    positive, negative = pad(self.is_positive), pad(self.is_negative)
    costs = self.settings.cost * (self.settings.positive_weight * positive + negative)
    intercept = self.settings.intercept
    start = np.zeros((positive.shape[1], self.features.shape[1] + 1), np.float32)
    if svms is not None:
      start = np.concatenate([svms.kernel.T, svms.bias[:, None] / intercept], 1)
    signs = np.where(positive, 1, -1).T.astype(np.float32)
    found, objective = jax.device_get(solve(pad(self.features), signs, costs.T.astype(np.float32), intercept, start))
    return Svms(np.ascontiguousarray(found[:, :-1].T), found[:, -1] * intercept, objective)

  def drop_easy(self, svms: Svms) -> None:
    """Forgets negatives far beyond the margin, which cost nothing: the minimum stays where it is."""
    self.is_negative &= svms.decisions(self.features) >= self.settings.easy_score
    kept = self.is_positive.any(1) | self.is_negative.any(1)
    self.features, self.row = self.features[kept], self.row[kept]
    self.is_positive, self.is_negative = self.is_positive[kept], self.is_negative[kept]


def _evenly(numbers: np.ndarray) -> np.ndarray:
  """Scores in 0..1 that spread a choice of the best evenly over all rows: multiples of the golden ratio."""
  return (numbers * 0.6180339887498949 % 1.0).astype(np.float32)


def _best(held: tuple, more: tuple, most: int) -> tuple:
  """The `most` highest of (scores, row numbers), ties to the lower row."""
  scores, numbers = (np.concatenate(pair) for pair in zip(held, more))
  top = np.lexsort((numbers, -scores))[:most]
  return scores[top], numbers[top]

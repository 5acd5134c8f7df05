"""The stages that a training is made of, as values: gradient descent, fits in closed form, and moves of parameters.

All but gradient descent take one step of the plan. A fit changes the parameters of `RcnnHead` that it is named for, a
move those of its paths, and no others.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rcnn_jax.training.optim import AdamW, Constant, Cosine, Momentum, Rule, StepDecay, TrainingError


@dataclasses.dataclass(frozen=True)
class Sgd:
  """Gradient descent on the sum of the model's loss terms, or of some of them.

  A step is one batch. With `accumulate` = k the parameters move at every k-th step, along the mean of k gradients;
  lengths, schedules and warm-ups stay counted in batches.

  With `ema` the stage's result is the moving average: it is what is evaluated while the stage runs and after it, what
  is exported, and what the next stage starts from, as its parameters and, where it has `ema` too, as its average.
  """

  steps: int | None = None  # exactly one of `steps` and
  epochs: float | None = None  # `epochs` (of the loader's, which knows how many batches one has) is given
  optimizer: Momentum | AdamW = Momentum()
  schedule: Constant | StepDecay | Cosine = Constant(0.01)
  weight_decay: float = 0.0
  rules: tuple[Rule, ...] = (Rule(".*"),)  # the first that matches counts; every parameter must be covered
  clip_norm: float | None = None  # of the whole gradient, frozen parameters not counted
  accumulate: int = 1
  ema: float | None = None  # decay of the moving average of the parameters
  losses: tuple[str, ...] | None = None  # the terms that count; None: all
  model: tuple[tuple[str, Any], ...] = ()  # (path, value): what is different in the model that this stage trains

  def num_steps(self, steps_per_epoch: int) -> int:
    """The length of the stage in batches: that nearest to `epochs`, or `steps`.

    Raises:
      TrainingError: if not exactly one of steps and epochs is given, or the stage would be empty.
    """
    if (self.steps is None) == (self.epochs is None):
      raise TrainingError(f"a stage needs exactly one of steps and epochs, got {self.steps} and {self.epochs}")
    if self.steps is None:
      steps = round(self.epochs * steps_per_epoch)
      steps -= steps % self.accumulate
    else:
      steps = self.steps
    if steps <= 0:
      raise TrainingError(f"the stage has no step: an epoch has {steps_per_epoch} batches, {self}")
    if steps % self.accumulate:
      raise TrainingError(f"the stage's {steps} steps are not a multiple of accumulate = {self.accumulate}")
    return steps


@dataclasses.dataclass(frozen=True)
class FitSvms:
  """Linear SVMs on the trunk's features, each class against the rest, with mined hard negatives.

  R-CNN, section 2.3 and appendix B. Positives are the objects' own boxes, negatives the regions that overlap no
  object of the class by `negative_iou`; the objective is LinearSVC's, with the squared hinge (see training/svm.py).
  """

  cost: float = 0.001  # LinearSVC's C
  positive_weight: float = 2.0  # factor on the cost of a positive
  intercept: float = 10.0  # LinearSVC's intercept_scaling
  norm: float = 20.0  # features are scaled to this Euclidean norm on average
  negative_iou: float = 0.3
  hard_score: float = -1.0  # a negative that scores above it lies within the margin: it is hard
  easy_score: float = -1.2  # below it a negative leaves the memory
  max_new: int = 2000  # negatives that a class gains in one round, the hardest first
  max_rounds: int = 50

  def num_steps(self, steps_per_epoch: int) -> int:
    """A fit is one step."""
    return 1


@dataclasses.dataclass(frozen=True)
class FitBoxRegression:
  """Ridge regression of each class' box deltas on the pooled features (R-CNN, appendix C)."""

  penalty: float = 1000.0
  norm: float = 20.0  # features are scaled to this Euclidean norm on average
  min_iou: float = (
    0.6  # a proposal is a pair with the object of the class that it overlaps most, if by more than this
  )
  max_pairs: int | None = None  # of a class, evenly spaced over all of them

  def num_steps(self, steps_per_epoch: int) -> int:
    """A fit is one step."""
    return 1


@dataclasses.dataclass(frozen=True)
class CopyParameters:
  """The parameters under one path take the values of those under another."""

  source: str  # 'backbone'
  target: str  # 'proposer/kept_backbone', whose parameters have the same names and shapes

  def num_steps(self, steps_per_epoch: int) -> int:
    """A move is one step."""
    return 1


@dataclasses.dataclass(frozen=True)
class ResetParameters:
  """Parameters go back to where the experiment begins: to the weights of its `init`, or random ones by its seed."""

  pattern: str  # matched against whole paths, as a Rule's

  def num_steps(self, steps_per_epoch: int) -> int:
    """A move is one step."""
    return 1


Fit = FitSvms | FitBoxRegression
Stage = Sgd | Fit | CopyParameters | ResetParameters


def descent(stage: Stage) -> Sgd:
  """The stage as gradient descent sees it: during any other, every parameter is frozen."""
  return stage if isinstance(stage, Sgd) else Sgd(steps=1, rules=(Rule(".*", frozen=True),))

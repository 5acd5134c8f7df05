"""The stages that a training is made of, as values: how long, with which optimiser, which parameters, which rates."""

from __future__ import annotations

import dataclasses

from rcnn_jax.training.optim import AdamW, Constant, Cosine, Momentum, Rule, StepDecay, TrainingError


@dataclasses.dataclass(frozen=True)
class Sgd:
  """Gradient descent on the sum of the model's loss terms.

  A step is one batch. With `accumulate` = k the parameters move at every k-th step, along the mean of k gradients;
  lengths, schedules and warm-ups stay counted in batches.
  """

  steps: int | None = None  # exactly one of `steps` and
  epochs: float | None = None  # `epochs` (of the training set, in whole batches) is given
  optimizer: Momentum | AdamW = Momentum()
  schedule: Constant | StepDecay | Cosine = Constant(0.01)
  weight_decay: float = 0.0
  rules: tuple[Rule, ...] = (Rule(".*"),)  # the first that matches counts; every parameter must be covered
  clip_norm: float | None = None  # of the whole gradient, frozen parameters not counted
  accumulate: int = 1
  ema: float | None = None  # decay of the moving average of the parameters, which is then what is evaluated

  def num_steps(self, num_images: int, batch_size: int) -> int:
    """The length of the stage in batches, for a training set of `num_images`.

    Raises:
      TrainingError: if not exactly one of steps and epochs is given, or the stage would be empty.
    """
    if (self.steps is None) == (self.epochs is None):
      raise TrainingError(f"a stage needs exactly one of steps and epochs, got {self.steps} and {self.epochs}")
    if self.steps is None:
      steps = int(self.epochs * (num_images // batch_size))
      steps -= steps % self.accumulate
    else:
      steps = self.steps
    if steps <= 0:
      raise TrainingError(f"the stage has no step: {num_images} images, batches of {batch_size}, {self}")
    if steps % self.accumulate:
      raise TrainingError(f"the stage's {steps} steps are not a multiple of accumulate = {self.accumulate}")
    return steps

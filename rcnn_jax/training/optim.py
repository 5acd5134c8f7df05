"""The optimiser of a stage: learning-rate schedules, rules on parameters, gradient clipping, momentum and Adam.

Everything a user chooses is a frozen dataclass of plain values; the functions below turn it into pure functions of
the step and of flat parameter dicts {"backbone/layer1/kernel": f32[...]}. No loop, no model, no I/O.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

Array = Any


class TrainingError(RuntimeError):
  """A training that cannot start, or cannot go on, as asked."""


# ------------------------------------------------------------------------------------------------------- schedules


@dataclasses.dataclass(frozen=True)
class Constant:
  """The learning rate `peak` at every step, after the warm-up."""

  peak: float
  warmup_steps: int = 0
  warmup_from: float = 0.001  # the fraction of the learning rate at the first step of the warm-up

  def decay(self, step: Array, num_steps: int) -> Array:
    """The fraction of the peak at a step: f32[]."""
    return jnp.ones_like(step)


@dataclasses.dataclass(frozen=True)
class StepDecay:
  """The learning rate multiplied by `factor` from each of the `milestones` on.

  A milestone is a step of the stage or, below 1, a part of it: 16 / 26 is the beginning of the 17th of 26 epochs.
  """

  peak: float
  milestones: tuple[float, ...]
  factor: float = 0.1
  warmup_steps: int = 0
  warmup_from: float = 0.001

  def decay(self, step: Array, num_steps: int) -> Array:
    """The fraction of the peak at a step: f32[]."""
    steps = [milestone * num_steps if milestone < 1 else milestone for milestone in self.milestones]
    passed = jnp.sum(step >= jnp.round(jnp.asarray(steps, jnp.float32)))
    return self.factor ** passed.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Cosine:
  """The learning rate falling along half a cosine, from `peak` to 0 at the end of the stage (arXiv:1608.03983)."""

  peak: float
  warmup_steps: int = 0
  warmup_from: float = 0.001

  def decay(self, step: Array, num_steps: int) -> Array:
    """The fraction of the peak at a step: f32[]."""
    return jnp.cos(0.5 * jnp.pi * step / num_steps) ** 2  # (1 + cos(pi x)) / 2, without its cancellation near the end


def learning_rate(schedule: Constant | StepDecay | Cosine, step: Array, num_steps: int) -> Array:
  """The learning rate at a step of a stage of `num_steps`, f32[].

  The warm-up is a factor on the decay, not a phase before it. At step i = 0, 1, ... it is warmup_from +
  (1 - warmup_from) * i / warmup_steps, and 1 from step `warmup_steps` on: Detectron2's WarmupParamScheduler and
  PyTorch's LinearLR, whose factor in torchvision's and Detectron2's trainings is 0.001, as here by default. With
  warmup_from = 0 the first step moves nothing.
  """
  step = jnp.asarray(step, jnp.float32)
  fraction = jnp.minimum(1.0, step / schedule.warmup_steps) if schedule.warmup_steps else 1.0
  warmup = schedule.warmup_from + (1 - schedule.warmup_from) * fraction
  return schedule.peak * warmup * schedule.decay(step, num_steps)


# ------------------------------------------------------------------------------------------------------- optimisers


@dataclasses.dataclass(frozen=True)
class Momentum:
  """SGD with momentum as PyTorch has it: weight decay joins the gradient, then the momentum, then the rate."""

  momentum: float = 0.9
  nesterov: bool = False

  def transform(self, decays: dict[str, float]) -> optax.GradientTransformation:
    """Gradient -> direction of the update, both flat; `decays` is each parameter's weight decay."""
    trace = optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity()
    return optax.chain(_add_decayed(decays), trace)


@dataclasses.dataclass(frozen=True)
class AdamW:
  """Adam with decoupled weight decay (arXiv:1711.05101)."""

  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8

  def transform(self, decays: dict[str, float]) -> optax.GradientTransformation:
    """Gradient -> direction of the update, both flat; `decays` is each parameter's weight decay."""
    return optax.chain(optax.scale_by_adam(self.b1, self.b2, self.eps), _add_decayed(decays))


def _add_decayed(decays: dict[str, float]) -> optax.GradientTransformation:
  def update(updates, params):
    none = {path for path, decay in decays.items() if isinstance(decay, float) and not decay}
    return {path: u if path in none else u + decays[path] * params[path] for path, u in updates.items()}

  return optax.stateless(update)


def global_norm(gradients: dict[str, Array]) -> Array:
  """The Euclidean norm of all gradients together, f32[]."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in gradients.values()))


def clip_by_global_norm(gradients: dict[str, Array], norm: Array, max_norm: float | None) -> dict[str, Array]:
  """Scales the gradients so that their global `norm` is at most `max_norm`, as torch's clip_grad_norm_ does."""
  if max_norm is None:
    return gradients
  scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
  return jax.tree.map(lambda g: g * scale, gradients)


# ------------------------------------------------------------------------------------------------ rules on parameters


@dataclasses.dataclass(frozen=True)
class Rule:
  """How the parameters whose whole path matches a regular expression are trained.

  Frozen parameters stay exactly as they are: no gradient is computed for them and no momentum is held. A batch norm
  whose scale and bias are both frozen is frozen as a whole: its running statistics stay, and it normalises by them,
  as Detectron2's FrozenBatchNorm2d does. With one of the two frozen, it goes on as a batch norm.
  """

  pattern: str  # matched against all of 'backbone/conv1/kernel' (re.fullmatch)
  lr: float = 1.0  # factor on the learning rate
  weight_decay: float = 1.0  # factor on the weight decay
  frozen: bool = False


def resolve(rules: tuple[Rule, ...], params: dict) -> dict[str, Rule]:
  """The first rule that matches each parameter, by its path.

  Raises:
    TrainingError: if a parameter is matched by no rule, or a rule matches no parameter at all.
  """
  paths = list(flatten(params))
  matches = {rule: matching(rule.pattern, paths) for rule in rules}
  idle = [rule.pattern for rule, matched in matches.items() if not matched]
  if idle:
    raise TrainingError(f"rules that match no parameter: {', '.join(idle)}; parameters are named like {paths[0]}")
  covered = {path: rule for rule in reversed(rules) for path in matches[rule]}
  missing = [path for path in paths if path not in covered]
  if missing:
    shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    raise TrainingError(f"parameters that no rule covers: {shown}")
  return {path: covered[path] for path in paths}


def frozen_norms(rules: dict[str, Rule], batch_stats: dict) -> set[str]:
  """The modules with running statistics ('backbone/bn1') and with parameters of which every one is frozen."""
  modules = {path.rpartition("/")[0] for path in flatten(batch_stats)}
  own = {module: [rule for path, rule in rules.items() if path.rpartition("/")[0] == module] for module in modules}
  return {module for module, theirs in own.items() if theirs and all(rule.frozen for rule in theirs)}


def matching(pattern: str, paths: Iterable[str]) -> list[str]:
  """The paths that match a regular expression as a whole. Raises TrainingError if it is none."""
  try:
    whole = re.compile(pattern)
  except re.error as error:
    raise TrainingError(f"{pattern!r} is no regular expression: {error}") from error
  return [path for path in paths if whole.fullmatch(path)]


def flatten(params: dict) -> dict[str, Array]:
  """Nested parameters to {"a/b/c": leaf}."""
  return flax.traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: dict[str, Array]) -> dict:
  """The inverse of `flatten`."""
  return flax.traverse_util.unflatten_dict(flat, sep="/")

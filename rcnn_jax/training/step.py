"""One training step as one jitted program: losses, gradients of the trainable parameters, update, moving average.

This file imports nothing but jax, flax, optax and numpy, so that it runs on a machine that has only those.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, PartitionSpec

from rcnn_jax.experiment import Sharding, override
from rcnn_jax.models.layers import FROZEN
from rcnn_jax.ops import random
from rcnn_jax.ops.devices import across_devices
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training import optim
from rcnn_jax.training.stages import Sgd

Array = Any
Inputs = dict[str, Array]  # key u32[2], peak f32[], weight_decay f32[]
Metrics = dict[str, Array]  # f32[] each: loss, loss/<term>, grad_norm, lr, skipped (0 or 1)


@struct.dataclass
class TrainState:
  """Everything that a step changes. Nested parameters as in the model's variables; optimiser leaves flat by path."""

  step: Array  # i32[], batches seen since the training began
  params: dict
  batch_stats: dict  # {} where the model has none
  opt_state: Any  # holds the trainable parameters' leaves only
  skipped: Array  # i32[], how many of the last steps were skipped in a row
  gradient_sum: dict | None = None  # with accumulate > 1: the sum since the last update
  ema_params: dict | None = None

  def variables(self) -> dict:
    """What the model is evaluated with: the moving average of the parameters where there is one."""
    params = self.params if self.ema_params is None else self.ema_params
    return {"params": params} | ({"batch_stats": self.batch_stats} if self.batch_stats else {})


def create_state(
  variables: dict, stage: Sgd, mesh: Mesh, step: int = 0, rules: tuple[Sharding, ...] = ()
) -> TrainState:
  """The state at the beginning of a stage, laid out by the mesh's rules; raises as `first_state` and `mesh.layout`."""
  state = first_state(variables, stage, step)
  return meshes.place(state, meshes.layout(state, mesh, rules))


def first_state(variables: dict, stage: Sgd, step: int = 0) -> TrainState:
  """The state at the beginning of a stage: a fresh optimiser beside the variables.

  Raises:
    TrainingError: if the stage's rules do not fit the parameters, or the model has other collections of variables.
  """
  unknown = set(variables) - {"params", "batch_stats"}
  if unknown:
    raise optim.TrainingError(f"the model has variables that training does not know: {', '.join(sorted(unknown))}")
  trainable, _ = partition(variables["params"], optim.resolve(stage.rules, variables["params"]))
  return TrainState(
    step=jnp.int32(step),
    params=variables["params"],
    batch_stats=variables.get("batch_stats", {}),
    opt_state=transform(stage, variables["params"]).init(trainable),
    skipped=jnp.int32(0),
    gradient_sum=jax.tree.map(jnp.zeros_like, trainable) if stage.accumulate > 1 else None,
    ema_params=variables["params"] if stage.ema is not None else None,
  )


def partition(params: dict, rules: dict[str, optim.Rule]) -> tuple[dict[str, Array], dict[str, Array]]:
  """(trainable, frozen) parameters, both flat by path."""
  flat = optim.flatten(params)
  trainable = {path: value for path, value in flat.items() if not rules[path].frozen}
  return trainable, {path: value for path, value in flat.items() if rules[path].frozen}


def transform(stage: Sgd, params: dict) -> optax.GradientTransformation:
  """The stage's optimiser on flat trainable parameters, without the learning rate."""
  rules = optim.resolve(stage.rules, params)
  decay = lambda rule: stage.weight_decay * rule.weight_decay if rule.weight_decay else 0.0
  return stage.optimizer.transform({path: decay(rule) for path, rule in rules.items()})


def make_train_step(
  model: nn.Module,
  stage: Sgd,
  mesh: Mesh,
  *,
  seed: int,
  num_steps: int,
  first_step: int = 0,
  max_skipped: int | None = None,
  rules: tuple[Sharding, ...] = (),
  shared: bool = False,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
  """The step of a stage, jitted once for each canvas; the state that goes in is donated.

  A step whose loss or gradient is not finite is skipped: it changes nothing but the number of the step.

  Args:
    model: has a method `losses(batch, key) -> dict[str, f32[]]`, of the images of one device, whose terms are divided
      by the counts of all devices (`ops.losses.divide`); the stage may change some of its values.
    stage: the optimiser, schedule and rules.
    mesh: the batch is divided over its devices.
    seed: the random key of a step depends on this, on the number of the step and on nothing else.
    num_steps: the length of the stage, which its schedule is fitted to.
    first_step: the number of the stage's first step.
    max_skipped: after so many skipped steps in a row, all are skipped, so that the last one can be repeated.
    rules: how parameters are laid out; by default each device has a copy.
    shared: the seed, the learning rate's peak and the weight decay are inputs of the program and no constants, so that
      trainings which differ in them alone are compiled once.
  """
  model, fixed = override(model, dict(stage.model)), stage

  # Each device computes what belongs to its images, and no box waits for another device's.
  gradients_of = jax.shard_map(
    functools.partial(loss_and_gradients, model, stage),
    mesh=mesh,
    in_specs=(PartitionSpec(), PartitionSpec(), meshes.rows(mesh), PartitionSpec()),
    out_specs=PartitionSpec(),
    check_vma=False,
  )

  def shared_step(state: TrainState, batch: Any, inputs: Inputs) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.wrap_key_data(inputs["key"]), state.step)
    stage = _with_inputs(fixed, inputs)
    gradients, batch_stats, metrics = gradients_of(state.params, state.batch_stats, batch, key)
    lr = optim.learning_rate(stage.schedule, state.step - first_step, num_steps)
    norm = optim.global_norm(gradients)
    sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    if max_skipped is not None:
      sound &= state.skipped < max_skipped
    moved = state.replace(batch_stats=batch_stats)
    if stage.accumulate == 1:
      moved = _update(stage, moved, gradients, lr)
    else:
      moved = _accumulate(stage, moved, gradients, lr, state.step - first_step)
    kept = jax.tree.map(functools.partial(jnp.where, sound), moved, state)
    skipped = jnp.where(sound, 0, state.skipped + 1)
    metrics |= {"lr": lr, "grad_norm": norm, "skipped": 1.0 - sound}
    state = kept.replace(step=state.step + 1, skipped=skipped)
    return (jax.lax.with_sharding_constraint(state, meshes.layout(state, mesh, rules)) if rules else state), metrics

  # With rules, the arrays that go in know where they are.
  copies, divided = meshes.replicated(mesh), meshes.along_data(mesh)
  inputs = _inputs(stage, seed)
  if shared:
    layouts = {} if rules else {"in_shardings": (copies, divided, copies), "out_shardings": copies}
    return _Shared(jax.jit(shared_step, donate_argnums=0, **layouts), inputs)

  def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
    return shared_step(state, batch, inputs)

  layouts = {} if rules else {"in_shardings": (copies, divided), "out_shardings": copies}
  return jax.jit(train_step, donate_argnums=0, **layouts)


@dataclasses.dataclass(frozen=True)
class _Shared:
  """A program with the inputs of one training."""

  program: Any  # jitted
  inputs: Inputs

  def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
    return self.program(state, batch, self.inputs)

  def _cache_size(self) -> int:
    return self.program._cache_size()


def _inputs(stage: Sgd, seed: int) -> Inputs:
  """What tells trials of one program from each other."""
  key = random.named(jax.random.key(seed), "train")
  return {
    "key": np.asarray(jax.random.key_data(key)),
    "peak": np.float32(stage.schedule.peak),
    "weight_decay": np.float32(stage.weight_decay),
  }


def _with_inputs(stage: Sgd, inputs: Inputs) -> Sgd:
  """The stage with these values; a weight decay of zero stays a constant, for which nothing is computed."""
  decay = inputs["weight_decay"] if stage.weight_decay else 0.0
  return dataclasses.replace(
    stage, schedule=dataclasses.replace(stage.schedule, peak=inputs["peak"]), weight_decay=decay
  )


def loss_and_gradients(
  model: nn.Module, stage: Sgd, params: dict, statistics: dict, batch: Any, key: Array
) -> tuple[dict, dict, Metrics]:
  """Gradients (flat, of the trainable parameters), the new batch statistics, the loss and its terms, of all devices."""
  rules = optim.resolve(stage.rules, params)
  trainable, frozen = partition(params, rules)
  norms = optim.frozen_norms(rules, statistics)
  fixed = {"batch_stats": statistics, FROZEN: optim.unflatten({f"{norm}/norm": True for norm in norms})}

  def loss(trainable):
    variables = {"params": optim.unflatten(trainable | frozen)}
    if not statistics:
      terms, updated = model.apply(variables, batch, key, method="losses"), {}
    else:
      terms, updated = model.apply(variables | fixed, batch, key, method="losses", mutable=["batch_stats"])
    terms = counted(terms, stage.losses)
    return sum(terms.values()), (terms, updated.get("batch_stats", statistics))

  (total, (terms, batch_stats)), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
  metrics = {"loss": total} | {f"loss/{name}": term for name, term in terms.items()}
  gradients, metrics = across_devices((gradients, metrics))
  return gradients, _kept(norms, statistics, batch_stats), metrics


def _kept(norms: set[str], before: dict, after: dict) -> dict:
  """The statistics `after` a step, but those of these norms as `before`: whatever layer they belong to."""
  before, after = optim.flatten(before), optim.flatten(after)
  return optim.unflatten({path: (before if path.rpartition("/")[0] in norms else after)[path] for path in after})


def counted(terms: dict[str, Array], names: tuple[str, ...] | None) -> dict[str, Array]:
  """The loss terms of these names, all of them for None; raises TrainingError for a term that the model has not."""
  missing = [name for name in names or () if name not in terms]
  if missing:
    raise optim.TrainingError(f"the model has no loss {', '.join(missing)}: it has {', '.join(terms)}")
  return terms if names is None else {name: terms[name] for name in names}


def _update(stage: Sgd, state: TrainState, gradients: dict, lr: Array) -> TrainState:
  """One move of the trainable parameters, and of their moving average."""
  rules = optim.resolve(stage.rules, state.params)
  trainable, frozen = partition(state.params, rules)
  gradients = optim.clip_by_global_norm(gradients, optim.global_norm(gradients), stage.clip_norm)
  directions, opt_state = transform(stage, state.params).update(gradients, state.opt_state, trainable)
  moved = {path: value - lr * rules[path].lr * directions[path] for path, value in trainable.items()}
  state = state.replace(params=optim.unflatten(moved | frozen), opt_state=opt_state)
  if stage.ema is None:
    return state
  averages = optim.flatten(state.ema_params)
  averages |= {path: stage.ema * averages[path] + (1 - stage.ema) * value for path, value in moved.items()}
  return state.replace(ema_params=optim.unflatten(averages))


def _accumulate(stage: Sgd, state: TrainState, gradients: dict, lr: Array, step: Array) -> TrainState:
  """Adds the gradients up, and moves along their mean at every `stage.accumulate`-th step."""
  total = jax.tree.map(jnp.add, state.gradient_sum, gradients)

  def move(state):
    mean = jax.tree.map(lambda g: g / stage.accumulate, total)
    return _update(stage, state, mean, lr).replace(gradient_sum=jax.tree.map(jnp.zeros_like, total))

  def wait(state):
    return state.replace(gradient_sum=total)

  return jax.lax.cond((step + 1) % stage.accumulate == 0, move, wait, state)

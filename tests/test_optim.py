"""Schedules against their closed forms, optimisers against PyTorch's update rules, rules on parameters."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from rcnn_jax.training import optim
from rcnn_jax.training.optim import AdamW, Constant, Cosine, Momentum, Rule, StepDecay, TrainingError
from rcnn_jax.training.stages import Sgd

PARAMS = {"backbone": {"conv": {"kernel": 1.0, "bias": 2.0}}, "box": {"kernel": 3.0}}


@pytest.mark.parametrize("step", [0, 1, 9, 10, 11, 50, 99])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_cosine_is_warmup_times_cosine(step, warmup):
  schedule = Cosine(peak=0.02, warmup_steps=warmup, warmup_from=0.0)
  expected = 0.02 * min(1, step / warmup if warmup else 1) * 0.5 * (1 + math.cos(math.pi * step / 100))
  np.testing.assert_allclose(optim.learning_rate(schedule, step, 100), expected, rtol=1e-5)


def test_step_decay_with_warmup_from_a_fraction():
  schedule = StepDecay(peak=1.0, milestones=(4, 6), factor=0.1, warmup_steps=2, warmup_from=0.5)
  rates = [float(optim.learning_rate(schedule, step, 8)) for step in range(8)]
  np.testing.assert_allclose(rates, [0.5, 0.75, 1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)


def test_milestones_below_one_are_parts_of_the_stage():
  """torchvision's 26 epochs, the rate falling after 16 and 22 of them, whatever number of steps an epoch has."""
  schedule = StepDecay(peak=1.0, milestones=(16 / 26, 22 / 26))
  for epoch in (1, 7, 7393):
    steps = [16 * epoch - 1, 16 * epoch, 22 * epoch - 1, 22 * epoch]
    rates = [float(optim.learning_rate(schedule, step, 26 * epoch)) for step in steps]
    np.testing.assert_allclose(rates, [1, 0.1, 0.1, 0.01], rtol=1e-5)


def test_constant():
  schedule = Constant(0.5, warmup_steps=2, warmup_from=0.0)
  assert [float(optim.learning_rate(schedule, s, 9)) for s in (0, 1, 2, 8)] == [0, 0.25, 0.5, 0.5]


# Detectron2's WarmupParamScheduler(MultiStepParamScheduler([0.02, 0.002], milestones=[...]), 0.001, 4 / length) and
# torchvision's LinearLR(start_factor=0.001, total_iters=4) with the rate 0.02: iterations 0 to 5.
WARMING_UP = [0.00002, 0.005015, 0.01001, 0.015005, 0.02, 0.02]


@pytest.mark.parametrize(
  "schedule",
  [Constant(0.02, warmup_steps=4), StepDecay(0.02, milestones=(50,), warmup_steps=4)],
  ids=["constant", "steps"],
)
def test_the_warm_up_is_detectron2s_and_torchvisions(schedule):
  rates = [float(optim.learning_rate(schedule, step, 100)) for step in range(6)]
  np.testing.assert_allclose(rates, WARMING_UP, rtol=1e-6)


def test_momentum_is_torch_sgd():
  """v <- 0.9 v + (g + wd p); the decay is coupled and the rate is applied after the momentum."""
  transform = Momentum(0.9).transform({"w": 0.1, "free": 0.0})
  params = {"w": jnp.float32(2.0), "free": jnp.float32(2.0)}
  gradient = {"w": jnp.float32(1.0), "free": jnp.float32(1.0)}
  first, state = transform.update(gradient, transform.init(params), params)
  second, _ = transform.update(gradient, state, params)
  np.testing.assert_allclose([first["w"], second["w"]], [1.2, 0.9 * 1.2 + 1.2], rtol=1e-6)
  np.testing.assert_allclose([first["free"], second["free"]], [1.0, 1.9], rtol=1e-6)


def test_adamw_is_decoupled():
  """The first direction of Adam is g / (|g| + eps), whatever the decay; then wd p is added."""
  transform = AdamW(eps=1e-8).transform({"w": 0.1})
  params = {"w": jnp.float32(2.0)}
  direction, _ = transform.update({"w": jnp.float32(5.0)}, transform.init(params), params)
  np.testing.assert_allclose(direction["w"], 1.0 + 0.1 * 2.0, rtol=1e-5)


def test_clipping_is_by_the_global_norm():
  gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
  norm = optim.global_norm(gradients)
  clipped = optim.clip_by_global_norm(gradients, norm, 1.0)
  np.testing.assert_allclose([clipped["a"][0], clipped["b"][0]], [0.6, 0.8], rtol=1e-5)
  assert optim.clip_by_global_norm(gradients, norm, 10.0)["a"] == 3.0  # a small gradient is left as it is
  assert optim.clip_by_global_norm(gradients, norm, None) is gradients


def test_the_first_matching_rule_counts_and_matches_whole_paths():
  biases, backbone, rest = Rule(r".*/bias", weight_decay=0.0), Rule(r"backbone/.*", frozen=True), Rule(r".*")
  assert optim.resolve((biases, backbone, rest), PARAMS) == {
    "backbone/conv/kernel": backbone,
    "backbone/conv/bias": biases,
    "box/kernel": rest,
  }


def test_rules_that_do_not_fit_are_refused():
  with pytest.raises(TrainingError, match="no rule covers: backbone/conv/bias, box/kernel"):
    optim.resolve((Rule("backbone/conv/kernel"),), PARAMS)
  with pytest.raises(TrainingError, match="match no parameter: backbone; "):  # not a prefix match
    optim.resolve((Rule("backbone"), Rule(".*")), PARAMS)
  with pytest.raises(TrainingError, match="'[*]/bias' is no regular expression: nothing to repeat"):
    optim.resolve((Rule("*/bias"), Rule(".*")), PARAMS)


def test_lengths():
  assert Sgd(steps=7).num_steps(12) == 7
  assert Sgd(epochs=2.5).num_steps(12) == 30
  assert Sgd(epochs=2.5, accumulate=4).num_steps(12) == 28
  assert Sgd(epochs=0.29).num_steps(100) == 29  # 28.999999999999996
  for wrong in (Sgd(), Sgd(steps=7, epochs=1.0), Sgd(steps=0), Sgd(epochs=0.1), Sgd(steps=7, accumulate=2)):
    with pytest.raises(TrainingError):
      wrong.num_steps(1)


NORMED = {"backbone": {"bn": {"scale": 1.0, "bias": 2.0}, "conv": {"kernel": 3.0}}, "head": {"kernel": 4.0}}
STATS = {"backbone": {"bn": {"mean": 0.0, "var": 1.0}, "fixed": {"mean": 0.0, "scale": 1.0}}}


@pytest.mark.parametrize(
  "frozen, expected",
  [
    ("backbone/.*", {"backbone/bn"}),
    ("backbone/bn/.*", {"backbone/bn"}),
    ("backbone/bn/scale", set()),  # its bias is trained: it goes on as a batch norm
    ("backbone/conv/.*", set()),
  ],
)
def test_a_norm_is_frozen_where_all_of_its_parameters_are(frozen, expected):
  rules = optim.resolve((Rule(frozen, frozen=True), Rule(".*")), NORMED)
  assert optim.frozen_norms(rules, STATS) == expected

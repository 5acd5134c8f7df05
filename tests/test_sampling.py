"""Samplers: how often images are seen, that epochs keep their length, and that no batch has an image twice."""

from __future__ import annotations

import collections
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from test_loader import Rectangles, assert_same, data, take, train

from rcnn_jax import experiment
from rcnn_jax.data import loader, sampling
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.loader import Epoch, TrainPlan
from rcnn_jax.data.sampling import ClassBalanced, RepeatFactor
from rcnn_jax.data.transforms import ColorJitter

settings = hypothesis.settings(max_examples=60, deadline=None)
factor_lists = st.lists(st.floats(0.05, 7), min_size=1, max_size=40).map(np.array)
# Of eight images, class 1 is on all but the last, class 2 on the first two, class 3 on the first.
PAIRS = np.array([*((image, 1) for image in range(7)), (0, 2), (1, 2), (0, 3)])


def test_repeat_factors_are_the_roots_of_what_a_class_lacks_to_the_threshold():
  factors = RepeatFactor(0.5).factors(PAIRS, 8)
  # f = 7/8, 2/8, 1/8: sqrt(4/7) is below 1, sqrt(2), sqrt(4).
  np.testing.assert_allclose(factors, [2, np.sqrt(2), 1, 1, 1, 1, 1, 1])
  np.testing.assert_array_equal(RepeatFactor(0.1).factors(PAIRS, 8), np.ones(8))
  np.testing.assert_array_equal(RepeatFactor().factors(np.zeros((0, 2), np.int64), 3), np.ones(3))


def test_balanced_classes_share_the_draws():
  factors = ClassBalanced().factors(PAIRS, 8)
  third = 8 / 3  # of the draws are of each class
  expected = [third / 7 + third / 2 + third, third / 7 + third / 2, *[third / 7] * 5, 0]
  np.testing.assert_allclose(factors, expected)
  assert factors.sum() == pytest.approx(8)


@settings
@hypothesis.given(factor_lists, st.integers(0, 2**32 - 1))
def test_draws_are_as_many_as_an_epoch_has_and_each_next_to_its_factor(factors, seed):
  counts = sampling.draws(factors, np.random.default_rng(seed))
  total = sampling.num_draws(factors)
  assert counts.sum() == total == max(1, round(factors.sum()))
  exact = factors * total / factors.sum()
  assert (np.abs(counts - exact) < 1 + 1e-6).all()


def test_over_many_epochs_the_mean_is_the_factor():
  factors = np.array([0.25, 1.0, 1.5, 2.25, 3.0])
  counts = np.mean([sampling.draws(factors, np.random.default_rng(seed)) for seed in range(2000)], axis=0)
  np.testing.assert_allclose(counts, factors, atol=0.05)


@settings
@hypothesis.example([np.array([2.0, 1.5])], 2, 0)  # 3.5 draws become 4, and 2 of the first image become 3
@hypothesis.given(st.lists(factor_lists, min_size=1, max_size=3), st.integers(1, 9), st.integers(0, 9))
def test_every_epoch_is_as_long_as_the_plan_says_and_a_batch_has_no_image_twice(lists, batch_size, seed):
  starts = np.cumsum([0, *map(len, lists)])
  groups = {(n, n): np.arange(starts[n], starts[n + 1]) for n in range(len(lists))}
  whole = Epoch(groups, batch_size, 8, {(n, n): factors for n, factors in enumerate(lists)})
  plan = TrainPlan(whole, seed=seed, num_steps=10_000)
  orders = []
  for epoch in (0, 3):
    rows = [plan[epoch * whole.num_steps + step] for step in range(whole.num_steps)]
    assert plan[(epoch + 1) * whole.num_steps].epoch == epoch + 1
    seen = collections.Counter()
    for one in rows:
      assert one.epoch == epoch and 1 <= len(one.indices) <= batch_size
      assert len(set(one.indices)) == len(one.indices) and set(one.indices) <= set(groups[one.canvas].tolist())
      seen.update(zip(one.indices, one.times))
    assert max(seen.values()) == 1  # each time of an image once
    assert len(seen) == sum(map(sampling.num_draws, lists))
    orders.append([one.indices for one in rows])
  assert orders[0] != orders[1] or sum(map(len, lists)) < 12


def test_training_batches_repeat_rare_images_with_other_draws():
  """Image i has i rectangles; classes are the images' own, so that all but the first are equally rare."""

  class Rare(Rectangles):
    def annotations(self, index, masks=True):
      found = super().annotations(index, masks)
      found.classes[:] = 2 if index == 6 else 1
      return found

  settings = data(train=Rare(), sampler=RepeatFactor(0.6), augmentations=(ColorJitter(0.5),), batch_size=(1, 2))
  epoch = loader.training_epoch(settings, Rare())
  # Class 2 is on one of seven images: sqrt(0.6 * 7) = 2.05; 8.05 draws, 4 on the landscapes and 4.05 on the others.
  assert epoch.num_images == 7 and epoch.num_steps == 8
  first, again = (take(train(settings, num_steps=8), 8) for _ in range(2))
  for one, two in zip(first, again):
    assert_same(one, two)
  ids = [int(batch.image_id[0]) for batch in first]
  assert collections.Counter(ids)[7] == 2
  repeated = [batch.image for batch in first if batch.image_id[0] == 7]
  assert (repeated[0] != repeated[1]).any()


def test_balanced_sampling_leaves_out_what_shows_nothing_and_ends_where_nothing_is_left():
  settings = data(sampler=ClassBalanced())
  assert 0 not in loader.training_epoch(settings, Rectangles()).images

  class Empty(Rectangles):
    def annotations(self, index, masks=True):
      found = super().annotations(index, masks)
      return found.take(np.zeros(0, np.int64))

  with pytest.raises(DataError, match="no images to train on: ClassBalanced draws none, for want of an object"):
    loader.training_epoch(settings, Empty())


def test_samplers_are_values_of_json():
  settings = data(train=None, eval=None, sampler=RepeatFactor(0.01))
  form = json.loads(json.dumps(experiment.to_json(settings)))
  assert experiment.from_json(form) == settings
  del form["sampler"]  # as an older version wrote it
  assert experiment.from_json(form).sampler is None
  with pytest.raises(ValueError, match="RepeatFactor: threshold is 0: it must lie above 0 and be at most 1"):
    RepeatFactor(0.0)

"""The statistics of a comparison: pycocotools is the referee of every AP, on resampled images too."""

from __future__ import annotations

import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from rcnn_jax.evaluation.compare import bootstrap
from rcnn_jax.evaluation.compare.average_precision import average_precision, precision_curves, summary
from rcnn_jax.evaluation.compare.matching import THRESHOLDS, Matches, match
from rcnn_jax.evaluation.results import Results
from tests.test_coco_engine import Drawn, large_set, referee


def ap_of(precision: np.ndarray) -> np.ndarray:
  """f64[A, T, K] from pycocotools' precision: -1 becomes NaN."""
  values = precision[..., -1].mean(1).transpose(2, 0, 1)
  return np.where(precision[..., -1].min(1).transpose(2, 0, 1) < 0, np.nan, values)


def ours(truth: dict, entries: list[dict], kind: str, weights: np.ndarray, most: int = 100) -> np.ndarray:
  results = Results.from_entries(entries, ("bbox", kind))
  found = match(truth, results, kind, most)
  order = np.argsort([one["id"] for one in truth["categories"]])  # pycocotools' order of classes
  return average_precision(found, weights)[..., order]


# --------------------------------------------------------------------------------------------------- pycocotools


@pytest.mark.parametrize(
  "kind, most, joints", [("bbox", 3, 1), ("bbox", 300, 1), ("segm", 100, 1), ("keypoints", 20, 3)]
)
@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_with_every_image_once_ap_is_pycocotools_own(kind, most, joints, seed):
  """Crowds, difficult objects, ties, classes without objects, images without results, areas on the borders."""
  drawn = Drawn(seed, joints)
  ranges = [0, 2, 3] if kind == "keypoints" else [0, 1, 2, 3]  # pycocotools has no small keypoints
  found = ours(drawn.truth, drawn.entries, kind, np.ones((1, len(drawn.truth["images"])), int), most)[0]
  theirs = ap_of(referee(drawn.truth, drawn.entries, kind, most)["precision"])
  np.testing.assert_allclose(found[ranges], theirs, rtol=0, atol=1e-12)


def copies(truth: dict, entries: list[dict], counts: np.ndarray) -> tuple[dict, list[dict]]:
  """The data set in which each image stands as often as it was drawn, under ids of its own."""
  images, objects, found = [], [], []
  ordered = sorted(truth["images"], key=lambda one: one["id"])
  for image, count in zip(ordered, counts):
    for _ in range(count):
      number = len(images) + 1
      images.append({**image, "id": number})
      objects += [{**one, "image_id": number} for one in truth["annotations"] if one["image_id"] == image["id"]]
      found += [{**one, "image_id": number} for one in entries if one["image_id"] == image["id"]]
  objects = [{**one, "id": number} for number, one in enumerate(objects, start=1)]
  return {**truth, "images": images, "annotations": objects}, found


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_a_draw_of_images_has_the_ap_of_pycocotools_on_copies_of_them(kind, seed):
  drawn = Drawn(seed, 3)
  scores = np.random.default_rng(seed).permutation(len(drawn.entries))  # of ties pycocotools sees the copies mixed
  entries = [{**entry, "score": (1 + float(s)) / 100} for entry, s in zip(drawn.entries, scores)]
  counts = bootstrap.draws(len(drawn.truth["images"]), 2, seed)[1:]
  ranges = [0, 2, 3] if kind == "keypoints" else [0, 1, 2, 3]
  found = ours(drawn.truth, entries, kind, counts)
  for row, drawn_counts in zip(found, counts):
    theirs = ap_of(referee(*copies(drawn.truth, entries, drawn_counts), kind, 100)["precision"])
    np.testing.assert_allclose(row[ranges], theirs, rtol=0, atol=1e-12)


def test_the_summary_and_the_curves_are_those_of_the_evaluation():
  from rcnn_jax.evaluation import coco

  truth, found = large_set(40, num_classes=5)
  results = Results.of(found)
  metrics, curves = coco.coco_metrics(truth, results)
  matches, once = match(truth, results), np.ones((1, 40), int)
  values = summary(average_precision(matches, once), matches)
  found = {f"bbox/{name}": value[0] for name, value in values.items() if " " not in name.partition("/")[0]}
  assert found == pytest.approx({name: metrics[name] for name in found}, abs=1e-12)
  for name, curve in zip(matches.class_names, precision_curves(matches, once)[0]):
    assert curve.tolist() == pytest.approx(curves[name], abs=1e-12)


# --------------------------------------------------------------------------------------------------- statistics


def noisy(draw: np.random.Generator, num_images: int, recall: float) -> Matches:
  """A detector as columns: each image has three objects, found each with this probability; and false detections."""
  hits, misses = draw.binomial(3, recall, num_images), draw.poisson(2, num_images)
  images = np.concatenate([np.repeat(np.arange(num_images), hits), np.repeat(np.arange(num_images), misses)])
  hit = np.arange(len(images)) < hits.sum()
  scores = draw.normal(size=len(images)) + hit
  order = np.argsort(-scores)
  images, hit, scores = images[order].astype(np.int32), hit[order], scores[order]
  return Matches(
    kind="bbox",
    image_ids=np.arange(num_images),
    class_names=("a",),
    thresholds=THRESHOLDS[:1],
    ranges=("all",),
    images=images,
    classes=np.zeros(len(images), np.int32),
    scores=scores,
    rows=np.arange(len(images)),
    hit=hit[None, None],
    ignored=np.zeros((1, 1, len(images)), bool),
    inside=np.ones((1, len(images)), bool),
    objects=np.full(len(images), -1),
    overlap=np.zeros(len(images)),
    num_objects=np.full((1, 1, num_images), 3),
  )


def compared(draw: np.random.Generator, num_images: int, recalls: tuple[float, float], resamples: int):
  counts = bootstrap.draws(num_images, resamples, int(draw.integers(2**32)))
  a, b = (average_precision(noisy(draw, num_images, recall), counts)[:, 0, 0, 0] for recall in recalls)
  return bootstrap.by_images(a - b)


def test_a_run_with_itself_differs_by_nothing_and_that_is_sure():
  truth, found = large_set(20, num_classes=3)
  counts = bootstrap.draws(20, 100)
  matches = match(truth, Results.of(found))
  values = summary(average_precision(matches, counts), matches)
  for one in values.values():
    estimate = bootstrap.difference(one[None], one[None], 20).both
    assert (estimate.value, estimate.low, estimate.high, estimate.p) == (0, 0, 0, 1)


def test_a_real_difference_is_found_and_none_is_not():
  draw = np.random.default_rng(0)
  better, same = compared(draw, 300, (0.9, 0.6), 300), compared(draw, 300, (0.7, 0.7), 300)
  assert better.low > 0 and better.p < 0.01
  assert same.low < 0 < same.high and same.p > 0.05


@pytest.mark.long
def test_intervals_cover_the_true_difference_in_93_to_97_of_100_comparisons_and_p_is_uniform_under_the_null():
  draw = np.random.default_rng(5)
  large = [noisy(draw, 300_000, recall) for recall in (0.8, 0.7)]
  once = np.ones((1, 300_000), int)
  high, low = (average_precision(one, once)[0, 0, 0, 0] for one in large)
  null = [compared(draw, 400, (0.7, 0.7), 500) for _ in range(400)]
  shifted = [compared(draw, 400, (0.8, 0.7), 500) for _ in range(400)]
  uniform = stats.kstest([one.p for one in null], "uniform").pvalue
  covered = [
    np.mean([one.low <= true <= one.high for one in estimates])
    for estimates, true in ((null, 0.0), (shifted, high - low))
  ]
  print(f"covered {covered}, p of Kolmogorov and Smirnov {uniform:.3f}")
  assert all(0.93 <= share <= 0.97 for share in covered)
  assert uniform > 0.05


def test_seeds_and_images_add_up():
  draw = np.random.default_rng(1)
  ours, base = draw.normal(0.5, 0.01, (3, 101)), draw.normal(0.4, 0.01, (3, 101))
  found = bootstrap.difference(ours, base, 50)
  assert found.both.sd == pytest.approx(np.hypot(found.images.sd, found.seeds.sd))
  assert (
    found.both.value
    == found.images.value
    == found.seeds.value
    == pytest.approx(ours[:, 0].mean() - base[:, 0].mean())
  )
  assert found.seeds.p == pytest.approx(stats.ttest_ind(ours[:, 0], base[:, 0], equal_var=False).pvalue)
  paired = bootstrap.difference(ours, base, 50, paired=True)
  assert paired.seeds.p == pytest.approx(stats.ttest_rel(ours[:, 0], base[:, 0]).pvalue)
  assert bootstrap.difference(ours[:1], base, 50).seeds is None


def test_holm_s_correction_by_hand():
  found = bootstrap.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None, "e": 0.5})
  assert found == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": None, "e": 0.5})


def test_four_times_the_images_show_half_the_difference():
  # 80 % power at the 5 % level asks for an effect of 1.96 + 0.84 = 2.80 standard errors.
  assert bootstrap.images_needed(0.01, 100, 0.028016) == 100
  assert bootstrap.images_needed(0.01, 100, 0.014008) == 400


def test_where_images_alone_hide_a_difference_no_number_of_seeds_shows_it():
  estimate = lambda sd: bootstrap.Estimate(0.0, -1.0, 1.0, 1.0, sd)
  found = bootstrap.Difference(estimate(0.01), estimate(0.01), estimate(0.014), (3, 3))
  assert bootstrap.seeds_needed(found, 0.005) is None
  assert bootstrap.seeds_needed(found, 0.1) == 2
  assert bootstrap.seeds_needed(bootstrap.Difference(estimate(0.01), None, estimate(0.01), (1, 1)), 0.1) is None


@pytest.mark.long
def test_draws_of_a_set_as_large_as_coco_s_lie_about_the_whole_set():
  """Prints how long it took (docs/compare.md)."""
  truth, found = large_set(5000, per_image=60)
  matches = match(truth, Results.of(found))
  counts = bootstrap.draws(5000, 1000)
  start, spent = time.perf_counter(), time.process_time()
  values, _ = (average_precision(matches, counts) for _ in range(2))  # both detectors of a comparison
  print(f"{time.perf_counter() - start:.1f} s by the clock, {time.process_time() - spent:.1f} s of one core")
  values = np.nanmean(values[:, 0], axis=(1, 2))
  assert values.shape == (1001,) and abs(values[1:].mean() - values[0]) < 0.005 and 0 < values[1:].std() < 0.01

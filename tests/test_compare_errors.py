"""Error types, LRP and calibration: cases by hand, and hotcoco's TIDE and ECE as referee."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from rcnn_jax.evaluation import coco
from rcnn_jax.evaluation.compare import calibration, lrp, tide
from rcnn_jax.evaluation.compare.matching import match
from rcnn_jax.evaluation.results import Results
from tests.scenes import CATEGORIES, annotations, entry
from tests.test_coco_engine import Drawn

ONE_IMAGE = np.ones((1, 1), int)


def matched(truth: dict, entries: list[dict]):
  results = Results.from_entries(entries)
  found = match(truth, results)
  return found, tide.classify(truth, results, found)


def test_each_type_of_error_by_hand():
  truth = coco.truth_dataset([annotations(1, [[0, 0, 10, 10], [50, 0, 60, 10]], [1, 1])], CATEGORIES)
  cases = {
    "Loc": entry(1, 7, [0, 0, 10, 4], 0.9),  # IoU 0.4 with an object of its class
    "Cls": entry(1, 9, [50, 0, 60, 10], 0.8),
    "Both": entry(1, 9, [50, 0, 60, 4], 0.7),
    "Bkg": entry(1, 7, [80, 80, 90, 90], 0.6),
  }
  for name, one in cases.items():
    _, errors = matched(truth, [one])
    assert tide.counts(errors)[name] == 1
  found, errors = matched(truth, [entry(1, 7, [0, 0, 10, 10], 0.9), entry(1, 7, [0, 0, 10, 9], 0.8)])
  assert tide.counts(errors) == {"Cls": 0, "Loc": 0, "Both": 0, "Dupe": 1, "Bkg": 0, "Miss": 1}
  # Recall 0.5: 51 of the 101 recalls have precision 1. Without the miss, all have.
  assert tide.gains(found, errors, ONE_IMAGE)["Miss"][0] == pytest.approx(50 / 101)


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_errors_and_their_gains_are_hotcoco_s(seed):
  drawn = Drawn(seed, 1)
  hypothesis.assume(drawn.truth["annotations"])
  # Crowds and difficult objects are left out, which the tools treat each in its own way; scores have no ties.
  for one in drawn.truth["annotations"]:
    one |= {"iscrowd": 0, "difficult": 0}
  scores = np.random.default_rng(seed).permutation(len(drawn.entries))
  entries = [{**one, "score": (1 + float(s)) / 100} for one, s in zip(drawn.entries, scores)]
  found, errors = matched(drawn.truth, entries)
  theirs = coco.run(drawn.truth, Results.from_entries(entries), "bbox").tide_errors()
  assert tide.counts(errors) == theirs["counts"]
  ours = tide.gains(found, errors, np.ones((1, len(drawn.truth["images"])), int))
  assert {name: value[0] for name, value in ours.items()} == pytest.approx(theirs["delta_ap"], abs=1e-9, nan_ok=True)


def test_lrp_by_hand():
  """One hit of IoU 0.8 before a miss and a false detection: the best threshold leaves the false one out."""
  truth = coco.truth_dataset([annotations(1, [[0, 0, 10, 10], [50, 0, 60, 10]], [1, 1])], CATEGORIES)
  found, _ = matched(truth, [entry(1, 7, [0, 0, 10, 8], 0.9), entry(1, 7, [80, 80, 90, 90], 0.6)])
  parts = {name: value[0] for name, value in lrp.optimal_lrp(found, ONE_IMAGE).items()}
  # A hit with (1 - 0.8) / 0.5 = 0.4, and a miss with 1: their mean.
  assert parts == pytest.approx({"oLRP": 0.7, "oLRP Loc": 0.2, "oLRP FP": 0.0, "oLRP FN": 0.5})


def test_lrp_of_a_detector_that_finds_nothing_is_one():
  truth = coco.truth_dataset([annotations(1, [[0, 0, 10, 10]], [1])], CATEGORIES)
  found, _ = matched(truth, [])
  parts = {name: value[0] for name, value in lrp.optimal_lrp(found, ONE_IMAGE).items()}
  assert (parts["oLRP"], parts["oLRP FN"]) == (1, 1) and np.isnan(parts["oLRP Loc"])


def test_calibration_by_hand():
  truth = coco.truth_dataset([annotations(1, [[0, 0, 10, 10]], [1])], CATEGORIES)
  found, _ = matched(truth, [entry(1, 7, [0, 0, 10, 10], 0.75), entry(1, 7, [50, 0, 60, 10], 0.75)])
  assert calibration.detection_ece(found, ONE_IMAGE)[0] == pytest.approx(0.25)  # one of two hits at 0.75


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_the_calibration_error_is_hotcoco_s(seed):
  drawn = Drawn(seed, 1)
  for one in drawn.truth["annotations"]:
    one |= {"iscrowd": 0, "difficult": 0}
  hypothesis.assume(drawn.entries)
  entries = [{**one, "score": round(one["score"] * 0.99, 3) + 0.0005} for one in drawn.entries]  # on no bin's border
  found, _ = matched(drawn.truth, entries)
  theirs = coco.run(drawn.truth, Results.from_entries(entries), "bbox").calibration()
  ours = calibration.detection_ece(found, np.ones((1, len(drawn.truth["images"])), int))[0]
  assert ours == pytest.approx(theirs["ece"], abs=1e-9, nan_ok=True)

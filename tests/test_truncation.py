"""Truncated SVD of fully connected layers: the nearest matrix of a rank, its size, and the command that compares."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from launch.truncate import parsed
from rcnn_jax.experiment import Experiment
from rcnn_jax.models.cascade import THREE_STAGES
from rcnn_jax.models.detector import variable_shapes
from rcnn_jax.models.heads import BoxHead, ConvTrunk, FcTrunk
from rcnn_jax.weights import truncation
from rcnn_jax.weights.errors import WeightsError
from tests.small_detector import CANVAS, small_detector

ROIS = np.random.default_rng(0).normal(size=(5, 3, 3, 2)).astype(np.float32)
WIDTHS = (12, 7)  # fc6 is 18 x 12, fc7 12 x 7


def trunk_variables(seed=1):
  rng = np.random.default_rng(seed)
  shapes = {"fc6": (18, 12), "fc7": (12, 7)}
  layers = {
    name: {"kernel": rng.normal(size=shape), "bias": rng.normal(size=shape[1])} for name, shape in shapes.items()
  }
  return {"params": {"trunk": jax.tree.map(np.float32, layers)}}


def embedded(variables, ranks):
  return FcTrunk(WIDTHS, ranks=ranks).apply({"params": variables["params"]["trunk"]}, ROIS, None, None)


def count(ranks):
  tree = jax.eval_shape(lambda: FcTrunk(WIDTHS, ranks=ranks).init(jax.random.key(0), ROIS, None, None))
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_full_rank_is_the_dense_layer():
  whole = trunk_variables()
  truncated = truncation.truncate(whole, (12, 7))
  np.testing.assert_allclose(embedded(truncated, (12, 7)), embedded(whole, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 11])
def test_a_layer_is_the_nearest_matrix_of_its_rank(rank):
  whole = trunk_variables()
  layers = truncation.truncate(whole, (rank, None))["params"]["trunk"]
  kernel, near = (
    whole["params"]["trunk"]["fc6"]["kernel"],
    layers["fc6"]["first"]["kernel"] @ layers["fc6"]["second"]["kernel"],
  )
  assert np.linalg.matrix_rank(near, tol=1e-4) == rank
  # Eckart and Young: what is lost are the smallest singular values, whose squares are eigenvalues of the Gram matrix.
  lost = np.linalg.eigvalsh(kernel.T.astype(np.float64) @ kernel)[: 12 - rank].sum()
  np.testing.assert_allclose(np.square(kernel - near, dtype=np.float64).sum(), lost, rtol=1e-4)
  np.testing.assert_array_equal(layers["fc6"]["second"]["bias"], whole["params"]["trunk"]["fc6"]["bias"])
  assert set(layers["fc7"]) == {"kernel", "bias"}


def test_the_number_of_weights():
  assert count(None) == 18 * 12 + 12 + 12 * 7 + 7
  assert count((4, None)) == 4 * (18 + 12) + 12 + 12 * 7 + 7
  assert count((4, 2)) == 4 * (18 + 12) + 12 + 2 * (12 + 7) + 7


def test_every_stage_of_a_cascade_is_truncated():
  model = small_detector(cascade=THREE_STAGES, box=BoxHead(class_agnostic=True))
  shapes = lambda model: variable_shapes(model, CANVAS)
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes(model))
  expected = shapes(model.clone(trunk=FcTrunk((32,), ranks=(5,))))
  jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), truncation.truncate(zeros, (5,)), expected)


@pytest.mark.parametrize("ranks, layer", [((13, None), "trunk/fc6"), ((None, 8), "trunk/fc7"), ((0, 2), "trunk/fc6")])
def test_a_rank_that_a_layer_cannot_have_names_the_layer(ranks, layer):
  with pytest.raises(WeightsError, match=f"{layer}: a rank of"):
    truncation.truncate(trunk_variables(), ranks)


def test_what_cannot_be_truncated_is_refused():
  experiment = lambda **parts: Experiment("small", None, small_detector(**parts), ())
  with pytest.raises(WeightsError, match="2 ranks for the trunk's 1 layers"):
    truncation.truncated_experiment(experiment(), (4, 4))
  with pytest.raises(WeightsError, match="trunk is ConvTrunk"):
    truncation.truncated_experiment(experiment(trunk=ConvTrunk()), (4,))
  with pytest.raises(WeightsError, match="truncated already, to the ranks \\(4,\\)"):
    truncation.truncated_experiment(experiment(trunk=FcTrunk((32,), ranks=(4,))), (4,))
  with pytest.raises(WeightsError, match="--ranks=1024;256: expected a whole number or -"):
    parsed("1024;256")
  assert parsed("1024,-") == (1024, None)


EXPERIMENT = """
from tests.small_experiment import on_shapes
experiment = on_shapes({data!r}, steps=2)
"""


@pytest.mark.long
def test_one_command_compares_a_run_with_its_truncations(tmp_path):
  file, workdir = tmp_path / "small.py", tmp_path / "run"
  file.write_text(EXPERIMENT.format(data=str(tmp_path / "data")))
  python = lambda name, *options: subprocess.run(
    [sys.executable, "-m", f"launch.{name}", f"--workdir={workdir}", f"--experiment={file}", *options],
    capture_output=True,
    text=True,
    env=os.environ | {"XLA_FLAGS": ""},
  )
  trained = python("train")
  assert trained.returncode == 0, trained.stderr
  ended = python("truncate", "--ranks=32", "--ranks=4", "--batches=1", "--repeats=2")
  assert ended.returncode == 0, ended.stderr
  rows = json.loads((workdir / "truncated" / "table.json").read_text())
  assert list(rows) == ["whole", "32", "4"]
  found = {name: json.loads((workdir / "truncated" / name / "eval/0/detections.json").read_text()) for name in rows}
  scores = {name: sorted(entry["score"] for entry in entries) for name, entries in found.items()}
  np.testing.assert_allclose(scores["32"], scores["whole"], atol=1e-4)
  assert len(scores["whole"]) > 0 and scores["4"] != scores["whole"]
  assert rows["whole"]["parameters"] - rows["4"]["parameters"] == 144 * 32 - 4 * (144 + 32)
  assert all(row["seconds"] > 0 for row in rows.values())
  assert (workdir / "truncated" / "4" / "experiment.json").exists()
  ended = python("truncate", "--ranks=33")
  assert ended.returncode == 1 and "trunk/fc6: a rank of 33" in ended.stderr

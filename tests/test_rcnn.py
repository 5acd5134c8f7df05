"""R-CNN in its three stages on small scenes: what each brings, and trainings killed within them."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from rcnn_jax.evaluation import coco, detect
from rcnn_jax.experiment import Checkpoints
from rcnn_jax.ops import boxes
from rcnn_jax.training import features, fit, loop, optim
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.optim import Constant
from rcnn_jax.training.stages import FitBoxRegression, FitSvms, Sgd
from rcnn_jax.types import GroundTruth, Proposals
from tests import scenes
from tests.small_detector import CANVAS, RCNN, fresh, scene_batch

BATCH, NUM_BATCHES, STEPS = 4, 6, 60
STAGES = (
  Sgd(steps=STEPS, schedule=Constant(0.02), clip_norm=10.0),
  FitSvms(cost=0.01),
  FitBoxRegression(penalty=1.0),
)
EXPERIMENT = dataclasses.replace(
  tiny.experiment(STAGES),
  data=tiny.Data(batch_size=(BATCH, BATCH)),
  checkpoints=Checkpoints(every_steps=1000, keep_last=3),
)


@functools.cache
def batch_of(number):
  """A scene with proposals: eight about each object, some near and some far, and eight anywhere."""
  batch = scene_batch(number, BATCH)
  rng = np.random.default_rng(number)
  truth = np.repeat(batch.truth.boxes[:, :3], 8, axis=1)
  sides = np.tile(truth[..., 2:] - truth[..., :2], 2)
  near = truth + sides * rng.uniform(-0.2, 0.2, truth.shape)
  low = rng.uniform(0, 40, (BATCH, 8, 2))
  far = np.concatenate([low, low + rng.uniform(8, 24, low.shape)], -1)
  proposals = np.concatenate([near, far], 1).astype(np.float32)
  shape = proposals.shape[:2]
  return batch.replace(proposals=Proposals(proposals, np.ones(shape, np.float32), np.ones(shape, bool)))


class Loader(tiny.Loader):
  def __next__(self):
    self.given += 1
    return batch_of((self.given - 1) % NUM_BATCHES)


REGIONS = features.Regions(lambda i: iter([batch_of(n) for n in range(i, NUM_BATCHES)]), NUM_BATCHES, pair_iou=0.6)


def evaluate(variables, step):
  """AP on scenes that were not trained on."""
  batches = [batch_of(100 + n) for n in range(3)]
  names = [scenes.CATEGORIES[0], scenes.CATEGORIES[1]]
  ids = [c.id for c in names]
  truth = [
    scenes.annotations(int(i), b[:3], c[:3], size=CANVAS)
    for batch in batches
    for i, b, c in zip(batch.image_id, batch.truth.boxes, batch.truth.classes)
  ]
  found = detect.detect(RCNN, variables, batches, {a.image_id: a.size for a in truth}, ids)
  return coco.coco_metrics(coco.truth_dataset(truth, names), found, "bbox", 100)[0]


def train(workdir, stop_at=None):
  """The whole training; it dies when it says something that begins with `stop_at`."""

  def carry_out(stage, variables, log_line):
    def hear(text):
      log_line(text)
      if stop_at and text.startswith(stop_at):
        raise KeyboardInterrupt

    return fit.fit(stage, RCNN, variables, REGIONS, workdir / "features", hear)

  return loop.run(
    EXPERIMENT,
    str(workdir),
    RCNN,
    fresh(RCNN),
    NUM_BATCHES,
    lambda steps: Loader(EXPERIMENT.data, 0, steps),
    evaluate=evaluate,
    fit=carry_out,
    mesh=meshes.data_mesh(1),
    log_every=30,
  )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("rcnn")
  return workdir, train(workdir)


def rows(workdir, kind):
  found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {row["step"]: row for row in found if row["kind"] == kind}


def without_times(rows):
  return {step: {k: v for k, v in row.items() if not k.endswith("seconds")} for step, row in rows.items()}


def test_svms_detect_and_box_regression_improves_them(trained):
  evaluations = rows(trained[0], "eval")
  assert list(evaluations) == [STEPS, STEPS + 1, STEPS + 2]  # softmax, SVMs, SVMs with regressed boxes
  softmax, svms, regressed = evaluations.values()
  assert softmax["bbox/AP50"] > 0.6 and svms["bbox/AP50"] > 0.8
  assert regressed["bbox/AP"] > svms["bbox/AP"] + 0.1


def test_what_was_fitted_is_logged(trained):
  svms, ridge = rows(trained[0], "fit").values()
  assert svms["positives"] == 3 * BATCH * NUM_BATCHES and svms["converged"] == 1
  assert 0 < svms["hard_negatives"] <= svms["negatives"] and svms["objective"] > 0
  assert ridge["pairs"] > 100 and 0 < ridge["residual"] < 0.05 and ridge["classes_fitted"] == 2


def test_fits_change_the_head_alone(trained):
  workdir, state = trained
  settings = json.loads((workdir / "features" / "settings.json").read_text())
  assert settings["parameters"] == features.checksum(jax.device_get(state.variables()))
  scale = state.params["box"]["svm"]["scale"]
  norms = [np.linalg.norm(r.features, axis=1) for r in features.Cache(workdir / "features", NUM_BATCHES).rows()]
  np.testing.assert_allclose(scale * np.concatenate(norms).mean(), 20, rtol=1e-4)


@pytest.mark.parametrize("stop_at", ["features: 3 of 6 batches", "SVMs, round 1", "box regression"])
def test_a_training_killed_in_a_fit_ends_as_one_that_was_not(trained, tmp_path, stop_at, capsys):
  workdir = tmp_path / "run"
  shutil.copytree(trained[0], workdir, ignore=shutil.ignore_patterns("features", str(STEPS + 1), str(STEPS + 2)))
  with pytest.raises(KeyboardInterrupt):
    train(workdir, stop_at)
  state = train(workdir)
  assert "resuming at step 60 of 62" in (said := capsys.readouterr().out)
  jax.tree.map(np.testing.assert_array_equal, state.params, trained[1].params)
  assert without_times(rows(workdir, "fit")) == without_times(rows(trained[0], "fit"))
  assert ("features: 3 of 6 batches are on disk already" in said) == stop_at.startswith("features")


def test_features_of_other_parameters_are_computed_anew(trained, tmp_path):
  variables, lines = fresh(RCNN), []
  few = dataclasses.replace(REGIONS, count=1)
  first = list(features.cache(tmp_path, RCNN, variables, few, lines.append).rows())[0].features + 0
  assert lines == ["features: 1 of 1 batches"]
  variables["params"]["box"]["svm"]["bias"] += 1  # the head's own parameters do not matter
  features.cache(tmp_path, RCNN, variables, few, lines.append)
  assert len(lines) == 1
  variables["params"]["trunk"]["fc6"]["kernel"] *= 2
  second = list(features.cache(tmp_path, RCNN, variables, few, lines.append).rows())[0].features
  assert "are of other parameters" in lines[1] and not np.allclose(first, second)


def test_overlaps_are_with_the_objects_of_each_class():
  rois = np.float32([[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]])
  objects = np.float32([[0, 0, 10, 5], [0, 0, 10, 10], [20, 0, 30, 20], [50, 50, 60, 60]])
  flags = np.zeros(4, bool)
  truth = GroundTruth(objects, np.int32([1, 2, 1, 2]), flags, flags, np.array([True, True, True, False]))
  overlaps, targets = jax.jit(functools.partial(features.class_overlaps, num_classes=2))(rois, truth)
  np.testing.assert_allclose(overlaps, [[0.5, 1], [0.5, 0], [0, 0]])
  np.testing.assert_array_equal(targets[0], objects[[0, 1]])
  np.testing.assert_array_equal(targets[1, 0], objects[2])
  assert boxes.iou(targets[1, 0][None], rois[1][None])[0, 0] == 0.5


@pytest.mark.parametrize("lacking", ["class", "proposals"])
def test_a_class_or_an_image_without_examples_is_told_and_is_no_nan(tmp_path, lacking):
  batch = batch_of(0)
  if lacking == "class":
    truth = batch.truth.replace(valid=batch.truth.valid & (batch.truth.classes == 1))
    batch = batch.replace(truth=truth)
  else:
    batch = batch.replace(proposals=batch.proposals.replace(valid=np.zeros_like(batch.proposals.valid)))
  regions = features.Regions(lambda i: iter([batch]), 1, pair_iou=0.6)
  variables, lines = fresh(RCNN), []
  for stage in STAGES[1:]:
    variables, numbers = fit.fit(stage, RCNN, variables, regions, tmp_path, lines.append)
    assert np.isfinite(list(numbers.values())).all()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
  told = "\n".join(lines)
  assert "class 2 keeps its boxes where the proposals are: there is no pair to fit" in told
  assert ("no object of class 2 to learn from" in told) == (lacking == "class")
  found = jax.jit(lambda v, b: RCNN.apply(v, b, method="detect"))(variables, batch_of(1))
  assert np.isfinite(np.asarray(found.scores)[found.valid]).all()
  if lacking == "class":
    assert set(np.asarray(found.classes)[found.valid]) == {1}


def test_a_fit_needs_rcnns_head(tmp_path):
  variables = {"params": {"box": {"classes": np.zeros(3)}}}
  with pytest.raises(optim.TrainingError, match="FitSvms needs box=RcnnHead"):
    fit.fit(FitSvms(), RCNN, variables, REGIONS, tmp_path, print)

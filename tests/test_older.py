"""What earlier versions wrote still opens: a run directory of 2026-11-27, and paths as they were then called."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest

from rcnn_jax import experiment as experiments
from rcnn_jax import older
from rcnn_jax.experiment import ExperimentError
from rcnn_jax.models.detector import Detector, blank_batch, variable_shapes
from rcnn_jax.models.heads import KeypointHead, MaskHead
from rcnn_jax.training import checkpoint
from tests.small_detector import small_detector

# A Mask R-CNN over pixels, three steps of `launch.train` at commit 7f3247f; found.npz: what it detected there in noise.
RUN = pathlib.Path(__file__).parent / "fixtures" / "run_of_2026_11_27"


def test_a_run_directory_with_a_mask_of_its_own_field_detects_as_it_did():
  run = checkpoint.load_run(str(RUN))
  model = run.experiment.model.with_data(run.categories, run.keypoints)
  assert [head.key for head in model.heads] == ["mask"] and model.heads[0].channels == 8
  pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
  batch = blank_batch(2, (32, 32)).replace(image=pixels, truth=None)
  found = jax.jit(lambda: model.apply(run.variables, batch, method="detect"))()
  recorded = np.load(RUN / "found.npz")
  assert recorded["valid"].any() and recorded["masks"].any()
  for name in ("boxes", "scores", "classes", "valid", "masks"):
    np.testing.assert_allclose(getattr(found, name), recorded[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_fields_of_heads_become_the_tuple_of_heads():
  form = experiments.to_json(small_detector())
  del form["heads"]
  mask, keypoint = (experiments.to_json(head) for head in (MaskHead(), KeypointHead()))
  del keypoint["num_keypoints"]
  before = form | {"mask": mask, "keypoint": keypoint, "num_keypoints": 17}
  today = experiments.from_json(before)
  assert isinstance(today, Detector)
  assert today.heads == (MaskHead(), KeypointHead(num_keypoints=17))
  assert experiments.from_json(form | {"mask": None, "keypoint": None, "num_keypoints": None}).heads == ()


@pytest.mark.parametrize(
  "before, today",
  [
    ("model.mask.pool.aligned", "model.heads.mask.pool.aligned"),
    ("model.keypoint", "model.heads.keypoint"),
    ("model.num_keypoints", "model.heads.keypoint.num_keypoints"),
    ("model.masks", "model.masks"),
    ("data.load_masks", "data.load_masks"),
    ("model.heads.mask.channels", "model.heads.mask.channels"),
  ],
)
def test_paths_as_they_were(before, today):
  assert older.path(before) == today == older.path(today)


def test_heads_are_replaced_added_and_left_out_by_their_key():
  experiment = experiments.load("demo")
  assert experiment.set(["model.mask.channels=8"]).model.heads[0].channels == 8
  assert experiment.set(["model.heads.mask.channels=8"]) == experiment.override({"model.mask.channels": 8})
  assert experiment.set(["model.mask=None"]).model.heads == ()
  both = experiment.override({"model.heads.keypoint": KeypointHead(), "model.num_keypoints": 3}).model.heads
  assert both == (*experiment.model.heads, KeypointHead(num_keypoints=3))
  wider = experiment.override({"model.heads.mask": MaskHead(channels=7)}).model.heads
  assert wider == (MaskHead(channels=7),)
  for change, said in (
    ({"model.heads.mask": KeypointHead()}, "model.heads.mask: expected a part whose key is 'mask'"),
    ({"model.heads.mask": 3}, "got 3"),
    ({"model.heads.point": None}, "no path 'model.heads.point'"),
    ({"model.heads.mask.chanels": 3}, "nearest: .*model.heads.mask.channels"),
  ):
    with pytest.raises(ExperimentError, match=said):
      experiment.override(change)
  with pytest.raises(ExperimentError, match="no path 'model.heads.keypoint.channels'"):
    experiment.set(["model.keypoint.channels=8"])
  assert "model.heads.mask.channels" in experiments.flatten(experiment)


def test_two_heads_of_one_kind_are_refused():
  model = small_detector(heads=(MaskHead(), MaskHead()))
  with pytest.raises(ValueError, match="two of one kind: mask, mask"):
    variable_shapes(model, (64, 64))

"""Detectron2's detectors: names by rule, nothing unmatched, layouts, and export is the inverse of import."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launch.import_weights import import_run, library_of
from rcnn_jax import experiment as experiments
from rcnn_jax.models.detector import variable_shapes
from rcnn_jax.training import checkpoint
from rcnn_jax.weights import detectron2, labels, torchvision
from rcnn_jax.weights.errors import WeightsError
from tests.parity import assert_equal, numbered

ROOT = pathlib.Path(__file__).parents[1]
NAMES = ROOT / "tests" / "fixtures" / "detectron2_names.json"  # written by record_detectron2.py
K = 2
SMALL = {
  "model.backbone.depth": 18,
  "model.trunk.depth": 18,
  "model.heads.mask.channels": 4,
  "model.num_classes": K,
  "data.canvases": ((64, 64),),
}
CELL_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"


def small():
  """Detectron2's Mask R-CNN-C4 with a ResNet-18 and two classes."""
  return experiments.load("detectron2_mask_rcnn_R_50_C4_3x").override(SMALL)


@functools.cache
def template():
  """The shapes of the small detector's variables."""
  return variable_shapes(small().model, (64, 64))


@functools.cache
def numbers():
  """Variables of the small detector, each filled with numbers of its own."""
  return numbered(template())


@functools.cache
def tensors():
  """The same, as Detectron2 has them."""
  return detectron2.export(numbers(), small().model)


@pytest.mark.parametrize(
  "name",
  [
    "faster_rcnn_R_50_DC5_3x",
    "keypoint_rcnn_R_50_FPN_3x",
    "mask_rcnn_R_50_C4_3x",
    "mask_rcnn_R_50_FPN_3x",
    "cascade_mask_rcnn_R_50_FPN_3x",
  ],
)
def test_the_names_and_shapes_are_those_of_detectron2s_state_dict(name):
  model = experiments.load(f"detectron2_{name}").model
  zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), variable_shapes(model, (64, 64)))
  exported = {name: list(tensor.shape) for name, tensor in detectron2.export(zeros, model).items()}
  assert exported == json.loads(NAMES.read_text())[name]


def test_import_after_export_is_the_identity():
  assert_equal(detectron2.load(tensors(), template(), small().model), numbers())


def test_the_background_is_the_last_class_there_and_the_first_here():
  theirs, ours = tensors()["roi_heads.box_predictor.cls_score.bias"], numbers()["params"]["box"]["classes"]["bias"]
  np.testing.assert_array_equal(theirs, ours[[1, 2, 0]])
  assert tensors()["roi_heads.box_predictor.bbox_pred.weight"].shape == (4 * K, 512)
  assert tensors()["roi_heads.mask_head.predictor.weight"].shape == (K, 4, 1, 1)


def test_the_first_convolution_reads_blue_green_red_there():
  theirs, ours = tensors()["backbone.stem.conv1.weight"], numbers()["params"]["backbone"]["conv1"]["kernel"]
  np.testing.assert_array_equal(theirs[5, 0, 1, 2], ours[1, 2, 2, 5])


def test_the_anchors_of_a_cell_go_by_size_there_and_by_ratio_here():
  # Five sizes, three ratios: size 1 at ratio 2 is anchor 1 * 3 + 2 there, 2 * 5 + 1 here.
  theirs, ours = tensors(), numbers()["params"]["proposer"]
  head = "proposal_generator.rpn_head"
  np.testing.assert_array_equal(
    theirs[f"{head}.objectness_logits.weight"][5, :, 0, 0].T, ours["objectness"]["kernel"][0, 0, :, 11]
  )
  np.testing.assert_array_equal(theirs[f"{head}.anchor_deltas.bias"][20:24], ours["deltas"]["bias"][44:48])


def constants():
  """What files from before 2021 hold beside the parameters, as Detectron2 wrote it."""
  half_width, half_height = 32 / np.sqrt(0.5) / 2, 32 * np.sqrt(0.5) / 2
  cells = np.zeros((15, 4), np.float32)
  for i, size in enumerate((32, 64, 128, 256, 512)):
    for j, ratio in enumerate((0.5, 1.0, 2.0)):
      width, height = size / ratio**0.5, size * ratio**0.5
      cells[3 * i + j] = np.array([-width, -height, width, height]) / 2
  np.testing.assert_allclose(cells[0], [-half_width, -half_height, half_width, half_height], rtol=1e-6)
  mean = np.array([103.53, 116.28, 123.675], np.float32).reshape(3, 1, 1)
  return {"pixel_mean": mean, "pixel_std": np.ones((3, 1, 1), np.float32), CELL_ANCHORS: cells}


def test_constants_of_older_files_are_compared():
  assert_equal(detectron2.load(tensors() | constants(), template(), small().model), numbers())


@pytest.mark.parametrize(
  "change, message",
  [
    ({"pixel_mean": np.array([123.675, 116.28, 103.53])}, r"pixel_mean is \[123\.675, .*the model's, .*\[103\.53, "),
    ({"pixel_std": np.array([57.375, 57.12, 58.395])}, r"pixel_std is \[57\.375, .* \[1\.0, 1\.0, 1\.0\]"),
    ({CELL_ANCHORS: np.zeros((3, 4))}, r"cell_anchors\.0 is \[0\.0, "),
    (
      {"roi_heads.res5.0.conv1.norm.bias": None},
      r"no tensor roi_heads\.res5\.0\.conv1\.norm\.bias \(for batch_stats/trunk",
    ),
    ({"roi_heads.keypoint_head.conv_fcn1.bias": np.zeros(3)}, r"nothing here answers to roi_heads\.keypoint_head\."),
    ({"roi_heads.box_predictor.cls_score.bias": np.zeros(81)}, r"cls_score\.bias is \(81,\), the model has \(3,\)"),
  ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
  changed = {name: tensor for name, tensor in (tensors() | change).items() if tensor is not None}
  with pytest.raises(WeightsError, match=message):
    detectron2.load(changed, template(), small().model)


def test_coco_has_80_labels():
  categories = labels.categories(80)
  assert len(categories) == 80
  assert [(c.id, c.name) for c in categories[9:12]] == [
    (10, "traffic light"),
    (11, "fire hydrant"),
    (13, "stop sign"),
  ]


# -------------------------------------------------------------------------------------------------------- the command


def test_a_file_of_the_model_zoo_becomes_a_run(tmp_path):
  contents = {"model": tensors() | constants(), "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
  (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(contents))
  line = import_run(small(), str(tmp_path / "model_final.pkl"), tmp_path / "run")
  assert line.endswith("2 classes, the source's own labels (no data at hand)")
  assert_equal(checkpoint.load_run(str(tmp_path / "run")).variables, numbers())


def test_a_run_is_exported_to_the_library_that_is_asked_for(tmp_path):
  save_file(tensors(), tmp_path / "theirs.safetensors")
  import_run(small(), str(tmp_path / "theirs.safetensors"), tmp_path / "run")
  arguments = [f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'again.safetensors'}", "--target=detectron2"]
  environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-m", "launch.export_weights", *arguments]
  ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
  assert ended.returncode == 0, ended.stderr
  assert ended.stdout.startswith(f"{len(tensors())} tensors of step 0 written to ")
  assert_equal(load_file(tmp_path / "again.safetensors"), tensors())


def test_the_names_in_a_file_tell_its_library(tmp_path):
  assert library_of(tensors()) is detectron2.LIBRARY
  assert library_of({"rpn.head.cls_logits.bias": np.zeros(3)}) is torchvision.LIBRARY
  save_file({"conv1.weight": np.zeros(3)}, tmp_path / "a.safetensors")
  with pytest.raises(WeightsError, match=r"a\.safetensors: no detector of torchvision's \(rpn\.\*\) or Detectron2's"):
    import_run(small(), str(tmp_path / "a.safetensors"), tmp_path / "run")

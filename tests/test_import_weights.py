"""torchvision's detectors: names by rule, nothing unmatched, and export is the inverse of import."""

from __future__ import annotations

import functools
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launch.export_weights import export
from launch.import_weights import import_run
from rcnn_jax import experiment as experiments
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.models.detector import variable_shapes
from rcnn_jax.models.heads import KeypointHead, MaskHead
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.training import checkpoint
from rcnn_jax.weights import labels, norms, torchvision
from rcnn_jax.weights.errors import WeightsError
from tests.parity import assert_equal, numbered

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
NAMES = FIXTURES / "torchvision_names.json"  # of model.state_dict(), written by record_weight_files.py
K = 2
SMALL = {
  "model.heads.mask": MaskHead(pool=RoiAlign(output_size=14, num_levels=4), num_convs=2, channels=8),
  "model.backbone.bottom_up.depth": 18,
  "model.backbone.channels": 8,
  "model.trunk.widths": (16, 16),
  "model.num_classes": K,
  "data.canvases": ((64, 64),),
}


def small():
  """torchvision's Mask R-CNN with a ResNet-18, few channels and two classes."""
  return experiments.load("torchvision_fasterrcnn_resnet50_fpn").override(SMALL)


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
  """The same, as torchvision has them."""
  return torchvision.export(numbers(), small().model)


@pytest.mark.parametrize(
  "builder",
  ["fasterrcnn_resnet18_fpn", "keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"],
)
def test_the_names_and_shapes_are_those_of_torchvisions_state_dict(builder):
  model = experiments.load(f"torchvision_{builder}").model
  zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), variable_shapes(model, (64, 64)))
  exported = {name: list(tensor.shape) for name, tensor in torchvision.export(zeros, model).items()}
  assert exported == json.loads(NAMES.read_text())[builder]


def test_import_after_export_is_the_identity():
  assert_equal(torchvision.load(tensors(), template(), small().model), numbers())


def test_former_names_and_counters_of_batch_norm_are_understood():
  shorter = lambda name: re.sub(r"(_blocks\.\d)\.0", r"\1", name).replace("conv.0.0", "conv")
  former = {shorter(name): tensor for name, tensor in tensors().items()}
  for leaf in ("weight", "bias"):
    for i in (0, 1):
      former[f"roi_heads.mask_head.mask_fcn{i + 1}.{leaf}"] = former.pop(f"roi_heads.mask_head.{i}.0.{leaf}")
  assert {"rpn.head.conv.weight", "backbone.fpn.inner_blocks.0.weight"} < former.keys()
  former["backbone.body.bn1.num_batches_tracked"] = np.array(7)
  assert_equal(torchvision.load(former, template(), small().model), numbers())


def test_the_first_layer_over_a_roi_reads_cells_by_channel_there_and_channels_by_cell_here():
  rng = np.random.default_rng(0)
  roi = rng.normal(size=(7, 7, 8)).astype(np.float32)
  theirs = tensors()["roi_heads.box_head.fc6.weight"] @ roi.transpose(2, 0, 1).reshape(-1)
  np.testing.assert_allclose(roi.reshape(-1) @ numbers()["params"]["trunk"]["fc6"]["kernel"], theirs, rtol=1e-4)


def test_the_deltas_of_the_background_are_left_out_and_exported_as_zeros():
  weight = tensors()["roi_heads.box_predictor.bbox_pred.weight"]
  assert weight.shape == (4 * (K + 1), 16)
  assert not weight[:4].any()
  np.testing.assert_array_equal(weight[4:].T, numbers()["params"]["box"]["deltas"]["kernel"])
  filled = tensors() | {"roi_heads.box_predictor.bbox_pred.weight": np.where(weight == 0, 9, weight)}
  assert_equal(torchvision.load(filled, template(), small().model), numbers())


def test_the_mask_of_the_background_is_left_out_too():
  weight = tensors()["roi_heads.mask_predictor.mask_fcn_logits.weight"]
  assert weight.shape == (K + 1, 8, 1, 1)
  assert not weight[0].any()
  np.testing.assert_array_equal(weight[2, :, 0, 0], numbers()["params"]["mask"]["masks"]["kernel"][0, 0, :, 1])


def test_deconvolutions_have_their_inputs_first_there():
  ours = numbers()["params"]["mask"]["deconv"]["kernel"]
  np.testing.assert_array_equal(tensors()["roi_heads.mask_predictor.conv5_mask.weight"][1, 2, 0, 1], ours[0, 1, 1, 2])


def test_a_keypoint_head_comes_back_from_its_export():
  head = KeypointHead(pool=RoiAlign(output_size=14, num_levels=4), num_convs=2, channels=8, num_keypoints=3)
  model = small().model.clone(heads=(head,))
  shapes = variable_shapes(model, (64, 64))
  drawn = jax.tree.map(lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape), shapes)
  drawn = jax.tree.map(np.float32, drawn)
  theirs = torchvision.export(drawn, model)
  kernel = theirs["roi_heads.keypoint_predictor.kps_score_lowres.weight"]
  assert kernel.shape == (8, 3, 4, 4)  # inputs first
  assert kernel[1, 2, 0, 3] == drawn["params"]["keypoint"]["deconv"]["kernel"][0, 3, 1, 2]
  assert "roi_heads.keypoint_head.2.bias" in theirs  # every other layer there is a ReLU
  assert_equal(torchvision.load(theirs, shapes, model), drawn)


def test_convolutions_are_transposed():
  ours = numbers()["params"]["proposer"]["conv"]["kernel"]
  np.testing.assert_array_equal(tensors()["rpn.head.conv.0.0.weight"][1, 2, 0, 1], ours[0, 1, 2, 1])


@pytest.mark.parametrize(
  "change, message",
  [
    (
      {"rpn.head.cls_logits.bias": None},
      r"no tensor rpn\.head\.cls_logits\.bias \(for params/proposer/objectness/bias",
    ),
    ({"backbone.body.bn1.running_var": None}, r"no tensor backbone\.body\.bn1\.running_var \(for batch_stats/"),
    ({"roi_heads.keypoint_head.0.bias": np.zeros(3)}, r"nothing here answers to roi_heads\.keypoint_head\.0\.bias"),
    ({"rpn.head.bbox_pred.bias": np.zeros(8)}, r"rpn\.head\.bbox_pred\.bias is \(8,\), the model has \(12,\)"),
    ({"rpn.head.bbox_pred.bias": np.full(12, np.nan)}, r"rpn\.head\.bbox_pred\.bias holds NaN or infinity"),
  ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
  changed = {name: tensor for name, tensor in (tensors() | change).items() if tensor is not None}
  with pytest.raises(WeightsError, match=message):
    torchvision.load(changed, template(), small().model)


@pytest.mark.parametrize("shape", [(), (3,), (3, 0), (1, 16), (2**40, 0), (3, 4, 4)])
def test_a_head_without_classes_is_none(shape):
  """Of a head of 2**40 rows without columns, which is a file of a hundred bytes, a label was made for each."""
  name = "roi_heads.box_predictor.cls_score.weight"
  with pytest.raises(WeightsError, match=f"{name} is .*: no scores of a background and classes"):
    torchvision.LIBRARY.num_classes({name: np.zeros(shape, np.float32)})
  assert torchvision.LIBRARY.num_classes({name: np.zeros((3, 16), np.float32)}) == 2


def test_parts_that_torchvision_does_not_have():
  with pytest.raises(WeightsError, match="nothing like proposer/gate/bias"):
    torchvision.export({"params": {"proposer": {"gate": {"bias": np.zeros(1)}}}}, small().model)
  with pytest.raises(WeightsError, match="not class-agnostic"):
    torchvision.export({}, small().override({"model.heads.mask.class_agnostic": True}).model)


def test_labels_of_coco():
  categories = labels.categories(90)
  named = {category.id: category.name for category in categories if category.name != labels.UNUSED}
  assert len(named) == 80
  assert (named[1], named[13], named[90]) == ("person", "stop sign", "toothbrush")
  assert [(c.id, c.name) for c in labels.categories(2)] == [(1, "label 1"), (2, "label 2")]


def write_coco(folder: pathlib.Path) -> None:
  """A COCO folder of one black image with categories 1 and 3."""
  from PIL import Image

  folder.mkdir()
  Image.new("RGB", (64, 48)).save(folder / "a.png")
  objects = [dict(id=1, image_id=5, category_id=3, bbox=[4, 4, 20, 20], area=400, iscrowd=0)]
  contents = {
    "images": [dict(id=5, file_name="a.png", width=64, height=48)],
    "categories": [dict(id=3, name="dog"), dict(id=1, name="cat")],
    "annotations": objects,
  }
  (folder / "a.json").write_text(json.dumps(contents))


def test_labels_of_coco_s_people():
  people = small().model.clone(heads=(KeypointHead(num_keypoints=17),))
  names = labels.joints(people)
  assert (names.names[0], names.names[16], len(names.flip_pairs), len(names.skeleton)) == (
    "nose",
    "right_ankle",
    8,
    19,
  )
  assert labels.joints(people.clone(heads=(KeypointHead(num_keypoints=5),))) is None
  assert labels.joints(small().model) is None
  assert [c.name for c in labels.categories(1, names)] == ["person"]
  assert [c.name for c in labels.categories(1)] == ["label 1"]


def test_coco_by_id_has_a_class_for_every_id(tmp_path):
  write_coco(tmp_path / "coco")
  source = labels.CocoById(str(tmp_path / "coco"), str(tmp_path / "coco" / "a.json")).open()
  assert [(c.id, c.name) for c in source.categories] == [(1, "cat"), (2, "N/A"), (3, "dog")]
  assert source.annotations(0).classes.tolist() == [3]
  assert isinstance(labels.CocoById("a", "b"), CocoFolder)


# ------------------------------------------------------------------------------------------------------- the commands


def weights_file(folder: pathlib.Path, changes: dict | None = None) -> str:
  save_file(tensors() | (changes or {}), folder / "weights.safetensors")
  return str(folder / "weights.safetensors")


def test_an_imported_run_is_one_from_which_training_can_start(tmp_path):
  line = import_run(small(), weights_file(tmp_path), tmp_path / "run")
  assert line.endswith("2 classes, the source's own labels (no data at hand)")
  run = checkpoint.load_run(str(tmp_path / "run"))
  assert (run.experiment, run.step) == (small(), 0)
  assert [(c.id, c.name) for c in run.categories] == [(1, "label 1"), (2, "label 2")]
  assert_equal(run.variables, numbers())
  assert_equal(checkpoint.take_params(jax.tree.map(np.zeros_like, numbers()), run.variables), numbers())
  assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_imported_run_exports_the_file_that_it_was_made_from(tmp_path):
  import_run(small(), weights_file(tmp_path), tmp_path / "run")
  run = checkpoint.load_run(str(tmp_path / "run"))
  assert export(run, tmp_path / "out" / "again.safetensors") == len(tensors())
  again = load_file(tmp_path / "out" / "again.safetensors")
  assert again.keys() == tensors().keys()
  for name, tensor in tensors().items():
    np.testing.assert_array_equal(again[name], tensor, err_msg=name)


def test_the_classes_are_those_of_the_data_where_there_are_data(tmp_path):
  write_coco(tmp_path / "coco")
  folder = {"data.eval.images": str(tmp_path / "coco"), "data.eval.annotations": str(tmp_path / "coco" / "a.json")}
  weights = weights_file(tmp_path)
  with pytest.raises(
    WeightsError, match=r"cls_score\.bias is \(3,\), the model has \(4,\).*--skip='.*' leaves heads"
  ):
    import_run(small().override(folder), weights, tmp_path / "run")
  import_run(small().override(folder), weights, tmp_path / "run", skip="(box|mask)/.*")
  run = checkpoint.load_run(str(tmp_path / "run"))
  assert [c.name for c in run.categories] == ["cat", "N/A", "dog"]
  assert run.variables["params"]["box"]["classes"]["kernel"].shape == (16, 4)
  np.testing.assert_array_equal(
    run.variables["params"]["trunk"]["fc7"]["kernel"], numbers()["params"]["trunk"]["fc7"]["kernel"]
  )


def test_an_experiment_of_another_number_of_classes_is_refused(tmp_path):
  with pytest.raises(WeightsError, match=r"weights\.safetensors: .*cls_score\.bias is \(3,\), the model has \(91,\)"):
    import_run(small().override({"model.num_classes": 90}), weights_file(tmp_path), tmp_path / "run")


EPSILON = "model.backbone.bottom_up.norm_epsilon"
COUNTERS = {
  f"{name.removesuffix('running_var')}num_batches_tracked": np.array(7)
  for name in json.loads(NAMES.read_text())["fasterrcnn_resnet18_fpn"]
  if name.endswith("running_var")
}


def imported_epsilon(tmp_path, counters=(), experiment=None, chosen=()) -> tuple[float, str]:
  """(the epsilon of the run, what the import said)."""
  weights = weights_file(tmp_path, dict(counters))
  line = import_run(experiment or small(), weights, tmp_path / "run", chosen=chosen)
  return checkpoint.load_run(str(tmp_path / "run")).experiment.model.backbone.bottom_up.norm_epsilon, line


def test_norms_that_count_their_batches_have_pytorchs_epsilon(tmp_path, caplog):
  """torchvision's detectors without published weights; with the experiment's 0, none of 323 detections agreed."""
  assert small().model.backbone.bottom_up.norm_epsilon == 0
  epsilon, line = imported_epsilon(tmp_path, COUNTERS)
  assert epsilon == 1e-5
  assert line.splitlines()[0] == (
    f"{EPSILON} = 1e-05 instead of 0.0: the file holds PyTorch's batch norms, by their num_batches_tracked"
  )
  assert not caplog.records


def test_an_epsilon_that_nothing_tells_is_asked_for_in_one_line(tmp_path, caplog):
  of_pyramid = {"backbone.fpn.inner_blocks.0.1.num_batches_tracked": np.array(7)}  # the body's norms may be others
  for counters in ({}, of_pyramid):
    caplog.clear()
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert imported_epsilon(tmp_path, counters)[0] == 0
    (record,) = caplog.records
    assert f"weights.safetensors: nothing tells the epsilon of its batch norms. {EPSILON} stays 0.0" in record.message
    assert record.message.endswith(f"--set={EPSILON}=1e-05") and "\n" not in record.message


def test_an_epsilon_that_is_asked_for_stays(tmp_path, caplog):
  epsilon, line = imported_epsilon(tmp_path, COUNTERS, chosen=[EPSILON])
  assert epsilon == 0 and line.count("\n") == 0 and not caplog.records


def test_an_experiment_with_pytorchs_epsilon_asks_for_nothing(tmp_path, caplog):
  epsilon, line = imported_epsilon(tmp_path, experiment=small().override({EPSILON: 1e-5}))
  assert epsilon == 1e-5 and line.count("\n") == 0 and not caplog.records


def test_published_weights_are_known_by_their_checksum(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(norms, "PUBLISHED", (norms.digest(weights_file(tmp_path))[:8],))
  epsilon, line = imported_epsilon(tmp_path, experiment=small().override({EPSILON: 1e-5}))
  assert epsilon == 0 and "torchvision's published weights" in line and not caplog.records


@pytest.mark.parametrize("fault", ["misfit", "no detector", "full disk"])
def test_nothing_is_left_behind_when_it_fails(tmp_path, fault, monkeypatch):
  path, error = weights_file(tmp_path, {"rpn.head.cls_logits.bias": np.full(3, np.inf, np.float32)}), WeightsError
  if fault == "no detector":
    save_file({"conv1.weight": np.zeros(3)}, path)
  if fault == "full disk":

    def save_variables(workdir, variables):
      raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_variables", save_variables)
    path, error = weights_file(tmp_path), OSError
  with pytest.raises(error):
    import_run(small(), path, tmp_path / "run")
  assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_directory_that_holds_something_is_not_touched(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "mine.txt").write_text("mine")
  with pytest.raises(WeightsError, match="run is there already and not empty"):
    import_run(small(), weights_file(tmp_path), tmp_path / "run")
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]

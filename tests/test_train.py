"""What a training refuses before it writes anything."""

import pytest

from rcnn_jax import experiment as experiments
from rcnn_jax.experiment import ExperimentError
from rcnn_jax.models.cascade import THREE_STAGES
from rcnn_jax.models.pooling import WarpCrop
from rcnn_jax.ops.errors import ModelError
from rcnn_jax.training import checkpoint
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.optim import Rule, TrainingError
from rcnn_jax.training.run import check_model, check_parts, train


@pytest.mark.parametrize(
  ("name", "changes", "message"),
  [
    ("mask_rcnn_squeezenet_fpn_nuclei", {"data.load_masks": False}, "model.heads.mask .* set data.load_masks=True"),
    (
      "torchvision_keypointrcnn_resnet50_fpn",
      {"data.load_keypoints": False},
      "model.heads.keypoint .* set data.load_keypoints=True",
    ),
    ("rcnn_squeezenet_bccd", {"model.sampler.hard_nms_iou": 0.7}, "^model.sampler.hard_nms_iou: needs .*BoxHead"),
    ("rcnn_squeezenet_bccd", {"model.cascade": THREE_STAGES}, "^model.cascade: needs .*BoxHead"),
  ],
)
def test_parts_that_do_not_go_together_are_refused_by_their_paths(name, changes, message):
  experiment = experiments.load(name)
  check_parts(experiment)
  with pytest.raises(ExperimentError, match=message):
    check_parts(experiment.override(changes))


UNEVEN = {"model.proposer.anchor_sizes": ((12.0, 24.0), (48.0,), (64.0,), (128.0,), (256.0,))}


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    (UNEVEN, ModelError, "levels of different lengths .level 0: 2, level 1: 1, "),
    ({"model.proposer.anchor_sizes": ((12.0,),)}, ModelError, "for 1 level.s., the backbone gives 5"),
    ({"model.cascade": THREE_STAGES}, ModelError, "set box.class_agnostic"),
    ({"model.pool": WarpCrop(20, context=16)}, ModelError, "cut out of the image"),
    ({"stages.0.rules": (Rule("neck/.*"), Rule(".*"))}, TrainingError, "match no parameter: neck"),
    ({"stages.0.losses": ("mask",)}, TrainingError, "no loss mask: it has .*rpn_objectness"),
  ],
)
def test_what_does_not_fit_the_model_is_refused_by_a_trace_of_it(changes, error, message):
  experiment = experiments.load("faster_rcnn_r18_fpn_shapes").override(changes)
  with pytest.raises(error, match=message):
    check_model(experiment, experiment.model.clone(num_classes=3))


def test_nothing_is_written_for_a_model_that_does_not_fit(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, "write_experiment", lambda *_: pytest.fail("written before it was checked"))
  experiment = experiments.load("demo").override({"model.proposer.anchor_sizes": ((8.0,), (16.0, 32.0))})
  with pytest.raises(ModelError):
    train(experiment, str(tmp_path), meshes.data_mesh(1))

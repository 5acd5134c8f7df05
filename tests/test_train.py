"""What `launch.train` refuses before it writes anything."""

import pytest

from launch.train import check_parts
from rcnn_jax import experiment as experiments
from rcnn_jax.experiment import ExperimentError
from rcnn_jax.models.cascade import THREE_STAGES


@pytest.mark.parametrize(
  ("name", "changes", "message"),
  [
    ("mask_rcnn_squeezenet_fpn_nuclei", {"data.load_masks": False}, "model.mask .* set data.load_masks=True"),
    (
      "torchvision_keypointrcnn_resnet50_fpn",
      {"data.load_keypoints": False},
      "model.keypoint .* set data.load_keypoints=True",
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

"""Cascade R-CNN, ResNet-50-FPN, COCO 2017, 1x schedule.  arXiv:1712.00726.

Published: box AP 40.3, where one stage has 36.5 (val2017).  Not yet measured here. faster_rcnn_r50_fpn_coco with
three stages, of an IoU of 0.5, 0.6 and 0.7, and one box regression for all classes; with masks it is
detectron2_cascade_mask_rcnn_R_50_FPN_3x.

    python -m launch.train --experiment=cascade_rcnn_r50_fpn_coco --workdir=runs/cascade_r50_fpn
"""

from experiments.faster_rcnn_r50_fpn_coco import experiment as base
from rcnn_jax.models.cascade import THREE_STAGES

experiment = base.override(
  {"name": "cascade_rcnn_r50_fpn_coco", "model.cascade": THREE_STAGES, "model.box.class_agnostic": True}
)

"""Mask R-CNN's boxes, SqueezeNet 1.1 + FPN, on BCCD: the last step of the ladder.  arXiv:1703.06870, 1612.03144.

BCCD has no masks: this is Mask R-CNN without its mask head, a feature pyramid with RoI Align ("Faster R-CNN, RoI
Align" in the paper's table 3), in front of the same fully connected layer as the steps before. With masks it is
mask_rcnn_squeezenet_fpn_nuclei. 6 epochs, as every step of the ladder. Measured (one seed): AP 58.1, AP50
90.9.

    python -m launch.train --experiment=mask_rcnn_boxes_squeezenet_fpn_bccd --workdir=runs/mask_boxes_bccd
"""

import dataclasses

from experiments.faster_rcnn_squeezenet_bccd import experiment as faster
from experiments.mask_rcnn_squeezenet_fpn_nuclei import experiment as nuclei
from rcnn_jax.models.backbones.fpn import Fpn
from rcnn_jax.models.backbones.squeezenet import SqueezeNet

experiment = dataclasses.replace(
  faster,
  name="mask_rcnn_boxes_squeezenet_fpn_bccd",
  model=nuclei.model.clone(
    backbone=Fpn(SqueezeNet(levels=(3, 5, 9)), channels=128),
    proposer=nuclei.model.proposer.clone(
      anchor_sizes=((32.0,), (64.0,), (128.0,), (256.0,)), num_post_nms=faster.model.proposer.num_post_nms
    ),
    trunk=faster.model.trunk,
    box=faster.model.box,
    heads=(),
  ),
  stages=(dataclasses.replace(faster.stages[0], epochs=6),),
)

"""Faster R-CNN, VGG-16 from ImageNet, COCO 2014 train to val, by joint training.  arXiv:1506.01497, section 4.2.

Published: AP 21.2, AP50 41.5 (val; table 11) by alternating training.  Not yet measured here. As the paper: anchors
of 64 pixels beside those of VOC, background from an IoU of 0, eight images a batch, 240,000 steps at 0.003 and 80,000
at 0.0003. Unlike it: 128 RoIs of each of the eight images, there 64 of each of sixteen; else as
faster_rcnn_vgg16_voc07.

    python -m launch.train --experiment=faster_rcnn_vgg16_coco --workdir=runs/faster_coco
"""

import dataclasses

from experiments.fast_rcnn_vgg16_coco import experiment as fast
from experiments.faster_rcnn_vgg16_voc07 import experiment as base
from rcnn_jax.training.optim import StepDecay

experiment = dataclasses.replace(
  base,
  name="faster_rcnn_vgg16_coco",
  data=dataclasses.replace(fast.data, batch_size=(8, 8), proposals=None),
  model=base.model.clone(proposer=base.model.proposer.clone(anchor_sizes=((64.0, 128.0, 256.0, 512.0),))),
  stages=(dataclasses.replace(base.stages[0], steps=320_000, schedule=StepDecay(0.003, milestones=(240_000,))),),
  evaluation=fast.evaluation,
)

"""Faster R-CNN, VGG-16 from ImageNet, VOC 2007 and 2012 trainval to VOC 2007 test (07+12).  arXiv:1506.01497.

Published: mAP 73.2 (VOC 2007 test, 11 points, 300 proposals, shared features; table 3) by 4-step alternating
training.  Not yet measured here. faster_rcnn_vgg16_voc07, whose docstring says what differs from the original, on
three times as many images: 80,000 steps at 0.001 and 30,000 at 0.0001 (the paper gives no number).

    python -m launch.train --experiment=faster_rcnn_vgg16_voc0712 --workdir=runs/faster_voc0712
"""

import dataclasses

from experiments.fast_rcnn_vgg16_voc0712 import experiment as fast
from experiments.faster_rcnn_vgg16_voc07 import experiment as base
from rcnn_jax.training.optim import StepDecay

experiment = dataclasses.replace(
  base,
  name="faster_rcnn_vgg16_voc0712",
  data=dataclasses.replace(base.data, train=fast.data.train),
  stages=(dataclasses.replace(base.stages[0], steps=110_000, schedule=StepDecay(0.001, milestones=(80_000,))),),
)

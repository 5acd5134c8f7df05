"""Fast R-CNN, VGG-16 from ImageNet, VOC 2007 and 2012 trainval to VOC 2007 test (07+12).  arXiv:1504.08083, table 1.

Published: mAP 70.0 (VOC 2007 test, 11 points).  Not yet measured here. fast_rcnn_vgg16_voc07 on three times as many
images, for 60,000 steps instead of 40,000 (section 5.3), of which the last 15,000 at a tenth of the rate.

    python -m launch.prepare_data --proposals=fast --experiment=fast_rcnn_vgg16_voc0712
    python -m launch.train --experiment=fast_rcnn_vgg16_voc0712 --workdir=runs/fast_voc0712
"""

import dataclasses

from experiments.fast_rcnn_vgg16_voc07 import experiment as base
from rcnn_jax.data.union import Union
from rcnn_jax.data.voc import VocFolder
from rcnn_jax.training.optim import StepDecay

VOC12 = "data/VOCdevkit/VOC2012"

experiment = dataclasses.replace(
  base,
  name="fast_rcnn_vgg16_voc0712",
  data=dataclasses.replace(
    base.data,
    train=Union((base.data.train, VocFolder(VOC12, "trainval", difficult=False))),
    proposals=("runs/proposals/voc0712/train", base.data.proposals[1]),
  ),
  stages=(dataclasses.replace(base.stages[0], steps=60_000, schedule=StepDecay(0.001, milestones=(45_000,))),),
)

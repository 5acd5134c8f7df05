"""Faster R-CNN, VGG-16 from ImageNet, VOC 2007 trainval to test, by approximate joint training.  arXiv:1506.01497.

Published: mAP 69.9 (VOC 2007 test, 11 points, 300 proposals, shared features; table 3) by 4-step alternating training
(faster_rcnn_vgg16_voc07_alternating), to which the paper finds joint training close (section 3.2).  Not yet measured
here. As py-faster-rcnn: one image a batch, 256 anchors and 128 RoIs of it, 50,000 steps at 0.001, 20,000 at 0.0001,
conv1 and conv2 frozen, nine anchors, 2,000 proposals in training and 300 in test. Unlike it: objectness is one
sigmoid an anchor, there a softmax over two; box deltas are of the 20 classes, there of the background as well
(137,057,234 parameters, there 137,078,239); anchors are torchvision's, and those that cross the image's border are
trained on; the least side of a proposal, 16 pixels, is that on the resized image.

The row of 07+12 (73.2) is faster_rcnn_vgg16_voc0712.

    python -m launch.train --experiment=faster_rcnn_vgg16_voc07 --workdir=runs/faster_voc07
"""

import dataclasses

from experiments.fast_rcnn_vgg16_voc07 import experiment as fast
from rcnn_jax.models.detector import RoiSampler
from rcnn_jax.models.proposers import Rpn
from rcnn_jax.training.optim import StepDecay

experiment = dataclasses.replace(
  fast,
  name="faster_rcnn_vgg16_voc07",
  data=dataclasses.replace(fast.data, batch_size=(1, 1), proposals=None),
  model=fast.model.clone(
    proposer=Rpn(
      anchor_sizes=((128.0, 256.0, 512.0),),
      channels=512,
      num_pre_nms=(12000, 6000),
      num_post_nms=(2000, 300),
      min_size=16.0,
    ),
    sampler=RoiSampler(num_samples=128),
  ),
  stages=(dataclasses.replace(fast.stages[0], steps=70_000, schedule=StepDecay(0.001, milestones=(50_000,))),),
)

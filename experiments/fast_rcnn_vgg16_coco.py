"""Fast R-CNN, VGG-16 from ImageNet, COCO 2014 train to val.  arXiv:1504.08083, section 5.

Published: AP 19.7, AP50 35.9 (test-dev).  Not yet measured here. fast_rcnn_vgg16_voc07 on COCO's 80,000 images, for
240,000 steps as there, of which the last quarter at a tenth of the rate (the paper gives no number).

    python -m launch.prepare_data --proposals=fast --experiment=fast_rcnn_vgg16_coco
    python -m launch.train --experiment=fast_rcnn_vgg16_coco --workdir=runs/fast_coco
"""

import dataclasses

from experiments.fast_rcnn_vgg16_voc07 import experiment as base
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.experiment import Evaluation
from rcnn_jax.training.optim import StepDecay

COCO = "data/coco"  # holds train2014/, val2014/ and annotations/
PROPOSALS = "runs/proposals/coco2014"

experiment = dataclasses.replace(
  base,
  name="fast_rcnn_vgg16_coco",
  data=dataclasses.replace(
    base.data,
    train=CocoFolder(f"{COCO}/train2014", f"{COCO}/annotations/instances_train2014.json"),
    eval=CocoFolder(f"{COCO}/val2014", f"{COCO}/annotations/instances_val2014.json"),
    max_objects=100,
    proposals=(f"{PROPOSALS}/train", f"{PROPOSALS}/eval"),
  ),
  stages=(dataclasses.replace(base.stages[0], steps=240_000, schedule=StepDecay(0.001, milestones=(180_000,))),),
  evaluation=Evaluation(every_steps=60_000),
)

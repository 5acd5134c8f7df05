"""Faster R-CNN, ResNet-50-FPN from torchvision's COCO weights, fine-tuned on BCCD (364 blood smears, 3 classes).

Not yet measured here. The weights are imported first (torchvision_fasterrcnn_resnet50_fpn tells how); the predictor
of the classes and boxes, which is that of COCO's, starts anew.

    python -m launch.train --experiment=faster_rcnn_r50_fpn_bccd --workdir=runs/bccd_r50 \\
        --init_from=runs/torchvision --init_from_skip='box/.*'
"""

import dataclasses

from experiments.faster_rcnn_squeezenet_bccd import experiment as bccd
from experiments.torchvision_fasterrcnn_resnet50_fpn import experiment as base
from rcnn_jax.training.optim import Cosine, Rule
from rcnn_jax.training.stages import Sgd

experiment = dataclasses.replace(
  base,
  name="faster_rcnn_r50_fpn_bccd",
  data=bccd.data,
  stages=(
    Sgd(
      epochs=5,
      schedule=Cosine(0.005, warmup_steps=100),
      weight_decay=1e-4,
      clip_norm=10.0,
      rules=(Rule("backbone/bottom_up/(conv1|layer1)/.*", frozen=True), Rule(".*")),
    ),
  ),
  evaluation=bccd.evaluation,
)

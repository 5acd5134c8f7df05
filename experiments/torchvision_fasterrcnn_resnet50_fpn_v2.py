"""torchvision's fasterrcnn_resnet50_fpn_v2: Faster R-CNN, ResNet-50-FPN, COCO 2017, after arXiv:2111.11429.

Trainable batch norm everywhere, two convolutions in the RPN, four and a fully connected layer over each RoI.

Published: box AP 46.7 on val2017 (torchvision's COCO_V1 weights, 400 epochs).  Not yet measured here: from those
weights, without PyTorch,

    python -m launch.import_weights --source=torchvision --experiment=torchvision_fasterrcnn_resnet50_fpn_v2 \\
        --weights=fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth --workdir=runs/torchvision_v2
    python -m launch.evaluate --workdir=runs/torchvision_v2

The stages are the schedule that torchvision gives with the weights: 64 images a step, synchronised batch norm, all
layers from random numbers. Its large-scale jitter (images scaled by 0.1 to 2, then cropped or padded to 1024×1024) is
not here: only mirror images are, so that training by this file is not expected to reach the published AP.
"""

from experiments.torchvision_fasterrcnn_resnet50_fpn import experiment as base
from rcnn_jax.models.backbones.fpn import Fpn
from rcnn_jax.models.backbones.resnet import ResNet
from rcnn_jax.models.heads import ConvTrunk
from rcnn_jax.training.optim import StepDecay
from rcnn_jax.training.stages import Sgd

experiment = base.override(
  {
    "name": "torchvision_fasterrcnn_resnet50_fpn_v2",
    "model.backbone": Fpn(ResNet(50, norm="batch"), norm="batch"),
    "model.proposer.num_convs": 2,
    "model.trunk": ConvTrunk(),
    "data.batch_size": (64, 4),
    "stages": (
      Sgd(
        epochs=400,
        schedule=StepDecay(0.1, milestones=(352 / 400, 384 / 400), warmup_steps=1000, warmup_from=0.001),
        weight_decay=4e-5,
      ),
    ),
    "evaluation.every_epochs": 10,
  }
)

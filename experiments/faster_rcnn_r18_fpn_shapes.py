"""Faster R-CNN, ResNet-18-FPN, from scratch on drawn shapes: weights made in minutes, to be fine-tuned from.

    python -m launch.train --experiment=faster_rcnn_r18_fpn_shapes --workdir=runs/r18_shapes
    python -m launch.export_weights --workdir=runs/r18_shapes --output=runs/r18_shapes.safetensors

They stand in for published ones where none is at hand: torchvision's names, and statistics that may be frozen.
"""

import dataclasses

from experiments.demo import experiment as demo
from rcnn_jax.models.backbones.fpn import Fpn
from rcnn_jax.models.backbones.resnet import ResNet
from rcnn_jax.models.detector import Detector, RoiSampler
from rcnn_jax.models.heads import BoxHead, FcTrunk
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.models.proposers import Rpn

experiment = dataclasses.replace(
  demo,
  name="faster_rcnn_r18_fpn_shapes",
  data=dataclasses.replace(demo.data, load_masks=False),
  model=Detector(
    backbone=Fpn(ResNet(18, norm="batch"), channels=128),
    proposer=Rpn(
      anchor_sizes=((16.0,), (32.0,), (64.0,), (128.0,), (256.0,)), num_pre_nms=(300, 300), num_post_nms=(150, 100)
    ),
    pool=RoiAlign(output_size=7, num_levels=4),
    sampler=RoiSampler(num_samples=64),
    trunk=FcTrunk((256, 256)),
    box=BoxHead(num_candidates=300),
  ),
)

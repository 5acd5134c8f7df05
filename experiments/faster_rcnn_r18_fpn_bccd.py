"""Faster R-CNN, ResNet-18-FPN, fine-tuned on BCCD (364 blood smears, 3 classes) from a detector's weights.

    python -m launch.import_weights --weights=runs/r18_shapes.safetensors --skip='box/.*' \\
        --experiment=faster_rcnn_r18_fpn_bccd --workdir=runs/r18_bccd
    python -m launch.train --experiment=faster_rcnn_r18_fpn_bccd --workdir=runs/r18_bccd

The weights are those of faster_rcnn_r18_fpn_shapes. At half the images' size, so that a CPU takes minutes. Measured:
box AP 0.497, AP50 0.876 (one seed; docs/trust.md).
"""

import dataclasses

from experiments.faster_rcnn_r18_fpn_shapes import experiment as shapes
from experiments.faster_rcnn_squeezenet_bccd import experiment as bccd
from rcnn_jax.data.transforms import Resize
from rcnn_jax.training.optim import Cosine
from rcnn_jax.training.stages import Sgd

experiment = dataclasses.replace(
  shapes,
  name="faster_rcnn_r18_fpn_bccd",
  data=dataclasses.replace(bccd.data, resize=Resize(short_side=(240,), long_side=320), canvases=((240, 320),)),
  model=shapes.model.clone(
    backbone=shapes.model.backbone.clone(bottom_up=shapes.model.backbone.bottom_up.clone(norm="frozen")),
    box=shapes.model.box.clone(num_candidates=1000),
  ),
  stages=(Sgd(epochs=5, schedule=Cosine(0.01, warmup_steps=100), weight_decay=1e-4, clip_norm=10.0),),
  evaluation=bccd.evaluation,
)

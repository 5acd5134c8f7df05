"""One stage against three, and the last stage's IoU threshold alone, on BCCD.  arXiv:1712.00726.

Published (FPN, ResNet-50, COCO AP): 36.5 with one stage, 40.3 with three. Not yet measured here.

    python -m launch.sweep --sweep=cascade_bccd --workdir=runs/cascade_bccd
"""

from experiments.faster_rcnn_squeezenet_bccd import experiment as base
from rcnn_jax.models.cascade import THREE_STAGES
from rcnn_jax.sweep import Sweep

AGNOSTIC = {"model.box.class_agnostic": True}

sweep = Sweep(
  base,
  axes={
    "stages": {
      "1": AGNOSTIC,
      "1_iou_0.7": AGNOSTIC | {"model.sampler.foreground_iou": 0.7, "model.sampler.background_iou": 0.7},
      "2": AGNOSTIC | {"model.cascade": THREE_STAGES[:1]},
      "3": AGNOSTIC | {"model.cascade": THREE_STAGES},
    }
  },
  seeds=(0, 1, 2),
)

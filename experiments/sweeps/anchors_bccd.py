"""Scales and aspect ratios of the RPN's anchors, on BCCD.  arXiv:1506.01497, table 8.

Published (VGG-16, VOC07 mAP): one scale and one ratio 65.8 (128²) and 66.7 (256²), one scale and three ratios 68.8
and 67.9, three scales and one ratio 69.8, three of each 69.9. Not yet measured here.

    python -m launch.sweep --sweep=anchors_bccd --workdir=runs/anchors_bccd
"""

from experiments.faster_rcnn_squeezenet_bccd import experiment as base
from rcnn_jax.sweep import Sweep


def anchors(sizes: tuple[float, ...], ratios: tuple[float, ...]) -> dict:
  return {"model.proposer.anchor_sizes": (sizes,), "model.proposer.anchor_ratios": ratios}


SIZES, RATIOS = (32.0, 64.0, 128.0, 256.0), (0.5, 1.0, 2.0)

sweep = Sweep(
  base,
  axes={
    "anchors": {
      "1_scale_1_ratio": anchors((128.0,), (1.0,)),
      "1_scale_3_ratios": anchors((128.0,), RATIOS),
      "4_scales_1_ratio": anchors(SIZES, (1.0,)),
      "4_scales_3_ratios": anchors(SIZES, RATIOS),
    }
  },
  seeds=(0, 1, 2),
)

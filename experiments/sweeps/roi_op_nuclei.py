"""RoI Align, RoI warp and RoI max pooling, for boxes and masks together, on nuclei.  arXiv:1703.06870, table 2.

Published: mask AP on COCO 26.9 with RoI max pooling, 27.1 with RoI warp, 30.3 with RoI Align (ResNet-50-C4, stride
16); with stride 32 (C5) 23.6 with RoI pooling, 30.9 with RoI Align. Here nearly all regions are pooled at stride 4,
and the median nucleus has a side of 13 pixels. Measured over three seeds: mask AP 0.489 with RoI Align, 0.375 with
RoI max pooling, a difference of 0.115 (95 %: 0.104 to 0.125; docs/results.md). RoI warp: not yet.

    python -m launch.sweep --sweep=roi_op_nuclei --workdir=runs/roi_op_nuclei
"""

from experiments.mask_rcnn_squeezenet_fpn_nuclei import experiment as base
from rcnn_jax.models.pooling import RoiMaxPool, RoiWarp
from rcnn_jax.sweep import Sweep


def pooled_by(op: type) -> dict:
  return {"model.pool": op(7, num_levels=3), "model.heads.mask.pool": op(14, num_levels=3)}


sweep = Sweep(
  base.override({"model.backbone.bottom_up.padded": False}),
  axes={"roi_op": {"align": {}, "warp": pooled_by(RoiWarp), "max_pool": pooled_by(RoiMaxPool)}},
  seeds=(0, 1, 2),
  metrics=("bbox/AP", "segm/AP", "segm/AP50", "segm/AP75"),
)

"""RoI Align against RoI max pooling, for boxes and masks together, on nuclei.  arXiv:1703.06870, table 2 (c) and (d).

Published: mask AP on COCO 26.9 with RoI pooling, 30.3 with RoI Align (ResNet-50-C4, stride 16), 23.6 and 30.9 (C5,
stride 32). Here nearly all regions are pooled at stride 4, and the median nucleus has a side of 13 pixels. Not yet
measured here.

    python -m launch.sweep --sweep=roi_op_nuclei --workdir=runs/roi_op_nuclei
"""

from experiments.mask_rcnn_squeezenet_fpn_nuclei import experiment as base
from rcnn_jax.models.pooling import RoiMaxPool
from rcnn_jax.sweep import Sweep

POOLING = {"model.pool": RoiMaxPool(7, num_levels=3), "model.mask.pool": RoiMaxPool(14, num_levels=3)}

sweep = Sweep(base, axes={"roi_op": {"align": {}, "max_pool": POOLING}}, seeds=(0, 1, 2))

"""The loss of box regression, in the second stage alone, on BCCD.  arXiv:1902.09630 (GIoU), 1911.08287 (DIoU, CIoU).

Published (Faster R-CNN, COCO AP): IoU 37.93, GIoU 38.02, DIoU 38.09, CIoU 38.65 (1911.08287, table 3), with weights
of the loss of their own; here it is 1. Not yet measured here.

    python -m launch.sweep --sweep=regression_loss_bccd --workdir=runs/regression_loss_bccd
"""

from experiments.faster_rcnn_squeezenet_bccd import experiment as base
from rcnn_jax.sweep import Sweep

sweep = Sweep(base, axes={"model.box.regression_loss": ("smooth_l1", "giou", "diou", "ciou")}, seeds=(0, 1, 2))

"""The IoU threshold of the detections' NMS, and soft-NMS, on BCCD.  arXiv:1704.04503.

Published: soft-NMS is better than NMS by 1.7 points of mAP on VOC 2007 and by 1.1 of AP on COCO (Faster R-CNN). Fast
R-CNN's threshold is 0.3, torchvision's and Detectron2's 0.5. Measured here for one training alone (seed 0): 0.3 in
the place of 0.5 changes box AP by -0.04 points (95 % over images: -0.15 to +0.08; docs/compare_example.html). The
rest: not yet.

    python -m launch.sweep --sweep=nms_iou_bccd --workdir=runs/nms_iou_bccd
"""

from experiments.faster_rcnn_squeezenet_bccd import experiment as base
from rcnn_jax.models.heads import SoftNms
from rcnn_jax.sweep import Sweep

HARD = {iou: {"model.box.nms_iou": iou} for iou in (0.3, 0.4, 0.5, 0.6, 0.7)}
SOFT = {
  "gaussian": {"model.box.soft_nms": SoftNms()},
  "linear": {"model.box.soft_nms": SoftNms("linear"), "model.box.nms_iou": 0.3},
}

sweep = Sweep(base, axes={"nms": HARD | SOFT}, seeds=(0, 1, 2), trained_once=True)

"""R-CNN by its softmax or its SVMs, without or with box regression, on BCCD.  arXiv:1311.2524, table 2, appendix B.

Published (AlexNet, VOC07 mAP): softmax 50.9, SVMs 54.2, SVMs and box regression 58.5. Not yet measured here. All four
come from one training.

    python -m launch.prepare_data --experiment=rcnn_squeezenet_bccd
    python -m launch.sweep --sweep=svm_ridge_bccd --workdir=runs/svm_ridge_bccd
"""

from experiments.rcnn_squeezenet_bccd import experiment as base
from rcnn_jax.sweep import Sweep

sweep = Sweep(
  base,
  axes={"model.box.scores": ("softmax", "svm"), "model.box.regression": ("none", "ridge")},
  trained_once=True,
  metrics=("bbox/AP", "bbox/AP50", "voc/mAP_11pt"),
)

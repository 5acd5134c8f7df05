"""RoIs drawn by chance against the hardest, on BCCD.  arXiv:1604.03540, table 2.

Published (Fast R-CNN, VGG-16, VOC07 mAP): 67.2 by chance, 69.9 the hardest. Not yet measured here.

    python -m launch.sweep --sweep=hard_examples_bccd --workdir=runs/hard_examples_bccd
"""

from experiments.faster_rcnn_squeezenet_bccd import experiment as base
from rcnn_jax.sweep import Sweep

sweep = Sweep(base, axes={"model.sampler.hard_nms_iou": (None, 0.7)}, seeds=(0, 1, 2))

"""A mask for each class against one for all, on drawn shapes (nuclei have one class).  arXiv:1703.06870, section 4.1.

Published (ResNet-50-C4, COCO): mask AP 30.3 class-specific, 29.7 class-agnostic. Not yet measured here.

    python -m launch.sweep --sweep=class_agnostic_masks_shapes --workdir=runs/class_agnostic_masks_shapes
"""

from experiments.demo import experiment as base
from rcnn_jax.sweep import Sweep

sweep = Sweep(base, axes={"model.heads.mask.class_agnostic": (False, True)}, seeds=(0, 1, 2))

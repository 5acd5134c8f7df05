"""Box regression of each class against one for all, on BCCD.  As arXiv:1605.06409 and 1712.00726 regress, for all.

Published: no table in these. Not yet measured here.

    python -m launch.sweep --sweep=class_agnostic_boxes_bccd --workdir=runs/class_agnostic_boxes_bccd
"""

from experiments.faster_rcnn_squeezenet_bccd import experiment as base
from rcnn_jax.sweep import Sweep

sweep = Sweep(base, axes={"model.box.class_agnostic": (False, True)}, seeds=(0, 1, 2))

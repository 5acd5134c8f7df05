"""Faster R-CNN trained jointly against 4-step alternating training, on BCCD.  arXiv:1506.01497, section 3.2.

Published: no table; joint training gives "close results" in 25 to 50 % less time (journal version). Not yet measured
here.

    python -m launch.sweep --sweep=joint_alternating_bccd --workdir=runs/joint_alternating_bccd
"""

from experiments.faster_rcnn_squeezenet_bccd import experiment as joint
from experiments.faster_rcnn_squeezenet_bccd_alternating import experiment as alternating
from rcnn_jax.sweep import Sweep

STEPS = {"model.proposer": alternating.model.proposer, "stages": alternating.stages}

sweep = Sweep(joint, axes={"training": {"joint": {}, "alternating": STEPS}}, seeds=(0, 1, 2))

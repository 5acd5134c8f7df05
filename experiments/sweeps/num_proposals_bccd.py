"""Proposals of the RPN that are classified at test time, on BCCD.  arXiv:1506.01497, table 2.

Published: VOC07 mAP 55.1 with 100, 56.8 with 300, 56.3 with 1,000 (ZF, a detector trained on selective search). Not
yet measured here.

    python -m launch.sweep --sweep=num_proposals_bccd --workdir=runs/num_proposals_bccd
"""

from experiments.faster_rcnn_squeezenet_bccd import experiment as base
from rcnn_jax.sweep import Sweep

sweep = Sweep(
  base, axes={"model.proposer.num_post_nms.1": (25, 50, 100, 300, 1000)}, seeds=(0, 1, 2), trained_once=True
)

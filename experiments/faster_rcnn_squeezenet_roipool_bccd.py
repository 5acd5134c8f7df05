"""Faster R-CNN with RoI max pooling, SqueezeNet 1.1, on BCCD: the fourth step of the ladder.  arXiv:1506.01497.

faster_rcnn_squeezenet_bccd as its paper has it: RoI max pooling, where that one has RoI Align, which came with Mask
R-CNN. So the step from Fast R-CNN is the proposals, and the one to Mask R-CNN is RoI Align and the pyramid. 6 epochs
instead of 10, as every step of the ladder. Measured (one seed; docs/results.md): AP 49.8, AP50 84.6.

    python -m launch.train --experiment=faster_rcnn_squeezenet_roipool_bccd --workdir=runs/faster_roipool_bccd
"""

import dataclasses

from experiments.faster_rcnn_squeezenet_bccd import experiment as faster
from rcnn_jax.models.pooling import RoiMaxPool

experiment = dataclasses.replace(
  faster,
  name="faster_rcnn_squeezenet_roipool_bccd",
  model=faster.model.clone(pool=RoiMaxPool(output_size=7)),
  stages=(dataclasses.replace(faster.stages[0], epochs=6),),
)

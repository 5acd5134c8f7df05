"""Fast R-CNN, SqueezeNet 1.1 from ImageNet, on BCCD: the third step of the ladder.  arXiv:1504.08083, 1602.07360.

Data and canvas are those of faster_rcnn_squeezenet_bccd; the proposals come from selective search, whose settings are
for cells: segments at a small scale, small boxes kept and first (recall at IoU 0.5 with 500 boxes an image: 0.919 on
test). As the paper: RoI max pooling, 2 images x 64 RoIs a batch, one loss for classes and boxes. Unlike it, so that
two CPU cores do it: 500 to 600 proposals, one fully connected layer of 256, a cosine schedule of 6 epochs, which all
steps of the ladder have. Measured (one seed; docs/results.md): AP 41.3, AP50 71.6.

    python -m launch.prepare_data --experiment=fast_rcnn_squeezenet_bccd
    python -m launch.train --experiment=fast_rcnn_squeezenet_bccd --workdir=runs/fast_bccd
"""

import dataclasses

from experiments.faster_rcnn_squeezenet_bccd import experiment as faster
from rcnn_jax.data.selective_search import SelectiveSearch
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.detector import Detector, RoiSampler
from rcnn_jax.models.heads import BoxHead, FcTrunk
from rcnn_jax.models.pooling import RoiMaxPool
from rcnn_jax.models.proposers import External

PROPOSALS = "runs/proposals/bccd"

experiment = dataclasses.replace(
  faster,
  name="fast_rcnn_squeezenet_bccd",
  data=dataclasses.replace(
    faster.data,
    proposals=(f"{PROPOSALS}/train", f"{PROPOSALS}/eval"),
    num_proposals=(600, 500),
    search=SelectiveSearch(width=250, base_k=50, min_side=8.0, first="small"),
  ),
  model=Detector(
    backbone=SqueezeNet(),
    proposer=External(),
    pool=RoiMaxPool(output_size=7),
    sampler=RoiSampler(num_samples=64, background_floor=0.1),
    trunk=FcTrunk((256,)),
    box=BoxHead(smooth_l1_beta=1.0),
  ),
  stages=(dataclasses.replace(faster.stages[0], epochs=6),),
)

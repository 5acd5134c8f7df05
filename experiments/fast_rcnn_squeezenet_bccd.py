"""Fast R-CNN, SqueezeNet 1.1 from ImageNet, on BCCD (364 blood smears, 3 classes).  arXiv:1504.08083, 1602.07360.

Data, canvas and schedule are those of faster_rcnn_squeezenet_bccd; the proposals come from selective search. Its
settings are for cells: segments at a small scale, small boxes kept and first (recall at IoU 0.5 with 500 boxes an
image: 0.919 on test). Not yet measured here.

    python -m launch.prepare_data --proposals=fast --experiment=fast_rcnn_squeezenet_bccd \
      --width=250 --base_k=50 --min_side=8 --first=small
    python -m launch.train --experiment=fast_rcnn_squeezenet_bccd --workdir=runs/fast_bccd
"""

import dataclasses

from experiments.faster_rcnn_squeezenet_bccd import experiment as faster
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
    faster.data, proposals=(f"{PROPOSALS}/train", f"{PROPOSALS}/eval"), num_proposals=(600, 500)
  ),
  model=Detector(
    backbone=SqueezeNet(),
    proposer=External(),
    pool=RoiMaxPool(output_size=7),
    sampler=RoiSampler(num_samples=64, background_floor=0.1),
    trunk=FcTrunk((256,)),
    box=BoxHead(smooth_l1_beta=1.0),
  ),
)

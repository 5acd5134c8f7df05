"""SPPnet, SqueezeNet 1.1 from ImageNet, on BCCD: the second step of the ladder.  arXiv:1406.4729.

As the paper: the convolutions run once an image and stay those of ImageNet, the pyramid of 50 cells is fine-tuned
behind, then SVMs and ridge regression are fitted (pairs from IoU 0.5). Data and proposals are those of
fast_rcnn_squeezenet_bccd. Unlike the paper, so that two CPU cores do it: one scale, 500 to 600 proposals, one fully
connected layer of 256, a box regression from at most 4,000 pairs a class. SVMs have the squared hinge. Not yet
measured here.

    python -m launch.prepare_data --proposals=fast --experiment=sppnet_squeezenet_bccd \
      --width=250 --base_k=50 --min_side=8 --first=small
    python -m launch.train --experiment=sppnet_squeezenet_bccd --workdir=runs/sppnet_bccd
"""

import dataclasses

from experiments.rcnn_squeezenet_bccd import experiment as rcnn
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.pooling import SpatialPyramid
from rcnn_jax.training.optim import Cosine, Rule
from rcnn_jax.training.stages import FitBoxRegression, FitSvms, Sgd

experiment = dataclasses.replace(
  rcnn,
  name="sppnet_squeezenet_bccd",
  model=rcnn.model.clone(backbone=SqueezeNet(), pool=SpatialPyramid(bins=(1, 2, 3, 6)), roi_chunk=None),
  stages=(
    Sgd(
      epochs=8,
      schedule=Cosine(0.01, warmup_steps=100),
      weight_decay=1e-4,
      clip_norm=10.0,
      rules=(Rule("backbone/.*", frozen=True), Rule(".*")),
    ),
    FitSvms(),
    FitBoxRegression(min_iou=0.5, max_pairs=4000),
  ),
)

"""SPPnet, SqueezeNet 1.1 from ImageNet, on BCCD: the second step of the ladder.  arXiv:1406.4729.

The convolutions run once an image, the pyramid of 50 cells is fine-tuned behind them, then SVMs and ridge regression
are fitted (pairs from IoU 0.5). Data and proposals are those of fast_rcnn_squeezenet_bccd. Unlike the paper, which
leaves all convolutions as ImageNet made them, fire8 and fire9 are fine-tuned with the pyramid: that they stay as they
are is what holds SPPnet back, as the paper after it finds (Fast R-CNN, section 4.5). Also unlike it, so that two CPU
cores do it: one scale, 500 to 600 proposals, one fully connected layer of 256, a box regression from at most 4,000
pairs a class. SVMs have the squared hinge. Measured (one seed): AP 38.3, AP50 73.4; with softmax alone AP
27.4, AP50 67.4, with SVMs AP 26.9, AP50 66.8.

    python -m launch.prepare_data --experiment=sppnet_squeezenet_bccd
    python -m launch.train --experiment=sppnet_squeezenet_bccd --workdir=runs/sppnet_bccd
"""

import dataclasses

from experiments.fast_rcnn_squeezenet_bccd import experiment as fast
from experiments.rcnn_squeezenet_bccd import experiment as rcnn
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.pooling import SpatialPyramid
from rcnn_jax.training.optim import Rule
from rcnn_jax.training.stages import FitBoxRegression, FitSvms

experiment = dataclasses.replace(
  rcnn,
  name="sppnet_squeezenet_bccd",
  model=rcnn.model.clone(backbone=SqueezeNet(), pool=SpatialPyramid(bins=(1, 2, 3, 6)), roi_chunk=None),
  stages=(
    dataclasses.replace(fast.stages[0], rules=(Rule("backbone/(conv1|fire[2-7])/.*", frozen=True), Rule(".*"))),
    FitSvms(),
    FitBoxRegression(min_iou=0.5, max_pairs=4000),
  ),
)

"""R-CNN, SqueezeNet 1.1 from ImageNet, on BCCD: the first step of the ladder.  arXiv:1311.2524, 1602.07360.

Fine-tuning, one SVM a class with mined hard negatives, one ridge regression a class; every stage is evaluated, so
that metrics.jsonl tells what the SVMs and the box regression brought. Data and proposals are those of
fast_rcnn_squeezenet_bccd. Unlike the paper, so that two CPU cores do it: crops of 113 pixels instead of 227 (and 8 of
context instead of 16), 500 to 600 proposals instead of about 2,000, 6 epochs of fine-tuning, one fully connected
layer of 256. Also unlike it: a batch's 32 + 96 regions are of two images, SVMs have the squared hinge. Not yet
measured here.

    python -m launch.prepare_data --proposals=fast --experiment=rcnn_squeezenet_bccd \
      --width=250 --base_k=50 --min_side=8 --first=small
    python -m launch.train --experiment=rcnn_squeezenet_bccd --workdir=runs/rcnn_bccd
"""

import dataclasses

from experiments.fast_rcnn_squeezenet_bccd import experiment as fast
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.crops import CropNetwork, Pixels
from rcnn_jax.models.detector import Detector, RoiSampler
from rcnn_jax.models.heads import FcTrunk
from rcnn_jax.models.pooling import WarpCrop
from rcnn_jax.models.proposers import External
from rcnn_jax.models.rcnn_head import RcnnHead
from rcnn_jax.training.optim import Cosine
from rcnn_jax.training.stages import FitBoxRegression, FitSvms, Sgd

experiment = dataclasses.replace(
  fast,
  name="rcnn_squeezenet_bccd",
  model=Detector(
    backbone=Pixels(),
    proposer=External(),
    pool=CropNetwork(SqueezeNet(), WarpCrop(output_size=113, context=8), output_size=3),
    sampler=RoiSampler(num_samples=64),
    trunk=FcTrunk((256,)),
    box=RcnnHead(),
    roi_chunk=64,
  ),
  stages=(
    Sgd(epochs=6, schedule=Cosine(0.01, warmup_steps=100), weight_decay=1e-4, clip_norm=10.0),
    FitSvms(),
    FitBoxRegression(),
  ),
)

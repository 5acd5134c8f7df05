"""R-CNN, SqueezeNet 1.1 from ImageNet, on BCCD: the first step of the ladder.  arXiv:1311.2524, 1602.07360.

Fine-tuning, one SVM a class with mined hard negatives, one ridge regression a class; every stage is evaluated, so
that metrics.jsonl tells what the SVMs and the box regression brought. Data and proposals are those of
fast_rcnn_squeezenet_bccd. Unlike the paper, so that two CPU cores do it: crops of 160 pixels instead of 227 (and 11
of context instead of 16), 500 to 600 proposals instead of about 2,000, one fully connected layer of 256, and 3 epochs
of fine-tuning, half of what the other steps of the ladder have, since each takes as long as several of theirs. Also
unlike it: a batch's 32 + 96 regions are of two images, SVMs have the squared hinge. Measured (one seed):
AP 45.6, AP50 78.7; with softmax alone AP 31.5, AP50 75.9, with SVMs AP 31.4, AP50 74.2.

    python -m launch.prepare_data --experiment=rcnn_squeezenet_bccd
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
from rcnn_jax.training.stages import FitBoxRegression, FitSvms

experiment = dataclasses.replace(
  fast,
  name="rcnn_squeezenet_bccd",
  model=Detector(
    backbone=Pixels(),
    proposer=External(),
    pool=CropNetwork(SqueezeNet(), WarpCrop(output_size=160, context=11), output_size=3),
    sampler=RoiSampler(num_samples=64),
    trunk=FcTrunk((256,)),
    box=RcnnHead(),
    roi_chunk=64,
  ),
  stages=(dataclasses.replace(fast.stages[0], epochs=3), FitSvms(), FitBoxRegression()),
)

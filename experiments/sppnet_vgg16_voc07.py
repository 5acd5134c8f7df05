"""SPPnet, VGG-16, VOC 2007 trainval to test.  arXiv:1406.4729, section 4.

Published: VOC07 mAP (11 points) 63.1 with VGG-16 (arXiv:1504.08083, table 1), 59.2 with ZF-5. Not measured here. As
the paper: five scales, each region on the one where it is nearest to 224 x 224 pixels; convolutions of ImageNet that
stay as they are, a pyramid of 50 cells, fc6 and fc7 fine-tuned with 25 % positives, SVMs, and ridge regression from
IoU 0.5. Unlike it: fc6 and fc7 start at random (ImageNet's fc6 reads 7 x 7 cells, not a pyramid's 50), the SVMs have
the squared hinge.

    python -m launch.prepare_data --proposals=fast --experiment=sppnet_vgg16_voc07
    python -m launch.train --experiment=sppnet_vgg16_voc07 --workdir=runs/sppnet_voc07
"""

import dataclasses

from experiments.rcnn_vgg16_voc07 import experiment as rcnn
from rcnn_jax.data.transforms import Resize
from rcnn_jax.models.backbones.scales import Scales
from rcnn_jax.models.backbones.vgg import Vgg16
from rcnn_jax.models.pooling import SpatialPyramid
from rcnn_jax.training.optim import Rule, StepDecay
from rcnn_jax.training.stages import FitBoxRegression, FitSvms, Sgd

experiment = dataclasses.replace(
  rcnn,
  name="sppnet_vgg16_voc07",
  data=dataclasses.replace(
    rcnn.data,
    resize=Resize(short_side=(688,), long_side=1200),
    canvases=((704, 1024), (1024, 704), (1216, 1216)),
  ),
  model=rcnn.model.clone(backbone=Scales(Vgg16()), pool=SpatialPyramid(bins=(1, 2, 3, 6)), roi_chunk=256),
  stages=(
    Sgd(
      steps=30000,
      schedule=StepDecay(0.001, milestones=(20000,)),
      weight_decay=5e-4,
      rules=(Rule("backbone/.*", frozen=True), Rule(".*")),
    ),
    FitSvms(),
    FitBoxRegression(min_iou=0.5),
  ),
  init=dataclasses.replace(rcnn.init, trunk=False),
)

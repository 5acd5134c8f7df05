"""Faster R-CNN, SqueezeNet 1.1 from ImageNet, on BCCD (364 blood smears, 3 classes).  arXiv:1506.01497, 1602.07360.

Measured: box AP 0.582 ± 0.006, AP50 0.891 ± 0.002 (3 seeds; docs/results.md); torchvision 0.582, 0.895.

    python -m launch.train --experiment=faster_rcnn_squeezenet_bccd --workdir=runs/bccd
"""

from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import HorizontalFlip, Resize
from rcnn_jax.data.voc import VocFolder
from rcnn_jax.experiment import BackboneWeights, Evaluation, Experiment
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.detector import Detector, RoiSampler
from rcnn_jax.models.heads import BoxHead, FcTrunk
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.models.proposers import Rpn
from rcnn_jax.training.optim import Cosine
from rcnn_jax.training.stages import Sgd

BCCD = "../shared/data/bccd"
WEIGHTS = "../shared/weights/squeezenet1_1_imagenet.safetensors"

experiment = Experiment(
  name="faster_rcnn_squeezenet_bccd",
  data=Data(
    train=VocFolder(BCCD, "trainval"),
    eval=VocFolder(BCCD, "test"),
    resize=Resize(short_side=(480,), long_side=640),
    canvases=((480, 640),),
    augmentations=(HorizontalFlip(0.5),),
    batch_size=(2, 2),
  ),
  model=Detector(
    backbone=SqueezeNet(),
    proposer=Rpn(anchor_sizes=((32.0, 64.0, 128.0, 256.0),), num_pre_nms=(1000, 1000), num_post_nms=(500, 300)),
    pool=RoiAlign(output_size=7),
    sampler=RoiSampler(num_samples=128),
    trunk=FcTrunk((256,)),
    box=BoxHead(),
  ),
  stages=(Sgd(epochs=10, schedule=Cosine(0.01, warmup_steps=100), weight_decay=1e-4, clip_norm=10.0),),
  evaluation=Evaluation(every_steps=None),
  init=BackboneWeights(WEIGHTS),
)

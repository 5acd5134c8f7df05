"""Faster R-CNN, ResNet-50-FPN, COCO 2017, 1x schedule.  arXiv:1506.01497, 1612.03144.

Published: box AP 37.9 (Detectron2's model zoo, 1x), 37.0 (torchvision, 26 epochs).  Not yet measured here.

    python -m launch.train --experiment=faster_rcnn_r50_fpn_coco --workdir=runs/r50_fpn
"""

from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import HorizontalFlip, Resize
from rcnn_jax.experiment import BackboneWeights, Checkpoints, Evaluation, Experiment
from rcnn_jax.models.backbones.fpn import Fpn
from rcnn_jax.models.backbones.resnet import ResNet
from rcnn_jax.models.detector import Detector
from rcnn_jax.models.heads import BoxHead, FcTrunk
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.models.proposers import Rpn
from rcnn_jax.training.optim import Rule, StepDecay
from rcnn_jax.training.stages import Sgd

COCO = "data/coco"  # holds train2017/, val2017/ and annotations/

experiment = Experiment(
  name="faster_rcnn_r50_fpn_coco",
  data=Data(
    train=CocoFolder(f"{COCO}/train2017", f"{COCO}/annotations/instances_train2017.json"),
    eval=CocoFolder(f"{COCO}/val2017", f"{COCO}/annotations/instances_val2017.json"),
    resize=Resize(short_side=(640, 672, 704, 736, 768, 800), long_side=1333),
    canvases=((800, 1344), (1344, 800)),
    augmentations=(HorizontalFlip(0.5),),
    batch_size=(16, 16),
    max_objects=100,
    skip_empty=True,
    workers=8,
  ),
  model=Detector(
    backbone=Fpn(ResNet(50)),
    proposer=Rpn(num_pre_nms=(2000, 1000), num_post_nms=(1000, 1000)),
    pool=RoiAlign(output_size=7, aligned=True, num_levels=4),
    trunk=FcTrunk((1024, 1024)),
    box=BoxHead(),
  ),
  stages=(
    Sgd(
      steps=90_000,
      schedule=StepDecay(0.02, milestones=(60_000, 80_000), warmup_steps=1000, warmup_from=0.001),
      weight_decay=1e-4,
      rules=(Rule("backbone/bottom_up/(conv1|layer1)/.*", frozen=True), Rule(".*")),
    ),
  ),
  evaluation=Evaluation(every_steps=10_000),
  checkpoints=Checkpoints(every_steps=2500),
  init=BackboneWeights("resnet50.safetensors"),  # torchvision's ImageNet weights, as safetensors
)

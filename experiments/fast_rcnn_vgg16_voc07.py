"""Fast R-CNN, VGG-16 from ImageNet, VOC 2007 trainval to test.  arXiv:1504.08083, table 1.

Published: mAP 66.9 (VOC 2007 test, 11 points).  Not yet measured here. As in the paper: 2 images and 64 RoIs of each
a batch, 30,000 steps at 0.001 and 10,000 at 0.0001, biases at twice the rate and without decay, conv1 and conv2
frozen, all but the last layers from ImageNet (torchvision's training, there Caffe's).

    python -m launch.prepare_data --proposals=fast --experiment=fast_rcnn_vgg16_voc07
    python -m launch.train --experiment=fast_rcnn_vgg16_voc07 --workdir=runs/fast_voc07
"""

from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import HorizontalFlip, Resize
from rcnn_jax.data.voc import VocFolder
from rcnn_jax.experiment import BackboneWeights, Checkpoints, Evaluation, Experiment
from rcnn_jax.models.backbones.vgg import Vgg16
from rcnn_jax.models.detector import Detector, RoiSampler
from rcnn_jax.models.heads import BoxHead, FcTrunk
from rcnn_jax.models.pooling import RoiMaxPool
from rcnn_jax.models.proposers import External
from rcnn_jax.training.optim import Rule, StepDecay
from rcnn_jax.training.stages import Sgd

VOC = "data/VOCdevkit/VOC2007"
WEIGHTS = "weights/vgg16_imagenet.safetensors"  # torchvision's
PROPOSALS = "runs/proposals/voc07"

experiment = Experiment(
  name="fast_rcnn_vgg16_voc07",
  data=Data(
    train=VocFolder(VOC, "trainval", difficult=False),
    eval=VocFolder(VOC, "test"),
    resize=Resize(short_side=(600,), long_side=1000),
    canvases=((608, 1008), (1008, 608)),
    augmentations=(HorizontalFlip(0.5),),
    batch_size=(2, 2),
    proposals=(f"{PROPOSALS}/train", f"{PROPOSALS}/eval"),
    num_proposals=(2000, 2000),
    workers=4,
  ),
  model=Detector(
    backbone=Vgg16(),
    proposer=External(),
    pool=RoiMaxPool(output_size=7),
    sampler=RoiSampler(num_samples=64, background_floor=0.1),
    trunk=FcTrunk((4096, 4096), dropout=0.5),
    box=BoxHead(smooth_l1_beta=1.0, nms_iou=0.3),
  ),
  stages=(
    Sgd(
      steps=40_000,
      schedule=StepDecay(0.001, milestones=(30_000,)),
      weight_decay=0.0005,
      rules=(
        Rule("backbone/conv[12]_.*", frozen=True),
        Rule(".*/bias", lr=2.0, weight_decay=0.0),
        Rule(".*"),
      ),
    ),
  ),
  evaluation=Evaluation(every_steps=10_000, keep_best="voc/mAP_11pt"),
  checkpoints=Checkpoints(every_steps=2500),
  init=BackboneWeights(WEIGHTS, trunk=True),
)

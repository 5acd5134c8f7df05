"""R-CNN, VGG-16, VOC 2007 trainval to test.  arXiv:1311.2524 (PAMI version, section 2 and table 3).

Published: VOC07 mAP (11 points) 66.0 with box regression, 62.2 without; AlexNet 58.5 and 54.2. Not measured here.
As the paper: crops of 224 pixels, about 2,000 proposals of selective search's fast mode, 32 + 96 regions a batch,
fine-tuning at a rate of 0.001 (for 30,000 batches, a tenth of it after 20,000: the paper gives no number), SVMs on
fc7, ridge regression on pool5, all but the last layer from ImageNet. Unlike it: a batch's regions are of two images,
positives are not repeated where there are fewer than 32, the SVMs have the squared hinge. The features take about
170 GB on disk.

    python -m launch.prepare_data --proposals=fast --experiment=rcnn_vgg16_voc07
    python -m launch.train --experiment=rcnn_vgg16_voc07 --workdir=runs/rcnn_voc07
"""

from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import HorizontalFlip, Resize
from rcnn_jax.data.voc import VocFolder
from rcnn_jax.experiment import BackboneWeights, Evaluation, Experiment
from rcnn_jax.models.backbones.vgg import Vgg16
from rcnn_jax.models.crops import CropNetwork, Pixels
from rcnn_jax.models.detector import Detector, RoiSampler
from rcnn_jax.models.heads import FcTrunk
from rcnn_jax.models.pooling import WarpCrop
from rcnn_jax.models.proposers import External
from rcnn_jax.models.rcnn_head import RcnnHead
from rcnn_jax.training.optim import StepDecay
from rcnn_jax.training.stages import FitBoxRegression, FitSvms, Sgd

VOC = "data/VOCdevkit/VOC2007"
WEIGHTS = "weights/vgg16_imagenet.safetensors"
PROPOSALS = "data/proposals/voc07"

experiment = Experiment(
  name="rcnn_vgg16_voc07",
  data=Data(
    train=VocFolder(VOC, "trainval", difficult=False),
    eval=VocFolder(VOC, "test"),
    resize=Resize(short_side=(500,), long_side=500),
    canvases=((384, 512), (512, 384), (512, 512)),
    augmentations=(HorizontalFlip(0.5),),
    batch_size=(2, 2),
    proposals=(f"{PROPOSALS}/train", f"{PROPOSALS}/eval"),
    num_proposals=(2000, 2000),
  ),
  model=Detector(
    backbone=Pixels(),
    proposer=External(),
    pool=CropNetwork(Vgg16(), WarpCrop(output_size=224, context=16), output_size=7),
    sampler=RoiSampler(num_samples=64),
    trunk=FcTrunk((4096, 4096), dropout=0.5),
    box=RcnnHead(),
    roi_chunk=32,
  ),
  stages=(
    Sgd(steps=30000, schedule=StepDecay(0.001, milestones=(20000,)), weight_decay=5e-4),
    FitSvms(),
    FitBoxRegression(),
  ),
  evaluation=Evaluation(every_steps=None, keep_best="voc/mAP_11pt"),
  init=BackboneWeights(WEIGHTS, trunk=True),
)

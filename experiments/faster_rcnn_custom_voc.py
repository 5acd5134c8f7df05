"""A template: Faster R-CNN on your own data in Pascal VOC's layout. Set FOLDER and train.

FOLDER holds JPEGImages/, Annotations/ (one XML file an image) and ImageSets/Main/{train,val}.txt. The classes are
read from the annotations. Look for faults first, then train:

    python -m launch.validate_data --experiment=faster_rcnn_custom_voc
    python -m launch.train --experiment=faster_rcnn_custom_voc --workdir=runs/mine
"""

from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import ColorJitter, HorizontalFlip, Resize
from rcnn_jax.data.voc import VocFolder
from rcnn_jax.experiment import BackboneWeights, Checkpoints, Evaluation, Experiment
from rcnn_jax.models.backbones.fpn import Fpn
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.detector import Detector, RoiSampler
from rcnn_jax.models.heads import BoxHead, FcTrunk
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.models.proposers import Rpn
from rcnn_jax.training.optim import Cosine
from rcnn_jax.training.stages import Sgd

FOLDER = "data/mine"
WEIGHTS = None  # or a .safetensors file of torchvision's squeezenet1_1: far better than none

experiment = Experiment(
  name="faster_rcnn_custom_voc",
  data=Data(
    train=VocFolder(FOLDER, "train"),
    eval=VocFolder(FOLDER, "val"),
    resize=Resize(short_side=(416, 480, 544), long_side=800),
    canvases=((544, 800), (800, 544)),
    augmentations=(HorizontalFlip(0.5), ColorJitter()),
    batch_size=(2, 2),
  ),
  model=Detector(
    backbone=Fpn(SqueezeNet(levels=(3, 5, 9), padded=True), channels=128),  # Fpn(ResNet(50)) on an accelerator
    proposer=Rpn(anchor_sizes=((16.0, 32.0), (48.0, 64.0), (96.0, 128.0), (256.0, 512.0))),
    pool=RoiAlign(output_size=7, num_levels=3),
    sampler=RoiSampler(num_samples=256),
    trunk=FcTrunk((512,)),
    box=BoxHead(),
  ),
  stages=(Sgd(epochs=20, schedule=Cosine(0.01, warmup_steps=200), weight_decay=1e-4, clip_norm=10.0),),
  evaluation=Evaluation(every_steps=500),
  checkpoints=Checkpoints(every_steps=500),
  init=BackboneWeights(WEIGHTS) if WEIGHTS else None,
)

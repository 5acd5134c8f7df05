"""Mask R-CNN, SqueezeNet 1.1 + FPN from ImageNet, on nuclei (334 microscope images, 1 class).  arXiv:1703.06870.

Measured over three seeds: box AP 0.477 ± 0.006, mask AP 0.493 ± 0.004; torchvision, over five: 0.474 ± 0.003 and
0.433 ± 0.004 (docs/results.md). Without padding in SqueezeNet, as torchvision's: 0.473 ± 0.002 and 0.488 ± 0.002
(jax 0.10.2).

    python -m launch.train --experiment=mask_rcnn_squeezenet_fpn_nuclei --workdir=runs/nuclei
"""

from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import HorizontalFlip, Resize
from rcnn_jax.experiment import BackboneWeights, Evaluation, Experiment
from rcnn_jax.models.backbones.fpn import Fpn
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.detector import Detector, RoiSampler
from rcnn_jax.models.heads import BoxHead, FcTrunk, MaskHead
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.models.proposers import Rpn
from rcnn_jax.training.optim import Cosine
from rcnn_jax.training.stages import Sgd

NUCLEI = "../shared/data/nuclei"
WEIGHTS = "../shared/weights/squeezenet1_1_imagenet.safetensors"

experiment = Experiment(
  name="mask_rcnn_squeezenet_fpn_nuclei",
  data=Data(
    train=CocoFolder(f"{NUCLEI}/train", f"{NUCLEI}/annotations/instances_train.json"),
    eval=CocoFolder(f"{NUCLEI}/val", f"{NUCLEI}/annotations/instances_val.json"),
    resize=Resize(short_side=(256,), long_side=384),
    canvases=((256, 256),),
    augmentations=(HorizontalFlip(0.5),),
    batch_size=(2, 2),
    load_masks=True,
  ),
  model=Detector(
    backbone=Fpn(SqueezeNet(levels=(3, 5, 9), padded=True), channels=128),
    proposer=Rpn(
      anchor_sizes=((16.0,), (32.0,), (64.0,), (128.0,)), num_pre_nms=(1000, 1000), num_post_nms=(500, 500)
    ),
    pool=RoiAlign(output_size=7, num_levels=3),
    sampler=RoiSampler(num_samples=128),
    trunk=FcTrunk((256, 256), initial="pytorch"),
    box=BoxHead(max_detections=200, initial="pytorch"),
    heads=(MaskHead(pool=RoiAlign(output_size=14, num_levels=3), channels=128),),
  ),
  stages=(Sgd(epochs=10, schedule=Cosine(0.01, warmup_steps=100), weight_decay=1e-4, clip_norm=10.0),),
  evaluation=Evaluation(max_detections=200),
  init=BackboneWeights(WEIGHTS),
)

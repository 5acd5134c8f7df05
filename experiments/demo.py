"""The demo: a small Mask R-CNN on drawn shapes, from scratch, in minutes on a CPU.

    make demo

The page that it leaves is runs/demo/report.html.
"""

from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.shapes import Shapes
from rcnn_jax.data.transforms import HorizontalFlip, Resize
from rcnn_jax.experiment import Checkpoints, Evaluation, Experiment
from rcnn_jax.models.backbones.resnet import ResNet
from rcnn_jax.models.detector import Detector, RoiSampler
from rcnn_jax.models.heads import BoxHead, FcTrunk, MaskHead
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.models.proposers import Rpn
from rcnn_jax.training.optim import AdamW, Cosine
from rcnn_jax.training.stages import Sgd

experiment = Experiment(
  name="demo",
  data=Data(
    train=Shapes("runs/data", "train"),
    eval=Shapes("runs/data", "eval"),
    resize=Resize(short_side=(128,), long_side=128),
    canvases=((128, 128),),
    augmentations=(HorizontalFlip(0.5),),
    batch_size=(8, 10),
    load_masks=True,
  ),
  model=Detector(
    backbone=ResNet(18, levels=(3,), norm="batch"),
    proposer=Rpn(
      anchor_sizes=((16.0, 32.0, 64.0),), num_pre_nms=(300, 300), num_post_nms=(150, 100), num_samples=128
    ),
    pool=RoiAlign(output_size=7),
    sampler=RoiSampler(num_samples=64),
    trunk=FcTrunk((256,)),
    box=BoxHead(num_candidates=300, max_detections=20),
    heads=(MaskHead(pool=RoiAlign(output_size=14), num_convs=2, channels=32),),
  ),
  stages=(
    Sgd(steps=480, optimizer=AdamW(), schedule=Cosine(1e-3, warmup_steps=100), weight_decay=1e-4, clip_norm=10.0),
  ),
  evaluation=Evaluation(every_steps=240),
  checkpoints=Checkpoints(every_steps=240),
)

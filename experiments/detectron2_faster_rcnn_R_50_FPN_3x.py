"""Detectron2's faster_rcnn_R_50_FPN_3x: Faster R-CNN, ResNet-50-FPN, COCO 2017.  arXiv:1506.01497, 1612.03144.

Published: box AP 40.2 on val2017; 37.9 with the 1x schedule (Detectron2's model zoo).  Not yet measured here: from
the weights of either schedule, without PyTorch,

    python -m launch.import_weights --experiment=detectron2_faster_rcnn_R_50_FPN_3x \\
        --weights=model_final_280758.pkl --workdir=runs/detectron2          # 1x: model_final_b275ba.pkl
    python -m launch.evaluate --workdir=runs/detectron2

The stage is Detectron2's own; the 1x schedule is that of `SCHEDULE_1X`.  --init_from=runs/detectron2 --set=init=None
starts from the imported weights.
"""

from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import HorizontalFlip, PaddedToMultiple, Resize
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
NON_EMPTY = 1e-30  # pixels: Detectron2 drops boxes without any extent, and no others
# An override; on the command line each of them is a --set.
SCHEDULE_1X = {"stages.0.steps": 90_000, "stages.0.schedule.milestones": (60_000, 80_000)}

experiment = Experiment(
  name="detectron2_faster_rcnn_R_50_FPN_3x",
  data=Data(
    train=CocoFolder(f"{COCO}/train2017", f"{COCO}/annotations/instances_train2017.json"),
    eval=CocoFolder(f"{COCO}/val2017", f"{COCO}/annotations/instances_val2017.json"),
    resize=Resize((640, 672, 704, 736, 768, 800), long_side=1333, interpolation="pillow", rounding="nearest"),
    # Each image's own in evaluation; in training those of COCO's most frequent shapes (1:1, 4:3, 3:2, and longer).
    canvases=PaddedToMultiple(
      32,
      training=((800, 800), (800, 1088), (800, 1216), (800, 1344), (1088, 800), (1216, 800), (1344, 800)),
    ),
    augmentations=(HorizontalFlip(0.5),),
    batch_size=(16, 4),
    max_objects=100,
    skip_empty=True,
    workers=8,
  ),
  model=Detector(
    backbone=Fpn(ResNet(50, stride_in_1x1=True, pixel_std=(1.0, 1.0, 1.0))),
    proposer=Rpn(
      rounded_anchors=False,
      num_pre_nms=(2000, 1000),
      num_post_nms=(1000, 1000),
      min_size=NON_EMPTY,
      smooth_l1_beta=0.0,
      fixed_normaliser=True,
    ),
    pool=RoiAlign(output_size=7, sampling_ratio=0, aligned=True, num_levels=4),
    trunk=FcTrunk((1024, 1024)),
    box=BoxHead(smooth_l1_beta=0.0, min_size=NON_EMPTY),
    num_classes=80,
  ),
  stages=(
    Sgd(
      steps=270_000,
      schedule=StepDecay(0.02, milestones=(210_000, 250_000), warmup_steps=1000, warmup_from=0.001),
      weight_decay=1e-4,
      rules=(Rule("backbone/bottom_up/(conv1|layer1)/.*", frozen=True), Rule(".*")),
    ),
  ),
  evaluation=Evaluation(every_steps=15_000),
  checkpoints=Checkpoints(every_steps=5000),
  init=BackboneWeights("R-50.pkl"),  # MSRA's ResNet-50, from Detectron2's model zoo
)

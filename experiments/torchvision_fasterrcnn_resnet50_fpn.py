"""torchvision's fasterrcnn_resnet50_fpn: Faster R-CNN, ResNet-50-FPN, COCO 2017.  arXiv:1506.01497, 1612.03144.

Published: box AP 37.0 on val2017 (torchvision's COCO_V1 weights, 26 epochs).  Not yet measured here: from those
weights, without PyTorch,

    python -m launch.import_weights --source=torchvision --experiment=torchvision_fasterrcnn_resnet50_fpn \\
        --weights=fasterrcnn_resnet50_fpn_coco-258fb6c6.pth --workdir=runs/torchvision
    python -m launch.evaluate --workdir=runs/torchvision

Pixels are float32 and not smoothed before they shrink, as torchvision's. Each image stands on the canvas that
torchvision gives it when it is detected alone: its own size, padded to multiples of 32. Each canvas compiles once,
about 70 for val2017; on an accelerator the programs are kept in WORKDIR/compiled. In training, where torchvision pads
a batch to its largest image, seven canvases serve.

The stages are torchvision's own schedule; --init_from=runs/torchvision starts from the imported weights.
"""

from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import HorizontalFlip, PaddedToMultiple, Resize
from rcnn_jax.experiment import Checkpoints, Evaluation, Experiment
from rcnn_jax.models.backbones.fpn import Fpn
from rcnn_jax.models.backbones.resnet import ResNet
from rcnn_jax.models.detector import Detector
from rcnn_jax.models.heads import BoxHead, FcTrunk
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.models.proposers import Rpn
from rcnn_jax.training.optim import Rule, StepDecay
from rcnn_jax.training.stages import Sgd
from rcnn_jax.weights.labels import CocoById

COCO = "data/coco"  # holds train2017/, val2017/ and annotations/

experiment = Experiment(
  name="torchvision_fasterrcnn_resnet50_fpn",
  data=Data(
    train=CocoById(f"{COCO}/train2017", f"{COCO}/annotations/instances_train2017.json"),
    eval=CocoById(f"{COCO}/val2017", f"{COCO}/annotations/instances_val2017.json"),
    resize=Resize(short_side=(800,), long_side=1333, pixels="float32"),
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
    backbone=Fpn(ResNet(50, norm_epsilon=0.0)),  # as torchvision sets it for its published weights
    proposer=Rpn(canvas_strides=True),
    pool=RoiAlign(output_size=7, num_levels=4),
    trunk=FcTrunk((1024, 1024), initial="pytorch"),
    box=BoxHead(initial="pytorch"),
    num_classes=90,
  ),
  stages=(
    Sgd(
      epochs=26,
      schedule=StepDecay(0.02, milestones=(16 / 26, 22 / 26), warmup_steps=1000, warmup_from=0.001),
      weight_decay=1e-4,
      rules=(Rule("backbone/bottom_up/(conv1|layer1)/.*", frozen=True), Rule(".*")),
    ),
  ),
  evaluation=Evaluation(every_epochs=2),
  checkpoints=Checkpoints(every_steps=2500),
)

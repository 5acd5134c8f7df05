"""torchvision's keypointrcnn_resnet50_fpn: Keypoint R-CNN, ResNet-50-FPN, COCO 2017's people.  arXiv:1703.06870.

Published: box AP 54.6, keypoint AP 65.0 on val2017 (torchvision's COCO_V1 weights, 46 epochs).  Not yet measured
here: from those weights, without PyTorch,

    python -m launch.import_weights --source=torchvision --experiment=torchvision_keypointrcnn_resnet50_fpn \\
        --weights=keypointrcnn_resnet50_fpn_coco-fc266e95.pth --workdir=runs/torchvision_keypoints
    python -m launch.evaluate --workdir=runs/torchvision_keypoints

The stages are torchvision's own schedule, on the images with at least ten labelled joints.
"""

from experiments.torchvision_fasterrcnn_resnet50_fpn import COCO
from experiments.torchvision_fasterrcnn_resnet50_fpn import experiment as base
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.models.heads import KeypointHead
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.training.optim import StepDecay

experiment = base.override(
  {
    "name": "torchvision_keypointrcnn_resnet50_fpn",
    "data.train": CocoFolder(f"{COCO}/train2017", f"{COCO}/annotations/person_keypoints_train2017.json"),
    "data.eval": CocoFolder(f"{COCO}/val2017", f"{COCO}/annotations/person_keypoints_val2017.json"),
    "data.resize.short_side": (640, 672, 704, 736, 768, 800),
    "data.load_keypoints": True,
    "data.min_keypoints": 10,
    "model.heads.keypoint": KeypointHead(pool=RoiAlign(output_size=14, num_levels=4), num_keypoints=17),
    "model.num_classes": 1,
    "stages.0.epochs": 46,
    "stages.0.schedule": StepDecay(0.02, milestones=(36 / 46, 43 / 46), warmup_steps=1000, warmup_from=0.001),
  }
)

"""torchvision's maskrcnn_resnet50_fpn_v2: Mask R-CNN, ResNet-50-FPN, COCO 2017, after arXiv:2111.11429.

Published: box AP 47.4, mask AP 41.8 on val2017 (torchvision's COCO_V1 weights, 400 epochs).  Not yet measured here:
from those weights, without PyTorch,

    python -m launch.import_weights --source=torchvision --experiment=torchvision_maskrcnn_resnet50_fpn_v2 \\
        --weights=maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth --workdir=runs/torchvision_masks_v2
    python -m launch.evaluate --workdir=runs/torchvision_masks_v2

The stages are torchvision's schedule, without its large-scale jitter (see torchvision_fasterrcnn_resnet50_fpn_v2).
"""

from experiments.torchvision_fasterrcnn_resnet50_fpn_v2 import experiment as base
from rcnn_jax.models.heads import MaskHead
from rcnn_jax.models.pooling import RoiAlign

experiment = base.override(
  {
    "name": "torchvision_maskrcnn_resnet50_fpn_v2",
    "model.heads.mask": MaskHead(pool=RoiAlign(output_size=14, num_levels=4), norm="batch", pasting="rounded"),
    "data.load_masks": True,
  }
)

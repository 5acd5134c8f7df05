"""torchvision's maskrcnn_resnet50_fpn: Mask R-CNN, ResNet-50-FPN, COCO 2017.  arXiv:1703.06870, 1612.03144.

Published: box AP 37.9, mask AP 34.6 on val2017 (torchvision's COCO_V1 weights, 26 epochs).  Not yet measured here:
from those weights, without PyTorch,

    python -m launch.import_weights --source=torchvision --experiment=torchvision_maskrcnn_resnet50_fpn \\
        --weights=maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth --workdir=runs/torchvision_masks
    python -m launch.evaluate --workdir=runs/torchvision_masks
"""

from experiments.torchvision_fasterrcnn_resnet50_fpn import experiment as base
from rcnn_jax.models.heads import MaskHead
from rcnn_jax.models.pooling import RoiAlign

experiment = base.override(
  {
    "name": "torchvision_maskrcnn_resnet50_fpn",
    "model.heads.mask": MaskHead(pool=RoiAlign(output_size=14, num_levels=4), pasting="rounded"),
    "data.load_masks": True,
  }
)

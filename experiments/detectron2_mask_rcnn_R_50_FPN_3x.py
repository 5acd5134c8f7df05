"""Detectron2's mask_rcnn_R_50_FPN_3x: Mask R-CNN, ResNet-50-FPN, COCO 2017.  arXiv:1703.06870, 1612.03144.

Published: box AP 41.0, mask AP 37.2 on val2017; 38.6 and 35.2 with the 1x schedule (Detectron2's model zoo).  Not yet
measured here: from the weights of either schedule, without PyTorch,

    python -m launch.import_weights --experiment=detectron2_mask_rcnn_R_50_FPN_3x \\
        --weights=model_final_f10217.pkl --workdir=runs/detectron2_masks          # 1x: model_final_a54504.pkl
    python -m launch.evaluate --workdir=runs/detectron2_masks
"""

from experiments.detectron2_faster_rcnn_R_50_FPN_3x import experiment as base
from rcnn_jax.models.heads import MaskHead
from rcnn_jax.models.pooling import RoiAlign

experiment = base.override(
  {
    "name": "detectron2_mask_rcnn_R_50_FPN_3x",
    "model.heads.mask": MaskHead(pool=RoiAlign(output_size=14, sampling_ratio=0, aligned=True, num_levels=4)),
    "data.load_masks": True,
  }
)

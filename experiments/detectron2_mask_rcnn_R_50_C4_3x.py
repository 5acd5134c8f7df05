"""Detectron2's mask_rcnn_R_50_C4_3x: Mask R-CNN on conv4, boxes and masks share res5, COCO 2017.  arXiv:1703.06870.

Published: box AP 39.8, mask AP 34.4 on val2017; 36.8 and 32.2 with the 1x schedule (Detectron2's model zoo).  Not yet
measured here: from the weights of either schedule, without PyTorch,

    python -m launch.import_weights --experiment=detectron2_mask_rcnn_R_50_C4_3x \\
        --weights=model_final_4ce675.pkl --workdir=runs/detectron2_c4_masks          # 1x: model_final_9243eb.pkl
    python -m launch.evaluate --workdir=runs/detectron2_c4_masks
"""

from experiments.detectron2_faster_rcnn_R_50_C4_3x import experiment as base
from rcnn_jax.models.heads import MaskHead

experiment = base.override(
  {
    "name": "detectron2_mask_rcnn_R_50_C4_3x",
    "model.heads.mask": MaskHead(pool=None, num_convs=0),
    "data.load_masks": True,
  }
)

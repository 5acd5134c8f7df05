"""Detectron2's cascade_mask_rcnn_R_50_FPN_3x: Cascade R-CNN with masks, ResNet-50-FPN, COCO 2017.  arXiv:1712.00726.

Published: box AP 44.3, mask AP 38.5 on val2017; 42.1 and 36.4 with the 1x schedule (Detectron2's model zoo).  Not yet
measured here: from the weights of either schedule, without PyTorch,

    python -m launch.import_weights --experiment=detectron2_cascade_mask_rcnn_R_50_FPN_3x \\
        --weights=model_final_480dd8.pkl --workdir=runs/detectron2_cascade    # 1x: model_final_e9d89b.pkl
    python -m launch.evaluate --workdir=runs/detectron2_cascade

Without masks: --set=model.heads.mask=None --set=data.load_masks=False.
"""

from experiments.detectron2_mask_rcnn_R_50_FPN_3x import experiment as base
from rcnn_jax.models.cascade import THREE_STAGES

experiment = base.override(
  {
    "name": "detectron2_cascade_mask_rcnn_R_50_FPN_3x",
    "model.proposer.num_post_nms": (2000, 1000),
    "model.box.class_agnostic": True,
    "model.cascade": THREE_STAGES,
  }
)

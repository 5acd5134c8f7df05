"""Detectron2's keypoint_rcnn_R_50_FPN_3x: Keypoint R-CNN, ResNet-50-FPN, COCO 2017.  arXiv:1703.06870, 1612.03144.

Published: box AP 55.4, keypoint AP 65.5 on val2017's people; 53.6 and 64.0 with the 1x schedule (Detectron2's model
zoo).  Not yet measured here: from the weights of either schedule, without PyTorch,

    python -m launch.import_weights --experiment=detectron2_keypoint_rcnn_R_50_FPN_3x \\
        --weights=model_final_a6e10b.pkl --workdir=runs/detectron2_keypoints  # 1x: model_final_04e291.pkl
    python -m launch.evaluate --workdir=runs/detectron2_keypoints

Detectron2 takes COCO's joints for pixel numbers: it adds half a pixel to them in training and takes it from those
that it predicts; so do the data here.
"""

from experiments.detectron2_faster_rcnn_R_50_FPN_3x import COCO
from experiments.detectron2_faster_rcnn_R_50_FPN_3x import experiment as base
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.models.heads import KeypointHead
from rcnn_jax.models.pooling import RoiAlign

experiment = base.override(
  {
    "name": "detectron2_keypoint_rcnn_R_50_FPN_3x",
    "data.train": CocoFolder(f"{COCO}/train2017", f"{COCO}/annotations/person_keypoints_train2017.json"),
    "data.eval": CocoFolder(f"{COCO}/val2017", f"{COCO}/annotations/person_keypoints_val2017.json"),
    "data.load_keypoints": True,
    "data.joint_offset": 0.5,
    "model.proposer.num_post_nms": (1500, 1000),
    "model.box.smooth_l1_beta": 0.5,
    "model.heads.keypoint": KeypointHead(
      pool=RoiAlign(output_size=14, sampling_ratio=0, aligned=True, num_levels=4), num_keypoints=17
    ),
    "model.num_classes": 1,
  }
)

"""Detectron2's faster_rcnn_R_50_DC5_3x: Faster R-CNN on a dilated conv5, COCO 2017.  arXiv:1506.01497, 1703.06211.

Published: box AP 39.0 on val2017; 37.3 with the 1x schedule (Detectron2's model zoo).  Not yet measured here: from
the weights of either schedule, without PyTorch,

    python -m launch.import_weights --experiment=detectron2_faster_rcnn_R_50_DC5_3x \\
        --weights=model_final_68d202.pkl --workdir=runs/detectron2_dc5          # 1x: model_final_51d356.pkl
    python -m launch.evaluate --workdir=runs/detectron2_dc5
"""

from experiments.detectron2_faster_rcnn_R_50_C4_3x import experiment as base
from rcnn_jax.models.backbones.resnet import ResNet
from rcnn_jax.models.heads import FcTrunk
from rcnn_jax.models.pooling import RoiAlign

experiment = base.override(
  {
    "name": "detectron2_faster_rcnn_R_50_DC5_3x",
    "model.backbone": ResNet(50, levels=(5,), dilate_c5=True, stride_in_1x1=True, pixel_std=(1.0, 1.0, 1.0)),
    "model.pool": RoiAlign(output_size=7, sampling_ratio=0, aligned=True),
    "model.trunk": FcTrunk((1024, 1024)),
  }
)

"""Detectron2's faster_rcnn_R_50_C4_3x: Faster R-CNN on conv4 with res5 as its head, COCO 2017.  arXiv:1506.01497.

Published: box AP 38.4 on val2017; 35.7 with the 1x schedule (Detectron2's model zoo).  Not yet measured here: from
the weights of either schedule, without PyTorch,

    python -m launch.import_weights --experiment=detectron2_faster_rcnn_R_50_C4_3x \\
        --weights=model_final_f97cb7.pkl --workdir=runs/detectron2_c4          # 1x: model_final_721ade.pkl
    python -m launch.evaluate --workdir=runs/detectron2_c4
"""

from experiments.detectron2_faster_rcnn_R_50_FPN_3x import experiment as base
from rcnn_jax.models.backbones.resnet import ResNet
from rcnn_jax.models.heads import Res5Trunk
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.training.optim import Rule

experiment = base.override(
  {
    "name": "detectron2_faster_rcnn_R_50_C4_3x",
    "data.canvases.multiple": 1,  # images are padded for a pyramid alone
    "model.backbone": ResNet(50, levels=(4,), stride_in_1x1=True, pixel_std=(1.0, 1.0, 1.0)),
    "model.proposer.anchor_sizes": ((32.0, 64.0, 128.0, 256.0, 512.0),),
    "model.proposer.num_pre_nms": (12_000, 6000),
    "model.proposer.num_post_nms": (2000, 1000),
    "model.pool": RoiAlign(output_size=14, sampling_ratio=0, aligned=True),
    "model.trunk": Res5Trunk(50, stride_in_1x1=True),
    "stages.0.rules": (Rule("backbone/(conv1|layer1)/.*", frozen=True), Rule(".*")),
  }
)

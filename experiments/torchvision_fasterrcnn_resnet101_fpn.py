"""torchvision's FasterRCNN over resnet_fpn_backbone(backbone_name="resnet101"); no weights of it are published."""

from experiments.torchvision_fasterrcnn_resnet50_fpn import experiment as base

experiment = base.override(
  {
    "name": "torchvision_fasterrcnn_resnet101_fpn",
    "model.backbone.bottom_up.depth": 101,
    "model.backbone.bottom_up.norm_epsilon": 1e-5,
  }
)

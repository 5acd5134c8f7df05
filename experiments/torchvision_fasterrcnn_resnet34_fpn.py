"""torchvision's FasterRCNN over resnet_fpn_backbone(backbone_name="resnet34"); no weights of it are published."""

from experiments.torchvision_fasterrcnn_resnet50_fpn import experiment as base

experiment = base.override(
  {
    "name": "torchvision_fasterrcnn_resnet34_fpn",
    "model.backbone.bottom_up.depth": 34,
    "model.backbone.bottom_up.norm_epsilon": 1e-5,
  }
)

"""torchvision's MaskRCNN over resnet_fpn_backbone(backbone_name="resnet101"); no weights of it are published."""

from experiments.torchvision_maskrcnn_resnet50_fpn import experiment as base

experiment = base.override(
  {
    "name": "torchvision_maskrcnn_resnet101_fpn",
    "model.backbone.bottom_up.depth": 101,
    "model.backbone.bottom_up.norm_epsilon": 1e-5,
  }
)

"""Mask R-CNN, ConvNeXt-T-FPN, COCO 2017, 3x schedule.  arXiv:2201.03545, table 3.

Published: box AP 46.2, mask AP 41.7 (val2017).  Not yet measured here.  As the authors' code for detection: AdamW,
rates that fall by 0.95 from layer to layer towards the image, no weight decay of biases and norms, images of 480 to 800
pixels, three times 12 epochs. `init` names ImageNet weights in torchvision's or timm's names.

    python -m launch.train --experiment=mask_rcnn_convnext_t_fpn_coco --workdir=runs/convnext_t \\
        --set=init.path=convnext_tiny-983f1562.pth
"""

from experiments.torchvision_maskrcnn_resnet50_fpn import experiment as base
from rcnn_jax.experiment import BackboneWeights
from rcnn_jax.models.backbones.convnext import ConvNeXt
from rcnn_jax.training.optim import AdamW, Rule, StepDecay
from rcnn_jax.training.stages import Sgd

BACKBONE = "backbone/bottom_up/"
# The layers of the authors' code, from the image on: the stem, stages 1 and 2, the third in threes of blocks, the last.
LAYERS = (
  "stem.*",
  "stage1/.*",
  "(downsample2|stage2).*",
  "(downsample3.*|stage3/block[0-2]/.*)",
  "stage3/block[3-5]/.*",
  "stage3/block[6-8]/.*",
  "(downsample4|stage4).*",
)


def layer_wise(decay: float) -> tuple[Rule, ...]:
  """Rates that fall by `decay` with each layer that lies nearer to the image; biases, norms and scales do not decay."""
  rates = [decay ** (len(LAYERS) - i) for i in range(len(LAYERS))]
  plain = "(bias|scale|layer_scale)"
  return (
    *(Rule(f"(?=.*/{plain}$){BACKBONE}{layer}", lr=rate, weight_decay=0.0) for layer, rate in zip(LAYERS, rates)),
    *(Rule(f"{BACKBONE}{layer}", lr=rate) for layer, rate in zip(LAYERS, rates)),
    Rule(f".*/{plain}", weight_decay=0.0),
    Rule(".*"),
  )


experiment = base.override(
  {
    "name": "mask_rcnn_convnext_t_fpn_coco",
    "model.backbone.bottom_up": ConvNeXt("tiny", drop_path=0.4),
    "data.resize.short_side": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    "stages": (
      Sgd(
        epochs=36,
        optimizer=AdamW(),
        schedule=StepDecay(1e-4, milestones=(27 / 36, 33 / 36), warmup_steps=500, warmup_from=0.001),
        weight_decay=0.05,
        rules=layer_wise(0.95),
      ),
    ),
    "init": BackboneWeights("data/convnext_tiny.safetensors"),
  }
)

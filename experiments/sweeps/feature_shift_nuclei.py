"""How far features lie from where RoI Align reads them, on nuclei.  arXiv:1703.06870; Detectron2's ROIAlignV2.

Cell j of SqueezeNet's finest level looks at the pixels about 4 j + 3.5, because neither its first convolution nor its
poolings pad. RoI Align reads it as if it looked at 4 j (torchvision: 3.5 pixels off), or, `aligned`, at 4 j + 2
(Detectron2: 1.5 off). With padding it looks at 4 j + 0.5 (0.5 off, as a ResNet in torchvision). The median nucleus
has a side of 13 pixels.

Published: no numbers of such a shift. Measured: box AP 0.473 ± 0.002 as published (five seeds), 0.478 ± 0.007 aligned
(four, one of them an outlier), 0.481 ± 0.002 padded (five; docs/results.md, "Where features lie").

    python -m launch.sweep --sweep=feature_shift_nuclei --workdir=runs/feature_shift_nuclei
"""

from experiments.mask_rcnn_squeezenet_fpn_nuclei import experiment as base
from rcnn_jax.sweep import Sweep

AS_PUBLISHED = {"model.backbone.bottom_up.padded": False}
ALIGNED = {"model.pool.aligned": True, "model.heads.mask.pool.aligned": True}

sweep = Sweep(
  base,
  axes={"features": {"as_published": AS_PUBLISHED, "aligned": AS_PUBLISHED | ALIGNED, "padded": {}}},
  seeds=(0, 1, 2),
  metrics=("bbox/AP", "segm/AP", "segm/AP50", "segm/AP75"),
)

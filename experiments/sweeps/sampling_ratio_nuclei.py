"""Samples in each bin of RoI Align, along each axis, for boxes and masks together, on nuclei.  arXiv:1703.06870.

Published: no numbers; "the results are not sensitive to the exact sampling locations, or how many points are sampled,
as long as no quantization is performed" (section 3). Not yet measured here.

    python -m launch.sweep --sweep=sampling_ratio_nuclei --workdir=runs/sampling_ratio_nuclei
"""

from experiments.mask_rcnn_squeezenet_fpn_nuclei import experiment as base
from rcnn_jax.sweep import Sweep

RATIOS = {n: {"model.pool.sampling_ratio": n, "model.heads.mask.pool.sampling_ratio": n} for n in (1, 2, 4)}

sweep = Sweep(base, axes={"sampling_ratio": RATIOS}, seeds=(0, 1, 2))

"""The side of a pooled RoI, on BCCD.

Published: no table; 7 with VGG-16 (arXiv:1504.08083), whose fc6 fixes it, and 7 with FPN (arXiv:1612.03144). Not yet
measured here.

    python -m launch.sweep --sweep=output_size_bccd --workdir=runs/output_size_bccd
"""

from experiments.faster_rcnn_squeezenet_bccd import experiment as base
from rcnn_jax.sweep import Sweep

sweep = Sweep(base, axes={"model.pool.output_size": (3, 5, 7, 10, 14)}, seeds=(0, 1, 2))

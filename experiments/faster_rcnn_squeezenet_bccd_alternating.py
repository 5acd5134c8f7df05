"""Faster R-CNN, SqueezeNet 1.1 from ImageNet, on BCCD, by 4-step alternating training.  arXiv:1506.01497, 1602.07360.

The ablation of faster_rcnn_squeezenet_bccd, which is trained jointly: the same model and data; steps 1 and 2 have its
10 epochs, steps 3 and 4, which leave the backbone alone, half of them. Not yet measured.
faster_rcnn_vgg16_voc07_alternating says what the steps are.

    python -m launch.train --experiment=faster_rcnn_squeezenet_bccd_alternating --workdir=runs/bccd_alternating
"""

import dataclasses

from experiments.faster_rcnn_squeezenet_bccd import experiment as base
from rcnn_jax.models.proposers import AlternatingRpn
from rcnn_jax.training.optim import Rule
from rcnn_jax.training.stages import CopyParameters, ResetParameters, Sgd

RPN_LOSSES, ROI_LOSSES = ("rpn_objectness", "rpn_box"), ("roi_class", "roi_box")


def step(losses: tuple[str, ...], trained: str, epochs: float, **more) -> Sgd:
  """The joint training's stage on some loss terms, which trains the parts that a pattern names."""
  rules = (Rule(f"({trained})/.*"), Rule(".*", frozen=True))
  return dataclasses.replace(base.stages[0], epochs=epochs, rules=rules, losses=losses, **more)


experiment = dataclasses.replace(
  base,
  name="faster_rcnn_squeezenet_bccd_alternating",
  model=base.model.clone(proposer=AlternatingRpn(base.model.proposer, base.model.backbone.clone())),
  stages=(
    step(RPN_LOSSES, "backbone|proposer/rpn", 10.0),
    CopyParameters("backbone", "proposer/kept_backbone"),
    CopyParameters("proposer/rpn", "proposer/kept_rpn"),
    ResetParameters("backbone/.*"),
    step(ROI_LOSSES, "backbone|trunk|box", 10.0, model=(("proposer.from_kept", True),)),
    step(RPN_LOSSES, "proposer/rpn", 5.0),
    step(ROI_LOSSES, "trunk|box", 5.0),
  ),
)

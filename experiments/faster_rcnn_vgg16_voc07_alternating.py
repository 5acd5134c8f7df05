"""Faster R-CNN, VGG-16 from ImageNet, VOC 2007 trainval to test, by 4-step alternating training.  arXiv:1506.01497.

Published: mAP 69.9 (VOC 2007 test, 11 points, 300 proposals, shared features; table 3).  Not yet measured here.
The steps of section 3.2, with py-faster-rcnn's lengths:

1. The RPN is trained from ImageNet. Its network is then copied, and the backbone begins anew from ImageNet.
2. Fast R-CNN is trained on the proposals of that copy. The two networks share nothing.
3. The backbone of step 2 stays as it is, and the RPN's own layers, from step 1, are fine-tuned on it.
4. The backbone stays as it is, and Fast R-CNN's own layers are fine-tuned on step 3's proposals.

The copy proposes anew in every batch (py-faster-rcnn writes its proposals to a file, once). It stays in the run, used
by nothing: 17,097,581 parameters more than faster_rcnn_vgg16_voc07, whose docstring says what else differs from the
original. A batch is one image; steps 2 and 4 add two of them up, with 64 RoIs each.

    python -m launch.train --experiment=faster_rcnn_vgg16_voc07_alternating --workdir=runs/faster_voc07_alternating
"""

import dataclasses

from experiments.faster_rcnn_vgg16_voc07 import experiment as base
from rcnn_jax.models.backbones.vgg import Vgg16
from rcnn_jax.models.proposers import AlternatingRpn
from rcnn_jax.training.optim import Rule, StepDecay
from rcnn_jax.training.stages import CopyParameters, ResetParameters, Sgd

RPN_LOSSES, ROI_LOSSES = ("rpn_objectness", "rpn_box"), ("roi_class", "roi_box")
TWO_IMAGES = ("sampler.num_samples", 64)


def step(losses: tuple[str, ...], trained: str, **more) -> Sgd:
  """80,000 batches on some loss terms, which train the parts that a pattern names, but for conv1 and conv2."""
  rules = (
    Rule("backbone/conv[12]_.*", frozen=True),
    Rule(f"({trained})/.*/bias", lr=2.0, weight_decay=0.0),
    Rule(f"({trained})/.*"),
    Rule(".*", frozen=True),
  )
  schedule = StepDecay(0.001, milestones=(60_000,))
  return Sgd(steps=80_000, schedule=schedule, weight_decay=0.0005, rules=rules, losses=losses, **more)


experiment = dataclasses.replace(
  base,
  name="faster_rcnn_vgg16_voc07_alternating",
  model=base.model.clone(proposer=AlternatingRpn(base.model.proposer, Vgg16())),
  stages=(
    step(RPN_LOSSES, "backbone|proposer/rpn"),
    CopyParameters("backbone", "proposer/kept_backbone"),
    CopyParameters("proposer/rpn", "proposer/kept_rpn"),
    ResetParameters("backbone/.*"),
    step(ROI_LOSSES, "backbone|trunk|box", accumulate=2, model=(("proposer.from_kept", True), TWO_IMAGES)),
    step(RPN_LOSSES, "proposer/rpn"),
    step(ROI_LOSSES, "trunk|box", accumulate=2, model=(TWO_IMAGES,)),
  ),
)

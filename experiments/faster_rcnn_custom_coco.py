"""A template: Faster R-CNN on your own data in COCO's layout. Set the four paths and train.

    python -m launch.validate_data --experiment=faster_rcnn_custom_coco
    python -m launch.train --experiment=faster_rcnn_custom_coco --workdir=runs/mine

The model and the schedule are those of faster_rcnn_custom_voc.
"""

import dataclasses

from experiments.faster_rcnn_custom_voc import experiment as base
from rcnn_jax.data.coco import CocoFolder

TRAIN = CocoFolder("data/mine/train", "data/mine/annotations/instances_train.json")
EVAL = CocoFolder("data/mine/val", "data/mine/annotations/instances_val.json")

experiment = dataclasses.replace(
  base, name="faster_rcnn_custom_coco", data=dataclasses.replace(base.data, train=TRAIN, eval=EVAL)
)

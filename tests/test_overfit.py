"""A detector that cannot learn eight images by heart is broken somewhere. Minutes long: `make test-long`."""

from __future__ import annotations

import json
import pathlib

import pytest

from launch.train import train
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import Resize
from rcnn_jax.experiment import BackboneWeights, Checkpoints, Experiment
from rcnn_jax.models.backbones.fpn import Fpn
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.detector import Detector, RoiSampler
from rcnn_jax.models.heads import BoxHead, FcTrunk
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.models.proposers import Rpn
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.optim import AdamW, Cosine
from rcnn_jax.training.stages import Sgd

SHARED = pathlib.Path(__file__).parents[2] / "shared"
COCO = SHARED / "data" / "coco_mini"

pytestmark = [
  pytest.mark.long,
  pytest.mark.skipif(not COCO.exists(), reason="needs ../shared/data/coco_mini, which is not part of the project"),
]


def eight_images(folder: pathlib.Path) -> CocoFolder:
  """The first eight images of val2017 whose objects are all at least 32 pixels wide and high."""
  contents = json.loads((COCO / "annotations" / "instances_val2017.json").read_text())
  objects = {image["id"]: [] for image in contents["images"]}
  for annotation in contents["annotations"]:
    objects[annotation["image_id"]].append(annotation)
  clear = [i for i, own in sorted(objects.items()) if own and all(min(a["bbox"][2:]) >= 32 for a in own)][:8]
  contents["images"] = [image for image in contents["images"] if image["id"] in clear]
  contents["annotations"] = [annotation for i in clear for annotation in objects[i]]
  path = folder / "instances_eight.json"
  path.write_text(json.dumps(contents))
  return CocoFolder(str(COCO / "val2017"), str(path))


def test_eight_coco_images_are_learnt_by_heart(tmp_path):
  source = eight_images(tmp_path)
  experiment = Experiment(
    name="overfit",
    data=Data(
      train=source,
      eval=source,
      resize=Resize(short_side=(320,), long_side=320),
      canvases=((320, 320),),
      augmentations=(),
      batch_size=(4, 4),
    ),
    model=Detector(
      backbone=Fpn(SqueezeNet(levels=(3, 5, 9)), channels=128),
      proposer=Rpn(
        anchor_sizes=((16.0, 32.0), (64.0, 96.0), (128.0, 192.0), (256.0, 320.0)),
        num_pre_nms=(500, 500),
        num_post_nms=(300, 200),
      ),
      pool=RoiAlign(num_levels=3),
      sampler=RoiSampler(num_samples=64),
      trunk=FcTrunk((256,)),
      box=BoxHead(),
    ),
    stages=(Sgd(steps=300, optimizer=AdamW(), schedule=Cosine(5e-4, warmup_steps=20), clip_norm=10.0),),
    checkpoints=Checkpoints(every_steps=1000),
    init=BackboneWeights(str(SHARED / "weights" / "squeezenet1_1_imagenet.safetensors")),
  )
  train(experiment, str(tmp_path / "run"), meshes.data_mesh(1))
  metrics = json.loads((tmp_path / "run" / "eval" / "300" / "metrics.json").read_text())
  assert metrics["bbox/AP"] >= 0.90, metrics

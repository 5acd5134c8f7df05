"""A detector that cannot learn a few images by heart is broken somewhere. Minutes long: `make test-long`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import flax.linen as nn
import pytest

from launch.train import train
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import Resize
from rcnn_jax.experiment import BackboneWeights, Checkpoints, Experiment
from rcnn_jax.models.backbones.fpn import Fpn
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.detector import Detector, RoiSampler
from rcnn_jax.models.heads import BoxHead, FcTrunk, KeypointHead
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


def first_images(folder: pathlib.Path, kind: str, count: int, clear: Callable[[dict], bool]) -> CocoFolder:
  """The first images of val2017 whose objects are all `clear`; `kind` is that of COCO's annotation files."""
  contents = json.loads((COCO / "annotations" / f"{kind}_val2017.json").read_text())
  objects = {image["id"]: [] for image in contents["images"]}
  for annotation in contents["annotations"]:
    objects[annotation["image_id"]].append(annotation)
  chosen = [i for i, own in sorted(objects.items()) if own and all(map(clear, own))][:count]
  assert len(chosen) == count
  contents["images"] = [image for image in contents["images"] if image["id"] in chosen]
  contents["annotations"] = [annotation for i in chosen for annotation in objects[i]]
  path = folder / f"{kind}_few.json"
  path.write_text(json.dumps(contents))
  return CocoFolder(str(COCO / "val2017"), str(path))


def metrics_after(source: CocoFolder, workdir: pathlib.Path, steps: int, **parts: nn.Module) -> dict:
  """The metrics of a small detector, with the given heads, on the images that it was trained on."""
  experiment = Experiment(
    name="overfit",
    data=Data(
      train=source,
      eval=source,
      resize=Resize(short_side=(320,), long_side=320),
      canvases=((320, 320),),
      augmentations=(),
      batch_size=(4, 4),
      load_keypoints="keypoint" in parts,
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
      **parts,
    ),
    stages=(Sgd(steps=steps, optimizer=AdamW(), schedule=Cosine(5e-4, warmup_steps=20), clip_norm=10.0),),
    checkpoints=Checkpoints(every_steps=1000),
    init=BackboneWeights(str(SHARED / "weights" / "squeezenet1_1_imagenet.safetensors")),
  )
  train(experiment, str(workdir), meshes.data_mesh(1))
  return json.loads((workdir / "eval" / str(steps) / "metrics.json").read_text())


def test_eight_coco_images_are_learnt_by_heart(tmp_path):
  source = first_images(tmp_path, "instances", 8, lambda one: min(one["bbox"][2:]) >= 32)
  metrics = metrics_after(source, tmp_path / "run", 300)
  assert metrics["bbox/AP"] >= 0.90, metrics


def test_the_joints_of_the_people_in_four_coco_images_are_learnt_by_heart(tmp_path):
  clear = lambda one: min(one["bbox"][2:]) >= 32 and one["num_keypoints"] >= 10
  source = first_images(tmp_path, "person_keypoints", 4, clear)
  head = KeypointHead(pool=RoiAlign(output_size=14, num_levels=3), num_convs=4, channels=128)
  metrics = metrics_after(source, tmp_path / "run", 300, keypoint=head)
  assert metrics["bbox/AP"] >= 0.90, metrics
  assert metrics["keypoints/AP"] >= 0.85, metrics

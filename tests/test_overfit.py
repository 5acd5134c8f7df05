"""A detector that cannot learn a few images by heart is broken somewhere. Minutes long: `make test-long`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from launch import flags as launch_flags
from launch.evaluate import evaluate_run
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import Resize
from rcnn_jax.experiment import BackboneWeights, Checkpoints, Evaluation, Experiment
from rcnn_jax.models.backbones.fpn import Fpn
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.cascade import THREE_STAGES
from rcnn_jax.models.detector import Detector, RoiSampler
from rcnn_jax.models.heads import BoxHead, ConvTrunk, FcTrunk, KeypointHead, MaskHead, SoftNms
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.models.proposers import Rpn
from rcnn_jax.training import checkpoint
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.optim import AdamW, Cosine
from rcnn_jax.training.run import train
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


DETECTOR = Detector(
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
)


def learn(
  source: CocoFolder, workdir: pathlib.Path, model: Detector, steps: int, side: int = 320, peak: float = 5e-4
) -> dict:
  """The metrics of a detector on the images that it was trained on."""
  experiment = Experiment(
    name="overfit",
    data=Data(
      train=source,
      eval=source,
      resize=Resize(short_side=(side,), long_side=side),
      canvases=((side, side),),
      augmentations=(),
      batch_size=(4, 4),
      load_masks=any(head.field == "masks" for head in model.heads),
      load_keypoints=any(head.field == "keypoints" for head in model.heads),
    ),
    model=model,
    stages=(Sgd(steps=steps, optimizer=AdamW(), schedule=Cosine(peak, warmup_steps=20), clip_norm=10.0),),
    evaluation=Evaluation(pictures=0),
    checkpoints=Checkpoints(every_steps=1000),
    init=BackboneWeights(str(SHARED / "weights" / "squeezenet1_1_imagenet.safetensors")),
  )
  train(experiment, str(workdir), meshes.data_mesh(1))
  return json.loads((workdir / "eval" / str(steps) / "metrics.json").read_text())


def test_eight_coco_images_are_learnt_by_heart(tmp_path):
  source = first_images(tmp_path, "instances", 8, lambda one: min(one["bbox"][2:]) >= 32)
  metrics = learn(source, tmp_path / "run", DETECTOR, 300)
  assert metrics["bbox/AP"] >= 0.90, metrics


# A detector that learns large objects in a minute, for the parts of later papers.
SMALL = DETECTOR.clone(
  backbone=Fpn(SqueezeNet(levels=(5, 9)), channels=64),
  proposer=Rpn(
    anchor_sizes=((32.0, 48.0), (64.0, 96.0), (128.0, 192.0)), num_pre_nms=(200, 200), num_post_nms=(100, 100)
  ),
  pool=RoiAlign(num_levels=2),
  sampler=RoiSampler(num_samples=32),
)


def learn_large_objects(folder: pathlib.Path, steps: int = 150, side: int = 192, **parts: Any) -> dict:
  """The metrics of the small detector with some parts exchanged, on the eight images that it was trained on."""
  source = first_images(folder, "instances", 8, lambda one: min(one["bbox"][2:]) >= 96)
  return learn(source, folder / "run", SMALL.clone(**parts), steps, side=side, peak=1e-3)


def small_trunk(norm: str) -> ConvTrunk:
  return ConvTrunk(num_convs=2, channels=64, widths=(256,), norm=norm)


def test_a_cascade_with_masks_group_norm_and_giou(tmp_path):
  metrics = learn_large_objects(
    tmp_path,
    steps=300,
    side=320,  # of 640: at 192 masks are too coarse, their AP 0.77
    cascade=THREE_STAGES,
    trunk=small_trunk("group"),
    box=BoxHead(class_agnostic=True, regression_loss="giou"),
    heads=(MaskHead(pool=RoiAlign(output_size=14, num_levels=2), num_convs=2, channels=64),),
  )
  assert metrics["bbox/AP"] >= 0.85, metrics
  assert metrics["segm/AP"] >= 0.85, metrics


def test_a_cascade_without_masks(tmp_path):
  metrics = learn_large_objects(tmp_path, cascade=THREE_STAGES, box=BoxHead(class_agnostic=True))
  assert metrics["bbox/AP"] >= 0.85, metrics


def test_synchronised_batch_norm_with_ciou(tmp_path):
  # After 150 steps its losses still fall fast, and AP is 0.71.
  metrics = learn_large_objects(tmp_path, 300, trunk=small_trunk("batch"), box=BoxHead(regression_loss="ciou"))
  assert metrics["bbox/AP"] >= 0.85, metrics


def test_hard_examples_with_diou_and_then_soft_nms(tmp_path):
  metrics = learn_large_objects(
    tmp_path, sampler=RoiSampler(num_samples=32, hard_nms_iou=0.7), box=BoxHead(regression_loss="diou")
  )
  assert metrics["bbox/AP"] >= 0.85, metrics
  run = checkpoint.load_run(str(tmp_path / "run"))
  softly = launch_flags.with_experiment(run, run.experiment.override({"model.box.soft_nms": SoftNms()}))
  metrics = evaluate_run(softly, tmp_path / "soft")
  assert metrics["bbox/AP"] >= 0.85, metrics


def test_the_joints_of_the_people_in_four_coco_images_are_learnt_by_heart(tmp_path):
  clear = lambda one: min(one["bbox"][2:]) >= 64 and one["num_keypoints"] >= 10
  source = first_images(tmp_path, "person_keypoints", 4, clear)
  head = KeypointHead(pool=RoiAlign(output_size=14, num_levels=2), num_convs=2, channels=64)
  metrics = learn(source, tmp_path / "run", SMALL.clone(heads=(head,)), 300, side=192, peak=1e-3)
  assert metrics["bbox/AP"] >= 0.85, metrics
  assert metrics["keypoints/AP"] >= 0.85, metrics

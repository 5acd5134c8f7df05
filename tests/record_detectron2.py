"""Records Detectron2's answers, which the parity tests compare ours with, in tests/fixtures/detectron2.

Runs in an environment of its own, with Detectron2 and what it needs, from the root of the checkout:

    V/bin/python -m tests.record_detectron2 [NAME ...]

NAMEs are those of filling.DETECTRON2_RECORDED, `losses`, `cascade` and `names`, all of them by default. Models are
those of Detectron2's own configurations, with the few changes of filling.DETECTRON2; weights come from
tests/filling.py by their names, so that a fixture holds answers, and how the class scores were calibrated; with them
the versions and the date. Needs ../shared/data/coco_mini beside the checkout; of Detectron2, its Python part is
enough.
"""

from __future__ import annotations

import datetime
import json
import pathlib
import sys
import zlib

import detectron2
import numpy as np
import torch
import torchvision
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.data import transforms
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from pycocotools import mask

from tests import filling
from tests.record_torchvision_models import calibrate, photographs

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "detectron2"


def configuration(name: str, changes: dict) -> CfgNode:
  """The published configuration, on the CPU, with changes by the names of Detectron2's settings."""
  config = model_zoo.get_config(f"{filling.DETECTRON2_MODELS[name]}/{name}.yaml")
  config.merge_from_list([item for change in changes.items() for item in change])
  config.MODEL.DEVICE = "cpu"
  return config


def filled(config: CfgNode) -> torch.nn.Module:
  """The model of a configuration, every parameter and statistic from its name, in evaluation mode."""
  model = build_model(config)
  state = model.state_dict()
  values = {k: torch.from_numpy(filling.tensor(k, tuple(v.shape))) for k, v in state.items()}
  constants = {k: v for k, v in state.items() if "anchor_generator" in k or k.startswith("pixel_")}
  model.load_state_dict(values | constants)
  return model.eval()


def prepared(config: CfgNode, image: np.ndarray) -> dict:
  """What DefaultPredictor hands to the model for an image u8[H, W, 3], RGB."""
  bgr = image[:, :, ::-1]
  sides = config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST
  resized = transforms.ResizeShortestEdge([sides[0]] * 2, sides[1]).get_transform(bgr).apply_image(bgr)
  pixels = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
  return {"image": pixels, "height": image.shape[0], "width": image.shape[1]}


def answers_of(instances: Instances) -> dict[str, np.ndarray]:
  """An image's detections f32[D, 6] (box, score, class from 1 on), and what else the model gives, by kind."""
  columns = [instances.pred_boxes.tensor, instances.scores[:, None], instances.pred_classes[:, None] + 1]
  answers = {"boxes": torch.cat(columns, dim=1).numpy()}
  if instances.has("pred_masks"):
    masks = instances.pred_masks[: filling.DETECTRON2_MASKS].numpy().astype(np.uint8)
    answers["masks"] = np.array([mask.encode(np.asfortranarray(m))["counts"] for m in masks], dtype=bytes)
  if instances.has("pred_keypoints"):
    answers["keypoints"] = instances.pred_keypoints.numpy()
  return answers


@torch.no_grad()
def detections(name: str) -> dict:
  """Of all photographs, one by one and four by four."""
  config = configuration(name, filling.DETECTRON2)
  model = filled(config)
  images = photographs()
  inputs = [prepared(config, image) for image in images.values()]
  calibrated = name in filling.DETECTRON2_CALIBRATED
  answers = calibrate(model, model.roi_heads.box_predictor.cls_score, inputs[0]) if calibrated else {}
  answers |= {f"{name}_crc32": np.array(zlib.crc32(image.tobytes())) for name, image in images.items()}
  for size in (1, 4):
    found = [output["instances"] for i in range(0, len(inputs), size) for output in model(inputs[i : i + size])]
    for image, instances in zip(images, found):
      answers |= {f"{image}_batch{size}_{kind}": values for kind, values in answers_of(instances).items()}
  return answers


def losses(name: str = "faster_rcnn_R_50_FPN_3x") -> dict:
  """The loss terms of a small detector, of which every anchor and every proposal is a sample."""
  model = filled(configuration(name, filling.DETECTRON2_LOSSES | {"MODEL.MASK_ON": False})).train()
  with EventStorage():
    return {term: value.item() for term, value in model(loss_inputs()).items()}


@torch.no_grad()
def cascade() -> dict:
  """The loss terms of a small Cascade R-CNN, and what it detects in the same images."""
  name = "cascade_mask_rcnn_R_50_FPN_3x"
  model = filled(configuration(name, filling.DETECTRON2_LOSSES | {"MODEL.MASK_ON": False}))
  found = [answers_of(output["instances"])["boxes"] for output in model(loss_inputs())]
  return losses(name) | {f"detections{i}": boxes for i, boxes in enumerate(found)}


def loss_inputs() -> list[dict]:
  """The images of filling.loss_case with their objects."""
  inputs = []
  for image, boxes, classes in zip(*filling.loss_case()):
    truth = Instances(image.shape[:2], gt_boxes=Boxes(torch.from_numpy(boxes)), gt_classes=torch.tensor(classes - 1))
    pixels = torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy()).float()
    inputs.append({"image": pixels, "instances": truth})
  return inputs


def names() -> None:
  """Writes the names and shapes of the models' state dicts."""
  shapes = {}
  for name in filling.DETECTRON2_MODELS:
    state = build_model(configuration(name, {})).state_dict()
    shapes[name] = {k: list(v.shape) for k, v in state.items()}
  path = FIXTURES.parent / "detectron2_names.json"
  path.write_text(json.dumps(shapes, separators=(",", ":")) + "\n")
  print(f"names: {path.stat().st_size} bytes")


def main(chosen: list[str]) -> None:
  """Records, and says how much."""
  torch.manual_seed(0)
  FIXTURES.mkdir(parents=True, exist_ok=True)
  modules = (detectron2, torch, torchvision, np)
  recorded = [*(f"{module.__name__} {module.__version__}" for module in modules), str(datetime.date.today())]
  for name in chosen or [*filling.DETECTRON2_RECORDED, "losses", "cascade", "names"]:
    if name == "names":
      names()
      continue
    small = {"losses": losses, "cascade": cascade}
    answers = small[name]() if name in small else detections(name)
    path = FIXTURES / f"{name}.npz"
    np.savez_compressed(path, recorded=recorded, **answers)
    print(f"{name}: {len(answers)} answers, {path.stat().st_size} bytes")


if __name__ == "__main__":
  main(sys.argv[1:])

"""Records torchvision's answers of Keypoint R-CNN, in the way and the environment of tests/record_torchvision.py:

V/bin/python -m tests.record_torchvision_keypoints [NAME ...]
"""

from __future__ import annotations

import sys
import zlib

import numpy as np
import torch
from torchvision.models.detection import KeypointRCNN
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypoints_to_heatmap

from tests import filling
from tests.record_torchvision import channels_first, detector, main, record, tensor
from tests.record_torchvision_models import photographs


def keypoint_detector() -> KeypointRCNN:
  """The small detector with a keypoint head."""
  channels = filling.KEYPOINT_CHANNELS
  return detector(
    filling.DETECT_SIDES,
    KeypointRCNN,
    keypoint_head=KeypointRCNNHeads(256, channels),
    keypoint_predictor=KeypointRCNNPredictor(channels[-1], filling.NUM_KEYPOINTS),
  )


@record
def heat_maps() -> dict:
  keypoints, regions, logits = map(tensor, filling.heat_map_case())
  cells, valid = keypoints_to_heatmap(keypoints, regions, logits.shape[1])
  points, scores = heatmaps_to_keypoints(logits.permute(0, 3, 1, 2), regions)
  return {"cells": cells, "valid": valid.bool(), "points": points[..., :2], "scores": scores}


@record
def keypoint_losses() -> dict:
  """The five losses, and a sample of the gradient of the keypoints' by each parameter that it reaches."""
  images, boxes, classes = filling.loss_case()
  targets = [
    {"boxes": tensor(b), "labels": tensor(c), "keypoints": tensor(k)}
    for b, c, k in zip(boxes, classes, filling.loss_keypoints())
  ]
  model = keypoint_detector().train()
  model.transform._skip_resize = True  # the images have their size already
  terms = model([channels_first(image)[0].float() / 255 for image in images], targets)
  terms["loss_keypoint"].backward()
  reached = {k: v.grad.numpy() for k, v in model.named_parameters() if v.grad is not None}
  gradients = {f"gradient.{k}": filling.sample(k, v, 60) for k, v in reached.items()}
  return {k: v.detach() for k, v in terms.items()} | gradients


def detected(model: KeypointRCNN, images: dict[str, np.ndarray], batch_size: int) -> dict:
  """f32[D, 6 + 3 * J] of each image: box, score, class, x and y of each joint, their scores; original pixels."""
  answers, names = {}, list(images)
  for first in range(0, len(names), batch_size):
    group = names[first : first + batch_size]
    with torch.no_grad():
      results = model([channels_first(images[name])[0].float() / 255 for name in group])
    for name, found in zip(group, results):
      columns = [found["boxes"], found["scores"][:, None], found["labels"][:, None].float()]
      columns += [found["keypoints"][..., :2].flatten(1), found["keypoints_scores"]]
      answers[f"{name}_batch{batch_size}"] = torch.cat(columns, dim=1)
  return answers


@record
def keypoints_on_photographs() -> dict:
  images = {name: image for name, image in photographs().items() if name in filling.COCO_IMAGES[:4]}
  model = keypoint_detector()
  decoded = {f"{name}_crc32": np.array(zlib.crc32(image.tobytes())) for name, image in images.items()}
  return detected(model, images, 1) | detected(model, images, 4) | decoded


if __name__ == "__main__":
  main(sys.argv[1:] or ["heat_maps", "keypoint_losses", "keypoints_on_photographs"])

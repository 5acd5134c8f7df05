"""The peer of launch.benchmark: builds torchvision's form of a detector and times it. Runs in a Python with PyTorch.

Reads a line of JSON from standard input, answers a line on standard output: first the model, in the form in which an
experiment writes it, then {"measure": "train"} or {"measure": "detect"} for the seconds of one repeat.
"""

from __future__ import annotations

import json
import sys
import time

import torch
import torchvision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def kind(part: dict) -> str:
  """The class of a part: 'rcnn_jax.models.heads:BoxHead' is 'BoxHead'."""
  return part["class"].rpartition(":")[2]


def backbone_of(part: dict) -> tuple[torch.nn.Module, list[str]]:
  """(backbone, names of the levels that RoIs are pooled from); raises ValueError for one that is not known here."""
  if kind(part) == "SqueezeNet" and part["levels"] == [9] and not part["padded"]:
    features = torchvision.models.squeezenet1_1(weights=None).features
    features.out_channels = 512
    return features, ["0"]
  if kind(part) == "Vgg16":
    features = torchvision.models.vgg16(weights=None).features[:-1]
    features.out_channels = 512
    return features, ["0"]
  if kind(part) == "Fpn" and kind(part["bottom_up"]) == "ResNet" and part["bottom_up"]["levels"] == [2, 3, 4, 5]:
    name = f"resnet{part['bottom_up']['depth']}"
    frozen = torchvision.ops.FrozenBatchNorm2d if part["bottom_up"]["norm"] == "frozen" else torch.nn.BatchNorm2d
    return resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=frozen, trainable_layers=5), list("0123")
  raise ValueError(f"torchvision's form of the backbone {part} is not known here")


def build(request: dict) -> FasterRCNN:
  """torchvision's Faster R-CNN with the experiment's sizes and counts."""
  model, canvas = request["model"], request["canvas"]
  rpn, box, sampler, pool, trunk = (model[name] for name in ("proposer", "box", "sampler", "pool", "trunk"))
  if (kind(rpn), kind(trunk), kind(pool)) != ("Rpn", "FcTrunk", "RoiAlign"):
    raise ValueError("only Rpn, RoiAlign and FcTrunk have a counterpart in torchvision's FasterRCNN")
  if model["mask"] or model["keypoint"]:
    raise ValueError("heads of masks and keypoints are not known here")
  backbone, levels = backbone_of(model["backbone"])
  ratios = (tuple(rpn["anchor_ratios"]),) * len(rpn["anchor_sizes"])
  width = trunk["widths"][-1]
  side = pool["output_size"]
  return FasterRCNN(
    backbone,
    min_size=min(canvas),
    max_size=max(canvas),
    rpn_anchor_generator=AnchorGenerator(tuple(map(tuple, rpn["anchor_sizes"])), ratios),
    rpn_pre_nms_top_n_train=rpn["num_pre_nms"][0],
    rpn_pre_nms_top_n_test=rpn["num_pre_nms"][1],
    rpn_post_nms_top_n_train=rpn["num_post_nms"][0],
    rpn_post_nms_top_n_test=rpn["num_post_nms"][1],
    rpn_batch_size_per_image=rpn["num_samples"],
    box_batch_size_per_image=sampler["num_samples"],
    box_roi_pool=torchvision.ops.MultiScaleRoIAlign(levels, side, pool["sampling_ratio"]),
    box_head=TwoMLPHead(backbone.out_channels * side**2, width),
    box_predictor=FastRCNNPredictor(width, request["num_classes"] + 1),
    box_score_thresh=box["score_threshold"],
    box_detections_per_img=box["max_detections"],
  ).to(DEVICE)


def synthetic(request: dict, batch_size: int) -> tuple[list[torch.Tensor], list[dict]]:
  """Images of noise with random boxes, as launch.benchmark draws them."""
  height, width = request["canvas"]
  count, side = request["num_objects"], min(request["canvas"])
  images, targets = [], []
  for _ in range(batch_size):
    images.append(torch.rand(3, height, width, device=DEVICE))
    sides = side / 12 + torch.rand(count, 2) * (side / 3 - side / 12)
    corner = torch.rand(count, 2) * (torch.tensor([width, height]) - sides)
    labels = torch.randint(1, request["num_classes"] + 1, (count,))
    targets.append({"boxes": torch.cat([corner, corner + sides], 1).to(DEVICE), "labels": labels.to(DEVICE)})
  return images, targets


def synchronise() -> None:
  if DEVICE == "cuda":
    torch.cuda.synchronize()


def main() -> None:
  request = json.loads(sys.stdin.readline())
  try:
    model = build(request)
  except ValueError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    return
  device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"cpu, {torch.get_num_threads()} threads"
  versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "device": device}
  print(json.dumps(versions), flush=True)
  optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)
  training, testing = (synthetic(request, size) for size in request["batch_size"])

  def train() -> None:
    loss = sum(model(*training).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

  def detect() -> None:
    with torch.no_grad():
      model(testing[0])

  for line in sys.stdin:
    what = json.loads(line)["measure"]
    model.train(what == "train")
    synchronise()
    began = time.perf_counter()
    for _ in range(request["iterations"]):
      (train if what == "train" else detect)()
    synchronise()
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
  main()

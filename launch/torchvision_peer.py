"""The peer of launch.benchmark: builds torchvision's form of a detector and times it. Runs in a Python with PyTorch.

Reads a line of JSON from standard input, answers a line on standard output: first the model, in the form in which an
experiment writes it, or {"ops": FILE} with the inputs of operations; then {"measure": "train"}, "detect" or the name
of an operation, for the seconds of one repeat.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable

import torch
import torchvision
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def kind(part: dict) -> str:
  """The class of a part: 'rcnn_jax.models.heads:BoxHead' is 'BoxHead'."""
  return part["class"].rpartition(":")[2]


def backbone_of(part: dict, frozen: list[str]) -> tuple[torch.nn.Module, list[str]]:
  """(backbone, names of the levels that RoIs are pooled from); raises ValueError for one that is not known here."""
  if kind(part) == "Fpn" and kind(part["bottom_up"]) == "ResNet" and part["bottom_up"]["levels"] == [2, 3, 4, 5]:
    name = f"resnet{part['bottom_up']['depth']}"
    norm = torchvision.ops.FrozenBatchNorm2d if part["bottom_up"]["norm"] == "frozen" else torch.nn.BatchNorm2d
    parts = [f"backbone/bottom_up/{each}" for each in ("conv1", "layer1", "layer2", "layer3", "layer4")]
    if set(frozen) != set(parts[: len(frozen)]):
      raise ValueError(f"torchvision freezes a ResNet from its first layer on, not {frozen}")
    trained = 5 - len(frozen)
    backbone = resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=norm, trainable_layers=trained)
    return backbone, list("0123")
  if frozen:
    raise ValueError(f"freezing {frozen} is not known here")
  if kind(part) == "SqueezeNet" and part["levels"] == [9] and not part["padded"]:
    features = torchvision.models.squeezenet1_1(weights=None).features
    features.out_channels = 512
    return features, ["0"]
  if kind(part) == "Vgg16":
    features = torchvision.models.vgg16(weights=None).features[:-1]
    features.out_channels = 512
    return features, ["0"]
  raise ValueError(f"torchvision's form of the backbone {part} is not known here")


def heads_of(model: dict) -> dict[str, dict]:
  """The heads beside the box head, by the name of their class."""
  return {kind(head): head for head in model["heads"]}


def second_heads(request: dict, channels: int, levels: list[str]) -> tuple[type, dict]:
  """(the class of the detector, what its heads of masks and keypoints are); raises ValueError for other heads."""
  model = request["model"]
  heads = heads_of(model)
  mask, keypoint = heads.get("MaskHead"), heads.get("KeypointHead")
  if not mask and not keypoint:
    return FasterRCNN, {}
  head = mask or keypoint
  if (mask and keypoint) or not head["pool"] or kind(head["pool"]) != "RoiAlign" or (mask and mask["norm"]):
    raise ValueError("of second heads, one of masks or one of keypoints on RoI Align is known here, without norms")
  pool = torchvision.ops.MultiScaleRoIAlign(levels, head["pool"]["output_size"], head["pool"]["sampling_ratio"])
  widths = [head["channels"]] * head["num_convs"]
  if mask:
    predictor = MaskRCNNPredictor(head["channels"], head["channels"], request["num_classes"] + 1)
    parts = dict(mask_head=MaskRCNNHeads(channels, widths, 1), mask_predictor=predictor)
    return MaskRCNN, parts | {"mask_roi_pool": pool}
  predictor = KeypointRCNNPredictor(head["channels"], request["num_keypoints"])
  parts = dict(keypoint_head=KeypointRCNNHeads(channels, widths), keypoint_predictor=predictor)
  return KeypointRCNN, parts | {"keypoint_roi_pool": pool}


def build(request: dict) -> FasterRCNN:
  """torchvision's detector with the experiment's sizes and counts."""
  model, canvas = request["model"], request["canvas"]
  rpn, box, sampler, pool, trunk = (model[name] for name in ("proposer", "box", "sampler", "pool", "trunk"))
  if (kind(rpn), kind(trunk), kind(pool)) != ("Rpn", "FcTrunk", "RoiAlign"):
    raise ValueError("only Rpn, RoiAlign and FcTrunk have a counterpart in torchvision's FasterRCNN")
  backbone, levels = backbone_of(model["backbone"], request["frozen"])
  detector, heads = second_heads(request, backbone.out_channels, levels)
  ratios = (tuple(rpn["anchor_ratios"]),) * len(rpn["anchor_sizes"])
  width = trunk["widths"][-1]
  side = pool["output_size"]
  return detector(
    backbone,
    min_size=min(canvas),
    max_size=max(canvas),
    _skip_resize=True,
    rpn_anchor_generator=AnchorGenerator(tuple(map(tuple, rpn["anchor_sizes"])), ratios),
    rpn_pre_nms_top_n_train=rpn["num_pre_nms"][0],
    rpn_pre_nms_top_n_test=rpn["num_pre_nms"][1],
    rpn_post_nms_top_n_train=rpn["num_post_nms"][0],
    rpn_post_nms_top_n_test=rpn["num_post_nms"][1],
    rpn_batch_size_per_image=rpn["num_samples"],
    box_batch_size_per_image=sampler["num_samples"],
    box_positive_fraction=sampler["foreground_fraction"],
    box_fg_iou_thresh=sampler["foreground_iou"],
    box_bg_iou_thresh=sampler["background_iou"],
    box_roi_pool=torchvision.ops.MultiScaleRoIAlign(levels, side, pool["sampling_ratio"]),
    box_head=TwoMLPHead(backbone.out_channels * side**2, width),
    box_predictor=FastRCNNPredictor(width, request["num_classes"] + 1),
    box_score_thresh=box["score_threshold"],
    box_detections_per_img=box["max_detections"],
    **heads,
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
    boxes = torch.cat([corner, corner + sides], 1)
    target = {"boxes": boxes, "labels": labels}
    if "MaskHead" in heads_of(request["model"]):
      y, x = torch.arange(height)[None, :, None] + 0.5, torch.arange(width)[None, None] + 0.5
      x1, y1, x2, y2 = boxes.T[:, :, None, None]
      target["masks"] = ((x > x1) & (x < x2) & (y > y1) & (y < y2)).to(torch.uint8)
    if "KeypointHead" in heads_of(request["model"]):
      joints = torch.rand(count, request["num_keypoints"], 2) * side
      target["keypoints"] = torch.cat([joints, torch.ones(*joints.shape[:2], 1)], -1)
    targets.append({name: value.to(DEVICE) for name, value in target.items()})
  return images, targets


@torch.no_grad()
def detect(model: FasterRCNN, images: list[torch.Tensor]) -> list[dict]:
  """What a model finds, in the images' pixels; masks in the frames of their boxes."""
  batch, _ = model.transform(images)
  features = model.backbone(batch.tensors)
  features = {"0": features} if isinstance(features, torch.Tensor) else features
  proposals, _ = model.rpn(batch, features)
  return model.roi_heads(features, proposals, batch.image_sizes)[0]


def condition(model: FasterRCNN, images: list[torch.Tensor]) -> None:
  """Scales the last layers, so that random weights propose and score as trained ones do.

  Without it their boxes leave the image and their scores give every box to one class, and NMS leaves a few: a
  detector with nothing to do is fast. Standard deviations: 1 of logits, 0.1 of what moves boxes.
  """
  rpn, box = model.rpn.head, model.roi_heads.box_predictor
  for layer, deviation in ((rpn.cls_logits, 1), (rpn.bbox_pred, 0.1), (box.cls_score, 1), (box.bbox_pred, 0.1)):
    given = []
    hook = layer.register_forward_hook(lambda module, inputs, output: given.append(output.flatten()))
    detect(model, images)
    hook.remove()
    with torch.no_grad():
      layer.weight *= deviation / torch.cat(given).std()
      layer.bias.zero_()


def set_found(model: FasterRCNN, images: list[torch.Tensor], num_found: int) -> None:
  """Sets the score threshold so that there are `num_found` detections an image, over these images."""
  model.roi_heads.score_thresh = 0.0
  scores = torch.cat([found["scores"] for found in detect(model, images)]).sort(descending=True).values
  last = scores[min(num_found * len(images), len(scores)) - 1].cpu()
  model.roi_heads.score_thresh = float(torch.nextafter(last, torch.tensor(0.0)))


def work(model: FasterRCNN, images: list[torch.Tensor]) -> dict:
  """How many proposals and detections an image has, on the average."""
  counts = []
  hook = model.rpn.register_forward_hook(lambda module, inputs, output: counts.extend(map(len, output[0])))
  found = detect(model, images)
  hook.remove()
  return {"proposals": sum(counts) / len(counts), "detections": sum(len(one["scores"]) for one in found) / len(found)}


def synchronise() -> None:
  if DEVICE == "cuda":
    torch.cuda.synchronize()


def seconds_of(run: Callable[[], object], iterations: int) -> float:
  """Of all iterations, the device's work included."""
  synchronise()
  began = time.perf_counter()
  for _ in range(iterations):
    run()
  synchronise()
  return time.perf_counter() - began


def variants(model: FasterRCNN, request: dict) -> dict[str, tuple[FasterRCNN, bool]]:
  """{name: (model, whether under autocast)}: the forms of which the fastest is timed.

  Where the request asks for the best: pixels last in memory, the backbone compiled, and bfloat16 where ours computes
  in it. What comes behind the backbone has shapes that follow the data, which torch.compile compiles ever anew.
  """
  half = request["model"]["dtype"] == "bfloat16"
  found = {"plain": (model, half)}
  if not request["best"]:
    return found
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
  last = copy.deepcopy(model).to(memory_format=torch.channels_last)
  faster = copy.deepcopy(last)
  faster.backbone = torch.compile(faster.backbone)
  return found | {"channels_last": (last, half), "channels_last, compiled backbone": (faster, half)}


def steps_of(model: FasterRCNN, half: bool, training: tuple, images: list) -> dict[str, Callable[[], object]]:
  """{'train', 'detect': what runs a step of it}."""
  # Steps without a move: random weights that learn soon propose something else, or nothing.
  optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)
  autocast = lambda: torch.autocast(DEVICE, torch.bfloat16, enabled=half)

  def train() -> None:
    model.train()
    with autocast():
      loss = sum(model(*training).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

  def test() -> None:
    model.eval()
    with autocast():
      detect(model, images)

  return {"train": train, "detect": test}


def prepared_steps(request: dict) -> tuple[dict[str, Callable[[], object]], dict]:
  """(what runs 'train' and 'detect' once, by the fastest variant of each; what there is to say of them)."""
  model = build(request)
  training, (images, _) = (synthetic(request, size) for size in request["batch_size"])
  model.eval()
  condition(model, images)
  if request["num_found"] is not None:
    set_found(model, images, request["num_found"])
  facts = work(model, images)
  runs = {name: steps_of(*each, training, images) for name, each in variants(model, request).items()}
  if len(runs) == 1:
    return runs["plain"], facts
  chosen = {}
  for what in request["steps"]:
    times = {}
    for name, run in runs.items():
      try:
        # Two uncounted steps: the first compiles, the second may choose kernels.
        times[name] = (seconds_of(run[what], 2), seconds_of(run[what], 1))[1]
      except RuntimeError as error:  # torchvision's loss of keypoints needs channels before pixels
        if name == "plain":
          raise
        facts.setdefault("failed", {})[f"{what}, {name}"] = str(error).splitlines()[0]
    facts[f"{what}_variant"] = min(times, key=times.get)
    chosen[what] = runs[facts[f"{what}_variant"]][what]
  return chosen, facts


def main() -> None:
  request = json.loads(sys.stdin.readline())
  try:
    if "ops" in request:
      import torchvision_ops

      runs, facts = torchvision_ops.functions(request["ops"], tuple(request["canvas"]), DEVICE), {}
    else:
      runs, facts = prepared_steps(request)
  except ValueError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    return
  device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"cpu, {torch.get_num_threads()} threads"
  facts |= {"torch": torch.__version__, "torchvision": torchvision.__version__, "device": device}
  print(json.dumps(facts), flush=True)
  for line in sys.stdin:
    print(json.dumps({"seconds": seconds_of(runs[json.loads(line)["measure"]], request["iterations"])}), flush=True)


if __name__ == "__main__":
  main()

"""Records torchvision's answers, which the parity tests compare ours with, in tests/fixtures/torchvision.

Runs in an environment of its own, with torch, torchvision, numpy and pillow, from the root of the checkout:

    python -m venv V
    V/bin/pip install torch torchvision pillow
    V/bin/python -m tests.record_torchvision [NAME ...]

NAMEs are those of the functions marked with @record below, all of them by default. Inputs and weights come from
tests/filling.py by their names, so that a fixture holds answers alone, and with them the versions and the date.
tests/record_torchvision_models.py records whole detectors.
"""

from __future__ import annotations

import datetime
import pathlib
import sys
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
import torchvision
from torch.nn.functional import interpolate
from torchvision import ops
from torchvision.models.detection import KeypointRCNN, MaskRCNN, _utils, roi_heads
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.poolers import LevelMapper

from tests import filling

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "torchvision"

RECORDINGS: dict[str, Callable[[], dict[str, np.ndarray]]] = {}


def record(function: Callable[[], dict]) -> Callable[[], dict]:
  """Marks a function whose answers, arrays by name, become the fixture of its own name."""
  RECORDINGS[function.__name__] = function
  return function


def tensor(values: np.ndarray) -> torch.Tensor:
  return torch.from_numpy(np.array(values))


def channels_first(values: np.ndarray) -> torch.Tensor:
  """[H, W, C] as a batch of one, [1, C, H, W]."""
  return tensor(values).permute(2, 0, 1)[None]


def fill(module: torch.nn.Module) -> torch.nn.Module:
  """Every parameter and statistic from its name; in evaluation mode."""
  state = module.state_dict()
  values = {k: tensor(filling.tensor(k, tuple(v.shape))) for k, v in state.items() if v.is_floating_point()}
  module.load_state_dict(state | values)
  return module.eval()


@record
def roi_align() -> dict:
  features, rois = channels_first(filling.uniform("roi.features", filling.ROI_MAP)), [tensor(filling.roi_boxes())]
  answers = {}
  for aligned in (False, True):
    for ratio in filling.SAMPLING_RATIOS:
      pooled = ops.roi_align(features, rois, filling.ROI_OUTPUT, 1 / filling.ROI_STRIDE, ratio, aligned)
      answers[f"aligned{int(aligned)}_ratio{ratio}"] = pooled.permute(0, 2, 3, 1)
  return answers


@record
def roi_pool() -> dict:
  features, rois = channels_first(filling.uniform("roi.features", filling.ROI_MAP)), [tensor(filling.roi_boxes())]
  pooled = ops.roi_pool(features, rois, filling.ROI_OUTPUT, 1 / filling.ROI_STRIDE)
  return {"pooled": pooled.permute(0, 2, 3, 1)}


@record
def nms() -> dict:
  boxes, scores, groups = map(tensor, filling.nms_case())
  return {
    "kept": ops.nms(boxes, scores, 0.5),
    "kept_by_group": ops.batched_nms(boxes, scores, groups, 0.5),
  }


@record
def anchors() -> dict:
  answers = {}
  for name, setting in (("single", filling.SINGLE), ("pyramid", filling.PYRAMID)):
    for level, grid in enumerate(anchors_of(setting)):
      answers[f"{name}{level}"] = grid
  return answers


def anchors_of(setting: dict) -> list[torch.Tensor]:
  """torchvision's anchors of each level of a setting."""
  height, width = setting["canvas"]
  generator = AnchorGenerator(setting["sizes"], (filling.RATIOS,) * len(setting["sizes"]))
  maps = [torch.zeros(1, 1, height // stride, width // stride) for stride in setting["strides"]]
  every = generator(ImageList(torch.zeros(1, 3, height, width), [(height, width)]), maps)[0]
  return list(every.split([m[0].numel() * generator.num_anchors_per_location()[i] for i, m in enumerate(maps)]))


@record
def anchors_of_uneven_levels() -> dict:
  sizes, _, cells = zip(*filling.UNEVEN["levels"])
  generator = AnchorGenerator(sizes, (filling.RATIOS,) * len(sizes))
  canvas = ImageList(torch.zeros(1, 3, *filling.UNEVEN["canvas"]), [filling.UNEVEN["canvas"]])
  return {"anchors": generator(canvas, [torch.zeros(1, 1, *size) for size in cells])[0]}


@record
def box_coder() -> dict:
  boxes, anchors, deltas = map(tensor, filling.coder_case())
  answers = {}
  for name, weights in (("rpn", (1.0, 1.0, 1.0, 1.0)), ("heads", (10.0, 10.0, 5.0, 5.0))):
    coder = _utils.BoxCoder(weights)
    answers[f"encoded_{name}"] = coder.encode_single(boxes, anchors)
    answers[f"decoded_{name}"] = coder.decode_single(deltas * torch.tensor(weights), anchors)
  return answers


@record
def overlap_losses() -> dict:
  """Each loss pair by pair, and the gradient of its sum by the predicted boxes."""
  answers = {}
  kinds = {"giou": ops.generalized_box_iou_loss, "diou": ops.distance_box_iou_loss, "ciou": ops.complete_box_iou_loss}
  for name, loss in kinds.items():
    predicted, targets = map(tensor, filling.overlap_case())
    values = loss(predicted.requires_grad_(), targets)
    values.sum().backward()
    answers |= {name: values.detach(), f"gradient_{name}": predicted.grad}
  return answers


@record
def matcher() -> dict:
  regions, objects = map(tensor, filling.matcher_case())
  overlaps = ops.box_iou(objects, regions)
  anchors_rule = _utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)(overlaps)
  untouched = torch.cat([objects, torch.tensor([[500.0, 500.0, 510.0, 510.0]])])
  return {
    "with_low_quality": anchors_rule,
    "without": _utils.Matcher(0.5, 0.5)(overlaps),
    "with_an_untouched_object": _utils.Matcher(0.7, 0.3, True)(ops.box_iou(untouched, regions)),
  }


@record
def levels() -> dict:
  boxes = tensor(filling.level_boxes())
  return {"two_to_five": LevelMapper(2, 5)([boxes]) + 2, "three_to_four": LevelMapper(3, 4)([boxes]) + 3}


def kept_rows(rows: list[list[torch.Tensor]]) -> dict:
  """Boxes, scores (and classes) of each image, by name."""
  names = ("boxes", "scores", "classes")
  return {f"{name}{i}": of_image for name, column in zip(names, rows) for i, of_image in enumerate(column)}


@record
def proposals() -> dict:
  answers = {}
  for name, setting in (("single", filling.SINGLE), ("pyramid", filling.PYRAMID)):
    grids = anchors_of(setting)
    logits, deltas = ([tensor(x) for x in level] for level in filling.proposal_case(setting))
    rpn = RegionProposalNetwork(
      AnchorGenerator(), torch.nn.Identity(), 0.7, 0.3, 256, 0.5, *filling.PROPOSAL_COUNTS, filling.PROPOSAL_NMS
    )
    decoded = rpn.box_coder.decode(torch.cat(deltas, 1).reshape(-1, 4), [torch.cat(grids)] * 2)
    counts = [len(grid) for grid in grids]
    for mode in (True, False):
      found = rpn.train(mode).filter_proposals(
        decoded.reshape(2, -1, 4), torch.cat(logits, 1), list(filling.IMAGE_SIZES), counts
      )
      answers |= {f"{name}_{'train' if mode else 'eval'}_{k}": v for k, v in kept_rows(found).items()}
  return answers


@record
def detections() -> dict:
  logits, deltas, proposals = map(tensor, filling.detection_case())
  heads = RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, None, 0.05, 0.5, filling.MAX_DETECTIONS)
  found = heads.postprocess_detections(
    logits.reshape(-1, 5), deltas.reshape(-1, 20), list(proposals), list(filling.IMAGE_SIZES)
  )
  return kept_rows(found)


@record
def pasting() -> dict:
  """The bits of each mask in its image."""
  probabilities, boxes, size = filling.paste_case()
  pasted = roi_heads.paste_masks_in_image(tensor(probabilities)[:, None], tensor(boxes), size)
  return {"bits": np.packbits(pasted[:, 0].numpy() > 0.5)}


@record
def resize() -> dict:
  answers = {}
  for i, (old, new) in enumerate(filling.RESIZED):
    pixels = channels_first(filling.image(f"resize.{i}", old)).float()
    answers[f"pixels{i}"] = interpolate(pixels, size=new, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
  for short, long in filling.RESIZE_RULES:
    rule = GeneralizedRCNNTransform(short, long, [0.0] * 3, [1.0] * 3).eval()
    sizes = [rule.resize(torch.zeros(1, *size))[0].shape[1:] for size in filling.ORIGINAL_SIZES]
    answers[f"sizes_{short}_{long}"] = np.array(sizes)
  return answers


@record
def features() -> dict:
  """A sample of each level of each backbone."""
  pixels = channels_first(filling.uniform("features.image", (*filling.FEATURE_CANVAS, 3), -2, 2))
  models = torchvision.models
  frozen = dict(weights=None, norm_layer=ops.FrozenBatchNorm2d)
  stages = {f"layer{i}": str(i) for i in (1, 2, 3, 4)}
  squeezenet = fill(torch.nn.ModuleDict({"features": models.squeezenet1_1(weights=None).features})).features
  vgg16, vgg16_bn = (
    fill(torch.nn.ModuleDict({"features": build(weights=None).features})).features
    for build in (models.vgg16, models.vgg16_bn)
  )
  with torch.no_grad():
    outputs = {
      "squeezenet": [squeezenet[:5](pixels), squeezenet[:8](pixels), squeezenet(pixels)],
      "vgg16": [vgg16[:-1](pixels)],
      "vgg16_bn": [vgg16_bn[:-1](pixels)],
    }
    for depth in (18, 34, 50):
      body = fill(getattr(models, f"resnet{depth}")(**frozen))
      getter = models._utils.IntermediateLayerGetter(body, stages)
      outputs[f"resnet{depth}"] = list(getter(pixels).values())
    for depth in (18, 50):
      fpn = resnet_fpn_backbone(backbone_name=f"resnet{depth}", trainable_layers=5, **frozen)
      fill(torch.nn.ModuleDict({"backbone": fpn}))
      outputs[f"resnet{depth}_fpn"] = list(fpn(pixels).values())
  return {
    f"{name}_{level}": filling.sample(f"{name}_{level}", output[0].permute(1, 2, 0).numpy())
    for name, levels in outputs.items()
    for level, output in enumerate(levels)
  }


@record
def convnext_features() -> dict:
  """The outputs of the four stages of ConvNeXt-T for one image."""
  image = filling.image("convnext", (96, 128)).astype(np.float32)
  pixels = (channels_first(image) / 255 - 0.45) / 0.225
  body = fill(torch.nn.ModuleDict({"features": torchvision.models.convnext_tiny(weights=None).features})).features
  answers = {}
  with torch.no_grad():
    x = pixels
    for number, stage in enumerate(body):
      x = stage(x)
      if number % 2:
        name = f"level{number // 2 + 2}"
        answers[name] = filling.sample(f"convnext.{name}", x[0].permute(1, 2, 0).numpy())
  return answers


def detector(
  sides: tuple[int, int], kind: type[MaskRCNN | KeypointRCNN] = MaskRCNN, **heads: torch.nn.Module
) -> MaskRCNN | KeypointRCNN:
  """The small Mask R-CNN over a ResNet-18-FPN; every candidate is sampled in training, so that nothing is drawn.

  `kind` with its `heads` makes it another detector.
  """
  setting = filling.DETECTOR
  width = setting["trunk_width"]
  backbone = resnet_fpn_backbone(
    backbone_name="resnet18", weights=None, norm_layer=ops.FrozenBatchNorm2d, trainable_layers=5
  )
  mask_widths = setting["mask_widths"]
  heads = heads or {
    "mask_head": MaskRCNNHeads(backbone.out_channels, mask_widths, 1),
    "mask_predictor": MaskRCNNPredictor(mask_widths[-1], mask_widths[-1], setting["num_classes"] + 1),
  }
  model = kind(
    backbone,
    min_size=sides[0],
    max_size=sides[1],
    rpn_anchor_generator=AnchorGenerator(setting["anchor_sizes"], (filling.RATIOS,) * len(setting["anchor_sizes"])),
    rpn_pre_nms_top_n_train=setting["num_pre_nms"][0],
    rpn_pre_nms_top_n_test=setting["num_pre_nms"][1],
    rpn_post_nms_top_n_train=setting["num_post_nms"][0],
    rpn_post_nms_top_n_test=setting["num_post_nms"][1],
    rpn_batch_size_per_image=filling.EVERY_ANCHOR,
    rpn_positive_fraction=0.5,
    box_batch_size_per_image=filling.EVERY_ROI,
    box_positive_fraction=0.5,
    box_head=TwoMLPHead(backbone.out_channels * 7**2, width),
    box_predictor=FastRCNNPredictor(width, setting["num_classes"] + 1),
    box_score_thresh=setting["score_threshold"],
    box_detections_per_img=setting["max_detections"],
    **heads,
  )
  return fill(model)


@record
def losses() -> dict:
  """The five losses, and a sample of the gradient of their sum by each parameter."""
  images, boxes, classes = filling.loss_case()
  columns = zip(boxes, classes, filling.loss_masks())
  targets = [{"boxes": tensor(b), "labels": tensor(c), "masks": tensor(m)} for b, c, m in columns]
  frames = iter(boxes)

  def project(masks, regions, matched, size):  # called image by image
    args = masks.numpy()[matched], next(frames)[matched], regions.detach().numpy(), size
    return tensor(filling.mask_targets(*args))

  model = detector(filling.DETECT_SIDES).train()
  model.transform._skip_resize = True  # the images have their size already
  with mock.patch.object(roi_heads, "project_masks_on_boxes", project):
    terms = model([channels_first(image)[0].float() / 255 for image in images], targets)
  sum(terms.values()).backward()
  gradients = {f"gradient.{k}": filling.sample(k, v.grad.numpy(), 60) for k, v in model.named_parameters()}
  return {k: v.detach() for k, v in terms.items()} | gradients


@record
def detections_on_noise() -> dict:
  """f32[D, 6] of box, score and class, image by image."""
  model, answers = detector(filling.DETECT_SIDES), {}
  for name, image in filling.detect_images().items():
    with torch.no_grad():
      (found,) = model([channels_first(image)[0].float() / 255])
    columns = [found["boxes"], found["scores"][:, None], found["labels"][:, None].float()]
    answers[name] = torch.cat(columns, dim=1)
  return answers


def save(name: str, answers: dict) -> None:
  """Writes a fixture, with the versions and the date."""
  FIXTURES.mkdir(parents=True, exist_ok=True)
  versions = [f"torch {torch.__version__}", f"torchvision {torchvision.__version__}", f"numpy {np.__version__}"]
  answers = {k: np.asarray(v) for k, v in answers.items()}
  path = FIXTURES / f"{name}.npz"
  np.savez_compressed(path, recorded=[*versions, str(datetime.date.today())], **answers)
  print(f"{name}: {len(answers)} answers, {path.stat().st_size} bytes")


def main(names: list[str]) -> None:
  torch.manual_seed(0)
  for name in names or RECORDINGS:
    save(name, RECORDINGS[name]())


if __name__ == "__main__":
  main(sys.argv[1:])

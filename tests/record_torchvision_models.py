"""Records what torchvision's whole detectors find in photographs, for tests/test_parity_detectors.py.

    V/bin/python -m tests.record_torchvision_models [NAME ...]

in the environment of tests/record_torchvision.py; needs ../shared/data/coco_mini beside the checkout. The models are
those of torchvision's builders, 91 classes wide, with weights filled by their names; images are small, and proposals
and detections few (filling.MODEL_LIMITS), so that the comparison runs in seconds.
"""

from __future__ import annotations

import sys
import zlib
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torchvision.models import detection
from torchvision.models._api import WeightsEnum
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from tests import filling
from tests.record_torchvision import channels_first, fill, save

LIMITS = dict(
  min_size=filling.MODEL_LIMITS["short_side"],
  max_size=filling.MODEL_LIMITS["long_side"],
  rpn_post_nms_top_n_test=filling.MODEL_LIMITS["num_proposals"],
  box_detections_per_img=filling.MODEL_LIMITS["max_detections"],
)


def photographs() -> dict[str, np.ndarray]:
  """The photographs of filling.COCO_IMAGES, by name."""
  return {
    name: np.asarray(Image.open(filling.PHOTOGRAPHS / f"{name}.jpg").convert("RGB")) for name in filling.COCO_IMAGES
  }


def over_resnet(family: type, depth: int) -> torch.nn.Module:
  """FasterRCNN or MaskRCNN as torchvision's users build them for a ResNet without published weights."""
  return fill(family(resnet_fpn_backbone(backbone_name=f"resnet{depth}", weights=None), 91, **LIMITS))


def published(builder: str) -> torch.nn.Module:
  """A builder's model on the way that its published weights take, which changes the epsilon of some norms."""
  build = getattr(detection, builder)
  filled = fill(build(weights=None, weights_backbone=None, **LIMITS)).state_dict()
  with mock.patch.object(WeightsEnum, "get_state_dict", lambda *args, **kwargs: filled):
    return build(weights="COCO_V1", **LIMITS).eval()


MODELS = {
  "maskrcnn_resnet18_fpn": lambda: over_resnet(detection.MaskRCNN, 18),
  "maskrcnn_resnet34_fpn": lambda: over_resnet(detection.MaskRCNN, 34),
  "maskrcnn_resnet50_fpn": lambda: published("maskrcnn_resnet50_fpn"),
  "maskrcnn_resnet101_fpn": lambda: over_resnet(detection.MaskRCNN, 101),
  "maskrcnn_resnet50_fpn_v2": lambda: published("maskrcnn_resnet50_fpn_v2"),
  "keypointrcnn_resnet50_fpn": lambda: published("keypointrcnn_resnet50_fpn"),
}


def calibrate(
  model: torch.nn.Module, predictor: torch.nn.Linear, image: torch.Tensor | dict
) -> dict[str, np.ndarray]:
  """Scales and centres the class scores over the regions of an image, so that many classes are found in it.

  Regions differ little in a network of random weights: without this, one class wins everywhere, or none.
  """
  seen = []
  hook = predictor.register_forward_hook(lambda module, inputs, logits: seen.append(logits))
  model([image])
  hook.remove()
  gain = filling.MODEL_LIMITS["logit_spread"] / seen[0].std(0).mean()
  predictor.weight.mul_(gain)
  predictor.bias.sub_(seen[0].mean(0)).mul_(gain)
  return {"gain": gain.numpy(), "bias": predictor.bias.numpy(force=True)}


def detected(model: torch.nn.Module, images: dict[str, np.ndarray], batch_size: int) -> dict[str, np.ndarray]:
  """Detections of each image in the form of filling.packed; of the best two also the masks' bits or the joints."""
  answers, names = {}, list(images)
  for first in range(0, len(names), batch_size):
    group = names[first : first + batch_size]
    results = model([channels_first(images[name])[0].float() / 255 for name in group])
    for name, found in zip(group, results):
      columns = [found["boxes"], found["scores"][:, None], found["labels"][:, None].float()]
      answers[f"{name}_batch{batch_size}"] = filling.packed(torch.cat(columns, dim=1).numpy())
      if "masks" in found and batch_size == 1:
        answers[f"{name}_masks"] = np.packbits(found["masks"][:2, 0].numpy() > 0.5)
      if "keypoints" in found:
        answers[f"{name}_batch{batch_size}_joints"] = found["keypoints"][:2, :, :2].numpy()
  return answers


@torch.no_grad()
def record_model(name: str) -> None:
  """Writes the fixture of a model: its calibration, detections one by one and by four, some masks or joints."""
  images = photographs()
  model = MODELS[name]()
  first = channels_first(next(iter(images.values())))[0].float() / 255
  answers = calibrate(model, model.roi_heads.box_predictor.cls_score, first)
  answers |= detected(model, images, 1) | detected(model, images, 4)
  answers |= {f"{name}_crc32": np.array(zlib.crc32(image.tobytes())) for name, image in images.items()}
  save(name, answers)


if __name__ == "__main__":
  for each in sys.argv[1:] or MODELS:
    record_model(each)

"""torchvision's form of the operations in rcnn_jax/benchmarks/ops.py, for launch/torchvision_peer.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import torch
import torchvision
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

POOL_SIDE, SCALE, MASK_SIDE = 7, 1 / 4, 28


def functions(path: str, canvas: tuple[int, int], device: str) -> dict[str, Callable[[], object]]:
  """{name of an operation: what runs it once} over the inputs in a file of numpy's."""
  arrays: dict[str, dict[str, torch.Tensor]] = {}
  with numpy.load(path) as file:
    for name in file.files:
      operation, _, key = name.rpartition("/")
      arrays.setdefault(operation, {})[key] = torch.from_numpy(file[name]).to(device)
  return {operation: function(operation, given, canvas) for operation, given in arrays.items()}


def function(operation: str, given: dict[str, torch.Tensor], canvas: tuple[int, int]) -> Callable[[], object]:
  """What runs an operation once; raises ValueError for one that is not known here."""
  if operation.startswith("nms"):
    return lambda: torchvision.ops.nms(given["boxes"], given["scores"], 0.7)
  makers = {
    "RoI Align, forward": aligning,
    "RoI Align, forward and gradient": aligning,
    "matching of anchors": matching,
    "sampling": sampling,
    "mask targets": targets,
    "pasting": pasting,
  }
  if operation not in makers:
    raise ValueError(f"{operation} is not known here")
  return makers[operation](given, canvas)


def aligning(given: dict, canvas: tuple[int, int]) -> Callable[[], object]:
  """Forward, and where a cotangent is given its gradient too."""
  features = given["features"].permute(2, 0, 1)[None].contiguous()
  rois, cotangent = [given["rois"]], given.get("cotangent")

  def forward() -> torch.Tensor:
    return torchvision.ops.roi_align(features, rois, POOL_SIDE, SCALE, sampling_ratio=2, aligned=False)

  if cotangent is None:
    return forward
  features.requires_grad_(True)
  cotangent = cotangent.permute(0, 3, 1, 2).contiguous()
  return lambda: torch.autograd.grad(forward(), features, cotangent)


def matching(given: dict, canvas: tuple[int, int]) -> Callable[[], object]:
  matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
  return lambda: matcher(torchvision.ops.box_iou(given["objects"], given["anchors"]))


def sampling(given: dict, canvas: tuple[int, int]) -> Callable[[], object]:
  draw = BalancedPositiveNegativeSampler(256, 0.5)
  ignored = -torch.ones(len(given["foreground"]), device=given["foreground"].device)
  labels = torch.where(given["foreground"], 1.0, torch.where(given["background"], 0.0, ignored))
  return lambda: draw([labels])


def targets(given: dict, canvas: tuple[int, int]) -> Callable[[], object]:
  matched = given["matched"].to(torch.int64)
  return lambda: project_masks_on_boxes(given["masks"], given["rois"], matched, MASK_SIDE)


def pasting(given: dict, canvas: tuple[int, int]) -> Callable[[], object]:
  """On the host, as ours: its loop over masks is slower on a GPU."""
  found, boxes = given["found"][:, None].cpu(), given["boxes"].cpu()
  return lambda: paste_masks_in_image(found, boxes, canvas) > 0.5

"""Writes the fixtures of test_weight_files.py and test_import_weights.py. Runs in a Python with PyTorch.

    python tests/record_weight_files.py

They are files as PyTorch writes them, and the names and shapes of torchvision's detectors. Last run with torch 2.15.0
and torchvision 0.29.2.
"""

from __future__ import annotations

import json
import pathlib

import torch
import torchvision
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def tensors() -> dict[str, torch.Tensor]:
  """Every type of elements, and the views that a state dict may hold: transposed, shifted, shared, empty, 0-d."""
  base = torch.arange(24, dtype=torch.float32)
  return {
    "float32": torch.nn.Parameter(base.reshape(2, 3, 4) / 7),
    "transposed": base.reshape(4, 6).t(),
    "shifted": base[5:11],
    "float64": torch.arange(3, dtype=torch.float64) / 7,
    "float16": torch.arange(3, dtype=torch.float16) / 7,
    "bfloat16": torch.arange(3).to(torch.bfloat16) / 7,
    "int64": torch.tensor(-(2**40)),
    "int32": torch.tensor([-7, 7], dtype=torch.int32),
    "uint8": torch.tensor([0, 255], dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
  }


def detectors() -> dict[str, torch.nn.Module]:
  """A detector of each kind, without its weights."""
  resnet18 = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
  return {
    "fasterrcnn_resnet18_fpn": detection.FasterRCNN(resnet18, num_classes=91),
    "keypointrcnn_resnet50_fpn": detection.keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None),
    "maskrcnn_resnet50_fpn": detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None),
    "maskrcnn_resnet50_fpn_v2": detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None),
  }


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
  """The shape of every tensor of a state dict but for batch norm's counters."""
  return {n: list(t.shape) for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}


def main() -> None:
  norm = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, bias=False), torch.nn.BatchNorm2d(2)).state_dict()
  training = {"model": tensors(), "epoch": 3, "optimizer": {"param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}}
  torch.save(training, FIXTURES / "torch_zip.pth")
  torch.save(training, FIXTURES / "torch_legacy.pth", _use_new_zipfile_serialization=False)
  torch.save({f"module.{name}": tensor for name, tensor in norm.items()}, FIXTURES / "torch_module.pt")
  torch.save(torch.nn.Linear(1, 1), FIXTURES / "torch_whole_model.pth")
  names = {builder: shapes(model) for builder, model in detectors().items()}
  (FIXTURES / "torchvision_names.json").write_text(json.dumps(names, indent=0) + "\n")
  print(f"written with torch {torch.__version__} and torchvision {torchvision.__version__}")


if __name__ == "__main__":
  main()

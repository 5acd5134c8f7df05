"""Writes the PyTorch files of tests/fixtures that test_weight_files.py reads. Runs in a Python with PyTorch.

    python tests/record_weight_files.py

Last run with torch 2.15.0.
"""

from __future__ import annotations

import pathlib

import torch

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


def main() -> None:
  norm = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, bias=False), torch.nn.BatchNorm2d(2)).state_dict()
  training = {"model": tensors(), "epoch": 3, "optimizer": {"param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}}
  torch.save(training, FIXTURES / "torch_zip.pth")
  torch.save(training, FIXTURES / "torch_legacy.pth", _use_new_zipfile_serialization=False)
  torch.save({f"module.{name}": tensor for name, tensor in norm.items()}, FIXTURES / "torch_module.pt")
  torch.save(torch.nn.Linear(1, 1), FIXTURES / "torch_whole_model.pth")
  print(f"written with torch {torch.__version__}")


if __name__ == "__main__":
  main()

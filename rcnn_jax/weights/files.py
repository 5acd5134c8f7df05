"""Files of weights: tensors by name, whatever wrote them. The names stay those of the file."""

from __future__ import annotations

import os

import numpy as np

from rcnn_jax.weights import pickles
from rcnn_jax.weights.errors import WeightsError

PARALLEL = "module."  # what torch's DistributedDataParallel puts before every name


def read(path: str) -> dict[str, np.ndarray]:
  """The tensors of a .safetensors file, of one that torch.save wrote (.pth, .pt), or of a pickle of arrays (.pkl).

  No code in the file is run. bfloat16 becomes float32; the other types stay.

  Raises:
    WeightsError: no such file, a truncated or damaged one, a pickle that names more than tensors and containers.
  """
  if not os.path.isfile(path):
    raise WeightsError(f"{path}: no such weights file")
  tensors = read_safetensors(path) if path.endswith(".safetensors") else pickles.read(path)
  if all(name.startswith(PARALLEL) for name in tensors):
    return {name.removeprefix(PARALLEL): tensor for name, tensor in tensors.items()}
  return tensors


def read_safetensors(path: str) -> dict[str, np.ndarray]:
  """The tensors of a .safetensors file by name; raises WeightsError where it is damaged."""
  from safetensors import SafetensorError
  from safetensors.numpy import load_file

  try:
    return load_file(path)
  except (SafetensorError, TypeError, KeyError) as error:  # a type of elements that numpy lacks is a KeyError
    raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error

"""Files of weights: tensors by name, whatever wrote them. The names stay those of the file."""

from __future__ import annotations

import os

import numpy as np

from rcnn_jax.weights import pickles
from rcnn_jax.weights.errors import WeightsError, listed, printable, shown

LONGEST_NAME = 400  # characters
PARALLEL = "module."  # what torch's DistributedDataParallel puts before every name


def read(path: str) -> dict[str, np.ndarray]:
  """The tensors of a .safetensors file, of one that torch.save wrote (.pth, .pt), or of a pickle of arrays (.pkl).

  No code in the file is run, and the memory is bounded by a multiple of the file's size. bfloat16 becomes float32;
  the other types stay.

  Raises:
    WeightsError: no such file, a truncated or damaged one, a pickle that names more than tensors and containers,
      names that cannot be printed.
  """
  path = os.path.expanduser(path)
  if not os.path.isfile(path):
    raise WeightsError(f"{path}: no such weights file")
  tensors = read_safetensors(path) if path.lower().endswith(".safetensors") else pickles.read(path)
  unprintable = [shown(name) for name in tensors if len(name) > LONGEST_NAME or not name.isprintable()]
  if unprintable:
    raise WeightsError(f"{path}: names that no tensor has: {listed(unprintable)}")
  if all(name.startswith(PARALLEL) for name in tensors):
    return {name.removeprefix(PARALLEL): tensor for name, tensor in tensors.items()}
  return tensors


def read_safetensors(path: str) -> dict[str, np.ndarray]:
  """The tensors of a .safetensors file by name; raises WeightsError where it is damaged."""
  import ml_dtypes  # noqa: F401  numpy knows bfloat16 by name from then on
  from safetensors.numpy import load_file

  try:
    tensors = load_file(path)
  except Exception as error:  # it has several of its own, and a type of elements that numpy lacks is a KeyError
    cause = printable(str(error) or type(error).__name__, 200)
    raise WeightsError(f"{path}: not a readable safetensors file ({cause})") from error
  return {name: _widened(path, name, tensor) for name, tensor in tensors.items()}


def _widened(path: str, name: str, tensor: np.ndarray) -> np.ndarray:
  """bfloat16 as float32, other numbers as they are; raises WeightsError for other types."""
  if tensor.dtype.name == "bfloat16":
    return tensor.astype(np.float32)
  if tensor.dtype.kind not in "fiub":
    raise WeightsError(f"{path}: {shown(name)}: elements of type {tensor.dtype.name}, which no weights here have")
  return tensor

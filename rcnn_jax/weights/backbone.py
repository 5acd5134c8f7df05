"""ImageNet weights of a backbone, in torchvision's names, into a detector's variables.

A variable's path is turned into the name that torchvision gives the same tensor, so that the file is read by a rule
and not by a table: `backbone/fire2/squeeze/kernel` is `features.3.squeeze.weight`.
"""

from __future__ import annotations

import re

import numpy as np
from flax import traverse_util

from rcnn_jax.weights import files
from rcnn_jax.weights.errors import WeightsError, listed

# Positions in torchvision's nn.Sequential `features`; pooling and activations take the numbers between.
SQUEEZENET = {
  "conv1": 0,
  "fire2": 3,
  "fire3": 4,
  "fire4": 6,
  "fire5": 7,
  "fire6": 9,
  "fire7": 10,
  "fire8": 11,
  "fire9": 12,
}
VGG16 = {
  "conv1_1": 0,
  "conv1_2": 2,
  "conv2_1": 5,
  "conv2_2": 7,
  "conv3_1": 10,
  "conv3_2": 12,
  "conv3_3": 14,
  "conv4_1": 17,
  "conv4_2": 19,
  "conv4_3": 21,
  "conv5_1": 24,
  "conv5_2": 26,
  "conv5_3": 28,
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def load(path: str, variables: dict) -> dict:
  """`variables` with its backbone's values taken from a file of torchvision's classifier (see `files.read`).

  Every variable of the backbone (below an FPN, of its `bottom_up`) must stand in the file with its shape; what the
  file holds beyond them (the classifier) is left. Raises WeightsError otherwise.
  """
  tensors = files.read(path)
  flat = traverse_util.flatten_dict(variables, sep="/")
  below = re.compile(r"(params|batch_stats)/backbone/(bottom_up/)?")
  own = [name for name in flat if below.match(name)]
  if any("/bottom_up/" in name for name in own):
    own = [name for name in own if "/bottom_up/" in name]
  ours = {name: below.sub("", name) for name in own}
  positions = SQUEEZENET if any(path.startswith("fire2/") for path in ours.values()) else VGG16
  names = {name: torchvision_name(path, positions) for name, path in ours.items()}
  missing = sorted(f"{theirs} (for {ours})" for ours, theirs in names.items() if theirs not in tensors)
  if missing:
    raise WeightsError(f"{path}: no tensor {listed(missing)}: are these the weights of another architecture?")
  loaded, unfit = {}, []
  for ours, theirs in names.items():
    value = to_flax(tensors[theirs])
    if value.shape != flat[ours].shape:
      unfit.append(f"{theirs} {value.shape}, the model has {flat[ours].shape}")
    elif not np.isfinite(value).all():
      unfit.append(f"{theirs} holds NaN or infinity")
    loaded[ours] = value
  if unfit:
    raise WeightsError(f"{path}: {listed(unfit)}")
  return traverse_util.unflatten_dict(flat | loaded, sep="/")


def torchvision_name(path: str, positions: dict[str, int]) -> str:
  """torchvision's name of a backbone's variable: 'layer1/block0/bn1/mean' -> 'layer1.0.bn1.running_mean'.

  `positions` are those of the modules that torchvision numbers (SQUEEZENET or VGG16; a ResNet has none of them).
  """
  *modules, leaf = path.split("/")
  if modules[0] in positions:
    modules[0] = f"features.{positions[modules[0]]}"
  modules = [name.removeprefix("block") for name in modules if name != "norm"]
  modules = [{"downsample": "downsample.0", "downsample_bn": "downsample.1"}.get(name, name) for name in modules]
  return ".".join([*modules, LEAVES[leaf]])


def to_flax(tensor: np.ndarray) -> np.ndarray:
  """A convolution's OIHW to HWIO, a linear layer's [out, in] to [in, out]; vectors stay. float32."""
  tensor = np.asarray(tensor, np.float32)
  if tensor.ndim == 4:
    return tensor.transpose(2, 3, 1, 0)
  return tensor.T if tensor.ndim == 2 else tensor

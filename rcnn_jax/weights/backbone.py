"""ImageNet weights of a backbone, in torchvision's names, which are timm's as well, into a detector's variables.

A variable's path is turned into the name that torchvision gives the same tensor, so that the file is read by a rule
and not by a table: `backbone/fire2/squeeze/kernel` is `features.3.squeeze.weight`. timm's classifiers differ from
torchvision's only in the names of the layers behind the features, of which VGG's fc6 and fc7 are read on request.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np
from flax import traverse_util

from rcnn_jax.models.backbones.vgg import BLOCKS
from rcnn_jax.weights import caffe2, convnext, files
from rcnn_jax.weights.errors import WeightsError, listed


def vgg_positions(norm: bool) -> dict[str, int]:
  """The places of VGG-16's layers in torchvision's `features`, with batch norms or without."""
  positions, place = {}, 0
  for block, (convolutions, _) in enumerate(BLOCKS, start=1):
    for i in range(1, convolutions + 1):
      positions |= {f"conv{block}_{i}": place} | ({f"bn{block}_{i}": place + 1} if norm else {})
      place += 3 if norm else 2  # the activation follows
    place += 1  # pooling
  return positions


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
VGG16, VGG16_BN = vgg_positions(norm=False), vgg_positions(norm=True)
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
UNREAD = ".num_batches_tracked"  # a counter beside the statistics of each norm
VGG_CELLS = 7  # along each side of what VGG's fc6 reads
TIMM = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3"}  # VGG's fc6 and fc7, convolutions in timm


def load(path: str, variables: dict, trunk: bool = False) -> dict:
  """`variables` with its backbone's values taken from a file of a classifier, torchvision's, timm's or MSRA's.

  Every variable of the backbone (below an FPN, of its `bottom_up`; a network over crops and a fifth stage over each
  RoI are part of it) must stand in the file with its shape, and the file must hold nothing else in the stages that
  the backbone has; what it holds beyond (later stages, the classifier) is left.

  Args:
    path: of the file.
    variables: of a Detector.
    trunk: take the trunk's fully connected layers too, from VGG's fc6 and fc7.

  Raises:
    WeightsError: naming the tensors that are missing, too many, of another shape or not finite.
  """
  tensors = files.read(path)
  if caffe2.MARK in tensors:
    tensors = caffe2.as_torchvision(tensors)
  flat = traverse_util.flatten_dict(variables, sep="/")
  names = _backbone_names(flat, tensors)
  if trunk:
    names |= _trunk_names(flat)
    tensors = _without_timms_names(tensors)
  _check_names(path, names, tensors)
  loaded, unfit = {}, []
  for ours, theirs in names.items():
    value = to_flax(tensors[theirs])
    if value.shape != flat[ours].shape:
      unfit.append(f"{theirs} {value.shape}, the model has {flat[ours].shape}")
    elif not np.isfinite(value).all():
      unfit.append(f"{theirs} holds NaN or infinity")
    elif theirs == "classifier.0.weight":
      value = to_flax(inputs_reordered(tensors[theirs], (-1, VGG_CELLS, VGG_CELLS), (0, 2, 3, 1)))
    loaded[ours] = value
  if unfit:
    raise WeightsError(f"{path}: {listed(unfit)}")
  return traverse_util.unflatten_dict(flat | loaded, sep="/")


def _backbone_names(flat: dict, tensors: Iterable[str]) -> dict[str, str]:
  """The file's name of each variable of the backbone, by its path."""
  below = re.compile(r"(params|batch_stats)/(backbone/(bottom_up/|network/)?|pool/network/|trunk/(?=layer4/))")
  own = [name for name in flat if below.match(name)]
  if any("/bottom_up/" in name for name in own):
    own = [name for name in own if "/bottom_up/" in name]
  ours = {name: below.sub("", name) for name in own}
  if convnext.is_convnext(ours.values()):
    name_of = convnext.timm_name if "stem.0.weight" in tensors else convnext.torchvision_name
    return {name: theirs for name, path in ours.items() if (theirs := name_of(path)) is not None}
  positions = positions_of(ours.values())
  return {name: torchvision_name(path, positions) for name, path in ours.items()}


def _trunk_names(flat: dict) -> dict[str, str]:
  """The same of the trunk's fully connected layers, fc6 and fc7."""
  found = {name: re.fullmatch(r"params/trunk/fc(\d+)/(kernel|bias)", name) for name in flat}
  names = {name: f"classifier.{3 * (int(m[1]) - 6)}.{LEAVES[m[2]]}" for name, m in found.items() if m}
  if not names:
    raise WeightsError("the model's trunk has no fully connected layers that could start from a classifier's")
  return names


def _without_timms_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """timm's fc6 and fc7 as torchvision's: matrices under the names of its classifier."""
  renamed = {}
  for name, tensor in tensors.items():
    layer, _, leaf = name.rpartition(".")
    if layer in TIMM:
      flat = (len(tensor), math.prod(tensor.shape[1:])) if tensor.ndim == 4 else tensor.shape
      name, tensor = f"{TIMM[layer]}.{leaf}", tensor.reshape(flat)
    renamed[name] = tensor
  return renamed


def _check_names(path: str, names: dict[str, str], tensors: Iterable[str]) -> None:
  """Raises WeightsError unless the file has the tensors of `names` (ours to theirs), and no others among them."""
  if "conv1.0.weight" in tensors and "conv1.weight" in names.values():
    raise WeightsError(f"{path}: conv1.0.weight: a ResNet with a deep stem (timm's resnet50d and the like), not ours")
  missing = sorted(f"{theirs} (for {ours})" for ours, theirs in names.items() if theirs not in tensors)
  if missing and all(".running_" in name for name in missing):
    raise WeightsError(f"{path}: no batch norm statistics: no tensor {listed(missing)}")
  if missing:
    raise WeightsError(f"{path}: no tensor {listed(missing)}: are these the weights of another architecture?")
  read = set(names.values())
  stages = {stage_of(name) for name in read}
  extra = sorted(name for name in tensors if name not in read and stage_of(name) in stages)
  extra = [name for name in extra if not name.endswith(UNREAD)]
  if extra:
    raise WeightsError(f"{path}: the model has no place for {listed(extra)}: is this a deeper network, or another?")


def stage_of(name: str) -> str:
  """What a tensor's name begins with: 'layer1', or the whole module in what is numbered: 'features.3'."""
  return ".".join(name.split(".")[: 2 if name.startswith(("features.", "classifier.", "stages.")) else 1])


def positions_of(paths: Iterable[str]) -> dict[str, int]:
  """The positions of the architecture that has variables of these paths; a ResNet has none."""
  modules = {path.partition("/")[0] for path in paths}
  for positions in (SQUEEZENET, VGG16, VGG16_BN):
    if modules <= positions.keys():
      return positions
  return {}


def torchvision_name(path: str, positions: dict[str, int]) -> str:
  """torchvision's name of a backbone's variable: 'layer1/block0/bn1/mean' -> 'layer1.0.bn1.running_mean'.

  `positions` are those of the modules that torchvision numbers (SQUEEZENET, VGG16 or VGG16_BN; a ResNet has none).
  """
  *modules, leaf = path.split("/")
  if modules[0] in positions:
    modules[0] = f"features.{positions[modules[0]]}"
  modules = [name.removeprefix("block") for name in modules if name != "norm"]
  modules = [{"downsample": "downsample.0", "downsample_bn": "downsample.1"}.get(name, name) for name in modules]
  return ".".join([*modules, LEAVES[leaf]])


def to_flax(tensor: np.ndarray) -> np.ndarray:
  """A convolution's OIHW to HWIO, a linear layer's [out, in] to [in, out], [C, 1, 1] to [C]; vectors stay. float32."""
  tensor = np.asarray(tensor, np.float32)
  if tensor.ndim == 3 and tensor.shape[1:] == (1, 1):
    return tensor.reshape(-1)
  if tensor.ndim == 4:
    return tensor.transpose(2, 3, 1, 0)
  return tensor.T if tensor.ndim == 2 else tensor


def inputs_reordered(kernel: np.ndarray, shape: tuple[int, int, int], order: tuple[int, ...]) -> np.ndarray:
  """A layer [out, in] whose inputs, which have the given shape, are put into another order of their axes."""
  return kernel.reshape(len(kernel), *shape).transpose(order).reshape(kernel.shape)

"""Pretrained backbones: torchvision's names by rule, and a file that does not fit is refused by name."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from rcnn_jax.models.backbones.fpn import Fpn
from rcnn_jax.models.backbones.resnet import ResNet
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.backbones.vgg import Vgg16
from rcnn_jax.weights.backbone import SQUEEZENET, VGG16, WeightsError, load, torchvision_name

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "weights" / "squeezenet1_1_imagenet.safetensors"


def fresh(backbone):
  """Variables of a detector that has only this backbone."""
  variables = jax.eval_shape(lambda: backbone.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
  ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variables)
  return {collection: {"backbone": tree} for collection, tree in ones.items()}


def as_torchvision(variables, positions, prefix="backbone/"):
  """The tensors of a file that fits, each filled with numbers of its own, in PyTorch's layout."""
  tensors = {}
  for number, (path, leaf) in enumerate(traverse_util.flatten_dict(variables, sep="/").items()):
    shape = leaf.shape[::-1][:2] + leaf.shape[:2] if leaf.ndim == 4 else leaf.shape
    name = torchvision_name(path.partition(prefix)[2], positions)
    tensors[name] = np.random.default_rng(number).normal(size=shape).astype(np.float32)
  return tensors


@pytest.mark.parametrize(
  "path, positions, name",
  [
    ("conv1/kernel", SQUEEZENET, "features.0.weight"),
    ("fire2/squeeze/bias", SQUEEZENET, "features.3.squeeze.bias"),
    ("fire9/expand3x3/kernel", SQUEEZENET, "features.12.expand3x3.weight"),
    ("conv5_3/kernel", VGG16, "features.28.weight"),
    ("conv1/kernel", VGG16, "conv1.weight"),
    ("bn1/mean", VGG16, "bn1.running_mean"),
    ("layer2/block0/downsample/kernel", VGG16, "layer2.0.downsample.0.weight"),
    ("layer2/block0/downsample_bn/norm/var", VGG16, "layer2.0.downsample.1.running_var"),
    ("layer4/block2/bn3/scale", VGG16, "layer4.2.bn3.weight"),
  ],
)
def test_names_are_torchvisions(path, positions, name):
  assert torchvision_name(path, positions) == name


@pytest.mark.parametrize(
  "backbone, positions, prefix",
  [
    (SqueezeNet(), SQUEEZENET, "backbone/"),
    (Vgg16(), VGG16, "backbone/"),
    (ResNet(18, levels=(4,)), VGG16, "backbone/"),
    (ResNet(18, levels=(2,), norm="batch"), VGG16, "backbone/"),
  ],
  ids=["squeezenet", "vgg16", "resnet18_frozen", "resnet18_batch"],
)
def test_every_variable_of_the_backbone_is_read(tmp_path, backbone, positions, prefix):
  variables = fresh(backbone)
  tensors = as_torchvision(variables, positions, prefix)
  save_file(tensors | {"classifier.weight": np.zeros((2, 2), np.float32)}, tmp_path / "w.safetensors")
  loaded = traverse_util.flatten_dict(load(str(tmp_path / "w.safetensors"), variables), sep="/")
  for path, leaf in loaded.items():
    expected = tensors[torchvision_name(path.partition(prefix)[2], positions)]
    np.testing.assert_array_equal(leaf, expected.transpose(2, 3, 1, 0) if leaf.ndim == 4 else expected)


def test_below_an_fpn_only_the_bottom_up_network_is_read(tmp_path):
  variables = fresh(Fpn(ResNet(18, levels=(2, 3))))
  bottom = {name: {"backbone": tree["backbone"]["bottom_up"]} for name, tree in variables.items()}
  save_file(as_torchvision(bottom, VGG16), tmp_path / "w.safetensors")
  loaded = load(str(tmp_path / "w.safetensors"), variables)["params"]["backbone"]
  assert not np.all(loaded["bottom_up"]["conv1"]["kernel"] == 1)
  assert np.all(loaded["lateral0"]["kernel"] == 1)


def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path):
  path = tmp_path / "w.safetensors"
  variables = fresh(SqueezeNet())
  tensors = as_torchvision(variables, SQUEEZENET)

  def refused(changed, message):
    save_file(changed, path)
    with pytest.raises(WeightsError, match=message):
      load(str(path), variables)

  refused(
    {k: v for k, v in tensors.items() if k != "features.3.squeeze.bias"}, r"no tensor features\.3\.squeeze\.bias"
  )
  refused(tensors | {"features.0.bias": np.zeros(7, np.float32)}, r"features\.0\.bias \(7,\), the model has \(64,\)")
  refused(tensors | {"features.0.bias": np.full(64, np.nan, np.float32)}, r"features\.0\.bias holds NaN")
  path.write_bytes(b"this is no safetensors file")
  with pytest.raises(WeightsError, match=r"w\.safetensors: not a readable safetensors file"):
    load(str(path), variables)
  with pytest.raises(WeightsError, match="nowhere.safetensors: no such weights file"):
    load("nowhere.safetensors", variables)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/weights, which are not part of the project")
def test_the_imagenet_squeezenet_fits_and_sees_edges():
  variables = load(str(SHARED), fresh(SqueezeNet()))
  flat = np.zeros((1, 64, 64, 3), np.float32)
  checks = np.tile(np.indices((64, 64)).sum(0)[None, :, :, None] // 8 % 2, (1, 1, 1, 3)).astype(np.float32)
  features = jax.jit(lambda x: SqueezeNet().apply({"params": variables["params"]["backbone"]}, x)[0])
  assert np.std(features(checks)) > 2 * np.std(features(flat))

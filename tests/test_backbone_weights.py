"""Pretrained backbones: torchvision's, timm's and Caffe2's names by rule; what does not fit is refused by name."""

from __future__ import annotations

import pathlib
import pickle
import re

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
from rcnn_jax.weights.backbone import SQUEEZENET, VGG16, VGG16_BN, WeightsError, load, torchvision_name

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "weights" / "squeezenet1_1_imagenet.safetensors"


def fresh(backbone):
  """Variables of a detector that has only this backbone."""
  variables = jax.eval_shape(lambda: backbone.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
  ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variables)
  return {collection: {"backbone": tree} for collection, tree in ones.items()}


def as_torchvision(variables, positions):
  """The tensors of a file that fits, each filled with numbers of its own, in PyTorch's layout."""
  tensors = {}
  for number, (path, leaf) in enumerate(traverse_util.flatten_dict(variables, sep="/").items()):
    shape = leaf.shape[::-1][:2] + leaf.shape[:2] if leaf.ndim == 4 else leaf.shape
    name = torchvision_name(path.partition("backbone/")[2], positions)
    tensors[name] = np.random.default_rng(number).normal(size=shape).astype(np.float32)
  return tensors


def test_rcnns_network_over_crops_is_read_like_a_backbone(tmp_path):
  alone = fresh(SqueezeNet())
  tensors = as_torchvision(alone["params"], SQUEEZENET)
  path = str(tmp_path / "weights.safetensors")
  save_file(tensors, path)
  loaded = load(path, {"params": {"pool": {"network": alone["params"]["backbone"]}}})
  kernel = loaded["params"]["pool"]["network"]["conv1"]["kernel"]
  np.testing.assert_array_equal(kernel, tensors["features.0.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
  "path, positions, name",
  [
    ("conv1/kernel", SQUEEZENET, "features.0.weight"),
    ("fire2/squeeze/bias", SQUEEZENET, "features.3.squeeze.bias"),
    ("fire9/expand3x3/kernel", SQUEEZENET, "features.12.expand3x3.weight"),
    ("conv5_3/kernel", VGG16, "features.28.weight"),
    ("conv5_3/kernel", VGG16_BN, "features.40.weight"),
    ("bn5_3/norm/scale", VGG16_BN, "features.41.weight"),
    ("conv1/kernel", {}, "conv1.weight"),
    ("bn1/mean", {}, "bn1.running_mean"),
    ("layer2/block0/downsample/kernel", {}, "layer2.0.downsample.0.weight"),
    ("layer2/block0/downsample_bn/norm/var", {}, "layer2.0.downsample.1.running_var"),
    ("layer4/block2/bn3/scale", {}, "layer4.2.bn3.weight"),
  ],
)
def test_names_are_torchvisions(path, positions, name):
  assert torchvision_name(path, positions) == name


# What the classifiers hold behind the features, torchvision's and timm's.
BEHIND = ("classifier.0.weight", "classifier.6.bias", "fc.weight", "pre_logits.fc1.weight", "head.fc.weight")


@pytest.mark.parametrize(
  "backbone, positions",
  [
    (SqueezeNet(), SQUEEZENET),
    (Vgg16(), VGG16),
    (Vgg16(norm="frozen"), VGG16_BN),
    (Vgg16(norm="batch"), VGG16_BN),
    (ResNet(18, levels=(4,)), {}),
    (ResNet(18, levels=(2,), norm="batch"), {}),
    (ResNet(50, levels=(3,)), {}),
  ],
  ids=["squeezenet", "vgg16", "vgg16_bn_frozen", "vgg16_bn", "resnet18_frozen", "resnet18_batch", "resnet50"],
)
def test_every_variable_of_the_backbone_is_read_and_the_classifier_is_not(tmp_path, backbone, positions):
  variables = fresh(backbone)
  tensors = as_torchvision(variables, positions)
  counters = [name.replace("running_mean", "num_batches_tracked") for name in tensors if "running_mean" in name]
  others = {name: np.zeros((2, 2), np.float32) for name in (*BEHIND, *counters)}
  save_file(tensors | others, tmp_path / "w.safetensors")
  loaded = traverse_util.flatten_dict(load(str(tmp_path / "w.safetensors"), variables), sep="/")
  assert len(loaded) == len(tensors)
  for path, leaf in loaded.items():
    expected = tensors[torchvision_name(path.partition("backbone/")[2], positions)]
    np.testing.assert_array_equal(leaf, expected.transpose(2, 3, 1, 0) if leaf.ndim == 4 else expected)


def test_below_an_fpn_only_the_bottom_up_network_is_read(tmp_path):
  variables = fresh(Fpn(ResNet(18, levels=(2, 3))))
  bottom = {name: {"backbone": tree["backbone"]["bottom_up"]} for name, tree in variables.items()}
  save_file(as_torchvision(bottom, {}), tmp_path / "w.safetensors")
  loaded = load(str(tmp_path / "w.safetensors"), variables)["params"]["backbone"]
  assert not np.all(loaded["bottom_up"]["conv1"]["kernel"] == 1)
  assert np.all(loaded["lateral0"]["kernel"] == 1)


def with_trunk(cells: int = 7, width: int = 6) -> dict:
  """Variables of a VGG-16 with narrow fully connected layers behind it."""
  variables = fresh(Vgg16())
  ones = lambda *shape: np.ones(shape, np.float32)
  layers = {"fc6": {"kernel": ones(cells * cells * 512, width), "bias": ones(width)}}
  layers["fc7"] = {"kernel": ones(width, width), "bias": ones(width)}
  return {"params": variables["params"] | {"trunk": layers}}


def vgg_classifier() -> dict:
  """A file's tensors for it: fc6 reads channel by channel, and says so in its values."""
  channels, rows, columns = np.indices((512, 7, 7))
  places = np.broadcast_to(channels * 100 + rows * 10 + columns, (6, 512, 7, 7)).reshape(6, -1)
  tensors = {"classifier.0.weight": places, "classifier.0.bias": np.full(6, 6), "classifier.3.bias": np.full(6, 7)}
  tensors |= {"classifier.3.weight": np.arange(36).reshape(6, 6), "classifier.6.weight": np.zeros((4, 6))}
  tensors = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
  return as_torchvision(fresh(Vgg16()), VGG16) | tensors


def as_timm(tensors: dict) -> dict:
  """With timm's names, and its convolutions for fully connected layers."""
  fc6 = {"pre_logits.fc1.weight": tensors["classifier.0.weight"].reshape(6, 512, 7, 7)}
  fc7 = {"pre_logits.fc2.weight": tensors["classifier.3.weight"].reshape(6, 6, 1, 1)}
  biases = {"pre_logits.fc1.bias": tensors["classifier.0.bias"], "pre_logits.fc2.bias": tensors["classifier.3.bias"]}
  return {name: t for name, t in tensors.items() if "classifier" not in name} | fc6 | fc7 | biases


@pytest.mark.parametrize("named", [dict, as_timm], ids=["torchvision", "timm"])
def test_vggs_fully_connected_layers_are_read_on_request_cell_by_cell(tmp_path, named):
  path = str(tmp_path / "w.safetensors")
  save_file(named(vgg_classifier()), path)
  trunk = load(path, with_trunk(), trunk=True)["params"]["trunk"]
  inputs = trunk["fc6"]["kernel"][:, 5].reshape(7, 7, 512)
  assert inputs[2, 3, 45] == 45 * 100 + 2 * 10 + 3 and inputs[6, 0, 511] == 511 * 100 + 60
  np.testing.assert_array_equal(trunk["fc7"]["kernel"], np.arange(36).reshape(6, 6).T)
  assert list(trunk["fc6"]["bias"]) == [6] * 6 and list(trunk["fc7"]["bias"]) == [7] * 6
  assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(load(path, with_trunk())["params"]["trunk"]))


def test_a_trunk_that_does_not_fit_is_refused_by_name(tmp_path):
  path = str(tmp_path / "w.safetensors")
  save_file(vgg_classifier(), path)
  with pytest.raises(WeightsError, match=re.escape("classifier.0.weight (25088, 6), the model has (18432, 6)")):
    load(path, with_trunk(cells=6), trunk=True)
  with pytest.raises(WeightsError, match=re.escape("classifier.3.weight (6, 6), the model has (5, 5); ")):
    load(path, with_trunk(width=5), trunk=True)
  with pytest.raises(WeightsError, match="trunk has no fully connected layers"):
    load(path, fresh(Vgg16()), trunk=True)
  save_file(as_torchvision(fresh(Vgg16()), VGG16), path)
  with pytest.raises(WeightsError, match=re.escape("no tensor classifier.0.bias (for params/trunk/fc6/bias); ")):
    load(path, with_trunk(), trunk=True)


def refusal(folder, tensors, variables) -> str:
  """What `load` says about a file of these tensors."""
  path = folder / "w.safetensors"
  save_file(tensors, path)
  with pytest.raises(WeightsError) as raised:
    load(str(path), variables)
  return str(raised.value).removeprefix(f"{path}: ")


def without(tensors: dict, ending: str) -> dict:
  return {name: tensor for name, tensor in tensors.items() if not name.endswith(ending)}


def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path):
  variables = fresh(SqueezeNet())
  tensors = as_torchvision(variables, SQUEEZENET)
  refused = lambda changed: refusal(tmp_path, changed, variables)
  missing = "no tensor features.3.squeeze.bias (for params/backbone/fire2/squeeze/bias): are these the weights of"
  assert refused(without(tensors, ".3.squeeze.bias")).startswith(missing)
  short = tensors | {"features.0.bias": np.zeros(7, np.float32)}
  assert refused(short) == "features.0.bias (7,), the model has (64,)"
  assert refused(tensors | {"features.0.bias": np.full(64, np.nan, np.float32)}) == (
    "features.0.bias holds NaN or infinity"
  )


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
  path = tmp_path / "w.safetensors"
  variables = fresh(SqueezeNet())
  save_file(as_torchvision(variables, SQUEEZENET), path)
  for contents in (path.read_bytes()[:-100], path.read_bytes()[:100], b"this is no safetensors file"):
    path.write_bytes(contents)
    with pytest.raises(WeightsError, match=r"w\.safetensors: not a readable safetensors file"):
      load(str(path), variables)
  with pytest.raises(WeightsError, match="nowhere.safetensors: no such weights file"):
    load("nowhere.safetensors", variables)


@pytest.mark.parametrize("backbone, positions", [(ResNet(18, levels=(2,)), {}), (Vgg16(norm="frozen"), VGG16_BN)])
def test_missing_statistics_of_a_norm_are_named(tmp_path, backbone, positions):
  variables = fresh(backbone)
  told = refusal(tmp_path, without(as_torchvision(variables, positions), "running_var"), variables)
  first = "features.1" if positions else "bn1"
  assert told.startswith(f"no batch norm statistics: no tensor {first}.running_var (for batch_stats/backbone/bn1")


@pytest.mark.parametrize(
  "theirs, ours, message",
  [
    (ResNet(34), ResNet(18), "the model has no place for layer1.2.bn1.bias; layer1.2.bn1.running_mean; "),
    (ResNet(101), ResNet(50), "the model has no place for layer3.10.bn1.bias; layer3.10.bn1.running_mean; "),
    (ResNet(18), ResNet(34), "no tensor layer1.2.bn1.bias (for batch_stats/backbone/layer1/block2/bn1/bias); "),
    (ResNet(50, norm="batch"), ResNet(50, norm="group"), "the model has no place for bn1.running_mean; bn1.run"),
    (Vgg16(), Vgg16(norm="frozen"), "no tensor features.1.bias (for batch_stats/backbone/bn1_1/bias); "),
    (Vgg16(norm="frozen"), Vgg16(), "no tensor features.12.bias (for params/backbone/conv3_2/bias); "),
    (SqueezeNet(), ResNet(18), "no tensor bn1.bias (for batch_stats/backbone/bn1/bias); "),
  ],
  ids=lambda value: f"{type(value).__name__}{getattr(value, 'depth', '')}" if not isinstance(value, str) else "",
)
def test_another_architecture_is_refused_by_its_tensors(tmp_path, theirs, ours, message):
  positions = {Vgg16: VGG16_BN if getattr(theirs, "norm", None) else VGG16, SqueezeNet: SQUEEZENET}
  paths = traverse_util.flatten_dict(fresh(theirs), sep="/")
  name = lambda path: torchvision_name(path.partition("backbone/")[2], positions.get(type(theirs), {}))
  tensors = {name(path): np.zeros(1, np.float32) for path in paths}  # names are looked at before shapes
  assert refusal(tmp_path, tensors, fresh(ours)).startswith(message)


def test_timms_deep_stems_are_refused_by_name(tmp_path):
  variables = fresh(ResNet(18, levels=(2,)))
  deep = as_torchvision(variables, {}) | {"conv1.0.weight": np.zeros((32, 3, 3, 3), np.float32)}
  told = refusal(tmp_path, without(deep, "conv1.weight"), variables)
  assert told == "conv1.0.weight: a ResNet with a deep stem (timm's resnet50d and the like), not ours"


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/weights, which are not part of the project")
def test_the_imagenet_squeezenet_fits_and_sees_edges():
  variables = load(str(SHARED), fresh(SqueezeNet()))
  flat = np.zeros((1, 64, 64, 3), np.float32)
  checks = np.tile(np.indices((64, 64)).sum(0)[None, :, :, None] // 8 % 2, (1, 1, 1, 3)).astype(np.float32)
  features = jax.jit(lambda x: SqueezeNet().apply({"params": variables["params"]["backbone"]}, x)[0])
  assert np.std(features(checks)) > 2 * np.std(features(flat))


def as_caffe2(theirs: dict) -> dict:
  """torchvision's names of a ResNet, as MSRA's models have them: norms that are a scale and a shift, images BGR."""
  kernels = {"downsample.0": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
  norms = {"downsample.1": "branch1", "bn1": "branch2a", "bn2": "branch2b", "bn3": "branch2c"}
  named = {"conv1_w": theirs["conv1.weight"][:, ::-1], "conv1_b": np.zeros(64), "fc1000_w": np.zeros((1000, 4))}
  named |= {"res_conv1_bn_s": theirs["bn1.weight"], "res_conv1_bn_b": theirs["bn1.bias"]}
  for name, tensor in theirs.items():
    match = re.fullmatch(r"layer(\d)\.(\d+)\.(.*)\.(weight|bias)", name)
    if match:
      branch = kernels.get(match[3]) or norms[match[3]]
      kind = "_w" if match[3] in kernels else {"weight": "_bn_s", "bias": "_bn_b"}[match[4]]
      named[f"res{int(match[1]) + 1}_{match[2]}_{branch}{kind}"] = tensor
  return named


def test_msras_resnets_are_read_by_caffe2s_names(tmp_path):
  variables = fresh(ResNet(50, levels=(2,)))
  theirs = as_torchvision(variables, {})
  statistics = {"mean": 0, "var": 1 - 1e-5}  # with which a norm is its scale and its shift exactly
  for name in theirs:
    if "running_" in name:
      theirs[name] = np.full_like(theirs[name], statistics[name.rpartition("_")[2]])
  save_file(theirs, tmp_path / "resnet50.safetensors")
  (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": as_caffe2(theirs)}))
  loaded = [load(str(tmp_path / name), variables) for name in ("R-50.pkl", "resnet50.safetensors")]
  jax.tree.map(np.testing.assert_array_equal, *loaded)


def test_a_fifth_stage_over_each_roi_belongs_to_the_backbone(tmp_path):
  variables = fresh(ResNet(18, levels=(5,)))
  save_file(as_torchvision(variables, {}), tmp_path / "w.safetensors")

  def split(whole: dict) -> dict:
    fifth = {collection: {"layer4": tree["backbone"]["layer4"]} for collection, tree in whole.items()}
    rest = {c: {k: v for k, v in tree["backbone"].items() if k != "layer4"} for c, tree in whole.items()}
    return {c: {"backbone": rest[c], "trunk": fifth[c]} for c in whole}

  path = str(tmp_path / "w.safetensors")
  jax.tree.map(np.testing.assert_array_equal, load(path, split(variables)), split(load(path, variables)))


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (0, 3, 7, 7), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("named", [dict, as_timm, as_caffe2], ids=["torchvision", "timm", "caffe2"])
def test_right_names_with_any_shapes_are_refused_and_never_a_traceback(tmp_path, named, shape):
  vgg = named is as_timm
  variables = with_trunk() if vgg else fresh(ResNet(50, levels=(2,)))
  theirs = named(vgg_classifier() if vgg else as_torchvision(variables, {}))
  path = tmp_path / "w.pkl"
  path.write_bytes(pickle.dumps({name: np.zeros(shape, np.float32) for name in theirs}))
  with pytest.raises(WeightsError, match="the model has"):
    load(str(path), variables, trunk=vgg)

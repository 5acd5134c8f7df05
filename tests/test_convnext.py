"""ConvNeXt: features equal torchvision's, depthwise convolutions XLA's own, and stochastic depth by image."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st

from rcnn_jax.models.backbones.convnext import VARIANTS, ConvNeXt
from rcnn_jax.models.depthwise import depthwise
from rcnn_jax.models.layers import dropped_path
from rcnn_jax.models.protocols import Context
from rcnn_jax.weights import backbone, convnext
from rcnn_jax.weights.errors import WeightsError
from tests import filling
from tests.parity import close, recorded

KEY = jax.random.key(0)
TINY = ConvNeXt(output_norms=False)


@functools.cache
def shapes():
  return jax.eval_shape(TINY.init, KEY, jnp.zeros((1, 64, 64, 3)))


def tensors(name_of=convnext.torchvision_name):
  """A file's tensors for the backbone of a detector, filled by torchvision's names."""
  found = {}
  for path, leaf in traverse_util.flatten_dict(shapes()["params"], sep="/").items():
    theirs = convnext.torchvision_name(path)
    shape = {4: lambda s: (s[3], s[2], *s[:2]), 2: lambda s: s[::-1], 1: lambda s: s}[len(leaf.shape)](leaf.shape)
    if theirs.endswith("layer_scale"):
      shape = (*shape, 1, 1)
    found[name_of(path)] = filling.tensor(theirs, shape)
  return found


def written(path, tensors):
  from safetensors.numpy import save_file

  save_file(tensors, str(path))
  return str(path)


@pytest.mark.parametrize(
  "name_of", [convnext.torchvision_name, pytest.param(convnext.timm_name, marks=pytest.mark.long)]
)
def test_features_equal_torchvision_s_in_either_library_s_names(name_of, tmp_path):
  blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes())
  given = {"params": {"backbone": blank["params"]}}
  loaded = backbone.load(written(tmp_path / "w.safetensors", tensors(name_of)), given)["params"]["backbone"]
  pixels = (filling.image("convnext", (96, 128)).astype(np.float32) / 255 - 0.45) / 0.225
  outputs = jax.jit(TINY.apply)({"params": loaded}, pixels[None])
  for level, output in zip(TINY.levels, outputs, strict=True):
    expected = recorded("convnext_features")[f"level{level}"]
    close(filling.sample(f"convnext.level{level}", output[0]), expected, 1e-4)


def test_norms_of_the_outputs_begin_anew_and_a_deeper_network_is_refused(tmp_path):
  model = ConvNeXt()
  fresh = jax.eval_shape(model.init, KEY, jnp.zeros((1, 64, 64, 3)))
  sevens = jax.tree.map(lambda leaf: np.full(leaf.shape, 7, np.float32), fresh)
  loaded = backbone.load(
    written(tmp_path / "w.safetensors", tensors()), {"params": {"backbone": {"bottom_up": sevens["params"]}}}
  )["params"]["backbone"]["bottom_up"]
  assert (loaded["output_norm1"]["scale"] == 7).all() and not (loaded["stem_norm"]["scale"] == 7).any()
  small = jax.eval_shape(ConvNeXt("small", output_norms=False).init, KEY, jnp.zeros((1, 64, 64, 3)))
  blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), small)
  with pytest.raises(WeightsError, match=r"no tensor features.5.10.block.0.bias .*another architecture"):
    backbone.load(str(tmp_path / "w.safetensors"), {"params": {"backbone": blank["params"]}})


@pytest.mark.parametrize("variant, millions", [("tiny", 28.6), ("small", 50.2), ("base", 88.6)])
def test_parameters_are_the_paper_s_less_the_classifier(variant, millions):
  """Table 12 of arXiv:2201.03545; the classifier has 1,000 classes and a norm before it."""
  given = jax.eval_shape(ConvNeXt(variant, output_norms=False).init, KEY, jnp.zeros((1, 64, 64, 3)))
  count = sum(leaf.size for leaf in jax.tree.leaves(given))
  width = VARIANTS[variant][1][-1]
  assert round((count + 2 * width + 1000 * (width + 1)) / 1e6, 1) == millions


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 2), st.integers(1, 5), st.integers(1, 6), st.sampled_from([1, 3, 7]))
def test_a_depthwise_convolution_and_its_gradients_are_those_of_xla(batch, height, width, size):
  rng = np.random.default_rng(height * 10 + width)
  x, given = (rng.normal(size=(batch, height, width, 3)).astype(np.float32) for _ in range(2))
  kernel = rng.normal(size=(size, size, 1, 3)).astype(np.float32)

  def plain(x, kernel):
    padding = ((size // 2,) * 2,) * 2
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
    )

  def with_gradients(function):
    def both(x, kernel):
      y, back = jax.vjp(function, x, kernel)
      return y, *back(given)

    return jax.jit(both)(x, kernel)

  ours, theirs = with_gradients(lambda x, kernel: depthwise(x, kernel, None)), with_gradients(plain)
  for mine, expected in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(mine, expected, atol=1e-4)


def test_a_path_is_dropped_for_whole_images_and_the_mean_stays():
  x = jnp.ones((400, 2, 3))
  context = Context(True, jax.random.split(KEY, 400))
  y = np.asarray(dropped_path(x, context, "stage1/block2", 0.25))
  dropped = (y == 0).all((1, 2))
  assert ((y == 0) == dropped[:, None, None]).all() and 60 < dropped.sum() < 140
  np.testing.assert_allclose(y[~dropped], 1 / 0.75)
  assert (np.asarray(dropped_path(x, context, "stage1/block1", 0.25)) == 0).all((1, 2)).tolist() != dropped.tolist()
  reordered = Context(True, context.keys[::-1])
  np.testing.assert_array_equal(dropped_path(x, reordered, "stage1/block2", 0.25), y[::-1])
  np.testing.assert_array_equal(dropped_path(x, Context(), "stage1/block2", 0.25), x)


@pytest.mark.long
def test_stages_computed_anew_change_no_gradient():
  model = ConvNeXt(levels=(2, 3), drop_path=0.3)
  x = jax.random.normal(KEY, (2, 16, 16, 3))
  context = Context(True, jax.random.split(KEY, 2))
  params = jax.jit(model.init)(KEY, x)

  def gradient(model):
    return jax.jit(jax.grad(lambda params: sum(jnp.sum(y**2) for y in model.apply(params, x, context))))(params)

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    gradient(model.clone(remat=(2, 3))),
    gradient(model),
  )

"""Backbones: shapes, strides, freezing, and that padding beyond the image is invisible to nobody but itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcnn_jax.models.backbones.fpn import Fpn, upsample
from rcnn_jax.models.backbones.resnet import ResNet
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.backbones.vgg import Vgg16
from rcnn_jax.models.layers import BatchNorm, Conv, Deconv, max_pool
from rcnn_jax.models.protocols import Context

KEY = jax.random.key(0)


def shapes(model, size=(64, 96)):
  images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  outputs, variables = jax.eval_shape(lambda images: model.init_with_output(KEY, images), images)
  return [output.shape for output in outputs], variables


def count(variables, collection="params"):
  return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(variables[collection]))


@pytest.mark.parametrize(
  "model, expected",
  [
    (SqueezeNet(), [(2, 3, 5, 512)]),
    (SqueezeNet(levels=(3, 5, 9)), [(2, 15, 23, 128), (2, 7, 11, 256), (2, 3, 5, 512)]),
    (SqueezeNet(levels=(3, 5, 9), padded=True), [(2, 16, 24, 128), (2, 8, 12, 256), (2, 4, 6, 512)]),
    (Vgg16(), [(2, 4, 6, 512)]),
    (ResNet(18, levels=(4,)), [(2, 4, 6, 256)]),
    (ResNet(50, levels=(4,)), [(2, 4, 6, 1024)]),
    (ResNet(50, levels=(5,)), [(2, 2, 3, 2048)]),
    (ResNet(50, levels=(5,), dilate_c5=True), [(2, 4, 6, 2048)]),
    (ResNet(34), [(2, 16, 24, 64), (2, 8, 12, 128), (2, 4, 6, 256), (2, 2, 3, 512)]),
    (Fpn(ResNet(18)), [(2, 16, 24, 256), (2, 8, 12, 256), (2, 4, 6, 256), (2, 2, 3, 256), (2, 1, 2, 256)]),
  ],
  ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_each_level_has_the_size_and_channels_of_its_paper(model, expected):
  found, _ = shapes(model)
  assert found == expected
  assert len(model.strides) == len(expected)
  if not isinstance(model, SqueezeNet) or model.padded:  # without padding its maps are smaller
    assert [(-(-64 // stride), -(-96 // stride)) for stride in model.strides] == [shape[1:3] for shape in expected]


@pytest.mark.parametrize(
  "model, published",  # torchvision's classifiers, less their last linear layer(s)
  [
    (SqueezeNet(), 1_235_496 - 513_000),
    (Vgg16(), 14_714_688),
    (ResNet(18), 11_689_512 - 513_000),
    (ResNet(34), 21_797_672 - 513_000),
    (ResNet(50), 25_557_032 - 2_049_000),
    (ResNet(101), 44_549_160 - 2_049_000),
  ],
  ids=["squeezenet1_1", "vgg16", "resnet18", "resnet34", "resnet50", "resnet101"],
)
def test_parameters_are_as_many_as_the_published_implementation_has(model, published):
  if isinstance(model, ResNet):
    model = model.clone(norm="batch")
  _, variables = shapes(model)
  assert count(variables) == published


@pytest.mark.parametrize(
  "model, shifts",
  [
    pytest.param(SqueezeNet(levels=(3, 5)), [3, 7], marks=pytest.mark.long),
    (SqueezeNet(levels=(3, 5), padded=True), [0, 0]),
    (ResNet(18, levels=(2, 3)), [0, 0]),
  ],
  ids=["SqueezeNet", "SqueezeNet, padded", "ResNet-18"],
)
def test_cell_j_of_a_level_looks_at_the_pixels_about_its_stride_times_j(model, shifts):
  """... or, without padding, to the right of it by `shifts`; measured with one bright column of pixels at a time."""
  width = 128
  columns = jnp.broadcast_to(jnp.eye(width)[:, None, :, None], (width, 32, width, 3))
  variables = jax.jit(model.init)(KEY, columns[:1])
  positive = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.01 if leaf.ndim > 1 else 0), variables["params"])
  levels = jax.jit(lambda columns: model.apply({**variables, "params": positive}, columns))(columns)
  for level, stride, shift in zip(levels, model.strides, shifts):
    cell = level.shape[2] // 2
    seen = np.flatnonzero(level[:, level.shape[1] // 2, cell].sum(-1))
    assert (seen[0] + seen[-1]) / 2 == stride * cell + shift


def test_a_frozen_norm_has_no_parameters_and_a_trainable_one_updates_its_statistics():
  images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
  frozen = ResNet(18, levels=(2,))
  variables = frozen.init(KEY, images)
  assert not [path for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"]) if "bn" in str(path)]
  trainable = frozen.clone(norm="batch")
  variables = trainable.init(KEY, images)
  _, updated = trainable.apply(variables, images, Context(train=True), mutable=["batch_stats"])
  before, after = variables["batch_stats"]["bn1"]["mean"], updated["batch_stats"]["bn1"]["mean"]
  assert not np.allclose(before, after)


@pytest.mark.parametrize("garbage", [7.0, np.nan])
def test_batch_norm_over_regions_sees_the_valid_ones_alone(garbage):
  rows = np.random.default_rng(0).normal(3, 2, (4, 2, 5, 6)).astype(np.float32)
  valid = np.array([True, False, True, True])
  layer = BatchNorm(momentum=0.9)
  variables = layer.init(KEY, rows, False)

  def total(rows):
    out, updated = layer.apply(variables, jnp.asarray(rows), True, valid, mutable=["batch_stats"])
    return (out[valid] ** 3).sum(), (out[valid], updated["batch_stats"])

  gradient, (out, stats) = jax.grad(total, has_aux=True)(np.where(valid[:, None, None, None], rows, garbage))
  seen = rows[valid].reshape(-1, 6)
  np.testing.assert_allclose(out.reshape(-1, 6), (seen - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-5), atol=1e-5)
  np.testing.assert_allclose(stats["mean"], 0.1 * seen.mean(0), rtol=1e-5)
  np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * seen.var(0, ddof=1), rtol=1e-5)  # PyTorch's: of a sample
  assert np.isfinite(gradient[valid]).all() and not np.asarray(gradient)[~valid].any()


def test_batch_norm_over_no_region_at_all_keeps_its_statistics():
  rows = np.ones((2, 3, 3, 4), np.float32)
  layer = BatchNorm()
  variables = layer.init(KEY, rows, False)
  out, updated = layer.apply(variables, rows, True, np.zeros(2, bool), mutable=["batch_stats"])
  assert np.isfinite(out).all()
  jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])


def test_an_unknown_norm_is_refused_by_name():
  with pytest.raises(ValueError, match="'frozen', 'batch' or 'group', not 'layer'"):
    shapes(ResNet(18, norm="layer"))


def test_max_pool_of_a_grid_with_and_without_ceil_mode():
  grid = jnp.asarray([[1, 2, 3, 4, 5, 6], [0, 9, 0, 0, 0, 0], [0, 0, 0, 0, 0, 7], [8, 0, 0, 0, 0, 0]], jnp.float32)
  pool = lambda **options: np.asarray(max_pool(grid[None, :, :, None], 3, 2, **options))[0, :, :, 0].tolist()
  assert pool() == [[9, 5]]
  assert pool(ceil_mode=True) == [[9, 5, 7], [8, 0, 7]]
  assert pool(padding=1) == [[9, 9, 6], [9, 9, 7]]


@pytest.mark.parametrize(
  "window, stride, padding, ceil", [(3, 2, 0, True), (3, 2, 1, False), (2, 2, 0, False), (2, 2, 0, True)]
)
def test_max_pool_equals_a_plain_loop(window, stride, padding, ceil):
  x = np.random.default_rng(1).normal(size=(1, 9, 12, 2)).astype(np.float32)
  found = np.asarray(max_pool(x, window, stride, padding, ceil))[0]
  padded = np.pad(x[0], ((padding, padding + window), (padding, padding + window), (0, 0)), constant_values=-np.inf)
  for i, j in np.ndindex(found.shape[:2]):
    patch = padded[i * stride : i * stride + window, j * stride : j * stride + window]
    np.testing.assert_array_equal(found[i, j], patch.max(axis=(0, 1)))


def test_a_1x1_convolution_is_the_convolution_that_it_replaces():
  x = np.random.default_rng(2).normal(size=(2, 7, 5, 4)).astype(np.float32)
  layer = Conv(6, stride=2)
  variables = layer.init(KEY, x)
  dims = ("NHWC", "HWIO", "NHWC")
  expected = jax.lax.conv_general_dilated(x, variables["params"]["kernel"], (2, 2), "VALID", dimension_numbers=dims)
  np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [2, 4, 6])
def test_a_deconvolution_is_the_transposed_convolution_that_it_replaces(size):
  x = np.random.default_rng(2).normal(size=(2, 3, 5, 4)).astype(np.float32)
  layer = Deconv(6, kernel_size=size)
  variables = layer.init(KEY, x)
  kernel = variables["params"]["kernel"][::-1, ::-1]  # conv_transpose takes it as a correlation's
  expected = jax.lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  margin = size // 2 - 1  # PyTorch's padding
  expected = expected[:, margin : margin + 6, margin : margin + 10]
  np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


def test_the_layers_compute_in_the_dtype_of_their_input():
  outputs = jax.eval_shape(
    lambda x: ResNet(18, levels=(3,)).init_with_output(KEY, x), jnp.zeros((1, 32, 32, 3), jnp.bfloat16)
  )
  assert outputs[0][0].dtype == jnp.bfloat16
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(outputs[1]))


def test_upsampling_repeats_the_nearest_cell():
  x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
  assert np.asarray(upsample(x, (4, 3)))[0, :, :, 0].tolist() == [[1, 1, 2], [1, 1, 2], [3, 3, 4], [3, 3, 4]]


@pytest.mark.long
def test_stages_that_are_computed_anew_have_the_same_gradients():
  images = jax.random.normal(KEY, (1, 64, 64, 3))
  usual = ResNet(18, norm="batch")
  variables = usual.init(KEY, images)

  def gradient(model):
    def loss(params):
      outputs, _ = model.apply(variables | {"params": params}, images, Context(train=True), mutable=["batch_stats"])
      return sum(jnp.sum(level**2) for level in outputs)

    return jax.grad(loss)

  def same(anew, kept):
    np.testing.assert_allclose(anew, kept, rtol=0, atol=1e-5 * np.abs(kept).max())

  anew, kept = gradient(usual.clone(remat=(2, 3, 4, 5))), gradient(usual)
  jax.tree.map(same, jax.jit(anew)(variables["params"]), jax.jit(kept)(variables["params"]))
  # A CPU's compiler may keep the values all the same; what is asked of it stands in the program.
  assert str(jax.make_jaxpr(anew)(variables["params"])).count("remat") >= 4
  assert "remat" not in str(jax.make_jaxpr(kept)(variables["params"]))

"""Layers that the backbones and heads share: convolution, fully connected layer, max pooling, normalisation.

They compute in the dtype of their input (float32 or bfloat16) and keep their parameters in float32, so that the
precision of a whole detector is set in one place, where its images are normalised. Layout is NHWC, kernels HWIO.
Each is written in the form that XLA compiles well on a CPU too; accelerators lose nothing by it.

Biases are added in float32, and so their gradients, sums over all cells and RoIs, are summed in float32. In bfloat16
such a sum stops growing after a few hundred terms. A last layer (`logits=True`) gives float32, not rounded to
bfloat16, in which many logits would be equal and rank by their place.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcnn_jax.ops import random
from rcnn_jax.ops.devices import across_devices
from rcnn_jax.ops.errors import ModelError
from rcnn_jax.types import Array, Batch

Norm = Literal["frozen", "batch", "group"]  # fixed statistics and affine; trainable and synchronised; by groups

# The collection of variables that names the batch norms that a stage of the training has frozen: there is a variable
# `norm` at the path of each.
FROZEN = "frozen"

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
  """A 2-D convolution; a 1×1 kernel is a matrix product, several times faster than XLA's convolution on a CPU."""

  features: int
  kernel_size: int = 1
  stride: int = 1
  padding: int | None = None  # None: half the kernel, which keeps the size at stride 1
  dilation: int = 1
  use_bias: bool = True
  kernel_init: Callable = he_normal
  logits: bool = False  # a last layer; the kernel is 1×1

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x: f[B, H, W, C] -> f[B, H', W', features], f32 where these are logits."""
    size, stride = self.kernel_size, self.stride
    padding = self.dilation * (size - 1) // 2 if self.padding is None else self.padding
    kernel = self.param("kernel", self.kernel_init, (size, size, x.shape[-1], self.features))
    if size == 1 and padding == 0:
      y = _product(x[:, ::stride, ::stride], kernel[0, 0], self.logits)
    else:
      assert not self.logits, "the convolutions that give logits are 1×1"
      kernel = kernel.astype(x.dtype)
      if (stride, self.dilation) == (1, 1):
        y = _dense_convolution(x, kernel, padding, jax.config.jax_default_matmul_precision)
      else:
        y = _convolution(x, kernel, padding, stride=stride, dilation=self.dilation)
    if self.use_bias:
      y = biased(y, self.param("bias", nn.initializers.zeros, (self.features,)))
    return y


def _convolution(
  x: Array, kernel: Array, padding: int, *, stride: int = 1, dilation: int = 1, precision=None
) -> Array:
  """x f[B, H, W, C] by f[h, w, C, F] -> f[B, H', W', F]."""
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((padding, padding),) * 2,
    rhs_dilation=(dilation,) * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=precision,
  )


# Of a map, in a block of the gradient of a kernel: 2×80×80×256 by 3×3 took 92 GFLOP/s whole and 169 in such blocks,
# 64×14×14×256 109 and 171 (2 CPU cores, jax 0.10.1).
CELLS_OF_BLOCK = 1600


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense_convolution(x: Array, kernel: Array, padding: int, precision: str | None) -> Array:
  """`_convolution` of stride 1 whose gradients are, on the CPU, convolutions of that very layout.

  XLA turns the gradients of a convolution into this layout by itself, but not in the branches of a `lax.switch`,
  where the one by the kernel was 100 times slower (8.2 s against 0.08 s for 16×14×14×256, 2 cores, jax 0.10.1).
  """
  return _convolution(x, kernel, padding, precision=precision)


def _dense_convolution_forward(x, kernel, padding, precision):
  return _dense_convolution(x, kernel, padding, precision), (x, kernel)


def _dense_convolution_backward(padding, precision, residuals, cotangent):
  def in_layout(x, kernel, cotangent):
    back = kernel.shape[0] - 1 - padding
    of_x = _convolution(cotangent, jnp.swapaxes(kernel[::-1, ::-1], 2, 3), back, precision=precision)
    return of_x, _kernel_gradient(x, cotangent, padding, precision).astype(kernel.dtype)

  def derived(x, kernel, cotangent):
    return jax.vjp(lambda x, kernel: _convolution(x, kernel, padding, precision=precision), x, kernel)[1](cotangent)

  return jax.lax.platform_dependent(*residuals, cotangent, cpu=in_layout, default=derived)


def _kernel_gradient(x: Array, cotangent: Array, padding: int, precision: str | None) -> Array:
  """f32[h, w, C, F]: the gradient of a convolution's kernel, summed over blocks of cells that fit the CPU's cache.

  x: f[B, H, W, C]; cotangent: f[B, H', W', F]. A block is some images, or some rows of one image and those about them.
  """
  num_images, height, width, _ = cotangent.shape
  size = x.shape[1] + 2 * padding - height + 1
  images = min(num_images, max(1, CELLS_OF_BLOCK // (height * width)))
  rows = min(height, -(-CELLS_OF_BLOCK // width))
  bands = -(-height // rows)
  num_blocks = -(-num_images // images) * bands
  missing = -num_images % images, bands * rows - height  # images and rows of zeros that fill up the last blocks
  x = jnp.pad(x, ((0, missing[0]), (padding, padding + missing[1]), (padding, padding), (0, 0)))
  cotangent = jnp.pad(cotangent, ((0, missing[0]), (0, missing[1]), (0, 0), (0, 0)))

  def add(block, total):
    start = block // bands * images, block % bands * rows, 0, 0
    seen = jax.lax.dynamic_slice(x, start, (images, rows + size - 1, *x.shape[2:]))
    given = jax.lax.dynamic_slice(cotangent, start, (images, rows, *cotangent.shape[2:]))
    # The channels of x in the place of the batch, and the batch in that of the channels.
    exchanged = jnp.transpose(seen, (3, 1, 2, 0)), jnp.moveaxis(given, 0, 2)
    return total + _convolution(*exchanged, 0, precision=precision).astype(jnp.float32)

  total = jnp.zeros((x.shape[3], size, x.shape[2] - width + 1, cotangent.shape[3]), jnp.float32)
  total = add(0, total) if num_blocks == 1 else jax.lax.fori_loop(0, num_blocks, add, total)
  return jnp.moveaxis(total, 0, 2)


_dense_convolution.defvjp(_dense_convolution_forward, _dense_convolution_backward)


class Dense(nn.Module):
  """A fully connected layer."""

  features: int
  use_bias: bool = True
  kernel_init: Callable = nn.initializers.lecun_normal()
  logits: bool = False  # a last layer

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x: f[..., C] -> f[..., features], f32 where these are logits."""
    kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
    y = _product(x, kernel, self.logits)
    return biased(y, self.param("bias", nn.initializers.zeros, (self.features,))) if self.use_bias else y


class OwnLogits(nn.Module):
  """A last 1×1 convolution of which each row has one channel alone: the others are not computed.

  Its parameters are those of `Conv(features, logits=True)`.
  """

  features: int
  kernel_init: Callable = he_normal

  @nn.compact
  def __call__(self, x: Array, channels: Array) -> Array:
    """x: f[R, H, W, C], channels: i32[R], 0..features-1 -> f32[R, H, W]."""
    kernel = self.param("kernel", self.kernel_init, (1, 1, x.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    own = kernel[0, 0].astype(x.dtype).T[channels]
    logits = jnp.einsum("rhwc,rc->rhw", x, own, preferred_element_type=jnp.float32)
    return logits + bias[channels][:, None, None]


def _product(x: Array, kernel: Array, logits: bool) -> Array:
  """x f[..., C] by f32[C, F], in the dtype of x; the result too, but float32, as it was summed, for logits."""
  return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32 if logits else None)


def biased(y: Array, bias: Array) -> Array:
  """y f[..., F] + bias f32[F], in the dtype of y; the sum is that of float32."""
  return (y.astype(jnp.float32) + bias).astype(y.dtype)


def dropped_path(x: Array, context: Any, name: str, rate: float) -> Array:
  """Stochastic depth (arXiv:1603.09382): in training, x f[B, ...] of some images 0, the others' larger by as much.

  context: a `protocols.Context`, whose keys draw it, image by image; name: of the place, so that each draws its own.
  """
  if not context.train or rate == 0:
    return x
  keep = jax.vmap(lambda key: jax.random.bernoulli(random.named(key, name), 1 - rate))(context.keys)
  return jnp.where(keep.reshape(-1, *(1,) * (x.ndim - 1)), x / (1 - rate), 0)


class Deconv(nn.Module):
  """A transposed convolution of stride 2 that doubles the size: a matrix product a cell, whose windows are added up.

  The kernel's size is even; what reaches beyond the doubled size is cut off (PyTorch's padding of size / 2 - 1).
  """

  features: int
  kernel_size: int = 2
  kernel_init: Callable = he_normal
  logits: bool = False  # a last layer

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x: f[B, H, W, C] -> f[B, 2H, 2W, features], f32 where these are logits."""
    size = self.kernel_size
    kernel = self.param("kernel", self.kernel_init, (size, size, x.shape[-1], self.features)).astype(x.dtype)
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    result = jnp.float32 if self.logits else None
    windows = jnp.einsum("bhwc,ijcf->bhiwjf", x, kernel, preferred_element_type=result)
    return biased(_add_windows(_add_windows(windows, 1), 2), bias)


def _add_windows(windows: Array, axis: int) -> Array:
  """[..., N, size, ...] at `axis` -> [..., 2N, ...]: each window begins two elements after the one before."""
  length, size = windows.shape[axis : axis + 2]
  margin = size // 2 - 1
  shape = (*windows.shape[:axis], 2 * length, *windows.shape[axis + 2 :])
  total = jnp.zeros(shape, windows.dtype)
  for start in range(0, size, 2):
    piece = jax.lax.slice_in_dim(windows, start, start + 2, axis=axis + 1).reshape(shape)
    shift = [(0, 0, 0)] * piece.ndim
    shift[axis] = (start - margin, margin - start, 0)
    total += jax.lax.pad(piece, jnp.zeros((), piece.dtype), shift)
  return total


def max_pool(x: Array, window: int, stride: int, padding: int = 0, ceil_mode: bool = False) -> Array:
  """Max pooling, as the maximum of shifted slices: on a CPU its gradient is 3 to 12 times as fast as reduce_window's.

  x: f[B, H, W, C] -> f[B, H', W', C]. `ceil_mode` is PyTorch's: a last window may hang over the border, but not
  begin beyond it. Where two elements of a window are equal, they share the gradient.
  """
  for axis in (1, 2):
    x = _max_pool_axis(x, axis, window, stride, padding, ceil_mode)
  return x


def _max_pool_axis(x: Array, axis: int, window: int, stride: int, padding: int, ceil_mode: bool) -> Array:
  length = x.shape[axis]
  room = length + 2 * padding - window
  out = (-(-room // stride) if ceil_mode else room // stride) + 1
  if ceil_mode and (out - 1) * stride >= length + padding:
    out -= 1
  span = (out - 1) * stride + 1
  after = max(span + window - 1 - length - padding, 0)
  pads = [(0, 0)] * x.ndim
  pads[axis] = (padding, after)
  x = jnp.pad(x, pads, constant_values=-jnp.inf)
  slices = [jax.lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(window)]
  pooled = slices[0]
  for piece in slices[1:]:
    pooled = jnp.maximum(pooled, piece)
  return pooled


def adaptive_max_pool(x: Array, output_size: int) -> Array:
  """The maxima of P x P bins that cover the whole map: f[B, H, W, C] -> f[B, P, P, C].

  Bin i of a side of n cells is floor(i n / P) up to ceil((i + 1) n / P), as in PyTorch. On the maps that AlexNet and
  VGG make of crops, 6 x 6 and 7 x 7 bins are these networks' own last pooling.
  """
  for axis in (1, 2):
    length = x.shape[axis]
    bounds = [(i * length // output_size, -(-(i + 1) * length // output_size)) for i in range(output_size)]
    x = jnp.stack([jax.lax.slice_in_dim(x, *bound, axis=axis).max(axis) for bound in bounds], axis)
  return x


class FrozenBatchNorm(nn.Module):
  """Batch norm with fixed statistics and a fixed affine map, as detectors fine-tune ImageNet backbones.

  All four vectors are variables of `batch_stats`, which no optimiser touches.
  """

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: Array, train: bool, valid: Array | None = None) -> Array:
    del train, valid
    c = x.shape[-1]
    value = lambda name, init: self.variable("batch_stats", name, init, (c,)).value
    scale, bias = value("scale", jnp.ones), value("bias", jnp.zeros)
    mean, var = value("mean", jnp.zeros), value("var", jnp.ones)
    factor = scale * jax.lax.rsqrt(var + self.epsilon)
    return x * factor.astype(x.dtype) + (bias - mean * factor).astype(x.dtype)


class BatchNorm(nn.Module):
  """Trainable batch norm; under a sharded batch its statistics are those of all devices (synchronised).

  The running variance is that of a sample (n - 1), PyTorch's. `valid: bool[B]` leaves rows out of the statistics,
  which flax's own layer cannot do where none is left: then they stay as they are. Where the variables name it as
  frozen (FROZEN), it is in training what it is in detection.
  """

  epsilon: float = 1e-5
  momentum: float = 0.9

  @nn.compact
  def __call__(self, x: Array, train: bool, valid: Array | None = None) -> Array:
    c = x.shape[-1]
    scale, bias = self.param("scale", nn.initializers.ones, (c,)), self.param("bias", nn.initializers.zeros, (c,))
    mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
    var = self.variable("batch_stats", "var", jnp.ones, (c,))
    if not train or self.has_variable(FROZEN, "norm"):
      return self._normalised(x, mean.value, var.value, scale, bias)
    rows = jnp.ones(x.shape[0], bool) if valid is None else valid
    rows = rows.reshape(-1, *(1,) * (x.ndim - 1))
    x = jnp.where(rows, x, 0)
    now_mean, now_var, count = _moments(x.astype(jnp.float32), rows)
    if not self.is_initializing():
      sample_var = now_var * count / jnp.maximum(count - 1, 1)
      for running, now in ((mean, now_mean), (var, sample_var)):
        moved = self.momentum * running.value + (1 - self.momentum) * now
        running.value = jnp.where(count > 0, moved, running.value)
    return self._normalised(x, now_mean, now_var, scale, bias)

  def _normalised(self, x: Array, mean: Array, var: Array, scale: Array, bias: Array) -> Array:
    y = (x.astype(jnp.float32) - mean) * (scale * jax.lax.rsqrt(var + self.epsilon)) + bias
    return y.astype(x.dtype)


def _moments(x: Array, rows: Array) -> tuple[Array, Array, Array]:
  """Mean and variance f32[C] over the `rows` bool[B, 1, 1, 1] of f32[B, H, W, C], and the number of their cells.

  All three are those of the rows of all devices.

  x: 0 in the other rows.
  """
  axes = tuple(range(x.ndim - 1))
  count = across_devices(jnp.sum(rows, dtype=jnp.float32) * math.prod(x.shape[1:-1]))
  mean = across_devices(jnp.sum(x, axes)) / jnp.maximum(count, 1)
  var = across_devices(jnp.sum(jnp.where(rows, jnp.square(x - mean), 0), axes)) / jnp.maximum(count, 1)
  return mean, var, count


class GroupNorm(nn.Module):
  """Group normalisation (arXiv:1803.08494), independent of the batch size."""

  groups: int = 32
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: Array, train: bool, valid: Array | None = None) -> Array:
    del train, valid
    return nn.GroupNorm(self.groups, epsilon=self.epsilon, name="norm")(x.astype(jnp.float32)).astype(x.dtype)


def norm(kind: Norm, name: str, epsilon: float = 1e-5) -> nn.Module:
  """The normalisation layer `kind`: 'frozen', 'batch' or 'group'; raises ModelError for another word.

  Each is called with (x: f[B, H, W, C], train, valid: bool[B] or None for all), of which batch norm alone needs the
  last two.
  """
  match kind:
    case "frozen":
      return FrozenBatchNorm(epsilon, name=name)
    case "batch":
      return BatchNorm(epsilon, name=name)
    case "group":
      return GroupNorm(epsilon=epsilon, name=name)
  raise ModelError(f"norm must be 'frozen', 'batch' or 'group', not {kind!r}")


def normalise(batch: Batch, backbone: nn.Module, dtype) -> Array:
  """Pixels in 0..255 to the statistics of a backbone, zero beyond the image: f[B, H, W, 3]."""
  mean, std = jnp.array(backbone.pixel_mean), jnp.array(backbone.pixel_std)
  pixels = (batch.image.astype(jnp.float32) - mean) / std
  height, width = batch.image.shape[1:3]
  rows = jnp.arange(height)[:, None] < batch.image_size[:, 0, None, None]
  columns = jnp.arange(width) < batch.image_size[:, 1, None, None]
  return jnp.where((rows & columns)[..., None], pixels, 0).astype(dtype)

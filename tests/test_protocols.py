"""A head and a backbone that are not of this project, by what `models/protocols.py` asks of them alone."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcnn_jax.models.backbones.fpn import Fpn
from rcnn_jax.models.backbones.resnet import ResNet
from rcnn_jax.models.backbones.scales import Scales
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.backbones.vgg import Vgg16
from rcnn_jax.models.crops import Pixels
from rcnn_jax.models.detector import init_variables
from rcnn_jax.models.heads import KeypointHead, MaskHead
from rcnn_jax.models.layers import Dense
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.models.protocols import Backbone, Context, ObjectHead
from rcnn_jax.ops import random
from tests.small_detector import CANVAS, scene_batch, small_detector

KEY = jax.random.key(0)


class Fullness(nn.Module):
  """Predicts which part of its box an object fills, as a mask of one cell."""

  pool: RoiAlign = RoiAlign(output_size=2)

  key = "fullness"
  field = "masks"
  is_complete = True

  def with_data(self, categories, keypoints):
    return self

  def annotation(self, num_objects):
    return jnp.zeros((*num_objects, 4, 4), jnp.uint8)

  @nn.compact
  def __call__(self, rois, num_classes, classes, norm_rows):
    return nn.sigmoid(Dense(1, logits=True, name="share")(rois.mean((1, 2)))[:, 0])

  def losses(self, outputs, samples, truth):
    share = jnp.take_along_axis(truth.masks.astype(jnp.float32).mean((2, 3)), samples.matched, axis=1)
    foreground = samples.valid & (samples.classes > 0)
    return {"roi_fullness": jnp.sum(jnp.where(foreground, (outputs - share) ** 2, 0))}

  def detected(self, outputs, found):
    return found.replace(masks=outputs[..., None, None])


class Noise(nn.Module):
  """A backbone that draws its features by chance in training."""

  pixel_mean = (0.0, 0.0, 0.0)
  pixel_std = (1.0, 1.0, 1.0)
  strides = (8,)

  @nn.compact
  def __call__(self, x, context=Context()):
    x = nn.avg_pool(x, (8, 8), (8, 8))
    if context.train:
      x += jax.vmap(lambda key: jax.random.normal(random.named(key, "noise"), x.shape[1:]))(context.keys)
    return (x,)


def test_a_head_of_ones_own_is_trained_and_detects():
  model = small_detector(heads=(Fullness(),))
  variables = init_variables(model, KEY, CANVAS)
  assert set(variables["params"]["fullness"]) == {"share"}
  batch = scene_batch(0)
  half = np.zeros((*batch.truth.valid.shape, 4, 4), np.uint8)
  half[..., :2] = 1
  batch = batch.replace(truth=batch.truth.replace(masks=half))

  def loss(params):
    return model.apply({"params": params}, batch, KEY, method="losses")["roi_fullness"]

  value, gradient = jax.jit(jax.value_and_grad(loss))(variables["params"])
  assert 0 < value and np.any(gradient["fullness"]["share"]["kernel"])
  found = jax.jit(lambda batch: model.apply(variables, batch, method="detect"))(batch.replace(truth=None))
  shares = found.masks[..., 0, 0]
  assert found.valid.any() and ((0 < shares) & (shares < 1))[found.valid].all() and not shares[~found.valid].any()


def test_a_backbone_is_given_a_key_for_each_image():
  model = small_detector(backbone=Noise())
  variables = init_variables(model, KEY, CANVAS)
  batch = scene_batch(0)
  run = jax.jit(lambda batch: model.apply(variables, batch, KEY, method="losses"))
  assert run(batch)["rpn_objectness"] == run(batch)["rpn_objectness"]
  other = batch.replace(image_id=batch.image_id + 100)
  assert run(other)["rpn_objectness"] != run(batch)["rpn_objectness"]


@pytest.mark.parametrize("head", [MaskHead(), KeypointHead(), Fullness()], ids=lambda head: head.key)
def test_heads_offer_what_is_asked_of_them(head: ObjectHead):
  for name in (*ObjectHead.__annotations__, "is_complete", "with_data", "annotation", "losses", "detected"):
    assert hasattr(head, name), name


@pytest.mark.parametrize(
  "backbone",
  [ResNet(18), Fpn(ResNet(18)), SqueezeNet(), Vgg16(), Scales(Vgg16()), Pixels()],
  ids=lambda backbone: type(backbone).__name__,
)
def test_backbones_have_a_stride_for_each_level(backbone: Backbone):
  assert len(backbone.pixel_mean) == len(backbone.pixel_std) == 3
  x = jnp.zeros((1, 64, 64, 3))
  context = Context(train=True, keys=jax.random.split(KEY, 1), valid=jnp.ones(1, bool))
  run = lambda: backbone.init_with_output(KEY, x, context)[0]
  levels = jax.eval_shape(run)
  assert len(levels) == len(backbone.strides)
  for level, stride in zip(levels, backbone.strides, strict=True):
    assert abs(level.shape[1] - 64 / stride) <= 1

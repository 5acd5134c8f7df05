"""Whole networks against torchvision's recorded answers: features, losses with their gradients, detections.

Weights are filled by the names of their parameters, on both sides (tests/filling.py), and so need not be stored.
"""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcnn_jax.models.backbones.fpn import Fpn
from rcnn_jax.models.backbones.resnet import ResNet
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.backbones.vgg import Vgg16
from rcnn_jax.models.detector import Detector, RoiSampler, blank_batch, variable_shapes
from rcnn_jax.models.heads import BoxHead, FcTrunk, MaskHead
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.models.proposers import Rpn
from rcnn_jax.types import Batch, Detections
from rcnn_jax.weights import torchvision
from rcnn_jax.weights.backbone import SQUEEZENET, VGG16, VGG16_BN
from tests import filling
from tests.parity import close, filled_backbone, filled_detector, pair_up, recorded


@pytest.mark.parametrize(
  "name, backbone, positions",
  [
    ("squeezenet", SqueezeNet(levels=(3, 5, 9)), SQUEEZENET),
    ("vgg16", Vgg16(), VGG16),
    ("vgg16_bn", Vgg16(norm="frozen"), VGG16_BN),
    ("resnet18", ResNet(18), {}),
    ("resnet34", ResNet(34), {}),
    ("resnet50", ResNet(50), {}),
  ],
)
def test_features(name, backbone, positions):
  shapes = jax.eval_shape(lambda: backbone.init(jax.random.key(0), feature_pixels()))
  same_features(name, backbone, filled_backbone(shapes, positions))


@pytest.mark.parametrize("depth", [18, 50])
def test_features_of_a_pyramid(depth):
  of_backbone = {collection: tree["backbone"] for collection, tree in variables(depth).items() if "backbone" in tree}
  same_features(f"resnet{depth}_fpn", detector(depth).backbone, of_backbone)


def feature_pixels() -> np.ndarray:
  """f32[1, H, W, 3], normalised pixels of noise."""
  return filling.uniform("features.image", (*filling.FEATURE_CANVAS, 3), -2, 2)[None]


def same_features(name: str, backbone: nn.Module, variables: dict) -> None:
  """Every level is the recorded one, to 1e-4 of its largest value."""
  with jax.default_matmul_precision("highest"):
    outputs = backbone.apply(variables, feature_pixels())  # by operations: a network's blocks share what is compiled
  for level, output in enumerate(outputs):
    key = f"{name}_{level}"
    close(filling.sample(key, output[0])[1:], recorded("features")[key][1:], 1e-4)
    np.testing.assert_allclose(filling.sample(key, output[0])[0], recorded("features")[key][0], rtol=1e-4)


def detector(depth: int = 18) -> Detector:
  """The small Mask R-CNN over a ResNet-FPN, as the recording script builds it with torchvision's parts."""
  setting = filling.DETECTOR
  mask_widths = setting["mask_widths"]
  return Detector(
    backbone=Fpn(ResNet(depth)),
    proposer=Rpn(
      anchor_sizes=setting["anchor_sizes"],
      canvas_strides=True,
      num_pre_nms=setting["num_pre_nms"],
      num_post_nms=setting["num_post_nms"],
      num_samples=filling.EVERY_ANCHOR,
    ),
    pool=RoiAlign(output_size=7, num_levels=4),
    sampler=RoiSampler(num_samples=filling.EVERY_ROI, foreground_fraction=0.5),
    trunk=FcTrunk((setting["trunk_width"],) * 2),
    box=BoxHead(score_threshold=setting["score_threshold"], max_detections=setting["max_detections"]),
    heads=(MaskHead(RoiAlign(14, num_levels=4), num_convs=len(mask_widths), channels=mask_widths[0]),),
    num_classes=setting["num_classes"],
    precision="highest",  # the recorded products are float32's own
  )


@functools.cache
def variables(depth: int = 18) -> dict:
  """The detector's filled variables."""
  model = detector(depth)
  shapes = variable_shapes(model, (64, 64))
  return filled_detector(shapes, model)


def batch_of(images: list[np.ndarray]) -> Batch:
  """The images on a canvas of torchvision's size: that of the largest, rounded up to multiples of 32."""
  canvas = tuple(math.ceil(max(image.shape[axis] for image in images) / 32) * 32 for axis in (0, 1))
  pixels = np.zeros((len(images), *canvas, 3), np.float32)
  for row, image in zip(pixels, images):
    row[: image.shape[0], : image.shape[1]] = image
  blank = blank_batch(len(images), canvas, max_objects=3)
  return blank.replace(image=jnp.asarray(pixels), image_size=jnp.array([image.shape[:2] for image in images]))


@functools.cache
def losses_and_gradients() -> tuple[dict, dict]:
  images, boxes, classes = filling.loss_case()
  batch = batch_of(images)
  masks = jnp.array(filling.loss_masks())
  given_truth = {"boxes": jnp.array(boxes), "classes": jnp.array(classes), "masks": masks}
  truth = batch.truth.replace(valid=jnp.ones((2, 3), bool), **given_truth)

  def total(params):
    given = {"params": params, "batch_stats": variables()["batch_stats"]}
    terms = detector().apply(given, batch.replace(truth=truth), jax.random.key(0), method="losses")
    return sum(terms.values()), terms

  gradients, terms = jax.jit(jax.grad(total, has_aux=True))(variables()["params"])
  return terms, torchvision.export({"params": gradients}, detector())


@pytest.mark.parametrize(
  "ours, theirs",
  [
    ("rpn_objectness", "loss_objectness"),
    ("rpn_box", "loss_rpn_box_reg"),
    ("roi_class", "loss_classifier"),
    ("roi_box", "loss_box_reg"),
    ("roi_mask", "loss_mask"),
  ],
)
def test_losses_of_the_same_samples(ours, theirs):
  terms, _ = losses_and_gradients()
  np.testing.assert_allclose(terms[ours], recorded("losses")[theirs], rtol=1e-4)


def test_gradients_of_the_same_samples():
  _, gradients = losses_and_gradients()
  expected = {k.removeprefix("gradient."): v for k, v in recorded("losses").items() if k.startswith("gradient.")}
  assert set(gradients) == set(expected)
  for name, theirs in expected.items():
    ours = filling.sample(name, gradients[name], 60)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs[1:]).max(), err_msg=name)


@jax.jit
def detect(variables: dict, batch: Batch) -> Detections:
  return detector().apply(variables, batch, method="detect")


def detections(images: list[np.ndarray]) -> list[np.ndarray]:
  """f32[D, 6] of each image: box in pixels of the resized image, score, class."""
  batch = batch_of(images)
  found = jax.tree.map(np.asarray, detect(variables(), batch))
  columns = np.concatenate([found.boxes, found.scores[..., None], found.classes[..., None]], axis=-1)
  return [rows[valid] for rows, valid in zip(columns, found.valid)]


@pytest.mark.long
def test_detections_on_images_that_need_no_resizing():
  twins, total = 0, 0
  for name, image in filling.detect_images().items():
    theirs = recorded("detections_on_noise")[name]
    twins += pair_up(detections([image])[0], theirs).sum()
    total += len(theirs)
  assert total > 100 and twins >= 0.99 * total

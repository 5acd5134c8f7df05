"""In bfloat16 products are rounded once, never sums over many cells and regions, and never what is ranked."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcnn_jax.models.detector import init_variables
from rcnn_jax.models.heads import KeypointHead, MaskHead
from rcnn_jax.models.layers import Conv, Deconv, Dense
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.ops import max_pooling, pooling
from rcnn_jax.types import Proposals
from tests.small_detector import CANVAS, RCNN, scene_batch, small_detector

ONE_ROUNDING = 2.0**-8  # at most what a number loses that is rounded to bfloat16's 8 bits, relative to it
BOXES = np.sort(np.random.default_rng(0).uniform(0, 160, (512, 2, 2)), axis=1).reshape(512, 4).astype(np.float32)


def halves(shape, seed: int):
  """Random numbers f32 that bfloat16 can hold, with a mean, so that their sums grow."""
  drawn = np.random.default_rng(seed).normal(0.3, 1, shape)
  return jnp.asarray(drawn, jnp.bfloat16).astype(jnp.float32)


def distance(half, exact) -> float:
  half, exact = (np.asarray(x, np.float32) for x in (half, exact))
  return float(np.linalg.norm(half - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(
  "pool",
  [
    functools.partial(max_pooling.roi_max_pool, output_size=7, spatial_scale=1 / 16),
    functools.partial(max_pooling.spatial_pyramid, bins=(1, 2, 3, 6), spatial_scale=1 / 16),
    functools.partial(pooling.roi_align, output_size=7, spatial_scale=1 / 16, aligned=True),
  ],
  ids=["roi_max_pool", "spatial_pyramid", "roi_align"],
)
def test_the_gradient_of_pooling_sums_over_512_regions_in_float32(pool):
  features = halves((10, 10, 8), 1)
  seen = halves(jax.eval_shape(pool, features, boxes=BOXES).shape, 2)

  @functools.partial(jax.jit, static_argnums=1)
  def gradient(features, dtype):
    return jax.grad(lambda f: jnp.sum(pool(f.astype(dtype), boxes=BOXES).astype(jnp.float32) * seen))(features)

  # Summed in bfloat16, RoI max pooling was 2.6 % away and the pyramid 1.9 %.
  assert distance(gradient(features, jnp.bfloat16), gradient(features, jnp.float32)) < ONE_ROUNDING


@pytest.mark.parametrize(
  "layer, shape",
  [
    (Conv(8), (2, 80, 80, 4)),
    (Conv(8, kernel_size=3), (2, 80, 80, 4)),
    (Dense(8), (4096, 4)),
    (Deconv(8), (64, 14, 14, 4)),
    (Deconv(8, kernel_size=4, logits=True), (64, 14, 14, 4)),
  ],
  ids=["conv1", "conv3", "dense", "deconv", "deconv_logits"],
)
def test_the_gradients_of_a_layer_sum_over_cells_in_float32(layer, shape):
  x = halves(shape, 3)
  variables = layer.init(jax.random.key(0), x)
  variables = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), variables)
  seen = halves(jax.eval_shape(layer.apply, variables, x).shape, 4)

  @functools.partial(jax.jit, static_argnums=2)
  def gradients(params, x, dtype):
    return jax.grad(lambda p: jnp.sum(layer.apply(p, x.astype(dtype)).astype(jnp.float32) * seen))(params)

  half, exact = (gradients(variables, x, dtype)["params"] for dtype in (jnp.bfloat16, jnp.float32))
  for name in half:  # the bias of a deconvolution over 64 RoIs was 86 % away, that of a convolution 2.5 %
    assert distance(half[name], exact[name]) < ONE_ROUNDING, name


def last_layers(model, batch) -> dict[str, np.ndarray]:
  """What the layers named so give in a training step in bfloat16, by path."""
  variables = init_variables(model, jax.random.key(0), CANVAS)
  named = lambda module, method: module.name in ("objectness", "deltas", "classes", "masks", "deconv")

  @jax.jit
  def run(variables, batch):
    options = dict(capture_intermediates=named, mutable=["intermediates"])
    return model.apply(variables, batch, jax.random.key(0), method="losses", **options)[1]["intermediates"]

  captured = jax.tree_util.tree_leaves_with_path(run(variables, batch))
  return {"/".join(k.key for k in path if hasattr(k, "key")): np.asarray(leaf) for path, leaf in captured}


def test_what_is_ranked_and_what_losses_are_made_of_is_not_rounded_to_bfloat16():
  pool = RoiAlign(output_size=4)
  mask, keypoint = MaskHead(pool, 0, 8), KeypointHead(pool, 0, num_keypoints=2)
  batch = scene_batch(0)
  filled = batch.truth.replace(masks=np.ones((2, 6, 112, 112), np.uint8), keypoints=np.ones((2, 6, 2, 3), np.float32))
  model = small_detector(dtype="bfloat16", heads=(mask, keypoint))
  found = last_layers(model, batch.replace(truth=filled))
  expected = ("proposer/objectness", "proposer/deltas", "box/classes", "box/deltas", "mask/masks", "keypoint/deconv")
  given = Proposals(batch.truth.boxes, np.ones(batch.truth.valid.shape, np.float32), batch.truth.valid)
  of_rcnn = last_layers(RCNN.clone(dtype="bfloat16"), batch.replace(proposals=given))
  logits = {name: found[f"{name}/__call__"] for name in expected} | {"R-CNN": of_rcnn["box/classes/__call__"]}
  for name, values in logits.items():
    values = values[values != 0]
    assert values.dtype == np.float32, name
    assert (values != values.astype(jnp.bfloat16).astype(np.float32)).mean() > 0.9, name
  objectness = logits["proposer/objectness"].reshape(-1)
  rounded = objectness.astype(jnp.bfloat16).astype(np.float32)
  assert len(np.unique(rounded)) < 0.9 * len(objectness)  # ties, which ranked by their place
  assert len(np.unique(objectness)) == len(objectness)

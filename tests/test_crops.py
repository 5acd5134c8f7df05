"""R-CNN's crops and SPPnet's pyramid as parts of a detector: chunks, memory, and images of any size."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcnn_jax.models.backbones.scales import Scales
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.backbones.vgg import Vgg16
from rcnn_jax.models.classifier import PyramidClassifier
from rcnn_jax.models.crops import CropNetwork
from rcnn_jax.models.detector import blank_batch, init_variables, variable_shapes
from rcnn_jax.models.heads import FcTrunk
from rcnn_jax.models.layers import adaptive_max_pool, max_pool
from rcnn_jax.models.pooling import SpatialPyramid, WarpCrop
from rcnn_jax.models.rcnn_head import RcnnHead
from rcnn_jax.types import Proposals
from tests.small_detector import CANVAS, RCNN, SmallBackbone, fresh, scene_batch

SPPNET = RCNN.clone(backbone=SmallBackbone(), pool=SpatialPyramid(bins=(1, 2)))


def with_proposals(batch, count=21):
  """Random boxes, the last three of them not valid."""
  rng = np.random.default_rng(1)
  low = rng.uniform(0, 30, (len(batch.image), count, 2))
  boxes = np.concatenate([low, low + rng.uniform(6, 24, low.shape)], -1).astype(np.float32)
  valid = np.broadcast_to(np.arange(count) < count - 3, boxes.shape[:2])
  return batch.replace(proposals=Proposals(boxes, np.ones(boxes.shape[:2], np.float32), valid))


def of(model):
  """Fresh variables, with SVMs and ridge regression as if they had been fitted."""
  variables = fresh(model)
  box, key = variables["params"]["box"], jax.random.key(1)
  for name in ("svm", "ridge"):
    box[name]["kernel"] = 0.1 * jax.random.normal(key, box[name]["kernel"].shape)
  box["svm"]["scale"] = jnp.float32(0.5)
  return variables


@functools.cache
def program(model, method):
  return jax.jit(lambda variables, *inputs: model.apply(variables, *inputs, method=method))


@pytest.mark.parametrize(
  "model, method",
  [(RCNN, "detect"), pytest.param(SPPNET, "regions", marks=pytest.mark.long)],
  ids=["R-CNN", "SPPnet"],
)
def test_regions_in_chunks_are_regions_at_once(model, method):
  batch, variables, chunked = with_proposals(scene_batch(0)), of(model), model.clone(roi_chunk=8)
  template = variable_shapes(chunked, CANVAS)
  assert jax.tree.structure(template) == jax.tree.structure(variables)
  inputs = (variables, batch) if method == "detect" else (variables, batch, batch.proposals.boxes)
  whole = program(model, method)(*inputs)
  same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(same, program(chunked, method)(*inputs), whole)


@pytest.mark.parametrize("model", [RCNN, SPPNET], ids=["R-CNN", "SPPnet"])
def test_proposals_that_are_not_valid_change_nothing(model):
  batch, variables, key = with_proposals(scene_batch(0)), of(model), jax.random.key(2)
  losses, found = program(model, "losses")(variables, batch, key), program(model, "detect")(variables, batch)
  for garbage in (np.nan, np.inf, -3e38):
    boxes = np.where(batch.proposals.valid[..., None], batch.proposals.boxes, np.float32(garbage))
    spoiled = batch.replace(proposals=batch.proposals.replace(boxes=boxes))
    jax.tree.map(np.testing.assert_array_equal, program(model, "losses")(variables, spoiled, key), losses)
    jax.tree.map(np.testing.assert_array_equal, program(model, "detect")(variables, spoiled), found)


def test_an_image_without_proposals_trains_on_its_objects_and_detects_nothing():
  batch, variables = with_proposals(scene_batch(0)), of(RCNN)
  none = batch.replace(proposals=batch.proposals.replace(valid=np.zeros_like(batch.proposals.valid)))
  assert np.isfinite(program(RCNN, "losses")(variables, none, jax.random.key(0))["roi_class"])
  assert not np.asarray(program(RCNN, "detect")(variables, none).valid).any()


def test_before_the_fits_the_softmax_scores_and_boxes_stay():
  batch, variables = with_proposals(scene_batch(0)), fresh(RCNN)
  found = program(RCNN, "detect")(variables, batch)
  assert (np.asarray(found.scores)[found.valid] > 0.1).all()
  # Each box is a proposal clipped to its image.
  height, width = batch.image_size[0]
  proposals = np.clip(batch.proposals.boxes[0], 0, [width, height, width, height])
  distance = np.abs(np.asarray(found.boxes[0])[:, None] - proposals).max(-1).min(1)
  assert distance[found.valid[0]].max() < 1e-4


def test_scores_and_regression_are_chosen_at_detection():
  batch, variables = with_proposals(scene_batch(0)), of(RCNN)
  softmax = RCNN.clone(box=RcnnHead(max_detections=10, scores="softmax", regression="none"))
  found, by_softmax = (program(model, "detect")(variables, batch) for model in (RCNN, softmax))
  assert 0 < np.asarray(by_softmax.scores)[by_softmax.valid].min() < np.asarray(by_softmax.scores).max() < 1
  trunk, pooled = program(RCNN, "regions")(variables, batch, batch.proposals.boxes)
  svm, ridge = variables["params"]["box"]["svm"], variables["params"]["box"]["ridge"]
  decisions = np.where(batch.proposals.valid[..., None], 0.5 * trunk @ svm["kernel"] + svm["bias"], -np.inf)
  np.testing.assert_allclose(found.scores[:, 0], decisions.max((1, 2)), rtol=1e-4)
  row, k = np.unravel_index(decisions[0].argmax(), decisions[0].shape)
  assert found.classes[0, 0] == k + 1
  dx = (np.asarray(pooled)[0, row] @ np.asarray(ridge["kernel"]).reshape(-1, 8)).reshape(2, 4)[k, 0]
  x1, _, x2, _ = batch.proposals.boxes[0, row]
  width, right = x2 - x1, batch.image_size[0, 1]
  centre = (x1 + x2) / 2 + dx * width
  got = np.asarray(found.boxes[0, 0])
  if 0 < got[0] and got[2] < right:
    np.testing.assert_allclose((got[0] + got[2]) / 2, centre, rtol=1e-4)


def test_2000_crops_of_227_pixels_need_less_than_2_gib():
  network = CropNetwork(SqueezeNet(), WarpCrop(227, 16), output_size=6)
  model = RCNN.clone(pool=network, trunk=FcTrunk((256,)), roi_chunk=32)
  canvas = (480, 640)
  variables = variable_shapes(model, canvas)
  batch = jax.eval_shape(lambda: blank_batch(1, canvas, max_objects=2000))
  memory = program(model, "detect").lower(variables, batch).compile().memory_analysis()
  assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 2 * 2**30


@pytest.mark.parametrize("size, side", [(13, 6), (14, 7)])
def test_the_pooling_of_crops_is_alexnets_and_vggs_own(size, side):
  x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
  own = max_pool(x, 3, 2) if size == 13 else max_pool(x, 2, 2)
  np.testing.assert_array_equal(adaptive_max_pool(x, side), own)


@pytest.mark.parametrize("network", [SqueezeNet(), Vgg16()], ids=["SqueezeNet", "VGG-16"])
def test_crop_networks_give_six_by_six_cells(network):
  model = RCNN.clone(pool=CropNetwork(network, WarpCrop(64, 4), output_size=6))
  batch = jax.eval_shape(lambda: blank_batch(1, CANVAS))
  variables = variable_shapes(model, CANVAS)
  _, pooled = jax.eval_shape(program(model, "regions"), variables, batch, batch.proposals.boxes)
  assert pooled.shape == (1, 8, 6 * 6 * 512)


def test_a_crop_of_anything_but_the_image_is_refused():
  with pytest.raises(ValueError, match="backbone=Pixels"):
    init_variables(RCNN.clone(backbone=SmallBackbone()), jax.random.key(0), CANVAS)


def test_regions_are_pooled_from_the_scale_on_which_they_are_as_large_as_asked_for():
  pool = SpatialPyramid(bins=(1,), canonical_cells=2.0)
  rois = np.float32([[0, 0, 16, 16], [0, 0, 8, 8], [0, 0, 32, 32], [0, 0, 40, 40], [5, 5, 5, 5]])
  # Cells of 8 pixels, of 16 and of 4: the areas are 4, 1, 16, 25 and 0 cells on the first.
  levels = pool.level_of(rois, (8.0, 16.0, 4.0))
  np.testing.assert_array_equal(levels, [0, 2, 1, 1, 0])
  maps = tuple(np.full((40 // s, 40 // s, 1), s, np.float32) for s in (8, 16, 4))
  np.testing.assert_array_equal(pool(maps, rois, (8.0, 16.0, 4.0))[:, 0, 0], [8, 4, 16, 16, 8])


def test_scales_are_one_network_over_resized_images():
  backbone = Scales(SmallBackbone(), scales=(1.0, 0.5))
  assert backbone.strides == (8, 16) and backbone.pixel_mean == SmallBackbone().pixel_mean
  image = jax.random.normal(jax.random.key(0), (1, *CANVAS, 3))
  variables = backbone.init(jax.random.key(1), image)
  assert list(variables["params"]) == ["network"]
  same, half = backbone.apply(variables, image)
  np.testing.assert_allclose(same, SmallBackbone().apply({"params": variables["params"]["network"]}, image)[0])
  assert half.shape == (1, 3, 4, 16)
  shapes = variable_shapes(SPPNET.clone(backbone=backbone), CANVAS)
  assert shapes["params"]["trunk"]["fc6"]["kernel"].shape == (5 * 16, 32)


@pytest.mark.long
def test_one_classifier_takes_images_of_any_size():
  model = PyramidClassifier(SmallBackbone(), FcTrunk((8,)), num_classes=5, pool=SpatialPyramid((1, 2)))
  images = {size: jax.random.normal(jax.random.key(0), (2, *size, 3)) for size in ((48, 64), (80, 40))}
  variables = model.init(jax.random.key(1), images[48, 64])
  apply = jax.jit(functools.partial(model.apply, capture_intermediates=True))
  outputs = [apply(variables, x)[0] for x in images.values()]
  assert [a.shape for a in outputs] == [(2, 5), (2, 5)]
  # The trunk sees the maxima of the whole map, 10 by 5 cells, and of its quarters, which share the middle column.
  seen = apply(variables, images[80, 40])[1]["intermediates"]
  ((features,),) = seen["backbone"]["__call__"]
  (hidden,) = seen["trunk"]["fc6"]["__call__"]
  parts = [features, features[:, :5, :3], features[:, :5, 2:], features[:, 5:, :3], features[:, 5:, 2:]]
  pooled = np.concatenate([np.asarray(part).max((1, 2)) for part in parts], -1)
  np.testing.assert_allclose(hidden, pooled @ variables["params"]["trunk"]["fc6"]["kernel"], atol=1e-4)

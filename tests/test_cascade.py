"""Cascade R-CNN: stages on the boxes of the one before, matched by their own IoU; all scores, the last boxes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rcnn_jax.models.cascade import THREE_STAGES, Refinement, mean_logits, refined, scale_gradient
from rcnn_jax.models.detector import init_variables, variable_shapes
from rcnn_jax.models.heads import BoxHead, FcTrunk, MaskHead
from rcnn_jax.models.pooling import RoiAlign
from rcnn_jax.ops import boxes as box_ops
from rcnn_jax.types import GroundTruth
from tests.small_detector import CANVAS, compiled, scene_batch, small_detector

KEY = jax.random.key(7)
CASCADE = small_detector(
  cascade=THREE_STAGES, box=BoxHead(class_agnostic=True, max_detections=10, score_threshold=0.01)
)
SECOND, THIRD = THREE_STAGES


@functools.cache
def fresh():
  return init_variables(CASCADE, jax.random.key(0), CANVAS)


def truth_of(boxes, classes, valid=None):
  none = jnp.zeros(len(boxes), bool)
  valid = ~none if valid is None else jnp.array(valid)
  return GroundTruth(jnp.array(boxes, jnp.float32), jnp.array(classes), crowd=none, difficult=none, valid=valid)


def assert_same(a, b, **tolerance):
  for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(
      left, right, err_msg=jax.tree_util.keystr(path), **(tolerance or {"rtol": 0, "atol": 0})
    )


# ------------------------------------------------------------------------------------------------------- by eye


# Beside the object (0, 0, 10, 10), boxes of IoU 0.5, 0.65, 0.7 and 1; (50, 50, 60, 60) is far away.
ROIS = jnp.array([[0, 0, 10, 5], [0, 0, 10, 6.5], [0, 0, 10, 7], [0, 0, 10, 10], [50, 50, 60, 60]], jnp.float32)


@pytest.mark.parametrize(
  "stage, classes", [(Refinement(0.5), [2, 2, 2, 2, 0]), (SECOND, [0, 2, 2, 2, 0]), (THIRD, [0, 0, 2, 2, 0])]
)
def test_each_stage_matches_all_regions_by_its_own_iou(stage, classes):
  samples = stage.samples(ROIS, jnp.ones(5, bool), truth_of([[30, 30, 40, 40], [0, 0, 10, 10]], [1, 2]))
  assert samples.classes.tolist() == classes
  assert samples.matched.tolist()[:4] == [1, 1, 1, 1]
  assert samples.valid.all()
  np.testing.assert_array_equal(samples.boxes, ROIS)  # the same rows: nothing is drawn, the truth does not join


def test_without_objects_all_regions_are_background():
  samples = SECOND.samples(ROIS, jnp.ones(5, bool), truth_of([[0, 0, 10, 10]], [2], valid=[False]))
  assert samples.valid.all() and samples.classes.tolist() == [0] * 5


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -7.0])
def test_regions_that_are_not_valid_stay_so_and_those_without_extent_become_so(garbage):
  truth = truth_of([[0, 0, 10, 10], [garbage] * 4], [2, 1], valid=[True, False])
  rois = jnp.array([[0, 0, 10, 10], [garbage] * 4, [5, 0, 5, 10], [4, 4, 2, 9]], jnp.float32)
  for samples_of in (SECOND.samples, jax.jit(SECOND.samples)):
    samples = samples_of(rois, jnp.array([True, False, True, True]), truth)
    assert samples.valid.tolist() == [True, False, False, False]
    assert samples.classes.tolist() == [2, 0, 0, 0]
    np.testing.assert_array_equal(samples.boxes, [[0, 0, 10, 10], [0] * 4, [0] * 4, [0] * 4])


def test_the_next_regions_are_decoded_by_the_stages_own_weights_and_clipped():
  # dx = 1 at weight 20 is a twentieth of the width; the second box leaves the image of 50 x 40 to the right.
  rois = jnp.array([[0, 0, 20, 10], [30, 0, 50, 10]], jnp.float32)
  deltas = jnp.array([[[1, 0, 0, 0]], [[1, 0, 0, 0]]], jnp.float32)
  size = jnp.array([50, 40])
  np.testing.assert_allclose(
    refined(deltas, rois, size, SECOND.delta_weights), [[1, 0, 21, 10], [31, 0, 40, 10]], atol=1e-5
  )
  compiled_alike = jax.jit(refined, static_argnums=3)(deltas, rois, size, SECOND.delta_weights)
  np.testing.assert_allclose(compiled_alike, refined(deltas, rois, size, SECOND.delta_weights), rtol=1e-6)
  assert not jax.grad(lambda deltas: refined(deltas, rois, size, SECOND.delta_weights).sum())(deltas).any()
  with pytest.raises(ValueError, match="set box.class_agnostic"):
    refined(jnp.zeros((2, 3, 4)), rois, size, SECOND.delta_weights)


def test_class_probabilities_are_the_mean_of_the_stages():
  probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.4, 0.5, 0.1]])
  logits = [jnp.log(row) + shift for row, shift in zip(probabilities, (0.0, 5.0, -3.0))]
  np.testing.assert_allclose(jax.nn.softmax(mean_logits(logits)), [0.4, 0.5, 0.1], rtol=1e-5)
  certain = [jnp.array([0.0, 200.0]), jnp.array([200.0, 0.0])]
  np.testing.assert_allclose(jax.nn.softmax(mean_logits(certain)), [0.5, 0.5], rtol=1e-5)


def test_a_scaled_gradient_leaves_the_value_alone():
  value, gradient = jax.value_and_grad(lambda x: 2 * scale_gradient(x, 1 / 3))(jnp.float32(0.1))
  assert value == 2 * jnp.float32(0.1)
  assert gradient == pytest.approx(2 / 3)


# --------------------------------------------------------------------------------------------------- the detector


def test_stages_have_parameters_of_their_own_and_the_first_ones_are_those_of_a_detector_without_them():
  params = fresh()["params"]
  plain = variable_shapes(CASCADE.clone(cascade=()), CANVAS)["params"]
  assert set(params) - set(plain) == {"trunks_1", "trunks_2", "box_heads_1", "box_heads_2"}
  shapes = functools.partial(jax.tree.map, jnp.shape)
  assert shapes(params["trunk"]) == shapes(params["trunks_1"]) == shapes(plain["trunk"])
  assert shapes(params["box"]) == shapes(params["box_heads_2"]) == shapes(plain["box"])
  kernels = [params[name]["fc6"]["kernel"] for name in ("trunk", "trunks_1", "trunks_2")]
  assert not np.array_equal(kernels[0], kernels[1]) and not np.array_equal(kernels[1], kernels[2])


def with_shift(params, name, dx):
  """The parameters with a stage's box head that outputs (dx, 0, 0, 0) to every region."""
  zero = jax.tree.map(jnp.zeros_like, params[name]["deltas"])
  return params | {name: params[name] | {"deltas": zero | {"bias": zero["bias"].at[0].set(dx)}}}


def test_boxes_go_from_stage_to_stage_and_the_last_ones_are_detected():
  # A tenth, a twentieth and a thirtieth of the width to the right: the anchors' width stays what it is.
  params = fresh()["params"]
  for name in ("box", "box_heads_1", "box_heads_2"):
    params = with_shift(params, name, 1.0)

  def outputs(detector, batch):
    features = detector.backbone(detector.normalise(batch))
    proposals, _ = detector.proposer(features, detector.backbone.strides, batch, None)
    first = detector.box_outputs(*detector.pool_and_embed(features, proposals.boxes, None, proposals.valid))
    last, regions = detector.cascade_outputs(features, first, proposals, batch)
    return proposals, last, regions

  batch = scene_batch(0)
  batch = batch.replace(image_size=batch.image_size * 100)  # so that nothing is clipped
  proposals, (_, deltas), regions = jax.jit(lambda batch: CASCADE.apply({"params": params}, batch, method=outputs))(
    batch
  )
  moved = proposals.boxes.at[..., ::2].add(box_ops.widths(proposals.boxes)[..., None] * (1 / 10 + 1 / 20))
  np.testing.assert_allclose(regions.boxes, moved, rtol=1e-5, atol=1e-3)
  np.testing.assert_allclose(deltas[..., 0, :], np.broadcast_to([1, 0, 0, 0], (*deltas.shape[:2], 4)))


def test_a_stage_is_trained_on_the_boxes_of_the_stage_before():
  # A first stage that throws all boxes off its objects leaves the second and the third without foreground.
  batch = scene_batch(0)
  thrown = {"params": with_shift(fresh()["params"], "box", -40.0)}
  before = compiled("losses", CASCADE)(fresh(), batch, KEY)
  after = compiled("losses", CASCADE)(thrown, batch, KEY)
  stages = [f"roi_{term}_{n}" for n in (1, 2, 3) for term in ("class", "box")]
  assert set(before) == {"rpn_objectness", "rpn_box", *stages}
  assert all(before[term] > 0 for term in stages)
  assert after["roi_class_1"] == before["roi_class_1"]
  assert after["roi_box_2"] == after["roi_box_3"] == 0


def test_a_stage_teaches_the_features_by_a_third_and_its_own_layers_in_full():
  plain, params = CASCADE.clone(cascade=()), fresh()["params"]

  def loss(params, model, term):
    # The plain detector has no parameters for later stages.
    own = {name: leaf for name, leaf in params.items() if model.cascade or name[-2:] not in ("_1", "_2")}
    return model.apply({"params": own}, scene_batch(0), KEY, method="losses")[term]

  both = lambda params: (jax.grad(loss)(params, CASCADE, "roi_class_1"), jax.grad(loss)(params, plain, "roi_class"))
  of_stage, of_plain = jax.jit(both)(params)
  assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(of_plain["backbone"]))
  third = jax.tree.map(lambda leaf: leaf / 3, of_plain["backbone"])
  assert_same(of_stage["backbone"], third, rtol=1e-4, atol=1e-7)
  for name in ("trunk", "box"):
    assert_same(of_stage[name], of_plain[name], rtol=1e-4, atol=1e-7)
  for name in ("trunks_1", "box_heads_2", "proposer"):
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(of_stage[name]))


def with_garbage(batch):
  """The same batch with nonsense wherever nothing is valid: truth rows, and pixels beyond each image."""
  truth, image = batch.truth, batch.image.copy()
  rows = ~truth.valid
  boxes = np.where(rows[..., None], np.nan, truth.boxes).astype(np.float32)
  for b, (height, width) in enumerate(batch.image_size):
    image[b, height:], image[b, :, width:] = 255, 255
  return batch.replace(truth=truth.replace(boxes=boxes, classes=np.where(rows, 99, truth.classes)), image=image)


@pytest.mark.parametrize("method, inputs", [("losses", (KEY,)), ("detect", ())])
def test_garbage_where_nothing_is_valid_changes_no_output(method, inputs):
  clean = compiled(method, CASCADE)(fresh(), scene_batch(1), *inputs)
  assert_same(clean, compiled(method, CASCADE)(fresh(), with_garbage(scene_batch(1)), *inputs))


def test_without_objects_the_losses_are_finite_and_of_boxes_zero():
  terms = compiled("losses", CASCADE)(fresh(), scene_batch(0, num_objects=0), KEY)
  assert all(np.isfinite(value) for value in terms.values())
  assert terms["roi_box_1"] == terms["roi_box_2"] == terms["roi_box_3"] == 0


def test_a_batch_is_detected_as_its_images_one_by_one():
  batch = scene_batch(3)
  together = compiled("detect", CASCADE)(fresh(), batch)
  for b in range(2):
    twice = jax.tree.map(lambda leaf: np.repeat(leaf[b : b + 1], 2, axis=0), batch)
    alone = jax.tree.map(lambda leaf: leaf[0], compiled("detect", CASCADE)(fresh(), twice))
    assert_same(jax.tree.map(lambda leaf: leaf[b], together), alone, rtol=1e-5, atol=1e-4)


def test_a_mask_head_stands_behind_the_cascade():
  model = CASCADE.clone(heads=(MaskHead(pool=RoiAlign(output_size=4), num_convs=1, channels=8),))
  batch = scene_batch(0)
  masks = np.ones((*batch.truth.valid.shape, 112, 112), np.uint8)
  batch = batch.replace(truth=batch.truth.replace(masks=masks))
  shapes = jax.eval_shape(lambda: model.init(KEY, batch, method="detect"))
  terms = jax.eval_shape(lambda variables: model.apply(variables, batch, KEY, method="losses"), shapes)
  assert "roi_mask" in terms and "roi_class_3" in terms
  found = jax.eval_shape(lambda variables: model.apply(variables, batch, method="detect"), shapes)
  assert found.masks.shape == (2, 10, 8, 8)


@pytest.mark.long
def test_two_scenes_are_learnt_by_heart():
  """Every object is found at a high IoU, which is what the later stages are for."""
  batch = scene_batch(8)
  optimizer = optax.adam(3e-3)

  def step(carry, key):
    params, state = carry
    loss = lambda params: sum(CASCADE.apply({"params": params}, batch, key, method="losses").values())
    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradients, state)
    return (optax.apply_updates(params, updates), state), (value, jax.tree.map(lambda g: jnp.abs(g).max(), gradients))

  start = fresh()["params"], optimizer.init(fresh()["params"])
  train = jax.jit(lambda start: jax.lax.scan(step, start, jax.random.split(KEY, 400)))
  (params, _), (values, gradients) = train(start)
  assert np.isfinite(values).all()
  assert all((np.asarray(leaf) > 0).any() for leaf in jax.tree.leaves(gradients))  # every parameter moves
  found = compiled("detect", CASCADE)({"params": params}, batch)
  for b in range(2):
    sure = np.asarray(found.valid[b] & (found.scores[b] > 0.5))
    valid = batch.truth.valid[b]
    overlaps = np.asarray(box_ops.iou(found.boxes[b][sure], batch.truth.boxes[b][valid]))
    same_class = np.asarray(found.classes[b])[sure][:, None] == batch.truth.classes[b][valid]
    assert sure.sum() == valid.sum()
    assert ((overlaps * same_class).max(axis=0) >= 0.75).all(), overlaps


def test_the_dropout_of_every_stage_belongs_to_the_image():
  model = CASCADE.clone(trunk=FcTrunk((32,), dropout=0.5), cascade=(SECOND,))
  batch = scene_batch(5)
  swapped = jax.tree.map(lambda leaf: leaf[::-1], batch)
  run = lambda batch: compiled("losses", model)(fresh(), batch, KEY)
  assert_same(run(batch), run(swapped), rtol=1e-5, atol=1e-6)
  kept = compiled("losses", CASCADE.clone(cascade=(SECOND,)))(fresh(), batch, KEY)
  assert all(kept[f"roi_class_{stage}"] != run(batch)[f"roi_class_{stage}"] for stage in (1, 2))

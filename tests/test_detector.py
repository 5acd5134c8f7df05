"""The detector as a whole: its losses and detections, under the law that padding changes nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcnn_jax.data.source import KeypointNames
from rcnn_jax.models.backbones.fpn import Fpn
from rcnn_jax.models.detector import Detector, RoiSampler, init_variables, trainable
from rcnn_jax.models.heads import BoxHead, ConvTrunk, KeypointHead, MaskHead, Res5Trunk
from rcnn_jax.models.pooling import RoiAlign, RoiMaxPool
from rcnn_jax.models.proposers import External, ProposalError, Rpn
from rcnn_jax.ops import boxes as box_ops
from rcnn_jax.ops.errors import ModelError
from rcnn_jax.types import GroundTruth, Proposals, RoiSamples
from tests.small_detector import CANVAS, SmallBackbone, compiled, scene_batch, small_detector, variables

KEY = jax.random.key(7)


def assert_same(a, b, **tolerance):
  for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(
      left, right, err_msg=jax.tree_util.keystr(path), **(tolerance or {"rtol": 0, "atol": 0})
    )


def with_garbage(batch):
  """The same batch with nonsense wherever nothing is valid: truth rows, and pixels beyond each image."""
  truth = batch.truth
  rows = ~truth.valid
  boxes = np.where(rows[..., None], np.nan, truth.boxes).astype(np.float32)
  truth = truth.replace(boxes=boxes, classes=np.where(rows, 99, truth.classes), crowd=truth.crowd | rows)
  image = batch.image.copy()
  for b, (height, width) in enumerate(batch.image_size):
    image[b, height:], image[b, :, width:] = 255, 255
  return batch.replace(truth=truth, image=image)


def test_the_four_losses_are_finite_and_move_every_parameter():
  loss = lambda params: sum(compiled("losses")({"params": params}, scene_batch(0), KEY).values())
  terms = compiled("losses")(variables(), scene_batch(0), KEY)
  assert set(terms) == {"rpn_objectness", "rpn_box", "roi_class", "roi_box"}
  assert all(np.isfinite(value) and value > 0 for value in terms.values())
  gradients = jax.grad(loss)(variables()["params"])
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_an_image_without_objects_has_finite_losses_and_gradients():
  batch = scene_batch(0, num_objects=0)
  loss = lambda params: sum(compiled("losses")({"params": params}, batch, KEY).values())
  value, gradients = jax.value_and_grad(loss)(variables()["params"])
  assert np.isfinite(value)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
  terms = compiled("losses")(variables(), batch, KEY)
  assert terms["rpn_box"] == 0 and terms["roi_box"] == 0


@pytest.mark.parametrize("method, inputs", [("losses", (KEY,)), ("detect", ())])
def test_garbage_where_nothing_is_valid_changes_no_output(method, inputs):
  clean = compiled(method)(variables(), scene_batch(1), *inputs)
  dirty = compiled(method)(variables(), with_garbage(scene_batch(1)), *inputs)
  assert_same(clean, dirty)


def test_an_image_that_only_fills_up_the_batch_adds_nothing_to_the_losses():
  whole = scene_batch(2)
  filled = whole.replace(valid=np.array([True, False]))
  first = jax.tree.map(lambda leaf: np.repeat(leaf[:1], 2, axis=0), whole).replace(valid=np.array([True, False]))
  assert_same(compiled("losses")(variables(), filled, KEY), compiled("losses")(variables(), first, KEY))


def test_a_batch_is_detected_as_its_images_one_by_one():
  batch = scene_batch(3)
  together = compiled("detect")(variables(), batch)
  for b in range(2):
    twice = jax.tree.map(lambda leaf: np.repeat(leaf[b : b + 1], 2, axis=0), batch)
    alone = jax.tree.map(lambda leaf: leaf[0], compiled("detect")(variables(), twice))
    assert_same(jax.tree.map(lambda leaf: leaf[b], together), alone, rtol=1e-5, atol=1e-4)


def test_jit_equals_eager():
  batch = scene_batch(4, batch_size=1)
  eager = small_detector().apply(variables(), batch, method="detect")
  assert_same(compiled("detect")(variables(), batch), eager, rtol=1e-4, atol=1e-3)


def test_random_draws_depend_on_the_image_and_not_on_its_place_in_the_batch():
  batch = scene_batch(5)
  swapped = jax.tree.map(lambda leaf: leaf[::-1], batch)
  assert_same(
    compiled("losses")(variables(), batch, KEY), compiled("losses")(variables(), swapped, KEY), rtol=1e-5, atol=1e-6
  )


def test_detections_lie_in_the_image_by_falling_score_and_without_duplicates():
  batch = scene_batch(6)
  found = jax.tree.map(np.asarray, compiled("detect")(variables(), batch))
  assert found.valid.any()
  for b in range(2):
    valid = found.valid[b]
    boxes, scores, classes = found.boxes[b][valid], found.scores[b][valid], found.classes[b][valid]
    height, width = batch.image_size[b]
    assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
    assert (np.diff(scores) <= 0).all() and (scores > 0.01).all()
    same_class = (classes[:, None] == classes) & ~np.eye(len(classes), dtype=bool)
    assert (np.asarray(box_ops.iou(boxes, boxes))[same_class] <= 0.5).all()


def test_rpn_proposals_lie_in_the_image_and_obey_its_nms():
  batch = scene_batch(6)
  model = small_detector()

  def propose(module, batch):
    return module.proposer(module.backbone(module.normalise(batch)), module.backbone.strides, batch, None)[0]

  proposals = jax.tree.map(np.asarray, model.apply(variables(), batch, method=propose))
  assert proposals.boxes.shape == (2, 20, 4)
  for b in range(2):
    kept = proposals.boxes[b][proposals.valid[b]]
    height, width = batch.image_size[b]
    assert len(kept) and (kept >= 0).all() and (kept <= [width, height, width, height]).all()
    overlaps = np.asarray(box_ops.iou(kept, kept))[~np.eye(len(kept), dtype=bool)]
    assert (overlaps <= 0.7).all()


def truth_of(boxes, classes, crowd=None):
  count = len(boxes)
  crowd = np.zeros(count, bool) if crowd is None else np.array(crowd)
  none = np.zeros(count, bool)
  return GroundTruth(
    boxes=jnp.asarray(boxes, jnp.float32), classes=jnp.asarray(classes), crowd=crowd, difficult=none, valid=~none
  )


def test_the_sampler_takes_the_truth_as_proposals_and_no_crowd_as_foreground():
  batch = scene_batch(0, batch_size=1)
  truth = truth_of([[0, 0, 10, 10], [20, 0, 40, 20]], [2, 1], crowd=[False, True])
  truth = jax.tree.map(
    lambda leaf: leaf[0], trainable(batch.replace(truth=jax.tree.map(lambda leaf: leaf[None], truth)))
  )
  proposals = Proposals(
    boxes=jnp.array([[0, 0, 10, 9], [20, 0, 40, 20], [50, 50, 60, 60], [0, 0, 1, 1]], jnp.float32),
    scores=jnp.ones(4),
    valid=jnp.array([True, True, True, False]),
  )
  samples = RoiSampler(num_samples=8, foreground_fraction=0.5)(proposals, truth, KEY)
  chosen = {
    tuple(box): int(cls) for box, cls, ok in zip(samples.boxes.tolist(), samples.classes, samples.valid) if ok
  }
  assert chosen == {(0, 0, 10, 10): 2, (0, 0, 10, 9): 2, (20, 0, 40, 20): 0, (50, 50, 60, 60): 0}


def test_below_the_floor_no_proposal_is_background():
  truth = truth_of([[0, 0, 10, 10]], [1])
  proposals = Proposals(
    boxes=jnp.array([[0, 0, 10, 9], [0, 0, 10, 3], [9, 9, 19, 19], [50, 50, 60, 60]], jnp.float32),
    scores=jnp.ones(4),
    valid=jnp.ones(4, bool),
  )  # IoU 0.9, 0.3, 0.005 and 0
  samples = RoiSampler(num_samples=8, background_floor=0.1, add_truth=False)(proposals, truth, KEY)
  chosen = [(box, int(cls)) for box, cls, ok in zip(samples.boxes.tolist(), samples.classes, samples.valid) if ok]
  assert chosen == [([0, 0, 10, 9], 1), ([0, 0, 10, 3], 0)]


def test_box_head_decodes_the_deltas_of_the_winning_class():
  head = BoxHead(max_detections=3)
  proposals = Proposals(
    boxes=jnp.array([[[0, 0, 10, 10], [30, 30, 40, 50]]], jnp.float32),
    scores=jnp.ones((1, 2)),
    valid=jnp.ones((1, 2), bool),
  )
  logits = jnp.log(jnp.array([[[0.1, 0.2, 0.7], [0.02, 0.9, 0.08]]]))
  deltas = (
    jnp.zeros((1, 2, 2, 4)).at[0, 0, 1, 0].set(1.0)
  )  # class 2 of the first RoI: a tenth of its width to the right
  batch = scene_batch(0, batch_size=1).replace(image_size=np.array([[100, 100]]))
  found = jax.tree.map(lambda leaf: np.asarray(leaf[0]), head.detections(logits, deltas, proposals, batch))
  np.testing.assert_allclose(found.scores, [0.9, 0.7, 0.2], rtol=1e-5)
  assert found.classes.tolist() == [1, 2, 1]
  np.testing.assert_allclose(found.boxes, [[30, 30, 40, 50], [1, 0, 11, 10], [0, 0, 10, 10]], atol=1e-4)


@pytest.mark.parametrize(
  "sizes, ratios, message",
  [
    (((12.0, 24.0), (48.0,)), (1.0,), r"different lengths \(level 0: 2, level 1: 1\)"),
    (((12.0,), (24.0, 48.0)), (1.0,), r"different lengths \(level 0: 1, level 1: 2\)"),  # these trained, misaligned
    (((12.0,),), (1.0,), r"for 1 level\(s\), the backbone gives 2"),
    (((), ()), (1.0,), "needs anchors"),
    (((12.0,), (24.0,)), (), "needs anchors"),
    (((12.0,), (-24.0,)), (1.0,), "above 0"),
  ],
)
def test_anchors_that_do_not_fit_the_levels_are_refused_before_anything_is_trained(sizes, ratios, message):
  model = small_detector(backbone=Fpn(SmallBackbone(), 8), proposer=Rpn(sizes, ratios))
  with pytest.raises(ModelError, match=message):
    init_variables(model, KEY, CANVAS)


@pytest.mark.long  # the detector of test_cascade is class-agnostic too
def test_class_agnostic_regression_has_one_box_for_all_classes():
  model = small_detector(box=BoxHead(class_agnostic=True, max_detections=5, score_threshold=0.01))
  fresh = init_variables(model, jax.random.key(0), CANVAS)
  assert fresh["params"]["box"]["deltas"]["kernel"].shape[-1] == 4
  terms = compiled("losses", model)(fresh, scene_batch(0), KEY)
  assert all(np.isfinite(value) for value in terms.values())


def test_bfloat16_keeps_parameters_and_losses_in_float32():
  model = small_detector(dtype="bfloat16")
  terms = compiled("losses", model)(variables(), scene_batch(0), KEY)
  exact = compiled("losses")(variables(), scene_batch(0), KEY)
  assert all(value.dtype == jnp.float32 for value in terms.values())
  np.testing.assert_allclose(terms["rpn_objectness"], exact["rpn_objectness"], rtol=0.02)


def test_external_proposals_and_roi_max_pooling_make_a_fast_rcnn():
  model = small_detector(proposer=External(), pool=RoiMaxPool(output_size=3))
  batch = scene_batch(0)
  fresh = init_variables(model, KEY, CANVAS)
  with pytest.raises(ProposalError, match="external proposals: set data.proposals"):
    model.apply(fresh, batch, method="detect")
  given = Proposals(
    boxes=batch.truth.boxes, scores=np.ones(batch.truth.valid.shape, np.float32), valid=batch.truth.valid
  )
  batch = batch.replace(proposals=given)
  terms = compiled("losses", model)(fresh, batch, KEY)
  assert set(terms) == {"roi_class", "roi_box"} and all(np.isfinite(value) for value in terms.values())


def test_what_is_missing_is_named():
  with pytest.raises(ValueError, match="num_classes is not set"):
    init_variables(small_detector(num_classes=None), KEY, CANVAS)
  model: Detector = small_detector()
  two_levels = model.proposer.clone(anchor_sizes=((8.0,), (16.0,)))
  with pytest.raises(ValueError, match="anchor sizes for 2 level.s., the backbone gives 1"):
    init_variables(model.clone(proposer=two_levels), KEY, CANVAS)


MASK_HEAD = MaskHead(pool=RoiAlign(output_size=4), num_convs=1, channels=8)


def with_masks(batch, fill=1):
  """The batch with a full mask for each valid object, and `fill` in the other rows."""
  masks = np.full((*batch.truth.valid.shape, 112, 112), fill, np.uint8)
  masks[batch.truth.valid] = 1
  return batch.replace(truth=batch.truth.replace(masks=masks))


def test_a_mask_head_makes_it_a_mask_rcnn():
  model = small_detector(heads=(MASK_HEAD,))
  fresh = init_variables(model, jax.random.key(0), CANVAS)
  terms = compiled("losses", model)(fresh, with_masks(scene_batch(0)), KEY)
  assert set(terms) == {"rpn_objectness", "rpn_box", "roi_class", "roi_box", "roi_mask"}
  assert np.isfinite(terms["roi_mask"]) and terms["roi_mask"] > 0
  dirty = compiled("losses", model)(fresh, with_garbage(with_masks(scene_batch(0), fill=0)), KEY)
  assert_same(terms, dirty)
  found = compiled("detect", model)(fresh, scene_batch(0).replace(truth=None))
  assert found.masks.shape == (2, 10, 8, 8)
  assert ((found.masks >= 0) & (found.masks <= 1)).all()


def test_batch_norm_in_the_heads_learns_from_what_is_valid_and_stays_finite_without_objects():
  trunk = ConvTrunk(num_convs=1, channels=4, widths=(8,))
  model = small_detector(trunk=trunk, heads=(MASK_HEAD.clone(norm="batch"),))
  fresh = init_variables(model, jax.random.key(0), CANVAS)
  learn = jax.jit(lambda variables, batch: model.apply(variables, batch, KEY, method="losses", mutable="batch_stats"))
  terms, updated = learn(fresh, with_masks(scene_batch(0)))
  assert_same((terms, updated), learn(fresh, with_garbage(with_masks(scene_batch(0), fill=0))))
  assert all(np.isfinite(value) for value in terms.values())
  moved = jax.tree.map(lambda old, new: not np.array_equal(old, new), fresh["batch_stats"], updated["batch_stats"])
  assert all(jax.tree.leaves(moved))
  terms, updated = learn(fresh, with_masks(scene_batch(0, num_objects=0)))
  assert all(np.isfinite(value) for value in terms.values())
  assert_same(fresh["batch_stats"]["mask"], updated["batch_stats"]["mask"])  # no foreground, nothing learnt


def test_a_mask_head_without_masks_says_which_switch_is_off():
  with pytest.raises(ValueError, match="set Data.load_masks"):
    jax.eval_shape(lambda: small_detector(heads=(MASK_HEAD,)).init(KEY, scene_batch(0), KEY, method="losses"))


def test_the_mask_loss_is_the_mean_over_the_foregrounds_cells():
  samples = RoiSamples(
    boxes=jnp.array([[[0, 0, 8, 8], [4, 0, 12, 8], [0, 0, 8, 8]]], jnp.float32),
    classes=jnp.array([[2, 2, 0]]),
    matched=jnp.array([[0, 0, 0]]),
    valid=jnp.array([[True, True, True]]),
  )
  truth = truth_of([[0, 0, 8, 8]], [2]).replace(masks=jnp.ones((1, 112, 112), jnp.uint8))
  truth = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], truth)
  logits = jnp.zeros((1, 3, 8, 8))  # of the own class, as the head gives them
  assert MASK_HEAD.losses(logits, samples, truth)["roi_mask"] == pytest.approx(np.log(2))
  # Right of the object there is no mask: the second RoI's right half is 0, everything else 1.
  sides = jnp.where(jnp.arange(8) < 4, 50.0, -50.0)
  logits = logits.at[0, 0].set(50.0).at[0, 1].set(sides)
  assert MASK_HEAD.losses(logits, samples, truth)["roi_mask"] == pytest.approx(0, abs=1e-6)


KEYPOINT_HEAD = KeypointHead(pool=RoiAlign(output_size=3), num_convs=1, channels=8)


def with_keypoints(batch, fill=0.0):
  """The batch with two joints in each valid object, one of them not labelled, and `fill` in the other rows."""
  boxes = batch.truth.boxes
  keypoints = np.full((*batch.truth.valid.shape, 2, 3), fill, np.float32)
  centres = (boxes[..., :2] + boxes[..., 2:]) / 2
  joints = np.stack(
    [np.concatenate([centres, np.full((*centres.shape[:2], 1), 2)], -1), np.zeros((*boxes.shape[:2], 3))], 2
  )
  keypoints[batch.truth.valid] = joints[batch.truth.valid]
  return batch.replace(truth=batch.truth.replace(keypoints=keypoints))


def test_a_keypoint_head_makes_it_a_keypoint_rcnn():
  model = small_detector(heads=(KEYPOINT_HEAD,)).with_data("ab", KeypointNames(("top", "bottom"), ()))
  assert model.heads[0].num_keypoints == 2
  fresh = init_variables(model, jax.random.key(0), CANVAS)
  terms = compiled("losses", model)(fresh, with_keypoints(scene_batch(0)), KEY)
  assert set(terms) == {"rpn_objectness", "rpn_box", "roi_class", "roi_box", "roi_keypoint"}
  assert np.isfinite(terms["roi_keypoint"]) and terms["roi_keypoint"] > 0
  for fill in (np.nan, 7.0):
    dirty = compiled("losses", model)(fresh, with_garbage(with_keypoints(scene_batch(0), fill)), KEY)
    assert_same(terms, dirty)
  nothing = with_keypoints(scene_batch(0, num_objects=0))
  assert compiled("losses", model)(fresh, nothing, KEY)["roi_keypoint"] == 0
  batch = scene_batch(0).replace(truth=None)
  found = jax.tree.map(np.asarray, compiled("detect", model)(fresh, batch))
  assert found.keypoints.shape == (2, 10, 2, 3)
  boxes, points = found.boxes[found.valid], found.keypoints[found.valid]
  assert (points[..., :2] >= boxes[:, None, :2]).all() and (points[..., :2] <= boxes[:, None, 2:]).all()
  alone = compiled("detect", model)(fresh, jax.tree.map(lambda leaf: np.repeat(leaf[1:], 2, axis=0), batch))
  np.testing.assert_allclose(alone.keypoints[0], found.keypoints[1], rtol=1e-4, atol=1e-3)


def test_what_a_keypoint_head_misses_is_named():
  model = small_detector(heads=(KEYPOINT_HEAD,))
  with pytest.raises(ValueError, match="num_keypoints is not set"):
    init_variables(model.with_data("ab", None), KEY, CANVAS)
  model = model.clone(heads=(KEYPOINT_HEAD.clone(num_keypoints=2),))
  assert model.with_data("ab", None).heads[0].num_keypoints == 2
  with pytest.raises(ValueError, match="set Data.load_keypoints"):
    jax.eval_shape(lambda: model.init(KEY, scene_batch(0), KEY, method="losses"))


def test_the_keypoint_loss_is_the_mean_over_the_labelled_joints_of_the_foreground():
  samples = RoiSamples(
    boxes=jnp.array([[[0, 0, 8, 8], [4, 0, 12, 8], [0, 0, 8, 8]]], jnp.float32),
    classes=jnp.array([[1, 1, 0]]),
    matched=jnp.array([[0, 0, 0]]),
    valid=jnp.array([[True, True, True]]),
  )
  joints = jnp.array([[[1, 1, 2], [5, 5, 1], [6, 6, 0]]], jnp.float32)  # the last one is not labelled
  truth = truth_of([[0, 0, 8, 8]], [1]).replace(keypoints=joints)
  truth = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], truth)
  logits = jnp.zeros((1, 3, 4, 4, 3))
  # Three joints count: both of the first RoI, and the second one in the second RoI, from which the first is outside.
  assert KEYPOINT_HEAD.losses(logits, samples, truth)["roi_keypoint"] == pytest.approx(np.log(16))
  sure = logits.at[0, 0, 0, 0, 0].set(50).at[0, 0, 2, 2, 1].set(50)
  assert KEYPOINT_HEAD.losses(sure, samples, truth)["roi_keypoint"] == pytest.approx(np.log(16) / 3)
  sure = sure.at[0, 1, 2, 0, 1].set(50)
  assert KEYPOINT_HEAD.losses(sure, samples, truth)["roi_keypoint"] == pytest.approx(0, abs=1e-6)
  of_all = KEYPOINT_HEAD.clone(normalise_by_visible=False)
  assert of_all.losses(logits, samples, truth)["roi_keypoint"] == pytest.approx(3 * np.log(16) / 9)


@pytest.mark.long
def test_a_mask_head_without_a_pool_shares_the_trunks_features():
  model = small_detector(
    trunk=Res5Trunk(18), pool=RoiAlign(output_size=4), heads=(MaskHead(None, num_convs=0, channels=4),)
  )
  batch = with_masks(scene_batch(0))
  fresh = init_variables(model, KEY, CANVAS)
  found = compiled("detect", model)(fresh, batch)
  assert found.masks.shape == (2, 10, 4, 4)  # pooled to 4, halved by the fifth stage, doubled by the head

  def segmented(detector):
    features = detector.backbone(detector.normalise(batch))
    rois = jnp.asarray(batch.truth.boxes)
    every = jnp.ones(rois.shape[:2], bool)
    shared = detector.embed(features, rois, None, every)
    options = features, rois, jnp.asarray(batch.truth.classes), every
    return detector.predict("mask", *options), detector.predict("mask", *options, embedded=shared)

  anew, shared = jax.jit(lambda: model.apply(fresh, method=segmented))()
  np.testing.assert_allclose(anew, shared, rtol=1e-6)
  terms = compiled("losses", model)(fresh, batch, KEY)
  assert np.isfinite(terms["roi_mask"]) and terms["roi_mask"] > 0

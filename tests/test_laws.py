"""The laws that every operation obeys.

Padding: whatever stands in the rows that are not valid, no output changes, and no gradient either.
Compilation: the compiled operation is the operation.
Batching: an operation lifted over a batch treats each image as if it were alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcnn_jax import types
from rcnn_jax.ops import assign, boxes, keypoints, losses, masks, max_pooling, nms, pooling

N, M, VALID_N, VALID_M = 14, 5, 9, 3
HEIGHT, WIDTH = 48, 64
GARBAGE = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "huge": 3e38, "-huge": -3e38, "one": 1.0}


@dataclasses.dataclass(frozen=True)
class Law:
  """One operation of a scene, a dict of arrays, and where its outputs are bound to stay what they are.

  run: from the scene to a tuple of outputs.
  rows: for each output the symbols of its leading axes, of which the law holds for the valid rows only; '' for all.
  gradient_of: the scene's entry whose gradient obeys the law as well.
  """

  run: Callable
  rows: tuple[str, ...]
  gradient_of: str | None = None


def scene(seed):
  """Random proposals (N) and objects (M) of one image, all rows of them plausible."""
  rng = np.random.default_rng(seed)

  def some_boxes(count):
    low = rng.uniform(0, [WIDTH - 8, HEIGHT - 8], (count, 2))
    high = low + rng.uniform(4, 32, (count, 2))
    return np.minimum(np.concatenate([low, high], axis=1), [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(np.float32)

  return {
    "boxes": some_boxes(N),
    "scores": rng.uniform(size=N).astype(np.float32),
    "logits": rng.normal(size=(N, 4)).astype(np.float32),
    "labels": rng.uniform(size=(N, 4)).astype(np.float32),
    "classes": rng.integers(0, 4, N).astype(np.int32),
    "valid": np.arange(N) < VALID_N,
    "truth_boxes": some_boxes(M),
    "truth_classes": rng.integers(1, 4, M).astype(np.int32),
    "truth_valid": np.arange(M) < VALID_M,
    "masks": rng.integers(0, 2, (M, 8, 8)).astype(np.uint8),
    "keypoints": np.concatenate([rng.uniform(0, 48, (M, 2, 2)), rng.integers(0, 3, (M, 2, 1))], -1).astype(
      np.float32
    ),
    "heat_maps": rng.normal(size=(N, 8, 8, 2)).astype(np.float32),
    "features": rng.normal(size=(HEIGHT // 4, WIDTH // 4, 2)).astype(np.float32),
    "coarse": rng.normal(size=(HEIGHT // 8, WIDTH // 8, 2)).astype(np.float32),
    "seed": np.uint32(seed),
  }


def spoiled(scene, garbage):
  """The scene with garbage in every row that is not valid."""
  out = dict(scene)
  of_proposals = ("boxes", "scores", "logits", "labels", "classes", "heat_maps")
  for name in (*of_proposals, "truth_boxes", "truth_classes", "masks", "keypoints"):
    values = scene[name].copy()
    first = VALID_M if len(values) == M else VALID_N
    if values.dtype == np.float32:
      values[first:] = garbage
    else:
      values[first:] = np.iinfo(values.dtype).max
    out[name] = values
  return out


def matched(s):
  return assign.match(
    boxes.iou(s["boxes"], s["truth_boxes"]),
    s["truth_valid"],
    foreground_iou=0.4,
    background_iou=0.2,
    allow_low_quality=True,
    anchor_valid=s["valid"],
  )


def match_law(s):
  m = matched(s)
  return m.matched, m.foreground, m.background, m.iou


def sample_law(s):
  m = matched(s)
  samples = assign.sample(
    jax.random.key(s["seed"]), m.foreground, m.background, num_samples=6, foreground_fraction=0.5
  )
  truth = types.GroundTruth(
    boxes=s["truth_boxes"],
    classes=s["truth_classes"],
    crowd=jnp.zeros(M, bool),
    difficult=jnp.zeros(M, bool),
    valid=s["truth_valid"],
  )
  rois = assign.targets(samples, m, s["boxes"], truth)
  return rois.boxes, rois.classes, rois.matched, rois.valid


def mask_law(s):
  # The rows that are not valid are matched to the object 0, as `match` leaves them.
  targets = masks.crop_targets(s["masks"], s["truth_boxes"], matched(s).matched, s["boxes"], size=4)
  return (targets,)


def soft_nms_law(s, decay):
  options = dict(iou_threshold=0.1, sigma=0.5, score_threshold=0.1, max_output=10, groups=s["classes"])
  return nms.soft_nms(s["boxes"], s["scores"], s["valid"], decay=decay, **options)


def box_regression_law(s, kind):
  targets = s["boxes"] + s["labels"] + jnp.array([0.0, 0.0, 4.0, 4.0])
  return (losses.box_regression(s["logits"], s["boxes"], targets, s["valid"], kind=kind, beta=0.1),)


pool_options = {"output_size": 3, "spatial_scale": 1 / 4}
of_levels = {"output_size": 3, "strides": (4, 8), "canonical_size": 320.0}

LAWS = {
  "iou": Law(lambda s: (boxes.iou(s["boxes"], s["truth_boxes"]),), ("NM",)),
  "giou": Law(lambda s: (boxes.giou(s["boxes"][:, None], s["truth_boxes"][None]),), ("NM",)),
  "diou": Law(lambda s: (boxes.diou(s["boxes"][:, None], s["truth_boxes"][None]),), ("NM",)),
  "ciou": Law(lambda s: (boxes.ciou(s["boxes"][:, None], s["truth_boxes"][None]),), ("NM",)),
  "intersection_over_area": Law(lambda s: (boxes.intersection_over_area(s["boxes"], s["truth_boxes"]),), ("NM",)),
  "area": Law(lambda s: (boxes.area(s["boxes"]),), ("N",)),
  "clip": Law(lambda s: (boxes.clip(s["boxes"], jnp.array([40, 50])),), ("N",)),
  "flip": Law(lambda s: (boxes.flip(s["boxes"], 64.0),), ("N",)),
  "encode": Law(lambda s: (boxes.encode(s["boxes"], s["boxes"] + 3.0),), ("N",)),
  "decode": Law(lambda s: (boxes.decode(s["logits"], s["boxes"]),), ("N",)),
  "match": Law(match_law, ("N", "", "", "N")),
  "sample and targets": Law(sample_law, ("", "", "", "")),
  "nms": Law(
    lambda s: nms.nms(s["boxes"], s["scores"], s["valid"], iou_threshold=0.3, max_output=10, groups=s["classes"]),
    ("", ""),
  ),
  "linear soft_nms": Law(functools.partial(soft_nms_law, decay="linear"), ("", "", "")),
  "gaussian soft_nms": Law(functools.partial(soft_nms_law, decay="gaussian"), ("", "", "")),
  "nms_mask": Law(lambda s: (nms.nms_mask(s["boxes"], s["scores"], s["valid"], iou_threshold=0.3),), ("",)),
  "roi_align": Law(
    lambda s: (pooling.roi_align(s["features"], s["boxes"], aligned=True, **pool_options),), ("N",), "features"
  ),
  "adaptive roi_align": Law(
    lambda s: (pooling.roi_align(s["features"], s["boxes"], aligned=False, sampling_ratio=0, **pool_options),),
    ("N",),
    "features",
  ),
  "roi_max_pool": Law(
    lambda s: (max_pooling.roi_max_pool(s["features"], s["boxes"], **pool_options),), ("N",), "features"
  ),
  "warp_crop": Law(
    lambda s: (pooling.warp_crop(s["features"], s["boxes"], output_size=5, context=1),), ("N",), "features"
  ),
  "spatial_pyramid": Law(
    lambda s: (max_pooling.spatial_pyramid(s["features"], s["boxes"], bins=(1, 2, 3, 4), spatial_scale=1 / 4),),
    ("N",),
    "features",
  ),
  "multilevel_roi_align": Law(
    lambda s: (pooling.multilevel_roi_align([s["features"], s["coarse"]], s["boxes"], aligned=False, **of_levels),),
    ("N",),
    "features",
  ),
  "roi_warp": Law(
    lambda s: (pooling.roi_warp([s["features"], s["coarse"]], s["boxes"], **of_levels),), ("N",), "features"
  ),
  "multilevel_roi_max_pool": Law(
    lambda s: (max_pooling.multilevel_roi_max_pool([s["features"], s["coarse"]], s["boxes"], **of_levels),),
    ("N",),
    "features",
  ),
  "level_of": Law(lambda s: (pooling.level_of(s["boxes"], min_level=2, max_level=5),), ("N",)),
  "crop_targets": Law(mask_law, ("N",)),
  "keypoints.encode": Law(
    lambda s: keypoints.encode(s["keypoints"][matched(s).matched], s["boxes"], size=8), ("N", "N")
  ),
  "keypoints.decode": Law(lambda s: (keypoints.decode(s["heat_maps"], s["boxes"]),), ("N",)),
  "softmax_cross_entropy": Law(
    lambda s: (losses.softmax_cross_entropy(s["logits"], s["classes"], s["valid"]),), ("",), "logits"
  ),
  "sigmoid_cross_entropy": Law(
    lambda s: (losses.sigmoid_cross_entropy(s["logits"], s["labels"], s["valid"]),), ("",), "logits"
  ),
  "smooth_l1": Law(lambda s: (losses.smooth_l1(s["logits"], s["labels"], s["valid"], beta=0.1),), ("",), "logits"),
  "box_regression by smooth_l1": Law(functools.partial(box_regression_law, kind="smooth_l1"), ("",), "logits"),
  "box_regression by ciou": Law(functools.partial(box_regression_law, kind="ciou"), ("",), "logits"),
}


@functools.cache
def compiled(name):
  return jax.jit(LAWS[name].run)


@functools.cache
def compiled_gradient(name):
  """The gradient of the sum over the outputs' valid rows."""
  law = LAWS[name]

  def total(values, scene):
    (output,) = visible(law.run({**scene, law.gradient_of: values}), law.rows)
    return (output * jnp.cos(jnp.arange(output.size).reshape(output.shape))).sum()

  return jax.jit(lambda scene: jax.grad(total)(scene[law.gradient_of], scene))


def visible(outputs, rows):
  """What of each output the law speaks of."""
  limits = {"N": VALID_N, "M": VALID_M}
  return [out[tuple(slice(limits[axis]) for axis in axes)] for out, axes in zip(outputs, rows, strict=True)]


@pytest.mark.parametrize("name", LAWS)
def test_garbage_in_rows_that_are_not_valid_changes_no_output(name):
  law, clean = LAWS[name], scene(0)
  expected = visible(compiled(name)(clean), law.rows)
  for label, garbage in GARBAGE.items():
    got = visible(compiled(name)(spoiled(clean, garbage)), law.rows)
    for g, e in zip(got, expected):
      np.testing.assert_array_equal(g, e, err_msg=label)
      assert np.isfinite(g).all(), label


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if law.gradient_of])
def test_garbage_in_rows_that_are_not_valid_changes_no_gradient(name):
  clean = scene(0)
  expected = compiled_gradient(name)(clean)
  assert np.asarray(expected).any()
  for label, garbage in GARBAGE.items():
    got = compiled_gradient(name)(spoiled(clean, garbage))
    np.testing.assert_array_equal(got, expected, err_msg=label)


@pytest.mark.parametrize("name", LAWS)
def test_the_compiled_operation_is_the_operation(name):
  eager = LAWS[name].run(jax.tree.map(jnp.asarray, scene(1)))
  assert_same(compiled(name)(scene(1)), eager)


@pytest.mark.parametrize("name", LAWS)
def test_a_batch_is_its_images_one_by_one(name):
  scenes = [scene(seed) for seed in (2, 3, 4)]
  batch = jax.tree.map(lambda *leaves: np.stack(leaves), *scenes)
  together = jax.jit(jax.vmap(LAWS[name].run))(batch)
  one_by_one = [compiled(name)(s) for s in scenes]
  assert_same(together, jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one))


def assert_same(got, expected):
  """Equal where whole numbers, and to rounding where not."""
  for g, e in zip(got, expected, strict=True):
    if np.issubdtype(g.dtype, np.floating):
      np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-5)
    else:
      np.testing.assert_array_equal(g, e)

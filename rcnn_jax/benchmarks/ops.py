"""The operations of a detector one by one, on inputs that torchvision's can be given too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rcnn_jax import timing
from rcnn_jax.evaluation import paste
from rcnn_jax.ops import assign, masks, nms, pooling
from rcnn_jax.synthetic import random_boxes

NUM_OBJECTS, NUM_ROIS, CHANNELS, POOL_SIDE, MASK_SIDE, CROP_SIDE = 100, 512, 256, 7, 28, 112
STRIDES = (4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Case:
  """One operation.

  Attributes:
    function: of `inputs`, in their order.
    inputs: arrays by the names that the peer knows them by.
    beside: what the peer alone needs, in its own form.
  """

  function: Callable
  inputs: dict[str, np.ndarray]
  beside: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def cases(canvas: tuple[int, int], num_boxes: tuple[int, ...] = (1000, 2000, 6000)) -> dict[str, Case]:
  """The operations by name, for images of this size (height, width)."""
  rng = np.random.default_rng(0)
  found = {
    f"nms, {count:,} random boxes": suppression(random_boxes(rng, canvas, (count,)), rng) for count in num_boxes
  }
  found |= {f"nms, a chain of {count:,} boxes": suppression(chain(count), None) for count in num_boxes[1:2]}
  align, gradient = aligning(rng, canvas)
  found |= {"RoI Align, forward": align, "RoI Align, forward and gradient": gradient}
  return found | {
    "matching of anchors": matching(rng, canvas),
    "sampling": sampling(rng, canvas),
    "mask targets": targets(rng, canvas),
    "pasting": pasting(rng, canvas),
  }


def measure(
  found: dict[str, Case], repeats: int, iterations: int, peer: Callable[[str], float] | None = None
) -> dict:
  """Medians of each operation, and in turns of the peer; `timing.summary` of each by its name."""
  results = {}
  for name, case in found.items():
    arrays = jax.device_put(tuple(case.inputs.values())) if name != "pasting" else tuple(case.inputs.values())
    contestants = {"ours": timing.repeated(case.function, *arrays, iterations=iterations)}
    if peer:
      contestants["peer"] = lambda name=name: peer(name)
    results[name] = timing.summary(timing.alternate(contestants, repeats), iterations, 1)
  return results


def suppression(boxes: np.ndarray, rng: np.random.Generator | None) -> Case:
  """NMS at an IoU of 0.7, all survivors wanted; scores at random, or falling without `rng`."""
  count = len(boxes)
  scores = rng.uniform(0, 1, count) if rng else np.linspace(1, 0, count)

  @jax.jit
  def keep(boxes, scores):
    return nms.nms(boxes, scores, jnp.ones(count, bool), iou_threshold=0.7, max_output=count)

  return Case(keep, {"boxes": boxes, "scores": scores.astype(np.float32)})


def chain(count: int) -> np.ndarray:
  """f32[N, 4]: each box suppresses the next one alone, the longest dependence that there can be."""
  left = np.arange(count, dtype=np.float32) * 15
  return np.stack([left, np.zeros(count), left + 100, np.full(count, 100)], axis=1).astype(np.float32)


def aligning(rng: np.random.Generator, canvas: tuple[int, int]) -> tuple[Case, Case]:
  """RoI Align of 512 regions to 7 x 7 from a map of stride 4 and 256 channels; forward, and with the gradient."""
  height, width = (side // STRIDES[0] for side in canvas)
  features = rng.normal(size=(height, width, CHANNELS)).astype(np.float32)
  rois = random_boxes(rng, canvas, (NUM_ROIS,))
  cotangent = rng.normal(size=(NUM_ROIS, POOL_SIDE, POOL_SIDE, CHANNELS)).astype(np.float32)
  inputs = {"features": features, "rois": rois}

  def align(features, rois):
    return pooling.roi_align(features, rois, output_size=POOL_SIDE, spatial_scale=1 / STRIDES[0], aligned=False)

  @jax.jit
  def with_gradient(features, rois, cotangent):
    pooled, back = jax.vjp(lambda features: align(features, rois), features)
    return pooled, back(cotangent)

  return Case(jax.jit(align), inputs), Case(with_gradient, inputs | {"cotangent": cotangent})


def anchors_of(canvas: tuple[int, int]) -> np.ndarray:
  """f32[A, 4]: three anchors in each cell of a pyramid of five levels."""
  levels = []
  for stride in STRIDES:
    y, x = np.mgrid[0 : -(-canvas[0] // stride), 0 : -(-canvas[1] // stride)] * float(stride)
    for ratio in (0.5, 1.0, 2.0):
      half_height, half_width = 4 * stride * ratio**0.5, 4 * stride / ratio**0.5
      levels.append(np.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1).reshape(-1, 4))
  return np.concatenate(levels).astype(np.float32)


def matching(rng: np.random.Generator, canvas: tuple[int, int]) -> Case:
  """All anchors of a pyramid with 100 objects, overlaps included, at 0.7 and 0.3 with low-quality matches."""

  @jax.jit
  def match(anchors, objects):
    valid = jnp.ones(len(objects), bool)
    return assign.match_anchors(anchors, objects, valid, foreground_iou=0.7, background_iou=0.3)

  return Case(match, {"anchors": anchors_of(canvas), "objects": random_boxes(rng, canvas, (NUM_OBJECTS,))})


def sampling(rng: np.random.Generator, canvas: tuple[int, int]) -> Case:
  """256 of all anchors, at most half of them foreground, of which a thousandth of the anchors are."""
  count = len(anchors_of(canvas))
  foreground = rng.uniform(size=count) < 0.001
  background = ~foreground & (rng.uniform(size=count) < 0.9)

  @jax.jit
  def sample(foreground, background):
    return assign.sample(jax.random.key(0), foreground, background, num_samples=256, foreground_fraction=0.5)

  return Case(sample, {"foreground": foreground, "background": background})


def targets(rng: np.random.Generator, canvas: tuple[int, int]) -> Case:
  """Mask targets of 128 regions, 28 x 28, from 16 masks; the peer's masks cover the image, ours their boxes."""
  objects = random_boxes(rng, canvas, (16,))
  matched = np.arange(128, dtype=np.int32) % 16
  rois = (objects[matched] + rng.uniform(-4, 4, (128, 4))).astype(np.float32)
  y, x = np.arange(canvas[0])[None, :, None] + 0.5, np.arange(canvas[1])[None, None] + 0.5
  x1, y1, x2, y2 = objects.T[:, :, None, None]
  whole = ((x > x1) & (x < x2) & (y > y1) & (y < y2)).astype(np.uint8)
  make = jax.jit(
    lambda crops, objects, matched, rois: masks.crop_targets(crops, objects, matched, rois, size=MASK_SIDE)
  )
  inputs = {
    "crops": np.ones((16, CROP_SIDE, CROP_SIDE), np.uint8),
    "objects": objects,
    "matched": matched,
    "rois": rois,
  }
  return Case(make, inputs, {"masks": whole})


def pasting(rng: np.random.Generator, canvas: tuple[int, int]) -> Case:
  """100 masks of 28 x 28 into the whole image, on the host."""
  found = rng.uniform(0, 1, (NUM_OBJECTS, MASK_SIDE, MASK_SIDE)).astype(np.float32)

  def put(found, boxes):
    return [paste.paste_rounded(mask, box, canvas) for mask, box in zip(found, boxes)]

  return Case(put, {"found": found, "boxes": random_boxes(rng, canvas, (NUM_OBJECTS,))})


def save(found: dict[str, Case], path: str) -> None:
  """Writes all inputs to a file of numpy's, as 'NAME OF THE OPERATION/name of the array', for the peer."""
  arrays = {
    f"{name}/{key}": array for name, case in found.items() for key, array in (case.inputs | case.beside).items()
  }
  np.savez(path, **arrays)

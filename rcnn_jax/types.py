"""The values that travel between the rooms of the project.

Every set is padded to a fixed size and carries its own validity: `valid` says which rows exist, and whatever
stands in the other rows changes no output. Nothing is inferred from a value (no "-1 means padding").

Legend of symbols, used in every docstring:

    B  images in a batch          H, W  height and width of the canvas, pixels
    M  ground-truth objects       N     proposals
    S  sampled RoIs               D     detections
    A  anchors                    L     pyramid levels
    K  object classes             P     side of a pooled RoI
    J  joints (keypoints)         C     channels

The shapes below are those of ONE image, as `ops/` sees them; batched, each gains a leading B (`models/`, `data/`).
Boxes are `xyxy` (x1, y1, x2, y2), float32, in continuous pixels of the canvas: width = x2 - x1. Class 0 is the
background, 1..K are objects. Sizes are (height, width).
"""

from __future__ import annotations

from typing import Any

from flax import struct

Array = Any  # np.ndarray on the host, jax.Array on the device

MASK_SIDE = 112  # cells of an object's mask, in the frame of its box


@struct.dataclass
class GroundTruth:
  """The annotated objects of one image."""

  boxes: Array  # f32[M, 4], canvas pixels
  classes: Array  # i32[M], 1..K
  crowd: Array  # bool[M], a region of many objects: never trained on, ignored in evaluation
  difficult: Array  # bool[M], VOC's flag: trained on or not by choice, ignored in evaluation
  valid: Array  # bool[M]
  masks: Array | None = None  # u8[M, MASK_SIDE, MASK_SIDE] in {0, 1}, the object's mask in the frame of its box
  keypoints: Array | None = None  # f32[M, J, 3]: x, y in canvas pixels, COCO's visibility (0, 1, 2)


@struct.dataclass
class Proposals:
  """Regions that may hold an object."""

  boxes: Array  # f32[N, 4], canvas pixels
  scores: Array  # f32[N]
  valid: Array  # bool[N]


@struct.dataclass
class RoiSamples:
  """The regions that the second stage is trained on, with what each of them is to become."""

  boxes: Array  # f32[S, 4], canvas pixels
  classes: Array  # i32[S], 0 for background
  matched: Array  # i32[S], the row of the ground truth that the RoI was matched to
  valid: Array  # bool[S]


@struct.dataclass
class Detections:
  """What the detector found, by falling score."""

  boxes: Array  # f32[D, 4], canvas pixels
  scores: Array  # f32[D], 0..1
  classes: Array  # i32[D], 1..K
  valid: Array  # bool[D]
  masks: Array | None = None  # f32[D, P, P], mask probabilities in the frame of the box
  keypoints: Array | None = None  # f32[D, J, 3]: x, y in canvas pixels, score


@struct.dataclass
class Batch:
  """What the input pipeline hands to a step. Images stand in the canvas' top left corner, zeros beyond them."""

  image: Array  # u8[B, H, W, 3], RGB, or f32 with the same range (Resize.pixels): of one type in an experiment
  image_size: Array  # i32[B, 2], (height, width) of the resized image within the canvas
  scale: Array  # f32[B, 2], canvas pixels per pixel of the original, (vertical, horizontal)
  image_id: Array  # i32[B], the id in the data source; also seeds the image's random draws
  valid: Array  # bool[B], False for the rows that fill up a short batch
  truth: GroundTruth
  proposals: Proposals | None = None

"""What is done to one image and its objects on the host, with numpy and OpenCV: resizing, augmentation, mask crops.

Augmentations are frozen dataclasses of plain values, called with an `Example` and the image's own random generator.
They stand in experiments, which load on machines without OpenCV: it is imported where it is used.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

MASK_SIDE = 112


@dataclasses.dataclass(frozen=True)
class Example:
  """One image of N objects on its way to the canvas; coordinates are pixels of `image`."""

  image: np.ndarray  # u8[h, w, 3]
  boxes: np.ndarray  # f32[N, 4], xyxy
  masks: np.ndarray | None = None  # u8[N, 112, 112], in the frame of the box
  keypoints: np.ndarray | None = None  # f32[N, J, 3]
  flip_order: np.ndarray | None = None  # i32[J]: joint j of the mirrored object is joint flip_order[j] of the object


@dataclasses.dataclass(frozen=True)
class Resize:
  """torchvision's rule: the short side becomes `short_side`, unless the long side would exceed `long_side`.

  Several short sides are scale jitter (Detectron2's): training draws one for each image, evaluation takes the
  largest. An image that already has its size is not resampled. 'linear' does not smooth first, like torchvision.
  """

  short_side: tuple[int, ...] = (480,)
  long_side: int = 640
  interpolation: Literal["linear", "area", "cubic"] = "linear"


@dataclasses.dataclass(frozen=True)
class HorizontalFlip:
  """Mirrors left and right; joints change names with their mirror image."""

  probability: float = 0.5

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    return flip(example) if rng.random() < self.probability else example


@dataclasses.dataclass(frozen=True)
class ColorJitter:
  """Brightness, contrast, saturation and hue, each changed at random, in this order, as torchvision defines them.

  A strength s draws the factor from [1 - s, 1 + s]; hue is the greatest turn of the colour circle, in 0..0.5.
  """

  brightness: float = 0.2
  contrast: float = 0.2
  saturation: float = 0.2
  hue: float = 0.0

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    import cv2

    strengths = (self.brightness, self.contrast, self.saturation)
    brightness, contrast, saturation = (rng.uniform(max(0, 1 - strength), 1 + strength) for strength in strengths)
    turn = rng.uniform(-self.hue, self.hue)
    image = _straight_line(example.image, brightness, 0)
    image = _straight_line(image, contrast, (1 - contrast) * cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    image = cv2.addWeighted(image, saturation, gray, 1 - saturation, 0)
    return dataclasses.replace(example, image=_turn_hue(image, turn) if turn else image)


def flip(example: Example) -> Example:
  """The mirror image: x becomes width - x."""
  width = example.image.shape[1]
  boxes = example.boxes.copy()
  boxes[:, [0, 2]] = width - example.boxes[:, [2, 0]]
  masks = None if example.masks is None else example.masks[:, :, ::-1]
  keypoints = None
  if example.keypoints is not None:
    keypoints = example.keypoints[:, example.flip_order]
    keypoints[..., 0] = np.where(keypoints[..., 2] > 0, width - keypoints[..., 0], keypoints[..., 0])
  return dataclasses.replace(example, image=example.image[:, ::-1], boxes=boxes, masks=masks, keypoints=keypoints)


def resized_size(size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
  """The size (height, width) that an image of `size` gets, by torchvision's rule and rounding (down)."""
  scale = min(short_side / min(size), long_side / max(size))
  return _scaled(size, scale)


def choose_canvas(size: tuple[int, int], canvases: tuple[tuple[int, int], ...]) -> tuple[int, int]:
  """The smallest canvas that holds `size`, or else the one that needs the least shrinking."""
  shrink = {canvas: min(1.0, canvas[0] / size[0], canvas[1] / size[1]) for canvas in canvases}
  return min(canvases, key=lambda canvas: (-shrink[canvas], canvas[0] * canvas[1]))


def fit(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
  """`size`, shrunk as far as needed to stand in the canvas."""
  if size[0] <= canvas[0] and size[1] <= canvas[1]:
    return size
  height, width = _scaled(size, min(canvas[0] / size[0], canvas[1] / size[1]))
  return min(height, canvas[0]), min(width, canvas[1])


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str = "linear") -> np.ndarray:
  """u8[H, W, 3] to u8[size, 3]; the same array where it has that size already."""
  import cv2

  if image.shape[:2] == tuple(size):
    return image
  interpolations = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "cubic": cv2.INTER_CUBIC}
  return cv2.resize(image, (size[1], size[0]), interpolation=interpolations[interpolation])


def mask_crops(segmentations, boxes: np.ndarray) -> np.ndarray:
  """Each object's mask in the frame of its box: u8[N, 112, 112] in {0, 1}.

  Crop pixel (i, j) is the mask at the point ((j + 1/2) / 112, (i + 1/2) / 112) of the box.

  Args:
    segmentations: N run-length encodings, at the size of the image.
    boxes: f32[N, 4], xyxy in pixels of that image.
  """
  from pycocotools import mask

  crops = np.zeros((len(boxes), MASK_SIDE, MASK_SIDE), np.uint8)
  for row, (segmentation, box) in enumerate(zip(segmentations, boxes)):
    decoded = mask.decode(segmentation)
    rows, columns = _pixels(box[1], box[3], decoded.shape[0]), _pixels(box[0], box[2], decoded.shape[1])
    crops[row] = decoded[np.ix_(rows, columns)]
  return crops


def _pixels(start: float, stop: float, length: int) -> np.ndarray:
  """The pixels i64[112] in which the sampling points of [start, stop] lie; pixel i is [i, i + 1)."""
  points = start + (np.arange(MASK_SIDE) + 0.5) / MASK_SIDE * (stop - start)
  return np.clip(np.floor(points).astype(np.int64), 0, length - 1)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
  return max(1, math.floor(size[0] * scale)), max(1, math.floor(size[1] * scale))


def _straight_line(image: np.ndarray, factor: float, offset: float) -> np.ndarray:
  """factor * image + offset, rounded and clipped, by a table of the 256 values."""
  import cv2

  table = np.clip(np.rint(factor * np.arange(256) + offset), 0, 255).astype(np.uint8)
  return cv2.LUT(np.ascontiguousarray(image), table)


def _turn_hue(image: np.ndarray, turn: float) -> np.ndarray:
  import cv2

  hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # OpenCV's hue of u8 images counts to 180
  hsv[..., 0] = (hsv[..., 0].astype(np.int32) + round(turn * 180)) % 180
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)

"""What is done to one image and its objects on the host, with numpy and OpenCV: resizing, mirror images, colours.

Augmentations are frozen dataclasses of plain values, called with an `Example` and the image's own random generator;
those that change the set of objects are in `data.augment`. They stand in experiments, which load on machines without
OpenCV: it is imported where it is used.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import numpy as np

from rcnn_jax.data.object_masks import Masks, moved_boxes


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """One image of N objects on its way to the canvas; coordinates are pixels of `image`."""

  image: np.ndarray  # u8[h, w, 3], or f32 with the same range
  boxes: np.ndarray  # f32[N, 4], xyxy
  classes: np.ndarray  # i32[N], 1..K
  crowd: np.ndarray  # bool[N]
  difficult: np.ndarray  # bool[N]
  canvas: tuple[int, int]  # (height, width) on which the image will stand
  masks: Masks | None = None  # of the N objects, whole until the end
  keypoints: np.ndarray | None = None  # f32[N, J, 3]
  flip_order: np.ndarray | None = None  # i32[J]: joint j of the mirrored object is joint flip_order[j] of the object
  proposals: np.ndarray | None = None  # f32[n, 4], xyxy: regions that were found in the image before
  proposal_scores: np.ndarray | None = None  # f32[n]
  scale: np.ndarray = dataclasses.field(default_factory=lambda: np.ones(2, np.float32))  # pixels per original pixel

  def take(self, rows: np.ndarray) -> Example:
    """The same image with the objects at `rows` (i64[n]), in that order."""
    arrays = {name: getattr(self, name)[rows] for name in ("boxes", "classes", "crowd", "difficult")}
    keypoints = None if self.keypoints is None else self.keypoints[rows]
    masks = None if self.masks is None else self.masks.take(rows)
    return dataclasses.replace(self, **arrays, keypoints=keypoints, masks=masks)

  def joined(self, other: Example) -> Example:
    """The same image with the objects of another example behind its own; the proposals stay its own."""
    names = ["boxes", "classes", "crowd", "difficult", *(["keypoints"] if self.keypoints is not None else [])]
    arrays = {name: np.concatenate([getattr(each, name) for each in (self, other)]) for name in names}
    return dataclasses.replace(self, **arrays, masks=None if self.masks is None else self.masks.joined(other.masks))

  def moved(self, matrix: np.ndarray, image: np.ndarray) -> Example:
    """The objects after an affine map f64[2, 3], which has made `image`; they may stand outside of it.

    Boxes are those around the moved corners. Joints that are not labelled stay where they are.
    """
    keypoints = self.keypoints
    if keypoints is not None:
      places = keypoints[..., :2].astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
      places = np.concatenate([places, keypoints[..., 2:]], axis=-1).astype(np.float32)
      keypoints = np.where(keypoints[..., 2:] > 0, places, keypoints)
    return dataclasses.replace(
      self,
      image=image,
      boxes=moved_boxes(self.boxes, matrix),
      masks=None if self.masks is None else self.masks.moved(matrix),
      keypoints=keypoints,
      proposals=None if self.proposals is None else moved_boxes(self.proposals, matrix),
    )


@dataclasses.dataclass(frozen=True)
class Resize:
  """The short side becomes `short_side`, unless the long side would exceed `long_side`.

  Several short sides are scale jitter (Detectron2's): training draws one for each image, evaluation takes the
  largest. An image that already has its size is not resampled.

  Weights expect the preprocessing that they were trained with. torchvision's detectors: 'linear', 'down', 'float32'.
  Detectron2's: 'pillow', 'nearest', 'uint8'. float32 takes four times the memory, on the host and on its way to the
  device; uint8 moves a pixel by half a level at most.
  """

  short_side: tuple[int, ...] = (480,)
  long_side: int = 640
  # 'linear' reads the four nearest pixels, 'pillow' smooths first where it shrinks (as Image.resize's BILINEAR does).
  interpolation: Literal["linear", "area", "cubic", "pillow"] = "linear"
  rounding: Literal["down", "nearest"] = "down"  # of the new sides, to whole pixels
  pixels: Literal["uint8", "float32"] = "uint8"  # what is resized and handed to the model, in 0..255 either way

  resizes: ClassVar[bool] = True  # as an augmentation, it takes the place of `Data.resize` in training

  def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
    """The example in its new size, which fits the canvas; without `rng` that of the largest short side."""
    short_side = max(self.short_side)
    if rng is not None and len(self.short_side) > 1:
      short_side = int(rng.choice(self.short_side))
    size = fit(resized_size(example.image.shape[:2], self, short_side), example.canvas)
    return scaled(example, size, self.interpolation)


@dataclasses.dataclass(frozen=True)
class PaddedToMultiple:
  """A canvas for each image: its own resized size, each side rounded up to a multiple.

  It is what torchvision (32) and Detectron2 (32 with a pyramid, 1 without) give an image that is detected alone, so
  that imported weights see the very numbers that they were published with. Each distinct canvas compiles once: about
  70 for COCO's validation images. To train takes longer to compile, and a few canvases do as well: `training` names
  them. Without, each image has its own canvas in training too.
  """

  multiple: int = 32  # pixels
  training: tuple[tuple[int, int], ...] | None = None  # (height, width) each

  def __post_init__(self):
    if self.multiple < 1:
      raise ValueError(f"PaddedToMultiple: the multiple is {self.multiple}: it must be at least 1 pixel")

  def around(self, size: tuple[int, int]) -> tuple[int, int]:
    """The canvas (height, width) of an image that has `size` after resizing."""
    height, width = (-(-side // self.multiple) * self.multiple for side in size)
    return height, width


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
    strengths = (self.brightness, self.contrast, self.saturation)
    brightness, contrast, saturation = (rng.uniform(max(0, 1 - strength), 1 + strength) for strength in strengths)
    turn = rng.uniform(-self.hue, self.hue)
    image = with_saturation(with_contrast(with_brightness(example.image, brightness), contrast), saturation)
    return dataclasses.replace(example, image=with_hue(image, turn) if turn else image)


def flip(example: Example) -> Example:
  """The mirror image: x becomes width - x."""
  width = example.image.shape[1]
  mirrored = lambda boxes: np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=-1)
  proposals = None if example.proposals is None else mirrored(example.proposals)
  masks = None if example.masks is None else example.masks.moved(np.array([[-1.0, 0, width], [0, 1, 0]]))
  keypoints = None
  if example.keypoints is not None:
    keypoints = example.keypoints[:, example.flip_order]
    keypoints[..., 0] = np.where(keypoints[..., 2] > 0, width - keypoints[..., 0], keypoints[..., 0])
  return dataclasses.replace(
    example,
    image=example.image[:, ::-1],
    boxes=mirrored(example.boxes),
    masks=masks,
    keypoints=keypoints,
    proposals=proposals,
  )


def with_brightness(image: np.ndarray, factor: float) -> np.ndarray:
  """factor * image, clipped to 0..255."""
  return _straight_line(image, factor, 0)


def with_contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """factor * image + (1 - factor) * the mean of its greys, clipped to 0..255."""
  return _straight_line(image, factor, (1 - factor) * _gray(image).mean())


def with_saturation(image: np.ndarray, factor: float) -> np.ndarray:
  """factor * image + (1 - factor) * its greys, clipped to 0..255."""
  import cv2

  image = np.ascontiguousarray(image)
  gray = cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB)
  return np.clip(cv2.addWeighted(image, factor, gray, 1 - factor, 0), 0, 255)


def with_hue(image: np.ndarray, turn: float) -> np.ndarray:
  """The colour circle turned by a share of it, -0.5..0.5."""
  import cv2

  hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)
  if image.dtype == np.uint8:  # OpenCV's hue of u8 images counts to 180, in whole numbers
    hsv[..., 0] = (hsv[..., 0].astype(np.int32) + round(turn * 180)) % 180
  else:
    hsv[..., 0] = (hsv[..., 0] + turn * 360) % 360
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def scaled(example: Example, size: tuple[int, int], interpolation: str = "linear") -> Example:
  """The example with its image resized to `size` (height, width)."""
  vertical, horizontal = scale = np.array([new / old for new, old in zip(size, example.image.shape)], np.float32)
  sides = np.array([horizontal, vertical] * 2)
  keypoints = None if example.keypoints is None else example.keypoints * np.array([*scale[::-1], 1], np.float32)
  return dataclasses.replace(
    example,
    image=resize(example.image, size, interpolation),
    boxes=example.boxes * sides,
    masks=None if example.masks is None else example.masks.moved(np.diag([horizontal, vertical, 0.0])[:2]),
    keypoints=keypoints,
    proposals=None if example.proposals is None else example.proposals * sides,
    scale=example.scale * scale,
  )


def resized_size(size: tuple[int, int], rule: Resize, short_side: int | None = None) -> tuple[int, int]:
  """The size (height, width) that an image of `size` gets; `short_side` is the one drawn, by default the largest."""
  short_side = short_side or max(rule.short_side)
  if rule.rounding == "down":
    return scaled_size(size, min(short_side / min(size), rule.long_side / max(size)))
  # Detectron2's steps, one by one: a product of both factors can fall on the other side of a half.
  sides = [short_side if side == min(size) else side * (short_side / min(size)) for side in size]
  shrink = min(1.0, rule.long_side / max(sides))
  return tuple(max(1, math.floor(side * shrink + 0.5)) for side in sides)


def choose_canvas(size: tuple[int, int], canvases: tuple[tuple[int, int], ...]) -> tuple[int, int]:
  """The smallest canvas that holds `size`, or else the one that needs the least shrinking."""
  shrink = {canvas: min(1.0, canvas[0] / size[0], canvas[1] / size[1]) for canvas in canvases}
  return min(canvases, key=lambda canvas: (-shrink[canvas], canvas[0] * canvas[1]))


def fit(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
  """`size`, shrunk as far as needed to stand in the canvas."""
  if size[0] <= canvas[0] and size[1] <= canvas[1]:
    return size
  height, width = scaled_size(size, min(canvas[0] / size[0], canvas[1] / size[1]))
  return min(height, canvas[0]), min(width, canvas[1])


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str = "linear") -> np.ndarray:
  """[H, W, 3] to [size, 3], in the image's own type, u8 or f32; the same array where it has that size already."""
  if image.shape[:2] == tuple(size):
    return image
  if interpolation == "pillow":
    return _pillow(image, size)
  import cv2

  interpolations = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "cubic": cv2.INTER_CUBIC}
  return cv2.resize(np.ascontiguousarray(image), (size[1], size[0]), interpolation=interpolations[interpolation])


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
  """A size (height, width) times a factor, rounded down; no side vanishes."""
  return max(1, math.floor(size[0] * scale)), max(1, math.floor(size[1] * scale))


def _pillow(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  from PIL import Image

  resized = lambda plane: np.asarray(Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BILINEAR))
  if image.dtype == np.uint8:
    return resized(image)
  return np.stack([resized(channel) for channel in np.moveaxis(image, -1, 0)], axis=-1)  # f32 is one channel there


def _straight_line(image: np.ndarray, factor: float, offset: float) -> np.ndarray:
  """factor * image + offset, clipped to 0..255; of u8, rounded, by a table of the 256 values."""
  import cv2

  line = lambda values: np.clip(factor * values + offset, 0, 255)
  if image.dtype != np.uint8:
    return line(image).astype(image.dtype)
  return cv2.LUT(np.ascontiguousarray(image), np.rint(line(np.arange(256))).astype(np.uint8))


def _gray(image: np.ndarray) -> np.ndarray:
  import cv2

  return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)

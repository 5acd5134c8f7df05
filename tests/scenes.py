"""Images of coloured rectangles, and a stand-in for a model that finds them by their colour.

What it answers depends on the pixels alone, so it shows whether coordinates survive the way there and back.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from pycocotools import mask as rle

from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.source import Annotations, Category
from rcnn_jax.data.transforms import Resize
from rcnn_jax.types import Batch, Detections, GroundTruth

CATEGORIES = (Category(7, "red"), Category(9, "green"), Category(11, "blue"))
CATEGORY_IDS = [c.id for c in CATEGORIES]


def annotations(image_id, boxes, classes, *, size=(100, 100), crowd=None, difficult=None, **more) -> Annotations:
  """Annotations of an image; areas are those of the boxes unless given."""
  boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
  flags = lambda values: np.zeros(len(boxes), bool) if values is None else np.asarray(values, bool)
  areas = more.pop("areas", (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
  return Annotations(
    image_id=image_id,
    file_name=f"{image_id}.png",
    size=size,
    boxes=boxes,
    classes=np.asarray(classes, np.int32),
    crowd=flags(crowd),
    difficult=flags(difficult),
    ids=np.arange(1, len(boxes) + 1),
    areas=np.asarray(areas, np.float32),
    **more,
  )


def entry(image_id, category_id, box, score, **more) -> dict:
  """A COCO results entry of an xyxy box."""
  x1, y1, x2, y2 = box
  found = {"image_id": image_id, "category_id": category_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
  return found | more


class Scenes:
  """A data source: image i has up to three rectangles, each of a class of its own; the last image has none."""

  categories = CATEGORIES
  keypoints = None

  def __init__(self, num_images: int = 5, seed: int = 0):
    draw = np.random.default_rng(seed)
    self._all = [self._scene(100 + i, draw, 0 if i == num_images - 1 else 1 + i % 3) for i in range(num_images)]

  def _scene(self, image_id, draw, num_objects) -> Annotations:
    size = (24, 32) if image_id % 2 else (32, 24)
    low = draw.integers(0, 10, (num_objects, 2))
    boxes = np.concatenate([low, low + draw.integers(4, 14, (num_objects, 2))], axis=1)
    masks = [np.zeros(size, np.uint8) for _ in boxes]
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
      mask[y1:y2, x1:x2] = 1
    encoded = tuple(rle.encode(np.asfortranarray(m)) for m in masks)
    segmentations = tuple({"size": e["size"], "counts": e["counts"].decode()} for e in encoded)
    return annotations(image_id, boxes, 1 + np.arange(num_objects), size=size, segmentations=segmentations)

  def __len__(self):
    return len(self._all)

  def annotations(self, i, masks=True):
    return self._all[i]

  def image(self, i):
    """Channel k is bright in the rectangle of class k + 1; rectangles may overlap."""
    one = self._all[i]
    image = np.full((*one.size, 3), 20, np.uint8)
    for (x1, y1, x2, y2), k in zip(one.boxes.astype(int), one.classes):
      image[y1:y2, x1:x2, k - 1] = 255
    return image

  def sizes(self):
    return {a.image_id: a.size for a in self._all}


SCALE = (2, 3)  # canvas pixels per original pixel, vertical and horizontal
CANVAS = (64, 96)


def batches(source: Scenes, batch_size: int) -> list[Batch]:
  """Every image once, enlarged by SCALE on one canvas; the last batch is filled up with rows that are not valid."""
  indices = np.arange(len(source))
  groups = [indices[start : start + batch_size] for start in range(0, len(source), batch_size)]
  return [_batch(source, group, batch_size) for group in groups]


def _batch(source, group, batch_size) -> Batch:
  images = np.full((batch_size, *CANVAS, 3), 255, np.uint8)  # rows that are not valid are bright: full of objects
  image_size = np.ones((batch_size, 2), np.int32)
  ids = np.zeros(batch_size, np.int32)
  for row, index in enumerate(group):
    image = source.image(index).repeat(SCALE[0], axis=0).repeat(SCALE[1], axis=1)
    images[row] = 0
    images[row, : image.shape[0], : image.shape[1]] = image
    image_size[row], ids[row] = image.shape[:2], source.annotations(index).image_id
  scale = np.tile(np.float32(SCALE), (batch_size, 1))
  return Batch(
    image=images,
    image_size=image_size,
    scale=scale,
    image_id=ids,
    valid=np.arange(batch_size) < len(group),
    truth=no_truth(batch_size),
  )


def no_truth(batch_size: int) -> GroundTruth:
  shape = (batch_size, 1)
  flags = np.zeros(shape, bool)
  return GroundTruth(
    boxes=np.zeros((*shape, 4), np.float32),
    classes=np.ones(shape, np.int32),
    crowd=flags,
    difficult=flags,
    valid=flags,
  )


@dataclasses.dataclass(frozen=True)
class ColourFinder:
  """Gives for each class the box round the pixels whose channel is bright; scores fall with the class."""

  masks: bool = False
  keypoints: bool = False
  blind: bool = False  # finds nothing

  def with_data(self, categories, keypoints):
    assert len(categories) == len(CATEGORIES)
    return self

  def apply(self, variables, batch, method):
    assert method == "detect"
    assert batch.truth is None, "a model that is evaluated must not see the ground truth"
    bright = batch.image > 128  # [B, H, W, K]
    x1, x2 = _extent(bright.any(axis=1), variables["one"])
    y1, y2 = _extent(bright.any(axis=2), variables["one"])
    boxes = jnp.stack([x1, y1, x2, y2], axis=-1)
    shape = boxes.shape[:2]
    classes = jnp.broadcast_to(jnp.arange(1, 4), shape)
    return Detections(
      boxes=boxes,
      scores=1.0 - classes / 10,
      classes=classes,
      valid=bright.any(axis=(1, 2)) & (not self.blind),
      masks=jnp.ones((*shape, 28, 28)) if self.masks else None,
      keypoints=jnp.stack([x1, y1, jnp.ones_like(x1)], axis=-1)[:, :, None] if self.keypoints else None,
    )


def _extent(bright, one):
  """bool[B, length, K] -> first and one past the last bright position, f32[B, K]."""
  first = jnp.argmax(bright, axis=1)
  last = bright.shape[1] - jnp.argmax(bright[:, ::-1], axis=1)
  return first * one, last * one


# Enlarges the scenes to twice their size, so that edges stay where they are.
DATA = Data(train=None, eval=None, resize=Resize((48,), 64), canvases=((48, 64), (64, 48)), batch_size=(2, 2))
VARIABLES = {"one": np.float32(1)}

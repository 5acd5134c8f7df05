"""Sheets of examples as a model sees them: the canvas with the truth that stands in the batch drawn over it.

Masks are drawn from their crops, 112 x 112 in the frame of the box, which is all that a model ever sees of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from rcnn_jax.evaluation import draw, lettering, paste
from rcnn_jax.types import Batch

GAP, HEAD = 10, 26  # pixels
NOTHING = (46, 52, 64)  # the part of the canvas on which no image stands


def examples(batch: Batch) -> Iterator[Batch]:
  """The images of a batch, without the leading B; rows that only fill it up are left out."""
  import jax

  for row in np.flatnonzero(batch.valid):
    yield jax.tree.map(lambda leaf: leaf[row], batch)


def picture(
  example: Batch, names: Mapping[int, str], side: int, skeleton: Sequence[tuple[int, int]] = ()
) -> np.ndarray:
  """One example's canvas, scaled to `side` pixels, with its objects: u8[h, w, 3].

  Args:
    example: without a leading B.
    names: by class, 1..K.
    side: of the picture's longer side.
    skeleton: the joints, counted from 0, that limbs join.
  """
  canvas = example.image.shape[:2]
  size = tuple(max(1, round(one * side / max(canvas))) for one in canvas)
  scale = np.array([size[1] / canvas[1], size[0] / canvas[0]])
  pixels = np.clip(np.rint(example.image), 0, 255).astype(np.uint8)
  resized = np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))
  width, height = np.ceil(example.image_size[::-1] * scale).astype(int)
  resized[height:], resized[:, width:] = NOTHING, NOTHING
  return draw.draw(resized, objects(example, scale, size), names, skeleton=skeleton, long_side=side)


def objects(example: Batch, scale: np.ndarray, size: tuple[int, int]) -> list[dict]:
  """The truth of an example in COCO's form, its class as `category_id`, in a picture of `size` (height, width).

  Args:
    example: without a leading B.
    scale: f64[2], pixels of the picture per pixel of the canvas, (horizontal, vertical).
  """
  truth = example.truth
  rows = np.flatnonzero(truth.valid)
  boxes = truth.boxes[rows].astype(np.float64) * np.tile(scale, 2)
  found = [
    {"category_id": int(truth.classes[row]), "bbox": [x1, y1, x2 - x1, y2 - y1]}
    | {"iscrowd": bool(truth.crowd[row]), "difficult": bool(truth.difficult[row])}
    for row, (x1, y1, x2, y2) in zip(rows, boxes.tolist())
  ]
  if truth.masks is not None:
    counts = paste.run_lengths(truth.masks[rows].astype(np.float32), boxes, size)
    found = [one | {"segmentation": {"size": list(size), "counts": runs}} for one, runs in zip(found, counts)]
  if truth.keypoints is not None:
    points = truth.keypoints[rows] * np.append(scale, 1)
    found = [one | {"keypoints": each.ravel().tolist()} for one, each in zip(found, points)]
  return found


def sheet(pictures: Sequence[np.ndarray], captions: Sequence[str], side: int, columns: int) -> np.ndarray:
  """Pictures of at most `side` pixels in rows, each below its caption: u8[h, w, 3]."""
  rows = math.ceil(len(pictures) / columns)
  lines = [max(one.shape[0] for one in pictures[row * columns : (row + 1) * columns]) for row in range(rows)]
  tops = np.cumsum([0, *(height + HEAD + GAP for height in lines)])
  canvas = Image.new("RGB", (columns * (side + GAP) + GAP, int(tops[-1]) + GAP), draw.PAPER)
  pen = ImageDraw.Draw(canvas)
  for place, (one, caption) in enumerate(zip(pictures, captions, strict=True)):
    row, column = divmod(place, columns)
    x, y = GAP + column * (side + GAP), int(tops[row])
    lettering.line(lettering.writable(_shortened(caption, side)), 14).write(
      pen, (x, y + HEAD / 2 + 2), draw.INK, "lm"
    )
    canvas.paste(Image.fromarray(one), (x, y + HEAD))
  return np.asarray(canvas)


def _shortened(text: str, width: int) -> str:
  """The end of a text that is too long for `width` pixels, which is where names differ."""
  for start in range(len(text)):
    shown = text if not start else f"…{text[start:]}"
    if lettering.line(lettering.writable(shown), 14).width <= width:
      return shown
  return ""

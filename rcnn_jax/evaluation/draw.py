"""Pictures of boxes, masks and keypoints with their names and scores.

Only drawing on arrays lives here; objects come in COCO's form, ground truth (no score) and results alike.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle

from rcnn_jax.evaluation import lettering

Colour = tuple[int, int, int]

# Told apart on photographs, on microscope images, and by most colour-blind people (after Okabe and Ito, brightened).
PALETTE: tuple[Colour, ...] = (
  (255, 176, 0),
  (38, 166, 255),
  (255, 84, 112),
  (0, 201, 144),
  (190, 120, 255),
  (255, 238, 82),
  (255, 126, 54),
  (104, 224, 255),
  (255, 140, 214),
  (158, 222, 60),
)
INK, PAPER, QUIET = (24, 28, 36), (255, 255, 255), (110, 118, 132)
MASK_OPACITY, RIM_OPACITY = 0.42, 0.85  # a rim shows where a mask ends, whatever the colours below it
MANY = 20  # objects of one sole class, from which its name is not repeated in each label
LINE_SHADE = 0.55  # the dark rim under a line, so that it is seen on a light background as well


def draw(
  image: np.ndarray,
  objects: Sequence[dict],
  names: Mapping[int, str],
  *,
  skeleton: Sequence[tuple[int, int]] = (),
  long_side: int = 960,
  labels: bool = True,
) -> np.ndarray:
  """The image, enlarged to be legible if it is small, with its objects drawn on it.

  A label that would cover an earlier one (of higher score) is left out; the colour still tells the class.

  Args:
    image: u8[H, W, 3], RGB.
    objects: in COCO's form: category_id, bbox [x, y, w, h] in pixels of the image, and if present score,
      segmentation (run lengths) and keypoints; iscrowd and difficult are named in the label.
    names: class name by category id; their order gives the colours. One that no font has is shown by its id.
    skeleton: the joints, counted from 0, that limbs join.
    long_side: pixels; smaller images are enlarged to about this, larger ones stay as they are.
    labels: whether names and scores are written.

  Returns:
    u8[H', W', 3].
  """
  factor = max(1.0, long_side / max(image.shape[:2]))
  ordered = sorted(objects, key=lambda one: -one["bbox"][2] * one["bbox"][3])  # small objects on top of large ones
  colours = class_colours(names)
  canvas = Image.fromarray(_blend_masks(image, ordered, colours))
  size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
  canvas = canvas.resize(size, Image.Resampling.BICUBIC) if factor > 1.0 else canvas.copy()
  pen = ImageDraw.Draw(canvas)
  width = max(2, round(max(size) / 400))
  for one in ordered:
    _draw_box(pen, _scaled_box(one, factor), colours[one["category_id"]], width)
    _draw_keypoints(pen, one, skeleton, factor, colours[one["category_id"]], width)
  best_first = sorted(objects, key=lambda one: -one.get("score", 1.0))
  if labels:
    _draw_labels(pen, best_first, names, factor, size, width)
  return np.asarray(canvas)


def class_colours(names: Mapping[int, str]) -> dict[int, Colour]:
  """A colour for each category id; after the palette's, hues a golden angle apart."""
  extra = lambda n: tuple(round(255 * v) for v in colorsys.hsv_to_rgb(n * 0.618034 % 1.0, 0.62, 1.0))
  return {key: PALETTE[n] if n < len(PALETTE) else extra(n) for n, key in enumerate(names)}


def side_by_side(
  image: np.ndarray,
  truth: Sequence[dict],
  detections: Sequence[dict],
  names: Mapping[int, str],
  *,
  skeleton: Sequence[tuple[int, int]] = (),
  title: str = "",
  min_score: float = 0.0,
) -> np.ndarray:
  """Ground truth on the left, detections of at least `min_score` on the right, with counts and a legend of classes.

  Args are those of `draw`; returns u8[H', W', 3].
  """
  shown = [d for d in detections if d["score"] >= min_score]
  long_side = 960 if image.shape[1] < 1.2 * image.shape[0] else 1120
  left, right = (draw(image, objects, names, skeleton=skeleton, long_side=long_side) for objects in (truth, shown))
  gap, head, foot = 16, 44, 44
  height, width = left.shape[:2]
  canvas = Image.new("RGB", (2 * width + 3 * gap, height + head + foot), PAPER)
  canvas.paste(Image.fromarray(left), (gap, head))
  canvas.paste(Image.fromarray(right), (width + 2 * gap, head))
  pen = ImageDraw.Draw(canvas)
  kept = f", score at least {min_score:.2f}" if min_score > 0 else ""
  lettering.line(f"Ground truth: {_count(truth)}", 20).write(pen, (gap, head / 2), INK, "lm")
  lettering.line(f"Detections: {_count(shown)}{kept}", 20).write(pen, (width + 2 * gap, head / 2), INK, "lm")
  _draw_legend(pen, [*truth, *shown], names, (gap, head + height + foot / 2), canvas.width - gap, title)
  return np.asarray(canvas)


def _count(objects: Sequence[dict]) -> str:
  return f"{len(objects)} object{'' if len(objects) == 1 else 's'}"


def _scaled_box(one: dict, factor: float) -> tuple[float, float, float, float]:
  x, y, width, height = one["bbox"]
  return x * factor, y * factor, (x + width) * factor, (y + height) * factor


def _blend_masks(image: np.ndarray, objects: Sequence[dict], colours: Mapping[int, Colour]) -> np.ndarray:
  blended = image.astype(np.float32)
  for one in objects:
    if one.get("segmentation") is not None:
      inside = rle.decode(one["segmentation"]).astype(bool)
      opacity = np.where(_core(inside), MASK_OPACITY, RIM_OPACITY)[inside][:, None]
      colour = np.array(colours[one["category_id"]], np.float32)
      blended[inside] += opacity * (colour - blended[inside])
  return np.rint(blended).astype(np.uint8)


def _core(inside: np.ndarray) -> np.ndarray:
  """bool[H, W]: the pixels of a mask all four neighbours of which belong to it; beyond the image nothing does."""
  around = np.pad(inside, 1)
  return inside & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]


def _draw_box(pen: ImageDraw.ImageDraw, box: Sequence[float], colour: Colour, width: int) -> None:
  dark = tuple(round(v * (1.0 - LINE_SHADE)) for v in colour)
  x1, y1, x2, y2 = box
  x2, y2 = max(x1, x2), max(y1, y2)
  pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=dark, width=width + 2)
  pen.rectangle((x1, y1, x2, y2), outline=colour, width=width)


def _draw_keypoints(
  pen: ImageDraw.ImageDraw,
  one: dict,
  skeleton: Sequence[tuple[int, int]],
  factor: float,
  colour: Colour,
  width: int,
) -> None:
  """Dots and limbs; ground truth's joints that are not annotated (visibility 0) are left out."""
  points = np.asarray(one.get("keypoints") or [], np.float64).reshape(-1, 3)
  shown = (points[:, 2] > 0) | ("score" in one)
  points = points[:, :2] * factor
  for a, b in skeleton if len(points) else ():
    if shown[a] and shown[b]:
      pen.line((*points[a], *points[b]), fill=colour, width=width)
  for x, y in points[shown]:
    radius = 1.6 * width
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=INK)


def _label(one: dict, name: str) -> str:
  flags = [f"({text})" for key, text in (("iscrowd", "crowd"), ("difficult", "difficult")) if one.get(key)]
  score = [f"{one['score']:.2f}"] if "score" in one else []
  return " ".join(part for part in (name, *score, *flags) if part)


def _draw_labels(
  pen: ImageDraw.ImageDraw,
  objects: Sequence[dict],
  names: Mapping[int, str],
  factor: float,
  size: tuple[int, int],
  width: int,
) -> None:
  """A filled tag at each box, above it where there is room, best scores first."""
  height = max(13, min(20, max(size) / 60)) if len(objects) <= 40 else 13
  colours, placed, names = class_colours(names), np.zeros((0, 4)), lettering.legible(names)
  named = len(names) > 1 or len(objects) < MANY
  for one in objects:
    text = _label(one, names[one["category_id"]] if named else "")
    if not text:
      continue
    line = lettering.line(text, height)
    left, top, right, bottom = line.box()
    tag = np.array([right - left + 8, bottom - top + 6])
    tags = _tag_places(_scaled_box(one, factor), tag, size, width)
    place = next((p for p in tags if not _overlaps(p, placed)), None)
    if place is None:
      continue
    placed = np.concatenate([placed, place[None]])
    colour = colours[one["category_id"]]
    pen.rectangle(tuple(place), fill=colour)
    line.write(pen, (place[0] + 4 - left, place[1] + 3 - top), _ink_on(colour))


def _tag_places(box: Sequence[float], tag: np.ndarray, size: tuple[int, int], width: int) -> list[np.ndarray]:
  """Where a tag may stand, the best place first: above the box, inside at its top, below it; all within the image."""
  x1, y1, _, y2 = box
  corners = [(x1 - 1, y1 - tag[1]), (x1 - 1, y1), (x1 - 1, y2)]
  limit = np.maximum(np.array(size) - 1 - tag, 0)
  start = 1 if y1 < tag[1] else 0  # no room above: pushed down it would cover the box's content anyway
  return [np.concatenate([corner, corner + tag]) for corner in (np.clip(c, 0, limit) for c in corners[start:])]


def _overlaps(tag: np.ndarray, placed: np.ndarray) -> bool:
  return bool(((tag[:2] < placed[:, 2:]) & (placed[:, :2] < tag[2:])).all(axis=1).any())


def _ink_on(colour: Colour) -> Colour:
  luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
  return INK if luminance > 130 else PAPER


def _draw_legend(
  pen: ImageDraw.ImageDraw,
  objects: Sequence[dict],
  names: Mapping[int, str],
  start: tuple[float, float],
  right: float,
  title: str,
) -> None:
  """The classes in the picture, most frequent first, as far as there is room; the title stands at the right."""
  colours, names = class_colours(names), lettering.legible(names)
  x, y = start
  caption = lettering.line(title, 17)
  caption.write(pen, (right, y), QUIET, "rm")
  right -= caption.width + 24
  for key, _ in Counter(one["category_id"] for one in objects).most_common():
    name = lettering.line(names[key], 17)
    end = x + 24 + name.width
    if end > right:
      break
    pen.rounded_rectangle((x, y - 8, x + 16, y + 8), 4, fill=colours[key])
    name.write(pen, (x + 24, y), INK, "lm")
    x = end + 22

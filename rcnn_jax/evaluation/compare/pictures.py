"""The images on which two variants differ most: the truth by who found it, and detections by what they are.

Types of objects and of errors stand in for classes, so that the pictures are those of `evaluation.draw`.
"""

from __future__ import annotations

import html
import io

import numpy as np
from PIL import Image

from rcnn_jax.evaluation import draw, page
from rcnn_jax.evaluation.classes import one_line
from rcnn_jax.evaluation.compare import tide
from rcnn_jax.evaluation.compare.comparison import Compared
from rcnn_jax.evaluation.compare.inputs import Inputs, Variant

MIN_SCORE = 0.5  # of the detections that are drawn and counted
LONG_SIDE = 560  # pixels
WORDS = {
  "Cls": "wrong class",
  "Loc": "poor box",
  "Both": "wrong class, poor box",
  "Dupe": "duplicate",
  "Bkg": "nothing there",
}
# Places in draw.PALETTE: amber, blue, red, green, violet, yellow, orange, light blue, pink, lime.
FOUND = {3: "found by both", 1: "only by the base", 0: "only by the other", 2: "by neither"}


def sections(inputs: Inputs, compared: Compared, num_pictures: int) -> list[str]:
  """A section of pictures for each variant beside the base; nothing without images."""
  if inputs.source is None or num_pictures < 1:
    return ['<div id="pictures"></div>']
  base, *others = inputs.variants
  found = ['<div id="pictures"></div>']
  for other in others:
    places = differing(compared, base.name, other.name)[:num_pictures]
    shots = [_shot(inputs, compared, base, other, place) for place in places]
    lead = (
      f"<p>Detections of score {MIN_SCORE:g} or more, first seeds. The images in which most objects are found by one "
      "alone. Arrow keys go from one to the next.</p>"
    )
    found.append(page.section(f"{base.name} beside {other.name}", *([lead, *shots] if shots else [])))
  return found


def differing(compared: Compared, base: str, other: str, most: int = 64) -> list[int]:
  """Places of images, by how many objects one of two detectors finds and the other does not; then by false ones."""
  first, second = (_found(compared, name) for name in (base, other))
  images, num = compared.errors[base][0].data.images, len(compared.matches[base][0].image_ids)
  alone = np.bincount(images[first != second], minlength=num)
  false = [_false(compared, name) for name in (base, other)]
  order = np.lexsort((-np.abs(false[0] - false[1]), -alone))
  return [int(n) for n in order[:most] if alone[n] or false[0][n] != false[1][n]]


def _found(compared: Compared, name: str) -> np.ndarray:
  """bool[G]: whether the first detector of a variant hits each object with a score that is drawn."""
  matches, errors = compared.matches[name][0], compared.errors[name][0]
  found = np.zeros(len(errors.found), bool)
  found[matches.objects[(errors.types == tide.HIT) & (matches.scores >= MIN_SCORE)]] = True
  return found


def _false(compared: Compared, name: str) -> np.ndarray:
  """i64[I]: false detections of each image."""
  matches, errors = compared.matches[name][0], compared.errors[name][0]
  wrong = (errors.types >= 0) & (matches.scores >= MIN_SCORE)
  return np.bincount(matches.images[wrong], minlength=len(matches.image_ids))


def _shot(inputs: Inputs, compared: Compared, base: Variant, other: Variant, place: int) -> str:
  """One image: the truth and both variants' detections, as HTML."""
  image_id = int(compared.matches[base.name][0].image_ids[place])
  index, record = next((n, one) for n, one in enumerate(inputs.truth["images"]) if one["id"] == image_id)
  pixels = inputs.source.image(index)
  parts = [_truth(inputs, compared, base, other, pixels, place)]
  parts += [_detections(compared, variant, pixels, place) for variant in (base, other)]
  return f'<div class="shot" tabindex="0"><h3>{html.escape(one_line(record["file_name"]))}</h3>{"".join(parts)}</div>'


def _truth(inputs: Inputs, compared: Compared, base: Variant, other: Variant, pixels: np.ndarray, place: int) -> str:
  first, second = (_found(compared, variant.name) for variant in (base, other))
  data = compared.errors[base.name][0].data
  who = np.select([first & second, first, second], [3, 1, 0], 2)
  rows = [row for row in np.flatnonzero(data.images == place) if not data.ignored[row]]
  objects = [{"bbox": data.boxes[row].tolist(), "category_id": int(who[row])} for row in rows]
  names = {n: FOUND.get(n, "") for n in range(len(draw.PALETTE))}
  counts = ", ".join(f"{sum(who[row] == n for row in rows)} {word}" for n, word in FOUND.items())
  return _figure(pixels, objects, names, f"Truth: {counts}", [n for n in FOUND if any(who[row] == n for row in rows)])


def _detections(compared: Compared, variant: Variant, pixels: np.ndarray, place: int) -> str:
  matches, errors = compared.matches[variant.name][0], compared.errors[variant.name][0]
  results = variant.detectors[0].results
  rows = np.flatnonzero((matches.images == place) & (matches.scores >= MIN_SCORE) & (errors.types != tide.IGNORED))
  places = {tide.HIT: 3, tide.CLS: 4, tide.LOC: 6, tide.BOTH: 8, tide.DUPE: 5, tide.BKG: 2}
  words = {places[tide.HIT]: "right"} | {places[n]: WORDS[name] for n, name in enumerate(tide.TYPES)}
  kinds = [places[int(errors.types[row])] for row in rows]
  objects = []
  for row, kind in zip(rows, kinds):
    one = {
      "bbox": results.boxes[matches.rows[row]].tolist(),
      "category_id": kind,
      "score": float(matches.scores[row]),
    }
    objects.append(one)
  names = {n: words.get(n, "") for n in range(len(draw.PALETTE))}
  counts = ", ".join(f"{kinds.count(n)} {word}" for n, word in words.items() if n in kinds) or "nothing"
  return _figure(pixels, objects, names, f"{variant.name}: {counts}", [n for n in words if n in kinds])


def _figure(pixels: np.ndarray, objects: list[dict], names: dict[int, str], caption: str, keys: list[int]) -> str:
  """A picture with a legend of its colours; labels are left to the legend."""
  factor = min(1.0, LONG_SIDE / max(pixels.shape[:2]))
  if factor < 1:
    size = (round(pixels.shape[1] * factor), round(pixels.shape[0] * factor))
    pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    objects = [{**one, "bbox": [factor * v for v in one["bbox"]]} for one in objects]
  drawn = draw.draw(pixels, objects, names, long_side=LONG_SIDE, labels=False)
  buffer = io.BytesIO()
  Image.fromarray(drawn).save(buffer, format="JPEG", quality=80)
  colours = draw.class_colours(names)
  legend = "".join(
    f'<span class="key" style="background:rgb{colours[key]}"></span>{html.escape(names[key])}' for key in keys
  )
  return (
    page.image(buffer.getvalue(), caption).removesuffix("</figure>")
    + f"<figcaption>{html.escape(caption)}<br>{legend}</figcaption></figure>"
  )

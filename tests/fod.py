"""A drawn imitation of FOD-A, a public set of debris on airfields: its layout, with shapes in place of photographs.

Like it: a VOC folder of 300 x 300 images with one to three objects each, corners with fractions of a pixel,
<depth/> empty, flags of "Unspecified", and a split file that names images several times.
"""

from __future__ import annotations

import pathlib

import cv2
import numpy as np

CLASSES = ("Bolt", "Hammer", "Nut", "PlasticPart")
SIDE = 300  # pixels
COLOURS = ((40, 40, 200), (200, 60, 40), (40, 190, 60), (190, 190, 40))  # BGR


def write(root: pathlib.Path, num_images: int, num_lines: int, most: int = 31, seed: int = 0) -> list[int]:
  """Draws the set under `root`: images 000001.jpg ..., and the splits 'train', of `num_lines` lines, and 'val'.

  In 'train' stand the first 3/4 of the images, the first of them `most` times; in 'val' the others, each once.

  Returns:
    How many objects each image has.
  """
  rng = np.random.default_rng(seed)
  for sub in ("Annotations", "JPEGImages", "ImageSets/Main"):
    (root / sub).mkdir(parents=True)
  names = [f"{number + 1:06d}" for number in range(num_images)]
  counts = [_write_image(root, name, rng) for name in names]
  first, *others = train = names[: max(1, num_images * 3 // 4)]
  lines = [first] * min(most, num_lines) + (others * (num_lines // max(len(others), 1) + 1))[
    : max(0, num_lines - most)
  ]
  for split, listed in (("train", rng.permutation(lines)), ("val", names[len(train) :])):
    (root / "ImageSets/Main" / f"{split}.txt").write_bytes("".join(f"{name}\r\n" for name in listed).encode())
  return counts


def _write_image(root: pathlib.Path, name: str, rng: np.random.Generator) -> int:
  image = np.full((SIDE, SIDE, 3), 120, np.uint8) + rng.integers(0, 25, (SIDE, SIDE, 1), np.uint8)
  items = ""
  count = int(rng.integers(1, 4))
  for _ in range(count):
    kind = int(rng.integers(len(CLASSES)))
    x, y = rng.uniform(5, 200, 2)
    width, height = rng.uniform(30, 90, 2)
    corners = (x, y, x + width, y + height)
    cv2.rectangle(image, (round(x), round(y)), (round(x + width), round(y + height)), COLOURS[kind], -1)
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners)
    box = "".join(f"<{side}>{value:.2f}</{side}>" for side, value in sides)
    flags = "<pose>Unspecified</pose><truncated>Unspecified</truncated><difficult>Unspecified</difficult>"
    items += f"<object><name>{CLASSES[kind]}</name>{flags}<bndbox>{box}</bndbox></object>"
  head = f"<folder>FOD</folder><filename>{name}.jpg</filename><source><database>Unknown</database></source>"
  size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth/></size><segmented>0</segmented>"
  (root / f"Annotations/{name}.xml").write_text(f"<annotation>{head}{size}{items}</annotation>")
  cv2.imwrite(str(root / f"JPEGImages/{name}.jpg"), image)
  return count

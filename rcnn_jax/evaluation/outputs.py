"""What the commands write beside the user's own files, and how they tell the two apart: no file of his is replaced.

Pictures carry a mark (PNG's text `Software`), so that neither a list of names nor an empty folder is needed.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import pathlib
import unicodedata
from collections.abc import Collection, Iterator

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rcnn_jax.files import writing

SOFTWARE = "rcnn-jax"
_MARK = b"tEXtSoftware\0" + SOFTWARE.encode()
_LONGEST = 200  # bytes of a name without its endings; file systems take 255
_HEAD = 1 << 20  # bytes of detections.json that are read to tell whose it is; its first entry fits into them

FileId = tuple[int, int]  # of the device and on it: the same for all names and links of a file


def write_picture(path: pathlib.Path, picture: np.ndarray) -> None:
  """Writes u8[H, W, 3] (RGB) as a PNG with the mark; the file is whole or not there."""
  mark, buffer = PngInfo(), io.BytesIO()
  mark.add_text("Software", SOFTWARE)
  Image.fromarray(picture).save(buffer, "PNG", pnginfo=mark, compress_level=3)  # a third of the time of 6
  with writing(path) as file:
    file.write(buffer.getbuffer())


def is_own_picture(path: pathlib.Path) -> bool:
  """Whether `path` is a picture that `write_picture` wrote, and no link to one."""
  if path.is_symlink() or not path.is_file():
    return False
  with open(path, "rb") as file:
    return _MARK in file.read(128)


def file_ids(paths: Collection[pathlib.Path]) -> frozenset[FileId]:
  """What the files are, whatever they are called: links, hard or symbolic, have their file's."""
  found = set()
  for path in paths:
    with contextlib.suppress(OSError):  # it is gone
      one = os.stat(path)
      found.add((one.st_dev, one.st_ino))
  return frozenset(found)


def picture_path(
  folder: pathlib.Path, relative: str, taken: set[str], kept: frozenset[FileId] = frozenset()
) -> pathlib.Path:
  """Where the picture of an image may be written without any loss; the place is added to `taken`.

  `cat.jpg` gives `cat.png`. Where that is taken by another image of this run (`cat.bmp`, say; on some disks `Cat.png`
  is the same file), by one of the `kept` files, or by a file that is no picture of ours, it is `cat.jpg.png`, then
  `cat.drawn.png`, `cat.drawn.2.png`, ...

  Args:
    folder: of all pictures.
    relative: name of the image, with the sub-folders that its picture gets as well.
    taken: places of this run.
    kept: files that must stay as they are (`file_ids`).
  """
  for name in _picture_names(relative):
    place = unicodedata.normalize("NFC", name).casefold()
    path = folder / name
    if place not in taken and _is_free(path, kept):
      taken.add(place)
      return path
  raise AssertionError("the names do not end")


def _picture_names(relative: str) -> Iterator[str]:
  path = pathlib.PurePosixPath(relative)
  ending = path.suffix if len(path.suffix) < 10 else ""
  stem = path.name.removesuffix(ending).encode("utf-8", "surrogateescape")
  stem = stem[-_LONGEST:].decode("utf-8", "ignore" if len(stem) > _LONGEST else "surrogateescape") or "image"
  numbered = (f"{stem}.drawn.{number}.png" for number in itertools.count(2))
  for name in itertools.chain([f"{stem}.png", f"{stem}{ending}.png", f"{stem}.drawn.png"], numbered):
    yield (path.parent / name).as_posix()


def _is_free(path: pathlib.Path, kept: frozenset[FileId]) -> bool:
  if not os.path.lexists(path):
    return True
  return is_own_picture(path) and not file_ids([path]) & kept


def is_own_detections(path: pathlib.Path) -> bool:
  """Whether a file of detections is one of `launch.predict`: its entries end with `category` and `file_name`."""
  if not path.is_file():  # a pipe would be waited for
    return False
  try:
    with open(path, "rb") as file:
      head = file.read(_HEAD).decode().lstrip()
    if head[:1] != "[" or head[1:].strip() in ("", "]"):
      return not head or head[:1] == "["  # nothing is lost
    first, _ = json.JSONDecoder().raw_decode(head[1:].lstrip())
  except (OSError, ValueError, RecursionError):
    return False
  return isinstance(first, dict) and list(first)[:1] == ["image_id"] and list(first)[-2:] == ["category", "file_name"]


def is_own_metrics(path: pathlib.Path) -> bool:
  """Whether a file is the metrics.json of an evaluation."""
  if not path.is_file():
    return False
  try:
    form = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return False
  return isinstance(form, dict) and "voc/mAP_area" in form

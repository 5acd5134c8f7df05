"""Text in pictures and plots, in any script: each part of it in the first font that has its characters.

Fonts are Noto's of all scripts in use (the packages manimgx-fonts and manimgx-fonts-cjk, data alone), matplotlib's
DejaVu Sans, then those of the system. Arabic, Hebrew and the scripts of India and South-East Asia are shaped by
libraqm, which Pillow's wheels hold.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import logging
import pathlib
import unicodedata
from collections.abc import Collection, Iterator, Mapping

import matplotlib
from fontTools.ttLib import TTCollection, TTFont, TTLibError
from matplotlib import font_manager
from PIL import ImageDraw, ImageFont

logger = logging.getLogger(__name__)

PACKAGES = ("manimgx_fonts", "manimgx_fonts_cjk")
_FIRST = "NotoSans[wght]"  # Latin, Greek, Cyrillic: the look of all text that has no other script
_REGULAR = 400
# Of a collection for East Asia, the face that writes as the text does: its name ends so. Kana are Japanese alone.
_REGIONS = ((("HIRAGANA", "KATAKANA"), "JP"), (("HANGUL",), "KR"), (("CJK",), "SC"))

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of text, in the parts that a font has each of."""

  parts: tuple[tuple[str, ImageFont.FreeTypeFont], ...]

  @property
  def width(self) -> float:
    """Pixels."""
    return sum(font.getlength(text) for text, font in self.parts)

  def box(self) -> Box:
    """(left, top, right, bottom) of its ink, pixels from the left end of the base line."""
    x, boxes = 0.0, []
    for text, font in self.parts:
      left, top, right, bottom = font.getbbox(text, anchor="ls")
      boxes.append((x + left, top, x + right, bottom))
      x += font.getlength(text)
    lefts, tops, rights, bottoms = zip(*boxes) if boxes else ((0.0,),) * 4
    return min(lefts), min(tops), max(rights), max(bottoms)

  def write(self, pen: ImageDraw.ImageDraw, xy: tuple[float, float], fill, anchor: str = "ls") -> None:
    """Writes it; `anchor` is Pillow's: the left end (l) or the right (r), of the base line (s) or the middle (m)."""
    x, y = xy
    x -= self.width if anchor[0] == "r" else 0.0
    if anchor[1] == "m" and self.parts:
      ascent, descent = self.parts[0][1].getmetrics()
      y += (ascent - descent) / 2
    for text, font in self.parts:
      pen.text((x, y), text, fill, font, anchor="ls")
      x += font.getlength(text)


def line(text: str, size: float) -> Line:
  """The text in one line at a size in pixels; a character that no font has is written as a question mark."""
  text = " ".join(text.split())
  return Line(tuple((part, _font(path, _region(part), round(size))) for part, path in _parts(text)))


def legible(names: Mapping[int, str]) -> dict[int, str]:
  """The names of classes by category id, where there are fonts for all of it; of others the id. Each is warned of."""
  return {key: name if is_covered(name) else _id_instead(key, name) for key, name in names.items()}


def is_covered(text: str) -> bool:
  """Whether some fonts have all characters of the text."""
  return all(_has_no_glyph(c) or _first_with(c) for c in text)


def writable(text: str) -> str:
  """The text with a question mark for each character that no font has."""
  return "".join(c if _has_no_glyph(c) or _first_with(c) else "?" for c in text)


def families(texts: Collection[str]) -> list[str]:
  """The names of matplotlib fonts that have all characters of some texts, as far as there are any; best first."""
  paths = dict.fromkeys([_dejavu()])
  for c in sorted(set("".join(texts))):
    if not _has_no_glyph(c) and ord(c) not in _characters(_dejavu()) and (path := _first_with(c)):
      paths.setdefault(path)
  return [_matplotlib_name(path) for path in paths]


@functools.cache
def _id_instead(key: int, name: str) -> str:
  logger.warning("no font has all characters of the class %r (id %d): pictures show its id", name, key)
  return f"id {key}"


def _parts(text: str) -> Iterator[tuple[str, pathlib.Path]]:
  """The text in parts of one font each, in their order.

  A script that is written from the right is a part, turned round within: behind it the text goes on at the right.
  So that a space between two fonts is not at the wrong end of such a part, it is the first font's.
  """
  paths: list[pathlib.Path | None] = []
  for c in text:
    before = paths[-1] if paths else None
    if c == " " or (_has_no_glyph(c) and before is None):
      paths.append(None)
    elif _has_no_glyph(c) or (before is not None and not c.isascii() and ord(c) in _characters(before)):
      paths.append(before)
    else:
      paths.append(_first_with(c) or _first_with("?"))
  for number, path in enumerate(paths):
    if path is None:
      before, behind = paths[number - 1] if number else None, next(filter(None, paths[number:]), None)
      paths[number] = before if before == behind and before is not None else _first_with(" ")
  for path, group in itertools.groupby(zip(writable(text), paths), key=lambda pair: pair[1]):
    if path is not None:
      yield "".join(c for c, _ in group), path


def _has_no_glyph(c: str) -> bool:
  """Joiners, marks of direction and selectors of a variant change how others look."""
  return c == " " or unicodedata.category(c) == "Cf" or "\ufe00" <= c <= "\ufe0f"


@functools.lru_cache(maxsize=65536)
def _first_with(c: str) -> pathlib.Path | None:
  return next((path for path in _all_fonts() if ord(c) in _characters(path)), None)


def _all_fonts() -> Iterator[pathlib.Path]:
  """One after the other, so that those of the system are looked for only where the others do not have a character."""
  yield from _packaged()
  yield _dejavu()
  yield from _of_the_system()


@functools.cache
def _packaged() -> tuple[pathlib.Path, ...]:
  specs = filter(None, map(importlib.util.find_spec, PACKAGES))
  folders = [pathlib.Path(place) for spec in specs for place in spec.submodule_search_locations or ()]
  found = [path for folder in folders for path in sorted(folder.glob("*.[ot]t[fc]")) if "Italic" not in path.name]
  return tuple(sorted(found, key=lambda path: path.stem != _FIRST))


def _dejavu() -> pathlib.Path:
  return pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@functools.cache
def _of_the_system() -> tuple[pathlib.Path, ...]:
  """Regular faces first."""
  found = sorted(pathlib.Path(name) for name in font_manager.findSystemFonts())
  return tuple(sorted(found, key=lambda path: any(word in path.stem for word in ("Bold", "Italic", "Oblique"))))


@functools.cache
def _characters(path: pathlib.Path) -> frozenset[int]:
  """Those that a font has; the faces of a collection have the same. None of a file that cannot be read."""
  try:
    with TTFont(path, fontNumber=0, lazy=True) as font:
      return frozenset(font.getBestCmap() or ())
  except (OSError, TTLibError, AssertionError, ValueError, KeyError):
    return frozenset()


def _region(text: str) -> str:
  written = {word for c in text for word in unicodedata.name(c, "").split()[:1]}
  return next((region for scripts, region in _REGIONS if written & set(scripts)), "")


@functools.lru_cache(maxsize=256)
def _font(path: pathlib.Path, region: str, size: int) -> ImageFont.FreeTypeFont:
  index = next((number for number, name in enumerate(_faces(path)) if region and name.endswith(region)), 0)
  font = ImageFont.truetype(path, size, index=index)
  try:
    axes = font.get_variation_axes()
  except (OSError, NotImplementedError):  # it has but one weight
    return font
  font.set_variation_by_axes([_REGULAR if axis["name"] == b"Weight" else axis["default"] for axis in axes])
  return font


@functools.cache
def _faces(path: pathlib.Path) -> tuple[str, ...]:
  if path.suffix not in (".ttc", ".otc"):
    return ()
  with TTCollection(path, lazy=True) as collection:
    return tuple(face["name"].getDebugName(1) or "" for face in collection.fonts)


@functools.cache
def _matplotlib_name(path: pathlib.Path) -> str:
  """The name under which matplotlib finds a font file from now on, whatever the file calls itself and its weight."""
  name = path.stem if path != _dejavu() else "DejaVu Sans"
  if all(entry.name != name for entry in font_manager.fontManager.ttflist):
    look = {"style": "normal", "variant": "normal", "weight": _REGULAR, "stretch": "normal", "size": "scalable"}
    font_manager.fontManager.ttflist.append(font_manager.FontEntry(str(path), name=name, **look))
  return name

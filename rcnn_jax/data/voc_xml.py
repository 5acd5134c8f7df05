"""One annotation file in Pascal VOC's XML: its bytes to names and corners, and every fault that it has."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import unicodedata
from xml.etree import ElementTree

from rcnn_jax.data.errors import Fault, clipped, reason_of
from rcnn_jax.data.text import encoding_of, meant

MAX_BYTES, MAX_TAGS = 2**24, 2**20  # of an annotation file: room for 50,000 objects
MAX_NAME = 200  # characters of a class's name
SIDES = ("xmin", "ymin", "xmax", "ymax")
_DECLARATION = re.compile(r"<\?xml\s[^>]{0,250}>")
_ENCODING = re.compile(r"encoding\s*=\s*[\"']([^\"']*)[\"']")
_FALSE = ("", "0", "false", "no", "n", "f", "unspecified", "none", "null")  # of <difficult>
_TRUE = ("1", "true", "yes", "y", "t")


@dataclasses.dataclass(frozen=True)
class Object:
  """One object; a box that is degenerate is kept as it is written."""

  number: int  # position in the file, from 1
  name: str
  corners: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax as written
  difficult: bool


@dataclasses.dataclass(frozen=True)
class Record:
  """An annotation file; `faults` cost the objects that they name, or with `usable=False` the whole image."""

  usable: bool
  size: tuple[int, int] | None = None  # (height, width); None: the file does not say it
  image_name: str | None = None  # <filename>
  objects: tuple[Object, ...] = ()
  faults: tuple[Fault, ...] = ()


def read(path: str | os.PathLike) -> Record:
  """The annotation file; what is wrong with it is in the record's faults."""
  try:
    with open(path, "rb") as file:
      encoded = file.read(MAX_BYTES + 1)
  except OSError as error:
    return _unusable(path, reason_of(error))
  return parse(encoded, str(path))


def parse(encoded: bytes, name: str) -> Record:
  """The contents of an annotation file; `name` is for the faults.

  No entity that a file declares is expanded, and nothing that it names is opened.
  """
  if len(encoded) > MAX_BYTES:
    return _unusable(name, f"more than {MAX_BYTES:,} bytes: no annotation file")
  text, problem = _text(encoded)
  if text is None:
    return _unusable(name, problem)
  if "<!ENTITY" in text:  # a few of them, nested, would fill the memory
    return _unusable(name, "declares entities (<!ENTITY ...>), which are not read")
  if text.count("<") > MAX_TAGS:  # each takes 300 bytes
    return _unusable(name, f"more than {MAX_TAGS:,} tags: no annotation file")
  try:
    root = ElementTree.fromstring(_DECLARATION.sub("", text, count=1).strip("\ufeff\0 \t\r\n"))
  except (ElementTree.ParseError, ValueError) as error:  # ValueError: half of a surrogate pair
    return _unusable(name, f"not readable as XML: {str(error).splitlines()[0]}")
  if root.tag.lower() != "annotation":
    return _unusable(name, f"its root is {clipped(root.tag)}, not <annotation>")
  faults = [Fault(name, problem, fatal=False)] if problem else []
  objects = []
  for number, node in enumerate(root.iterfind("object"), 1):
    item, problem = _object(number, node)
    if problem:
      faults.append(Fault(name, problem, f"object {number}", fatal=False))
    if item is not None:
      objects.append(item)
  if _are_fractions(objects):
    return _unusable(name, "all its boxes lie between 0 and 1: fractions, where pixels are expected")
  image_name = (root.findtext("filename") or "").strip()
  return Record(True, _size(root), image_name or None, tuple(objects), tuple(faults))


def _unusable(path, problem: str | None) -> Record:
  return Record(False, faults=(Fault(str(path), problem or "cannot be read", fatal=False),))


def _text(encoded: bytes) -> tuple[str | None, str | None]:
  """(the text or None, what is wrong with its encoding or None)."""
  encoding = encoding_of(encoded)
  declaration = None if encoding else _DECLARATION.search(encoded[:300].decode("latin-1"))
  found = declaration and _ENCODING.search(declaration[0])
  said = found and found[1].strip()
  problem = None
  if said and not encoding:
    encoding = meant(said)
    if encoding is None:
      problem = f"declares the unknown encoding {clipped(said)}: read as UTF-8"
    elif encoding.startswith(("utf-16", "utf-32")):
      encoding = "utf-8"  # the declaration stands there in single bytes: it is not true
  try:
    return encoded.decode(encoding or "utf-8"), problem
  except (ValueError, LookupError):
    pass
  if encoding not in (None, "utf-8"):
    return None, f"cannot be decoded as {said or encoding}"
  return encoded.decode("latin-1"), "neither UTF-8 nor declared to be anything else: read as Latin-1"


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
  sides = [_number(root.findtext(f"size/{side}")) for side in ("height", "width")]
  if any(side is None or not 0 < side < 2**31 or side != int(side) for side in sides):
    return None
  return int(sides[0]), int(sides[1])


def _object(number: int, node: ElementTree.Element) -> tuple[Object | None, str | None]:
  """(the object or None, what is wrong with it or None)."""
  name = words(node.findtext("name"))
  if not name or len(name) > MAX_NAME:
    return None, f"<name> of {len(name):,} characters: no class's" if name else "no <name>"
  box = node.find("bndbox")
  if box is None:
    return None, "no <bndbox>"
  corners = [_number(box.findtext(side)) for side in SIDES]
  if None in corners:
    side = SIDES[corners.index(None)]
    written = box.findtext(side)
    return None, f"<bndbox>: {f'no <{side}>' if written is None else f'{side} is {clipped(written)}, no number'}"
  difficult, problem = _difficult(node.findtext("difficult"))
  return Object(number, name, tuple(corners), difficult), problem


def _difficult(written: str | None) -> tuple[bool, str | None]:
  word = (written or "").strip().lower()
  if word in _FALSE or word in _TRUE:
    return word in _TRUE, None
  value = _number(word)
  if value is None or math.isnan(value):
    return False, f"<difficult> is {clipped(word)}: read as 0"
  return value != 0, None


def _number(written: str | None) -> float | None:
  """12, 12.5, and 12,5 as some languages write it."""
  try:
    return float((written or "").replace(",", ".").replace("_", "?"))  # Python would take 1_000
  except ValueError:
    return None


def words(written: str | None) -> str:
  """A class's name as it is compared: spaces collapsed, and letters with accents as single characters."""
  return unicodedata.normalize("NFC", " ".join((written or "").split()))


def _are_fractions(objects: list[Object]) -> bool:
  """Whether all boxes lie within the unit square, and one of them is a box at all."""
  proper = any(x2 > x1 and y2 > y1 for x1, y1, x2, y2 in (item.corners for item in objects))
  return proper and all(0 <= value <= 1 for item in objects for value in item.corners)

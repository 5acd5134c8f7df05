"""What a COCO annotation file may hold: one schema, read strictly entry by entry, leniently where that fails.

The structs are the schema. An entry that is as they say is decoded by msgspec in microseconds. Any other is taken
field by field, and what is plainly meant is read: "80" and 80.0 for 80, null for what is not there, a list nested one
level too deep or too flat. What still does not fit is left out of the entry, and handed over to be named.
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
import reprlib
from collections.abc import Callable
from typing import Any

import msgspec

from rcnn_jax.data.errors import DataError
from rcnn_jax.data.text import encoding_of

Id = int | str


class Image(msgspec.Struct, gc=False):
  """An entry of `images`."""

  id: Id | None = None
  file_name: str | int | None = None
  height: int | None = None
  width: int | None = None


class Category(msgspec.Struct, gc=False):
  """An entry of `categories`; limbs of the skeleton are pairs of joints, counted from 1."""

  id: Id | None = None
  name: str | int | float | None = None
  keypoints: list[str | int] | None = None
  skeleton: list[list[int]] | None = None


class RunLengths(msgspec.Struct, gc=False):
  """A mask as run lengths, column by column; compressed where `counts` is a text."""

  size: list[int] | None = None
  counts: str | list[int] | None = None


class Annotation(msgspec.Struct, gc=False):
  """An entry of `annotations`."""

  id: Id | None = None
  image_id: Id | None = None
  category_id: Id | None = None
  bbox: list[float] | None = None  # x, y, width, height
  area: float | None | msgspec.UnsetType = msgspec.UNSET
  iscrowd: int | bool | None = None
  ignore: int | bool | None = None
  segmentation: list[list[float] | RunLengths] | RunLengths | None = None
  keypoints: list[float] | None = None


class ImageOf(msgspec.Struct, gc=False):
  """Of an annotation nothing but its image, which is decoded much faster."""

  image_id: Id | None = None


class Document(msgspec.Struct):
  """The whole file; its entries stay undecoded."""

  images: list[msgspec.Raw] | None | msgspec.UnsetType = msgspec.UNSET
  annotations: list[msgspec.Raw] | None | msgspec.UnsetType = msgspec.UNSET
  categories: list[msgspec.Raw] | None | msgspec.UnsetType = msgspec.UNSET


def document(encoded: bytes, path: pathlib.Path) -> Document:
  """The tables of a file.

  Raises:
    DataError: it is not readable as JSON, or is no COCO annotation file.
  """
  encoded = as_utf8(encoded)
  try:
    try:
      found = _decode(encoded, Document)
    except msgspec.ValidationError:
      found, mistake = None, _mistaken(encoded)  # which finds out whether the rest is JSON
  except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
    reason = "nested too deeply" if isinstance(error, RecursionError) else error
    raise DataError(f"{path}: not readable as JSON: {reason}") from error
  if found is None:
    raise DataError(f"{path}: {mistake}: not a COCO annotation file")
  missing = [name for name in Document.__struct_fields__ if getattr(found, name) is msgspec.UNSET]
  if missing:
    raise DataError(f"{path}: has no {', '.join(missing)}: not a COCO annotation file")
  return found


def as_utf8(encoded: bytes) -> bytes:
  """A text file's contents as UTF-8, without a byte order mark.

  UTF-16 and UTF-32 are known by their marks or zeros. Of the rest, what is no UTF-8 is taken for Chinese (GBK) where
  letters beyond ASCII stand in whole pairs of bytes, as they do there, and else for Windows' Latin letters.
  """
  encoding = encoding_of(encoded)
  if encoding == "utf-8-sig":
    return encoded[3:]
  if encoding is not None:
    return encoded.decode(encoding, "replace").encode("utf-8", "replace")
  if encoded.isascii() or _decodes(encoded, "utf-8"):
    return encoded
  runs = re.findall(rb"[\x80-\xff][\x40-\xff]?", encoded)
  paired = sum(len(run) == 2 and run[1] >= 0x80 for run in runs) > len(runs) // 2
  encoding = "gb18030" if paired and _decodes(encoded, "gb18030") else "cp1252"
  return encoded.decode(encoding if _decodes(encoded, encoding) else "latin-1").encode()


def _decodes(encoded: bytes, encoding: str) -> bool:
  try:
    encoded.decode(encoding)
  except UnicodeDecodeError:
    return False
  return True


def _decode(encoded: bytes, kind: type) -> Any:
  try:
    return msgspec.json.decode(encoded, type=kind)
  except msgspec.ValidationError:
    raise
  except msgspec.DecodeError:
    if not re.search(rb"NaN|Infinity", encoded):
      raise
  # Python writes NaN and Infinity, which JSON has not: as texts they are read leniently, as numbers or for nothing.
  quoted = re.sub(rb'("(?:[^"\\]|\\.)*")|(-?Infinity|NaN)', lambda found: found[1] or b'"%s"' % found[2], encoded)
  return msgspec.json.decode(quoted, type=kind)


def _mistaken(encoded: bytes) -> str:
  """Which table is no list, or that the whole is something else."""
  if encoded.lstrip()[:1] != b"{":
    return "holds a list, as a file of results does" if encoded.lstrip()[:1] == b"[" else "holds no tables"
  tables = _decode(encoded, dict[str, msgspec.Raw])
  found = {name: bytes(tables[name]) for name in Document.__struct_fields__ if name in tables}
  wrong = next((name for name, value in found.items() if value[:1] not in b"[n"), None)
  if wrong is None:
    return "a table stands twice in it, once as no list"
  try:
    return f"{wrong} is {shown(json.loads(found[wrong]))}, not a list"
  except (ValueError, RecursionError):  # a number of thousands of digits, nesting without end
    return f"{wrong} is not a list"


def read(raw: msgspec.Raw, decoder: msgspec.json.Decoder) -> tuple[Any, dict[str, Any]]:
  """An entry, and the values of those of its fields that cannot be read.

  The entry is None where it is no object; it then stands in the second part under "".
  """
  try:
    return decoder.decode(raw), {}
  except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
    pass
  try:
    value = json.loads(bytes(raw))
    return _read_leniently(value, decoder.type) if isinstance(value, dict) else (None, {"": value})
  except (ValueError, RecursionError):  # a number of 5,000 digits, lists in lists without end, half a character
    return None, {"": bytes(raw)[:60].decode("utf-8", "replace")}


_fields = functools.cache(msgspec.structs.fields)  # which compiles the types anew at each call


def _read_leniently(value: dict[str, Any], kind: type) -> tuple[Any, dict[str, Any]]:
  fields, unreadable = {}, {}
  for field in _fields(kind):
    if field.name not in value:
      continue
    given = value[field.name]
    try:
      meant = MEANT.get(field.name, lambda given: given)(given)
      fields[field.name] = msgspec.convert(meant, field.type, strict=False)
    except (msgspec.ValidationError, OverflowError):
      unreadable[field.name] = given
  return kind(**fields), unreadable


def _numbers(value: Any) -> Any:
  """A list of numbers that is nested too deep: [[1, 2], [3, 4]] for [1, 2, 3, 4]; null is no number."""
  if not isinstance(value, list):
    return value
  flat = [number for item in value for number in (_numbers(item) if isinstance(item, list) else [item])]
  return ["NaN" if number is None else number for number in flat]


def _polygons(value: Any) -> Any:
  """Polygons that are nested one level too deep or too flat, or written as pairs."""
  if not isinstance(value, list):
    return value
  if not any(isinstance(item, list | dict) for item in value):  # numbers: one polygon
    return [_numbers(value)] if value else []
  if all(isinstance(item, list) and not any(isinstance(number, list | dict) for number in item) for item in value):
    return [_numbers(value)] if are_points(value) else [_numbers(polygon) for polygon in value]
  return [polygon for item in value for polygon in (_polygons(item) if isinstance(item, list) else [item])]


def are_points(polygons: list) -> bool:
  """Whether what should be a list of polygons is one polygon, written as pairs: [[x, y], [x, y], [x, y]]."""
  return len(polygons) > 2 and all(isinstance(polygon, list) and len(polygon) == 2 for polygon in polygons)


# What is done to a field before it is read leniently.
MEANT: dict[str, Callable[[Any], Any]] = {"bbox": _numbers, "keypoints": _numbers, "segmentation": _polygons}
_REPR = reprlib.Repr()
_REPR.maxlist = _REPR.maxdict = 8
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 3, 60, 60, 60


def shown(value: Any) -> str:
  """A value of the file, in one line of limited length; a text is quoted."""
  return _REPR.repr(value)

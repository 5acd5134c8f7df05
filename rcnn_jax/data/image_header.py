"""What the header of an image file says, read without decoding it: its size and the camera's orientation.

A reader of headers of its own, because Pillow warns, or allocates the whole picture, for some of them, and OpenCV
has none. Only the sizes of a file's first picture are read, in the formats that OpenCV decodes.
"""

from __future__ import annotations

import dataclasses
import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

_START = 2**12  # bytes within which most formats say their size
_DEEPER = 2**16  # the same, where a colour profile may stand before it
_MAX_PARTS = 10_000  # chunks, segments or bytes of padding that are looked at before a file is given up
_SPACE = rb"(?:\s|#[^\n]*\n)+"  # or a comment, in the portable formats
_IN_WORDS = (
  re.compile(rb"P[1-6]%b(?P<width>\d{1,9})%b(?P<height>\d{1,9})\s" % (_SPACE, _SPACE)),  # PBM, PGM, PPM
  re.compile(rb"P7\n(?:.*\n){0,50}?WIDTH (?P<width>\d{1,9})\nHEIGHT (?P<height>\d{1,9})\n"),  # PAM
  re.compile(rb"#\?(?:.*\n){1,50}?-Y (?P<height>\d{1,9}) \+X (?P<width>\d{1,9})\n"),  # Radiance
)
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION, _WIDTH, _HEIGHT = 274, 256, 257  # tags of TIFF, whose form EXIF has too
_DAMAGED = (struct.error, IndexError, ValueError, OverflowError, OSError)  # cut off, or a place outside the file
_BYTES_OF = {1: "B", 3: "H", 4: "I", 16: "Q"}  # types of TIFF's whole numbers


@dataclasses.dataclass(frozen=True)
class Header:
  """The first picture of a file, as it is stored."""

  size: tuple[int, int]  # (height, width)
  # EXIF's number from 1 to 8 (1: upright); 1 for TIFF, which every reader turns upright, and whose size is that.
  orientation: int = 1


def read_header(file: BinaryIO) -> Header | None:
  """What an open file says of its picture, or None where its beginning is that of no image that OpenCV reads."""
  start = file.read(_START)
  try:
    return _header(start, file)
  except _DAMAGED:
    return None


def read_header_of(encoded: bytes) -> Header | None:
  """`read_header` of the contents of a file."""
  return read_header(io.BytesIO(encoded))


def decodable(encoded: bytes) -> bytes | None:
  """What a decoder may be given of an image file, which is all of it but for PNG; None: it is cut off or damaged.

  OpenCV 5 takes as much memory as the length of a part of a PNG file says, before it reads it, and crashes on some
  damaged animations: what it is given has whole parts, and only those of the picture that stands still.
  """
  if not encoded.startswith(_PNG):
    return encoded
  view, place = memoryview(encoded), len(_PNG)
  parts, moves = [_PNG], False
  while place + 12 <= len(view):
    length, name = struct.unpack(">I4s", view[place : place + 8])
    end = place + 8 + length
    if end + 4 > len(view):
      return None
    checked = name in (b"IHDR", b"PLTE", b"IDAT", b"IEND")
    if checked and zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
      return None
    if name in (b"acTL", b"fcTL", b"fdAT"):
      moves = True
    else:
      parts.append(view[place : end + 4])
    if name == b"IEND":
      return b"".join(parts) if moves else encoded
    place = end + 4
  return None


def _header(start: bytes, file: BinaryIO) -> Header | None:
  if start.startswith(b"\xff\xd8\xff"):
    return _jpeg(file)
  if start.startswith(_PNG):
    return _png(start, file)
  if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
    return _webp(start, file)
  if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
    return _tiff(file)
  if start.startswith(b"GIF8"):
    return _of(struct.unpack("<HH", start[6:10]))
  if start.startswith(b"BM"):
    old = struct.unpack("<I", start[14:18]) == (12,)
    width, height = struct.unpack("<HH", start[18:22]) if old else struct.unpack("<ii", start[18:26])
    return _of((width, abs(height)))  # negative: the first row stands on top
  if start.startswith(b"\x59\xa6\x6a\x95"):  # Sun raster
    return _of(struct.unpack(">II", start[4:12]))
  if start.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):  # JPEG 2000: the codestream counts
    start += file.read(_DEEPER)
    place = start.find(b"\xff\x4f\xff\x51")
    right, bottom, left, top = struct.unpack(">IIII", start[place + 8 : place + 24] if place >= 0 else b"")
    return _of((right - left, bottom - top))
  if start[4:8] == b"ftyp":  # AVIF: of the picture and its parts, the largest
    start += file.read(_DEEPER)
    sizes = [struct.unpack(">II", found[1]) for found in re.finditer(rb"ispe\0{4}(.{8})", start, re.DOTALL)]
    return _of(max(sizes, key=lambda size: size[0] * size[1])) if sizes else None
  found = next(filter(None, (pattern.match(start) for pattern in _IN_WORDS)), None)
  return found and _of((int(found["width"]), int(found["height"])))


def _of(width_and_height: tuple[int, int], exif: bytes | None = None) -> Header:
  width, height = width_and_height
  return Header((height, width), 1 if exif is None else _exif_orientation(exif))


def _jpeg(file: BinaryIO) -> Header | None:
  exif = None
  file.seek(2)
  for _ in range(_MAX_PARTS):
    marker = file.read(2)
    if marker[0] != 0xFF or marker[1] in (0x00, 0xFF):  # padding, which decoders skip
      file.seek(-1, io.SEEK_CUR)
      continue
    code = marker[1]
    if code == 0x01 or 0xD0 <= code <= 0xD8:  # without contents
      continue
    if code in (0xD9, 0xDA):  # the end, or the picture itself
      return None
    length = struct.unpack(">H", file.read(2))[0] - 2
    if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
      height, width = struct.unpack(">xHH", file.read(5))
      return _of((width, height), exif)
    if code == 0xE1 and exif is None:
      contents = file.read(max(length, 0))
      exif = contents if contents.startswith(b"Exif\0\0") else None
    else:
      file.seek(max(length, 0), io.SEEK_CUR)
  return None


def _png(start: bytes, file: BinaryIO) -> Header | None:
  if start[12:16] != b"IHDR":
    return None
  exif = None
  for name, length in _chunks(file, 8, ">I4s", extra=4, length_first=True):
    if name == b"eXIf":
      exif = file.read(length)
    if name in (b"IDAT", b"IEND") or exif is not None:
      break
  return _of(struct.unpack(">II", start[16:24]), exif)


def _webp(start: bytes, file: BinaryIO) -> Header | None:
  kind = start[12:16]
  if kind == b"VP8L":
    (bits,) = struct.unpack("<I", start[21:25])
    return _of(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
  if kind == b"VP8 ":
    width, height = struct.unpack("<HH", start[26:30])
    return _of((width & 0x3FFF, height & 0x3FFF))
  if kind != b"VP8X":
    return None
  width, height = (int.from_bytes(start[place : place + 3], "little") + 1 for place in (24, 27))
  exif = None
  if start[20] & 0x08:
    exif = next((file.read(length) for name, length in _chunks(file, 12, "<4sI") if name == b"EXIF"), None)
  return _of((width, height), exif)


def _chunks(file: BinaryIO, place: int, form: str, extra: int = 0, length_first=False) -> Iterator[tuple[bytes, int]]:
  """(name, length) of each part from `place` on, with the file at its contents; RIFF's begin at even places."""
  for _ in range(_MAX_PARTS):
    file.seek(place)
    head = file.read(8)
    if len(head) < 8:
      return
    length, name = struct.unpack(form, head) if length_first else struct.unpack(form, head)[::-1]
    yield name, length
    place += 8 + length + (extra if length_first else length % 2)


def _tiff(file: BinaryIO) -> Header | None:
  tags = _tiff_tags(file)
  if not tags.get(_WIDTH) or not tags.get(_HEIGHT):
    return None
  size = (tags[_WIDTH], tags[_HEIGHT])
  return _of(size[::-1] if tags.get(_ORIENTATION, 1) in range(5, 9) else size)


def _exif_orientation(exif: bytes) -> int:
  try:
    value = _tiff_tags(io.BytesIO(exif.removeprefix(b"Exif\0\0"))).get(_ORIENTATION, 1)
  except _DAMAGED:  # a damaged block says nothing
    return 1
  return value if value in range(1, 9) else 1


def _tiff_tags(file: BinaryIO) -> dict[int, int]:
  """The whole numbers among the first tags of a TIFF file, or of a block of EXIF; {} where it is none."""
  file.seek(0)
  start = file.read(16)
  order = {b"II": "<", b"MM": ">"}.get(start[:2])
  if order is None:
    return {}
  big = struct.unpack(f"{order}H", start[2:4]) == (43,)
  file.seek(struct.unpack(f"{order}Q", start[8:16])[0] if big else struct.unpack(f"{order}I", start[4:8])[0])
  length = 20 if big else 12
  count = struct.unpack(*((f"{order}Q", file.read(8)) if big else (f"{order}H", file.read(2))))[0]
  tags = {}
  for _ in range(min(count, _MAX_PARTS)):
    entry = file.read(length)
    tag, kind = struct.unpack(f"{order}HH", entry[:4])
    if tag in (_WIDTH, _HEIGHT, _ORIENTATION) and kind in _BYTES_OF:
      form = f"{order}{_BYTES_OF[kind]}"
      tags.setdefault(tag, struct.unpack(form, entry[length - (8 if big else 4) :][: struct.calcsize(form)])[0])
  return tags

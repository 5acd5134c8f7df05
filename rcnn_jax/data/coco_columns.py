"""From a COCO annotation file to columns, and a line for everything that is left out or not read as it stands.

The columns, for n images and m objects, which are sorted by image and within it stand in the file's order:

    image_ids i32[n]     the file's own ids where all are whole numbers from 0 below 2**31, else 1, 2 ... in its order
    sizes i32[n, 2]      (height, width)
    name_offsets i64[n + 1], names u8[]    file names as they stand in the file, in UTF-8
    offsets i64[n + 1]   image i has the objects offsets[i] to offsets[i + 1]
    faults u8[]          JSON: [file, problem, item, fatal] of each, the file "" where it is the annotation file
    and of the objects those of `coco_objects`

`values` holds the categories, and `file_ids`, the file's own ids of images where image_ids are not those.
"""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from rcnn_jax.data import coco_objects, images
from rcnn_jax.data.coco_objects import AMBIGUOUS, Table
from rcnn_jax.data.coco_schema import Category, Document, Image, document, read, shown
from rcnn_jax.data.columns import Columns, Writer, offsets
from rcnn_jax.data.errors import Fault
from rcnn_jax.data.file_names import readable

ID_LIMIT = 2**31  # of image ids, which go into random draws and onto the device as i32


def build(encoded: bytes, path: pathlib.Path, writer: Writer) -> Columns:
  """The columns of a file's contents. Raises DataError: it is no COCO annotation file."""
  contents = document(encoded, path)
  faults = [
    Fault(str(path), f"{kind} is null, not a list: read as an empty one", fatal=False)
    for kind in Document.__struct_fields__
    if getattr(contents, kind) is None
  ]
  categories, category_of, found = _read_categories(contents.categories or [], str(path))
  entries, image_row_of, more = _read_images(contents.images or [], str(path))
  faults += found + more
  table = Table(
    path=str(path),
    names=[readable(entry.file_name) for entry in entries],
    sizes=np.array([(entry.height, entry.width) for entry in entries], np.int64).reshape(-1, 2),
    row_of=image_row_of,
    category_of=category_of,
    num_joints=[len(category["keypoints"]) for category in categories],
  )
  objects, more = coco_objects.write(contents.annotations or [], table, writer)
  ids = [entry.id for entry in entries]
  own = all(isinstance(number, int) and 0 <= number < ID_LIMIT for number in ids)
  names = [entry.file_name.encode("utf-8", "surrogatepass") for entry in entries]
  writer.append("image_ids", np.array(ids if own else range(1, len(ids) + 1), np.int32))
  writer.append("sizes", table.sizes.astype(np.int32))
  writer.append("names", np.frombuffer(b"".join(names), np.uint8))
  writer.append("name_offsets", offsets([len(name) for name in names]))
  writer.append("offsets", offsets(objects))
  plain = json.dumps([_plain(fault, str(path)) for fault in faults + more])
  writer.append("faults", np.frombuffer(plain.encode(), np.uint8))
  return writer.finish({"categories": categories, "file_ids": None if own else ids})


def _plain(fault: Fault, path: str) -> list:
  return ["" if fault.file == path else fault.file, fault.problem, fault.item, fault.fatal]


def _read_categories(raws: Sequence[msgspec.Raw], path: str) -> tuple[list[dict[str, Any]], dict, list[Fault]]:
  """The categories by rising id, the place of each by its id in the file, and the faults.

  Ids that are not all whole numbers, or written as such, are replaced by the place in the file, counted from 1.
  """
  decoder, faults, known = msgspec.json.Decoder(Category), [], {}
  for number, raw in enumerate(raws, 1):
    entry, unreadable = read(raw, decoder)
    problem = _entry_problem(entry, unreadable, ("id",), entry and entry.name)
    if problem is not None:
      faults.append(Fault(path, f"categories: entry {number} {problem}", fatal=False))
    elif str(entry.id) in known:
      faults.append(Fault(path, "a category before it has this id: left out", f"category {entry.id}", fatal=False))
    else:
      if entry.name is None or entry.name == "":
        faults.append(Fault(path, "has no name", f"category {entry.id}", fatal=False))
        entry.name = f"category {entry.id}"
      known[str(entry.id)] = entry
  entries = list(known.values())
  numbers = [_whole(entry.id) for entry in entries]
  if None in numbers:
    numbers = list(range(1, len(entries) + 1))
  order = sorted(range(len(entries)), key=lambda place: numbers[place])
  categories = [_category(entries[place], numbers[place]) for place in order]
  category_of = {entries[place].id: row for row, place in enumerate(order)}
  category_of |= {str(key): row for key, row in category_of.items()}
  by_name = collections.defaultdict(list)
  for category in categories:
    by_name[category["name"]].append(str(category["id"]))
  for name, ids in by_name.items():
    if len(ids) > 1:
      problem = f"{len(ids)} categories have the name {name!r} (ids {', '.join(ids)}): they stay classes of their own"
      faults.append(Fault(path, problem, fatal=False))
  return categories, category_of, faults + _none_usable("categories", len(raws), len(categories), faults, path)


def _whole(given: int | str) -> int | None:
  """The number that an id is or spells, if it fits into 64 bits."""
  if isinstance(given, str):
    digits = given.isascii() and given.removeprefix("-").isdecimal() and len(given) < 20
    given = int(given) if digits and str(int(given)) == given else 2**63
  return given if -(2**63) <= given < 2**63 else None


def _category(entry: Category, number: int) -> dict[str, Any]:
  joints = [str(joint) for joint in entry.keypoints or ()]
  limbs = [(limb[0] - 1, limb[1] - 1) for limb in entry.skeleton or () if len(limb) == 2]  # from 1 in the file
  limbs = [limb for limb in limbs if all(0 <= joint < len(joints) for joint in limb)]
  return {"id": number, "name": str(entry.name), "keypoints": joints, "skeleton": limbs}


def _read_images(raws: Sequence[msgspec.Raw], path: str) -> tuple[list[Image], dict, list[Fault]]:
  """The images that can be used, the place of each by its id in the file, and the faults.

  Which image an object belongs to is unknown where images of different files have one id: all of them are left out.
  """
  decoder, faults, by_id = msgspec.json.Decoder(Image), [], collections.defaultdict(list)
  for number, raw in enumerate(raws, 1):
    entry, unreadable = read(raw, decoder)
    problem = _image_problem(entry, unreadable)
    if problem is not None:
      faults.append(Fault(path, f"images: entry {number} {problem}", fatal=False))
    if entry is not None and entry.id is not None:
      by_id[str(entry.id)].append(None if problem else entry)
  entries, row_of = [], {}
  for same in by_id.values():
    usable = [entry for entry in same if entry is not None]
    ambiguous = len({entry.file_name for entry in usable}) > 1
    if len(usable) > 1:
      done = "left out" if ambiguous else "read once, as they name one file"
      problem = f"{len(usable)} images have this id: {done}"
      faults.append(Fault(path, problem, f"image {shown(usable[0].id)}", fatal=False))
    if usable and not ambiguous:
      row_of[usable[0].id] = len(entries)
      entries.append(usable[0])
  faults += _shared_files(entries)
  row_of |= {str(key): row for key, row in row_of.items()}
  row_of |= {key: AMBIGUOUS for key in by_id if key not in row_of}
  return entries, row_of, faults + _none_usable("images", len(raws), len(entries), faults, path)


def _shared_files(entries: Sequence[Image]) -> list[Fault]:
  """A warning for each file that several images name; nothing changes."""
  ids = collections.defaultdict(list)
  for entry in entries:
    ids[entry.file_name].append(shown(entry.id))
  several = [(name, own) for name, own in ids.items() if len(own) > 1]
  message = "{} images are of this file (ids {}): each of them is read"
  return [
    Fault(readable(name), message.format(len(own), ", ".join(own[:5]) + ", ..." * (len(own) > 5)), fatal=False)
    for name, own in several
  ]


def _image_problem(entry: Image | None, unreadable: dict[str, Any]) -> str | None:
  """Why an image cannot be used, or None; its file name becomes a text."""
  name = entry and entry.file_name
  problem = _entry_problem(entry, unreadable, ("id", "file_name", "height", "width"), name)
  if problem is None:
    entry.file_name = str(name)
    for side in ("height", "width"):
      if getattr(entry, side) < 1:
        return f"({readable(str(name))}) has {side} {getattr(entry, side)}, which is no whole number from 1 on"
    if entry.height * entry.width > images.MAX_PIXELS:
      size = f"{entry.width} x {entry.height} pixels, more than the {images.MAX_PIXELS:,} that are read"
      return f"({readable(str(name))}) has {size}"
    if not name or "\0" in str(name):
      return f"has file_name {shown(name)}, which no file can have"
  return problem


def _entry_problem(entry, unreadable: dict[str, Any], needed: tuple[str, ...], name) -> str | None:
  """Why an entry of a table cannot be used, or None."""
  if entry is None:
    return f"is {shown(unreadable[''])}, no object"
  for key in needed:
    if key in unreadable:
      named = "" if name is None else f"({readable(str(name))}) "
      kind = "whole number from 1 on" if key in ("height", "width") else "whole number or text"
      return f"{named}has {key} {shown(unreadable[key])}, which is no {kind}"
  absent = [key for key in needed if getattr(entry, key) is None]
  return f"has no {', '.join(absent)}" if absent else None


def _none_usable(kind: str, given: int, usable: int, faults: Sequence[Fault], path: str) -> list[Fault]:
  """A fatal fault where no entry of a table is left."""
  if usable:
    return []
  if not given:
    return [Fault(path, f"names no {kind}")]
  first = str(faults[0]).removeprefix(f"{path}: ")
  return [Fault(path, f"none of its {given} {kind} can be used: {first}")]

"""The annotations of a COCO file as columns: decoded, checked and written in chunks, sorted by image.

The columns, for m objects:

    boxes f32[m, 4]      xyxy
    categories i32[m]    place in the table of categories
    crowd, difficult bool[m]; ids i64[m]; areas f32[m]
    masks u8[m]          NONE, FILLED, EMPTY or REFUSED
    polygon_offsets i64[m + 1], polygon_lengths i32[p], coordinate_offsets i64[m + 1], coordinates f64[c]
    run_offsets i64[m + 1], runs u8[r]      compressed run lengths, of objects that have no polygons
    joint_offsets i64[m + 1], joints f32[j]   x, y and visibility of each joint, where an object has any
    num_labelled i32[m]  joints of a visibility above 0
"""

from __future__ import annotations

import array
import collections
import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from rcnn_jax.data import segmentations
from rcnn_jax.data.coco_schema import Annotation, ImageOf, are_points, read, shown
from rcnn_jax.data.coco_schema import RunLengths as Runs
from rcnn_jax.data.columns import Writer, offsets
from rcnn_jax.data.errors import Fault
from rcnn_jax.data.segmentations import EMPTY, FARTHEST, FILLED, NONE, REFUSED, Polygons

CHUNK = 5_000  # annotations that are decoded together
AMBIGUOUS, UNKNOWN = -1, -2  # in place of an image: one that is left out, and one that the file does not name


class Table(NamedTuple):
  """What the annotations of a file refer to."""

  path: str
  names: Sequence[str]  # of the images' files, for messages
  sizes: np.ndarray  # i64[n, 2], (height, width)
  row_of: dict[int | str, int]  # an image's place by its id and by its id as text, or AMBIGUOUS
  category_of: dict[int | str, int]  # likewise of categories
  num_joints: Sequence[int]  # of each category


class Chunk:
  """Annotations that are read together: what of each is known so far, and their faults."""

  def __init__(self, raws: Sequence[msgspec.Raw], places: np.ndarray, rows: np.ndarray, table: Table):
    self.places, self.rows, self.table = places, rows, table
    self.sizes = table.sizes[rows]
    self.faults: list[tuple[int, Fault]] = []
    self.unreadable: dict[int, dict[str, Any]] = {}
    self.entries: list[Annotation] = []
    decoder = msgspec.json.Decoder(Annotation)
    for number, raw in enumerate(raws):
      try:
        self.entries.append(decoder.decode(raw))
      except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        entry, unreadable = read(raw, decoder)
        self.entries.append(Annotation() if entry is None else entry)
        if entry is None:  # its image can be read, and no more of it: a number of 5,000 digits stands in it
          self.fault(number, f"cannot be read: {shown(unreadable[''])}")
        self.unreadable[number] = unreadable

  def fault(self, number: int, problem: str) -> None:
    """Notes what is wrong with annotation `number` of the chunk."""
    item = _label(self.entries[number], self.places[number])
    fault = Fault(self.table.names[self.rows[number]], problem, item, fatal=False)
    self.faults.append((int(self.places[number]), fault))

  def given(self, number: int, field: str) -> Any:
    """A field's value as it stands in the file, readable or not."""
    return self.unreadable.get(number, {}).get(field, getattr(self.entries[number], field))


def write(raws: Sequence[msgspec.Raw], table: Table, writer: Writer) -> tuple[np.ndarray, list[Fault]]:
  """Writes the columns; returns the number of objects of each image, i64[n], and the faults in the file's order."""
  with _without_collection():
    rows = _image_rows(raws, table)
    order = np.argsort(rows, kind="stable")
    order = order[np.searchsorted(rows[order], 0) :]
    ids: list[Any] = [None] * len(raws)
    faults, kept = _strangers(raws, rows, table, ids), []
    counts: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    for start in range(0, max(len(order), 1), CHUNK):  # at least one chunk, so that there are columns of no rows
      places = order[start : start + CHUNK]
      chunk = Chunk([raws[place] for place in places], places, rows[places], table)
      for place, entry in zip(places.tolist(), chunk.entries):
        ids[place] = entry.id
      of_chunk = _write_chunk(chunk, writer, counts)
      kept.append(places[of_chunk])
      faults += chunk.faults
  for name, pieces in counts.items():
    writer.append(f"{name}_offsets", offsets(np.concatenate(pieces)))
  kept = np.concatenate(kept)
  writer.append("ids", _numbers(ids, kept))
  faults = [fault for _, fault in sorted(faults, key=lambda each: each[0])]
  return np.bincount(rows[kept].astype(np.int64), minlength=len(table.names)), _repeated(ids, table.path) + faults


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
  """Millions of objects come and go, none of them in a circle: looking for circles took half the time."""
  enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if enabled:
      gc.enable()


def _image_rows(raws: Sequence[msgspec.Raw], table: Table) -> np.ndarray:
  """i64[len(raws)]: the place of each annotation's image, AMBIGUOUS or UNKNOWN."""
  decoder, row_of = msgspec.json.Decoder(ImageOf), table.row_of
  decode, rows = decoder.decode, np.full(len(raws), UNKNOWN, np.int64)
  for place, raw in enumerate(raws):
    try:
      image_id = decode(raw).image_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
      entry, _ = read(raw, decoder)
      image_id = entry and entry.image_id
    row = row_of.get(image_id)
    rows[place] = row_of.get(str(image_id), UNKNOWN) if row is None else row
  return rows


def _strangers(raws: Sequence[msgspec.Raw], rows: np.ndarray, table: Table, ids: list) -> list[tuple[int, Fault]]:
  """The faults of annotations that belong to no image of the file; puts their own ids into `ids`."""
  decoder, faults = msgspec.json.Decoder(Annotation), []
  for place in np.flatnonzero(rows == UNKNOWN).tolist():
    entry, unreadable = read(raws[place], decoder)
    if entry is None:
      problem, item = f"is {shown(unreadable[''])}, no object", f"annotations: entry {place + 1}"
    else:
      ids[place] = entry.id
      image_id, item = unreadable.get("image_id", entry.image_id), _label(entry, place)
      problem = f"belongs to image {shown(image_id)}, which is not in the table of images"
      problem = "has no image_id" if image_id is None else problem
    faults.append((place, Fault(table.path, problem, item, fatal=False)))
  return faults


def _label(entry: Annotation, place: int) -> str:
  return f"annotations: entry {place + 1}" if entry.id is None else f"annotation {_plain(entry.id)}"


def _plain(value: int | str) -> str:
  return value if isinstance(value, str) and value.isprintable() and len(value) < 60 else shown(value)


def _numbers(ids: Sequence[Any], kept: np.ndarray) -> np.ndarray:
  """i64[m]: the file's own ids of the objects where all of them are numbers, else their places in it from 1."""
  own = [ids[place] for place in kept.tolist()]
  if all(isinstance(number, int) and -(2**63) <= number < 2**63 for number in own):
    return np.array(own, np.int64)
  return kept + 1


def _repeated(ids: Sequence[Any], path: str) -> list[Fault]:
  counts = collections.Counter(number for number in ids if number is not None)
  if len(counts) == counts.total():
    return []
  return [
    Fault(path, f"{times} annotations have this id", f"annotation {_plain(number)}", fatal=False)
    for number, times in counts.items()
    if times > 1
  ]


def _write_chunk(chunk: Chunk, writer: Writer, counts: dict[str, list[np.ndarray]]) -> np.ndarray:
  """Writes the objects of a chunk; bool[k], which of its annotations are objects."""
  categories = _categories(chunk)
  masks = _Masks(chunk)
  boxes = _boxes(chunk, masks)
  kept = (categories >= 0) & ~np.isnan(boxes).all(axis=1)
  areas = _areas(chunk, boxes)
  with np.errstate(over="ignore", invalid="ignore"):
    boxes[:, 2:] += boxes[:, :2]
    writer.append("boxes", boxes[kept].astype(np.float32))
  writer.append("areas", areas[kept])
  writer.append("categories", categories[kept].astype(np.int32))
  for name, field in (("crowd", "iscrowd"), ("difficult", "ignore")):
    writer.append(name, _flags(chunk, field)[kept])
  masks.write(kept, writer, counts)
  joints = _joints(chunk, categories)
  lengths = np.array([len(each) for each in joints], np.int64)
  flat = np.array([number for each, is_kept in zip(joints, kept) if is_kept for number in each], np.float32)
  labelled = [sum(number > 0 for number in each[2::3]) if each else 0 for each in joints]
  writer.append("joints", flat)
  writer.append("num_labelled", np.array(labelled, np.int32)[kept])
  counts["joint"].append(lengths[kept])
  return kept


def _categories(chunk: Chunk) -> np.ndarray:
  """i64[k]: the place of each object's category, -1 where the file has none such."""
  category_of = chunk.table.category_of
  found = [category_of.get(entry.category_id, -1) for entry in chunk.entries]
  for number in [number for number, place in enumerate(found) if place < 0]:
    given = chunk.given(number, "category_id")
    found[number] = category_of.get(str(given), -1)
    if found[number] < 0:
      named = f"category id {shown(given)} is not in the table of categories"
      chunk.fault(number, "has no category_id" if given is None else named)
  return np.array(found, np.int64)


def _boxes(chunk: Chunk, masks: _Masks) -> np.ndarray:
  """f64[k, 4]: x, y, width, height; that of the mask where there is no box, all NaN where there is no mask either."""
  nothing = [np.nan] * 4
  boxes = [entry.bbox if entry.bbox and len(entry.bbox) == 4 else nothing for entry in chunk.entries]
  boxes = np.array(boxes, np.float64).reshape(-1, 4)
  for number in np.flatnonzero(~np.isfinite(boxes).all(axis=1)).tolist():
    given, of_mask = chunk.given(number, "bbox"), masks.box(number)
    problem = "has no bbox" if given is None else f"bbox {shown(given)} is not four numbers"
    if of_mask is not None:
      boxes[number] = of_mask
      problem += ": that of the mask is taken"
    elif not np.isnan(boxes[number]).all():
      continue  # four numbers, not all of them finite: a degenerate box, which is named as such
    chunk.fault(number, problem)
  return boxes


def _areas(chunk: Chunk, boxes: np.ndarray) -> np.ndarray:
  """f32[k]: the objects' areas, that of the box where the file gives none that can be used."""
  given = [np.nan if entry.area in (None, msgspec.UNSET) else entry.area for entry in chunk.entries]
  with np.errstate(over="ignore", invalid="ignore"):
    areas = np.array(given, np.float64).astype(np.float32)
    of_boxes = boxes[:, 2:].prod(axis=1).astype(np.float32)
  unusable = ~np.isfinite(areas) | (areas < 0)
  for number in np.flatnonzero(unusable).tolist():
    value = chunk.given(number, "area")
    if value is not msgspec.UNSET:
      problem = "is negative" if areas[number] < 0 else "is not a number"
      chunk.fault(number, f"area {shown(value)} {problem}: that of the box is taken")
  return np.where(unusable, of_boxes, areas)


def _flags(chunk: Chunk, field: str) -> np.ndarray:
  """bool[k]; what cannot be read is not set."""
  for number, fields in chunk.unreadable.items():
    if field in fields:
      chunk.fault(number, f"{field} {shown(fields[field])} is neither 0 nor 1: taken for 0")
  return np.array([bool(getattr(entry, field)) for entry in chunk.entries], bool)


def _joints(chunk: Chunk, categories: np.ndarray) -> list[list[float]]:
  """The numbers of each object's joints; none where they are not as many as its category, or any, has."""
  num_joints = chunk.table.num_joints
  every = set(num_joints) - {0}
  joints = [entry.keypoints or [] for entry in chunk.entries]
  if not every:
    return [[]] * len(joints)
  suspects = {number for number, fields in chunk.unreadable.items() if "keypoints" in fields}
  for number in sorted(suspects.union(number for number, each in enumerate(joints) if each)):
    own = num_joints[categories[number]] if categories[number] >= 0 else 0
    fitting = {own} if own else every
    if len(joints[number]) / 3 not in fitting or not (np.abs(joints[number]) < FARTHEST).all():
      count = own or next(count for count in num_joints if count)
      chunk.fault(number, f"keypoints are not {3 * count} numbers, three for each of {count} joints")
      joints[number] = []
  return joints


class _Masks:
  """The masks of a chunk: polygons of its objects, one object's behind another's, and run lengths of others."""

  def __init__(self, chunk: Chunk):
    self._chunk = chunk
    count = len(chunk.entries)
    self._given = np.zeros(count, bool)
    self._usable = np.zeros(count, bool)
    self._filled = np.zeros(count, bool)
    polygons, self._owners, runs = self._collect()
    self._add_polygons(polygons)
    self._runs: dict[int, bytes] = {}
    self._add_runs(runs)

  def _collect(self) -> tuple[Polygons, np.ndarray, list[tuple[int, bytes]]]:
    """Polygons with the object that each is of, and run lengths with theirs."""
    coordinates, lengths, owners, runs, given = array.array("d"), [], [], [], []
    for number, fields in self._chunk.unreadable.items():
      if "segmentation" in fields:
        given.append(number)
        reason = f"segmentation {shown(fields['segmentation'])} is neither polygons nor run lengths"
        self._chunk.fault(number, reason)
    for number, entry in enumerate(self._chunk.entries):
      parts = entry.segmentation
      if not parts:
        continue
      if parts.__class__ is Runs:
        parts = [parts]
      elif parts[0].__class__ is list and len(parts[0]) == 2 and are_points(parts):
        parts = [[number for pair in parts for number in pair]]
      for part in parts:
        if part.__class__ is Runs:
          runs += self._runs_of(number, part)
        elif len(part) >= 6 and len(part) % 2 == 0:
          coordinates.extend(part)
          lengths.append(len(part))
          owners.append(number)
        elif part:
          reason = "a polygon of fewer than three points, or of an odd number of coordinates"
          self._chunk.fault(number, reason)
        else:
          continue
        given.append(number)
    self._given[given] = True
    polygons = Polygons(np.frombuffer(coordinates, np.float64), np.array(lengths, np.int64))
    return polygons, np.array(owners, np.int64), runs

  def _runs_of(self, number: int, part: Runs) -> list[tuple[int, bytes]]:
    """[(number, compressed run lengths)], which may be unsound, or none."""
    height, width = size = self._chunk.sizes[number].tolist()
    if part.size != size:
      reason = f"the mask is {shown(part.size)}, the image is {size} (height, width)"
      self._chunk.fault(number, reason)
      return []
    if isinstance(part.counts, str):
      return [(number, part.counts.encode("utf-8", "surrogatepass"))]
    counts = part.counts or []
    sound = min(counts, default=-1) >= 0 and sum(counts) == height * width
    return [(number, segmentations.compress(counts, size) if sound else b"")]

  def _add_polygons(self, polygons: Polygons) -> None:
    """Checks the polygons, and finds out which objects have a pixel."""
    polygons, problems = segmentations.check_polygons(polygons, self._chunk.sizes[self._owners])
    for place, problem in problems.items():
      self._chunk.fault(int(self._owners[place]), problem)
    refused = np.zeros(len(self._owners), bool)
    refused[list(problems)] = True
    self._usable[self._owners[~refused]] = True
    left = polygons.lengths > 0
    self._polygons, self._owners = Polygons(polygons.coordinates, polygons.lengths[left]), self._owners[left]
    self._starts = self._polygons.starts
    self._first = np.searchsorted(self._owners, np.arange(len(self._chunk.entries) + 1))
    surely = segmentations.surely_fill(self._polygons, self._chunk.sizes[self._owners])
    self._filled[self._owners[surely]] = True
    for number in np.unique(self._owners[~self._filled[self._owners]]).tolist():
      encoded = segmentations.encode(self._pieces(number), tuple(self._chunk.sizes[number].tolist()))
      self._filled[number] = not segmentations.is_empty(encoded)

  def _pieces(self, number: int) -> list[np.ndarray]:
    """The polygons of an object."""
    places = range(self._first[number], self._first[number + 1])
    return [self._polygons.coordinates[self._starts[place] :][: self._polygons.lengths[place]] for place in places]

  def _add_runs(self, runs: list[tuple[int, bytes]]) -> None:
    """Checks the run lengths; an object of several masks, or of polygons too, has their union."""
    owners = np.array([number for number, _ in runs], np.int64)
    pixels = self._chunk.sizes[owners].prod(axis=1)
    sound, areas = segmentations.check_runs([counts for _, counts in runs], pixels)
    for number, total in zip(owners[~sound].tolist(), pixels[~sound].tolist()):
      reason = f"the mask's run lengths are corrupt: they do not sum to the image's {total} pixels"
      self._chunk.fault(number, reason)
    self._usable[owners[sound]] = True
    self._filled[owners[sound & (areas > 0)]] = True
    of_object = collections.defaultdict(list)
    for (number, counts), is_sound in zip(runs, sound):
      if is_sound:
        of_object[number].append(counts)
    for number, parts in of_object.items():
      size = tuple(self._chunk.sizes[number].tolist())
      pieces = self._pieces(number)
      if pieces:
        parts.append(segmentations.encode(pieces, size)["counts"].encode())
      self._runs[number] = segmentations.union(parts, size)

  def box(self, number: int) -> list[float] | None:
    """[x, y, width, height] of an object's mask, if it has a pixel."""
    if not self._filled[number]:
      return None
    if number in self._runs:
      return segmentations.runs_box(self._runs[number], tuple(self._chunk.sizes[number].tolist()))
    return segmentations.polygon_box(self._pieces(number))

  def write(self, kept: np.ndarray, writer: Writer, counts: dict[str, list[np.ndarray]]) -> None:
    """Appends the masks of the objects that are kept."""
    state = np.select([~self._given, self._filled, self._usable], [NONE, FILLED, EMPTY], REFUSED)
    writer.append("masks", state[kept].astype(np.uint8))
    with_runs = np.isin(np.arange(len(kept)), list(self._runs))
    drawn = (kept & ~with_runs)[self._owners]
    lengths = self._polygons.lengths
    coordinates = self._polygons.coordinates
    writer.append("coordinates", coordinates if drawn.all() else coordinates[np.repeat(drawn, lengths)])
    writer.append("polygon_lengths", lengths[drawn].astype(np.int32))
    counts["polygon"].append(np.bincount(self._owners[drawn], minlength=len(kept))[kept])
    counts["coordinate"].append(np.bincount(self._owners[drawn], lengths[drawn], len(kept))[kept].astype(np.int64))
    runs = [self._runs.get(number, b"") for number in np.flatnonzero(kept).tolist()]
    writer.append("runs", np.frombuffer(b"".join(runs), np.uint8))
    counts["run"].append(np.array([len(one) for one in runs], np.int64))

"""What a model found: of one image, and of a set of images as columns; and how both become COCO results entries.

Half a million detections as Python dictionaries take half a gigabyte; as columns they take some tens of megabytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_CHUNK = 8192  # entries that are Python dictionaries at a time while they are written


@dataclasses.dataclass(frozen=True)
class Found:
  """What a model found in one image: N objects by falling score, in pixels of the original.

  Attributes:
    image_id: of the image.
    size: (height, width) of the image.
    boxes: f64[N, 4], [x, y, w, h].
    scores: f64[N].
    category_ids: i64[N], the data set's own.
    counts: COCO's compressed run lengths of N masks of `size`; None where the model gives no masks.
    keypoints: f64[N, J, 3]: x, y, score; None where it gives none.
  """

  image_id: int
  size: tuple[int, int]
  boxes: np.ndarray
  scores: np.ndarray
  category_ids: np.ndarray
  counts: tuple[bytes, ...] | None = None
  keypoints: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.scores)

  def above(self, min_score: float) -> Found:
    """The objects of at least this score."""
    rows = np.flatnonzero(self.scores >= min_score)
    return dataclasses.replace(
      self,
      boxes=self.boxes[rows],
      scores=self.scores[rows],
      category_ids=self.category_ids[rows],
      counts=None if self.counts is None else tuple(self.counts[row] for row in rows),
      keypoints=None if self.keypoints is None else self.keypoints[rows],
    )

  @property
  def entries(self) -> list[dict]:
    """COCO results entries: plain values, which JSON takes."""
    return Results.of([self]).entries


@dataclasses.dataclass(frozen=True)
class Results:
  """What a model found in a set of images, N objects in all, by image as they were seen and by falling score.

  Attributes:
    image_ids: i64[N].
    category_ids: i64[N], the data set's own.
    boxes: f64[N, 4], [x, y, w, h] in pixels of the original.
    scores: f64[N].
    kinds: what the model gives, whether or not it found anything: "bbox", and "segm" and "keypoints".
    counts: N compressed run lengths, and `sizes` i32[N, 2] of their images, (height, width); None without masks.
    keypoints: f64[N, J, 3]: x, y, score; None without.
  """

  image_ids: np.ndarray
  category_ids: np.ndarray
  boxes: np.ndarray
  scores: np.ndarray
  kinds: tuple[str, ...]
  counts: tuple[bytes, ...] | None = None
  sizes: np.ndarray | None = None
  keypoints: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.scores)

  @classmethod
  def of(cls, images: Sequence[Found]) -> Results:
    """The results of images one after the other."""
    lengths = [len(one) for one in images]
    first = images[0] if images else Found(0, (0, 0), np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    counts = sizes = keypoints = None
    if first.counts is not None:
      counts = tuple(counts for one in images for counts in one.counts)
      sizes = np.repeat(np.array([one.size for one in images], np.int32), lengths, axis=0)
    if first.keypoints is not None:
      keypoints = np.concatenate([one.keypoints for one in images])
    return cls(
      image_ids=np.repeat(np.array([one.image_id for one in images], np.int64), lengths),
      category_ids=np.concatenate([one.category_ids for one in images or [first]]),
      boxes=np.concatenate([one.boxes for one in images or [first]]),
      scores=np.concatenate([one.scores for one in images or [first]]),
      kinds=("bbox", *("segm",) * (counts is not None), *("keypoints",) * (keypoints is not None)),
      counts=counts,
      sizes=sizes,
      keypoints=keypoints,
    )

  @classmethod
  def joined(cls, parts: Sequence[Results]) -> Results:
    """The results of several processes, one after the other; a process without an image adds nothing."""
    parts = [part for part in parts if len(part.kinds) == max(len(other.kinds) for other in parts)]
    if len(parts) == 1:
      return parts[0]
    join = lambda name: None if getattr(parts[0], name) is None else np.concatenate([getattr(p, name) for p in parts])
    arrays = ("image_ids", "category_ids", "boxes", "scores", "sizes", "keypoints")
    counts = None if parts[0].counts is None else tuple(counts for part in parts for counts in part.counts)
    return cls(**{name: join(name) for name in arrays}, kinds=parts[0].kinds, counts=counts)

  @classmethod
  def from_entries(cls, entries: Sequence[Mapping[str, Any]], kinds: Sequence[str] = ("bbox",)) -> Results:
    """The columns of COCO results entries, all of which have what `kinds` names."""
    column = lambda name, dtype: np.array([entry[name] for entry in entries], dtype)
    counts = sizes = keypoints = None
    if "segm" in kinds:
      counts = tuple(_ascii(entry["segmentation"]["counts"]) for entry in entries)
      sizes = np.array([entry["segmentation"]["size"] for entry in entries], np.int32).reshape(-1, 2)
    if "keypoints" in kinds:
      joints = len(entries[0]["keypoints"]) // 3 if entries else 0
      keypoints = column("keypoints", np.float64).reshape(len(entries), joints, 3)
    boxes = column("bbox", np.float64).reshape(-1, 4)
    ids = (column(name, np.int64) for name in ("image_id", "category_id"))
    return cls(*ids, boxes, column("score", np.float64), tuple(kinds), counts, sizes, keypoints)

  @property
  def entries(self) -> list[dict]:
    """COCO results entries of all objects, as Python values; see `encoded` for large sets."""
    return self._rows(0, len(self))

  def of_image(self, image_id: int) -> list[dict]:
    """COCO results entries of one image."""
    return [entry for row in np.flatnonzero(self.image_ids == image_id) for entry in self._rows(row, row + 1)]

  def encoded(self, file_ids: Mapping[int, int | str]) -> Iterator[bytes]:
    """The results file as JSON, some thousand entries at a time, one a line.

    Args:
      file_ids: what stands for an image in the file, where that is not its image_id.
    """
    import msgspec

    encode = msgspec.json.Encoder().encode
    if any(isinstance(file_id, str) for file_id in file_ids.values()):  # which may hold what UTF-8 has not
      encode = lambda row: json.dumps(row).encode()
    yield b"["
    for start in range(0, len(self), _CHUNK):
      rows = self._rows(start, min(start + _CHUNK, len(self)))
      for row in rows if file_ids else ():
        row["image_id"] = file_ids.get(row["image_id"], row["image_id"])
      yield (b",\n" if start else b"\n") + b",\n".join(map(encode, rows))
    yield b"\n]\n" if len(self) else b"]\n"

  def _rows(self, start: int, stop: int) -> list[dict]:
    part = slice(start, stop)
    columns = (self.image_ids, self.category_ids, self.boxes, self.scores)
    names = ("image_id", "category_id", "bbox", "score")
    rows = [dict(zip(names, row)) for row in zip(*(column[part].tolist() for column in columns))]
    if self.counts is not None:
      for row, size, counts in zip(rows, self.sizes[part].tolist(), self.counts[part]):
        row["segmentation"] = {"size": size, "counts": counts.decode("ascii")}
    if self.keypoints is not None:
      for row, points in zip(rows, self.keypoints[part].reshape(len(rows), -1).tolist()):
        row["keypoints"] = points
    return rows


def _ascii(counts: str | bytes) -> bytes:
  return counts.encode("ascii") if isinstance(counts, str) else counts

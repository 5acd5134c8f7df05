"""The annotations of a whole source as arrays, small to hold and to send to worker processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rcnn_jax.data.source import Annotations

_NONE = {
  "boxes": np.zeros((0, 4), np.float32),
  "classes": np.zeros(0, np.int32),
  "crowd": np.zeros(0, bool),
  "difficult": np.zeros(0, bool),
  "ids": np.zeros(0, np.int64),
  "areas": np.zeros(0, np.float32),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """The annotations of n images with N objects, but for joints; those of image i are rows `ends[i]` to `ends[i + 1]`.

  The types are those of `Annotations`.
  """

  image_ids: np.ndarray  # i32[n]
  file_ids: tuple[int | str | None, ...] | None  # n of them; None: each is the image_id
  file_names: tuple[str, ...]
  sizes: np.ndarray  # i32[n, 2], (height, width)
  ends: np.ndarray  # i64[n + 1]
  boxes: np.ndarray  # f32[N, 4]
  classes: np.ndarray  # i32[N]
  crowd: np.ndarray  # bool[N]
  difficult: np.ndarray  # bool[N]
  ids: np.ndarray  # i64[N]
  areas: np.ndarray  # f32[N]
  counts: bytes | None = None  # the compressed run lengths of all masks, one behind the other
  count_ends: np.ndarray | None = None  # i64[N + 1]: those of object k are counts[count_ends[k]:count_ends[k + 1]]

  @classmethod
  def of(cls, images: Sequence[Annotations]) -> Table:
    """The annotations of images that all have masks or all have none; joints are not kept."""
    columns = {name: np.concatenate([none, *(getattr(one, name) for one in images)]) for name, none in _NONE.items()}
    encoded = None
    if images and all(one.segmentations is not None for one in images):
      encoded = [mask["counts"].encode("latin-1") for one in images for mask in one.segmentations]
    file_ids = tuple(one.file_id for one in images)
    return cls(
      image_ids=np.array([one.image_id for one in images], np.int32),
      file_ids=None if all(number is None for number in file_ids) else file_ids,
      file_names=tuple(one.file_name for one in images),
      sizes=np.array([one.size for one in images], np.int32).reshape(-1, 2),
      ends=_ends([len(one.boxes) for one in images]),
      counts=None if encoded is None else b"".join(encoded),
      count_ends=None if encoded is None else _ends([len(one) for one in encoded]),
      **columns,
    )

  def __len__(self) -> int:
    return len(self.file_names)

  def annotations(self, index: int, masks: bool = True) -> Annotations:
    """The objects of image `index`; `masks=False` leaves the segmentations out."""
    first, end = self.ends[index : index + 2].tolist()
    size = tuple(self.sizes[index].tolist())
    segmentations = None
    if masks and self.counts is not None:
      places = self.count_ends[first : end + 1].tolist()
      texts = [self.counts[start:stop].decode("latin-1") for start, stop in zip(places, places[1:])]
      segmentations = tuple({"size": list(size), "counts": text} for text in texts)
    return Annotations(
      image_id=int(self.image_ids[index]),
      file_name=self.file_names[index],
      size=size,
      segmentations=segmentations,
      file_id=None if self.file_ids is None else self.file_ids[index],
      **{name: getattr(self, name)[first:end].copy() for name in _NONE},
    )


def _ends(lengths: Sequence[int]) -> np.ndarray:
  return np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).astype(np.int64)

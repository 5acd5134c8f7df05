"""Annotations as columns: arrays for all objects of a file, in memory or in a folder that processes share.

A folder holds one raw file for each array and `columns.json`: the format's version, the arrays' types, shapes and
check sums, and a few plain values. It is written whole or not at all, read by memory map, and pickled by its path, so
that worker processes hold nothing of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rcnn_jax.data.errors import DataError

VERSION = 3  # of the format, and of what the readers put into it: a change of either makes a cache stale
HEAD = "columns.json"
SMALL = 5_000_000  # bytes of an annotation file up to which a cache saves nothing
CHECKED = 100_000_000  # bytes of an array up to which its check sum is compared at each opening
ABANDONED = 24 * 3600  # seconds after which a folder that is still being written belongs to nobody

logger = logging.getLogger(__name__)


class DamagedError(ValueError):
  """A folder of columns that is not there, not whole, or of another version."""


class Columns:
  """Arrays by name, and `values`: plain JSON values by name."""

  def __init__(self, arrays: dict[str, np.ndarray], values: dict[str, Any], folder: str | None = None):
    self.arrays, self.values, self.folder = arrays, values, folder

  def __getitem__(self, name: str) -> np.ndarray:
    return self.arrays[name]

  def __reduce__(self):
    # A memory-mapped array would travel to a worker process by value.
    return (Columns, (self.arrays, self.values)) if self.folder is None else (_open_shared, (self.folder,))


class Writer:
  """Takes the columns piece by piece, in memory where `folder` is None; else all but the last piece is on disk."""

  def __init__(self, folder: pathlib.Path | None):
    self._folder = folder
    self._files: dict[str, Any] = {}
    self._pieces: dict[str, list[np.ndarray]] = {}
    self._forms: dict[str, dict[str, Any]] = {}

  def append(self, name: str, rows: np.ndarray) -> None:
    """Adds rows behind those that the column has. Raises OSError where the disk is full."""
    rows = np.ascontiguousarray(rows)
    if self._folder is None:
      self._pieces.setdefault(name, []).append(rows)
      return
    if name not in self._files:
      self._files[name] = open(self._folder / f"{name}.bin", "wb")
      self._forms[name] = {"dtype": rows.dtype.str, "shape": [0, *rows.shape[1:]], "crc32": 0}
    form, encoded = self._forms[name], rows.tobytes()
    if form["dtype"] != rows.dtype.str or form["shape"][1:] != list(rows.shape[1:]):
      raise TypeError(f"{name}: rows of another type or shape than before")
    self._files[name].write(encoded)
    form["shape"][0] += len(rows)
    form["crc32"] = zlib.crc32(encoded, form["crc32"])

  def finish(self, values: dict[str, Any]) -> Columns:
    """The columns; on disk, the head is written last. Raises OSError where the disk is full."""
    if self._folder is None:
      return Columns({name: np.concatenate(pieces) for name, pieces in self._pieces.items()}, values)
    self.close()
    head = {"version": VERSION, "arrays": self._forms, "values": values}
    (self._folder / HEAD).write_text(json.dumps(head), encoding="utf-8")
    return read(self._folder)

  def close(self) -> None:
    """Closes the files. Raises OSError where the disk is full."""
    for file in self._files.values():
      file.close()


def offsets(counts: Sequence[int] | np.ndarray) -> np.ndarray:
  """i64[n + 1]: where each of n groups of so many rows begins, and where the last ends."""
  return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)


def read(folder: str | os.PathLike, check: bool = True) -> Columns:
  """Opens a folder by memory map; with `check`, all but the largest arrays are held against their check sums.

  Raises:
    DamagedError: it is not there, not whole, or of another version.
  """
  folder = pathlib.Path(folder)
  try:
    head = json.loads((folder / HEAD).read_text(encoding="utf-8"))
    if head["version"] != VERSION:
      raise DamagedError(f"{folder}: version {head['version']}")
    arrays = {name: _map(folder / f"{name}.bin", form, check) for name, form in head["arrays"].items()}
    return Columns(arrays, head["values"], str(folder))
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise DamagedError(f"{folder}: {error}") from error


def _map(path: pathlib.Path, form: dict[str, Any], check: bool) -> np.ndarray:
  dtype, shape = np.dtype(form["dtype"]), tuple(form["shape"])
  if path.stat().st_size != dtype.itemsize * int(np.prod(shape)):
    raise DamagedError(f"{path}: not of its length")
  array = np.asarray(np.memmap(path, dtype, "r", shape=shape)) if shape[0] else np.zeros(shape, dtype)
  if check and array.nbytes <= CHECKED and zlib.crc32(array) != form["crc32"]:
    raise DamagedError(f"{path}: damaged")
  return array


def _open_shared(folder: str) -> Columns:
  """In a worker process: what its parent has checked."""
  try:
    return read(folder, check=False)
  except DamagedError as error:
    raise DataError(f"{error}: the cached annotations are gone or damaged: start again") from error


def cached(path: pathlib.Path, status: os.stat_result, build: Callable[[Writer], Columns]) -> Columns:
  """The columns of an annotation file: from the cache where it has them, else built, and cached if the file is large.

  The cache is the folder `annotations` of $RCNN_JAX_CACHE, else of rcnn_jax in the user's cache folder. Where it
  cannot be written, a temporary folder of this process holds the columns, and where that cannot be either, memory.

  Args:
    path: of the annotation file.
    status: of the file as it was read, or will be: a file of another size or time is another one.
    build: makes the columns with a writer.

  Raises:
    What `build` raises, except OSError while it writes.
  """
  if status.st_size <= SMALL:
    return build(Writer(None))
  home = cache_folder() / hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:24]
  place = home / f"{status.st_size}-{status.st_mtime_ns}-{VERSION}"
  with contextlib.suppress(DamagedError):
    return read(place)
  try:
    return _build_into(place, build)
  except OSError as error:
    logger.info("%s: the cache cannot be written (%s)", place, error)
  try:
    return _build_temporary(build)
  except OSError:
    return build(Writer(None))


def cache_folder() -> pathlib.Path:
  """Where the columns of all annotation files are kept."""
  usual = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "rcnn_jax")
  home = pathlib.Path(os.environ.get("RCNN_JAX_CACHE") or usual)
  try:
    return home.expanduser().absolute() / "annotations"
  except RuntimeError:  # a user without a home
    return pathlib.Path(tempfile.gettempdir(), f"rcnn_jax-{os.getuid()}", "annotations")


def _build_into(place: pathlib.Path, build: Callable[[Writer], Columns]) -> Columns:
  """Builds beside `place` and renames; of two processes that do so, the later uses what the earlier has left."""
  place.parent.mkdir(parents=True, exist_ok=True)
  being_written = pathlib.Path(tempfile.mkdtemp(prefix=".being_written-", dir=place.parent))
  writer = Writer(being_written)
  try:
    build(writer)
    _remove_others(place, being_written)
    with contextlib.suppress(OSError):  # another process was first
      being_written.rename(place)
    return read(place)
  except DamagedError as error:
    raise OSError(str(error)) from error
  finally:
    with contextlib.suppress(OSError):
      writer.close()
    shutil.rmtree(being_written, ignore_errors=True)


def _remove_others(place: pathlib.Path, being_written: pathlib.Path) -> None:
  """Removes what is stale: the columns of the file as it was before, damaged ones, and what was never finished."""
  for other in place.parent.iterdir():
    if other == being_written:
      continue
    with contextlib.suppress(DamagedError, OSError):
      if other.name.startswith("."):
        if time.time() - other.stat().st_mtime < ABANDONED:
          continue
      elif other == place:
        read(other)
        continue
    shutil.rmtree(other, ignore_errors=True)


def _build_temporary(build: Callable[[Writer], Columns]) -> Columns:
  """Columns in a temporary folder, which goes with them."""
  folder = pathlib.Path(tempfile.mkdtemp(prefix="rcnn_jax-annotations-"))
  writer = Writer(folder)
  try:
    columns = build(writer)
  except BaseException:
    with contextlib.suppress(OSError):
      writer.close()
    shutil.rmtree(folder, ignore_errors=True)
    raise
  _remove_with(columns, folder, os.getpid())
  return columns


def _remove_with(columns: Columns, folder: pathlib.Path, owner: int) -> None:
  def remove() -> None:
    if os.getpid() == owner:  # not in a process that was forked
      shutil.rmtree(folder, ignore_errors=True)

  weakref.finalize(columns, remove)

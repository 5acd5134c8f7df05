"""Finding the proposals of a whole data set: in parallel, kept image by image, put together at the end.

Each finished image is a file of its own in FOLDER.unfinished, so that a killed command goes on where it was.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import multiprocessing
import os
import pathlib
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from rcnn_jax.data import proposals
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.proposals import Regions, StoredProposals
from rcnn_jax.data.selective_search import SelectiveSearch
from rcnn_jax.data.source import Source, overview
from rcnn_jax.files import write_json

# Given the images (their places in the source) that are still missing, yields them in any order; with the error where
# one cannot be read.
Find = Callable[[Sequence[int]], Iterable[tuple[int, Regions | DataError]]]


def prepare(folder: pathlib.Path, settings: dict[str, Any], spec: Any, source: Source, find: Find) -> StoredProposals:
  """The proposals of every image in `folder`: found, or what is there already from the same settings.

  Raises:
    DataError: the folder, or what an interrupted command has left beside it, is of other settings or other data; or,
      once all others are found and kept, an image cannot be read.
  """
  head = proposals.header(settings, spec, source)
  if folder.exists():
    stored = proposals.open_folder(folder, spec, source)
    _require_same(folder, stored.settings, head)
    return stored
  unfinished = folder.with_name(f"{folder.name}.unfinished")
  _claim(unfinished, head)
  missing = [index for index in range(len(source)) if _read_part(unfinished, index) is None]
  bar = tqdm.tqdm(total=len(source), initial=len(source) - len(missing), desc=folder.name, unit="image")
  failed = []
  with bar:
    for index, found in find(missing):
      if isinstance(found, DataError):
        failed.append(found)
      else:
        _write_part(unfinished, index, found)
      bar.update()
  if failed:
    what = "1 image" if len(failed) == 1 else f"{len(failed):,} images (the first is named)"
    raise DataError(f"{failed[0]}: {what} cannot be read; what the others have is kept: mend it and start again")
  image_ids = overview(source, masks=False).image_ids
  proposals.write(folder, head, image_ids, [_read_part(unfinished, index) for index in range(len(source))])
  shutil.rmtree(unfinished)
  return proposals.open_folder(folder, spec, source)


def _claim(unfinished: pathlib.Path, head: dict[str, Any]) -> None:
  path = unfinished / "settings.json"
  if path.is_file():
    _require_same(unfinished, json.loads(path.read_text()), head)
    return
  write_json(path, head)


def _require_same(folder: pathlib.Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
  """Raises DataError unless both settings are equal, but for where the data set lies."""
  there, asked = (
    {**head, **head.get("parameters", {}), **head["data"], "data": None, "parameters": None, "spec": None}
    for head in (there, json.loads(json.dumps(asked)))
  )
  names = [name for name in {**there, **asked} if there.get(name) != asked.get(name)]
  if names:
    said = ", ".join(f"{name} {there.get(name)!r} where {asked.get(name)!r} is asked for" for name in names)
    raise DataError(f"{folder}: holds proposals of other settings: {said}; remove it, or name another folder")


def _write_part(unfinished: pathlib.Path, index: int, regions: Regions) -> None:
  path = unfinished / f"{index}.npz"
  being_written = unfinished / f"{index}.being_written.npz"
  np.savez(being_written, boxes=regions.boxes, scores=regions.scores, seconds=regions.seconds)
  being_written.replace(path)


def _read_part(unfinished: pathlib.Path, index: int) -> Regions | None:
  try:
    with np.load(unfinished / f"{index}.npz") as part:
      return Regions(part["boxes"], part["scores"], float(part["seconds"]))
  except (OSError, EOFError, ValueError, zipfile.BadZipFile):  # not there, or torn when the power went
    return None


# ------------------------------------------------------------------------------------------ searching in processes


def searcher(spec: Any, source: Source, search: SelectiveSearch, num_processes: int) -> Find:
  """Selective search in `num_processes` new processes (0: in this one), each of which opens the data set anew."""

  def find(missing: Sequence[int]) -> Iterator[tuple[int, Regions]]:
    if not num_processes:
      yield from ((index, _search(source, search, index)) for index in missing)
      return
    # Spawned, not forked: what runs here already (JAX, OpenCV) has threads.
    spawn = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(num_processes, spawn, _start_worker)
    try:
      running = {executor.submit(_search_in_worker, spec, search, index): index for index in missing}
      for future in concurrent.futures.as_completed(running):
        yield running.pop(future), future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
      raise DataError("a searching process ended by itself, perhaps for want of memory: try --processes=1") from error
    finally:
      executor.shutdown(cancel_futures=True)

  return find


def _search(source: Source, search: SelectiveSearch, index: int) -> Regions | DataError:
  try:
    return search(source.image(index), source.annotations(index, masks=False).file_name)
  except DataError as error:
    return error


@functools.cache
def _opened(spec: Any) -> Source:
  return spec.open(strict=False)  # the process that asks has opened it strictly, and warned of what is wrong


def _search_in_worker(spec: Any, search: SelectiveSearch, index: int) -> Regions | DataError:
  return _search(_opened(spec), search, index)


def _start_worker() -> None:
  import cv2

  cv2.setNumThreads(1)  # the processes share the cores out among each other
  # A worker whose parent was killed would wait for work for ever.
  threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()

"""Batches: which images stand in which, as a pure function of the seed and the step, and their loading by grain.

A training batch is a function of (seed, step) alone: not of the number of worker threads or processes, nor of where
the run was interrupted. Each image's random draws are seeded by (seed, epoch, image id), so that splitting a batch
over more processes changes none of them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import grain
import numpy as np

from rcnn_jax.data import pipeline, proposals
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.proposals import StoredProposals
from rcnn_jax.data.source import Source
from rcnn_jax.types import Batch

_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)  # batches that are decoded ahead by threads


@dataclasses.dataclass(frozen=True)
class Rows:
  """Which images make up a batch: `indices` into the source, None for a row that fills up; all on one canvas."""

  epoch: int
  indices: tuple[int | None, ...]
  canvas: tuple[int, int]


class TrainPlan:
  """The rows of every training batch, by step: each epoch is one shuffled pass over all images.

  A batch has one canvas. The last batch of a canvas in an epoch is filled up from the beginning of that canvas'
  images. The batches of the canvases are shuffled among each other.
  """

  def __init__(self, canvases, *, batch_size: int, seed: int, num_steps: int):
    """`canvases`: for each image that is trained on, (index in the source, canvas)."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, canvas in canvases:
      groups.setdefault(canvas, []).append(index)
    self._groups = {canvas: np.array(groups[canvas]) for canvas in sorted(groups)}
    self._batch_size, self._seed, self._num_steps = batch_size, seed, num_steps
    self.steps_per_epoch = sum(-(-len(members) // batch_size) for members in groups.values())
    # A plan is read in order, so that two epochs suffice, whatever the threads; the cache is no part of its value.
    self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

  def __len__(self) -> int:
    return self._num_steps

  def __getitem__(self, step: int) -> Rows:
    return self._epoch(step // self.steps_per_epoch)[step % self.steps_per_epoch]

  def __getstate__(self) -> dict:
    return {name: value for name, value in self.__dict__.items() if name != "_epoch"}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state)
    self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

  def _make_epoch(self, epoch: int) -> list[Rows]:
    rng = np.random.default_rng((self._seed, epoch))
    batches = []
    for canvas, members in self._groups.items():
      shuffled = rng.permutation(members)
      whole = np.resize(shuffled, (-(-len(members) // self._batch_size), self._batch_size))
      batches += [Rows(epoch, tuple(row.tolist()), canvas) for row in whole]
    return [batches[position] for position in rng.permutation(len(batches))]


class TrainIterator(Iterator[Batch]):
  """Training batches from any step on. The state is the number of the next step, for any number of workers."""

  def __init__(self, dataset: grain.MapDataset, workers: int):
    self._dataset, self._workers = dataset, workers
    self._next_step, self._batches = 0, None

  def __next__(self) -> Batch:
    if self._batches is None:
      self._batches = self._start()
    batch = next(self._batches)
    self._next_step += 1
    return batch

  def get_state(self) -> dict[str, int]:
    """What `set_state` takes to go on from here; plain JSON."""
    return {"next_step": self._next_step}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes on with the batch that came after `get_state`."""
    self.close()
    self._next_step = int(state["next_step"])

  def close(self) -> None:
    """Ends worker processes, if there are any."""
    if self._batches is not None:
      self._batches.close()
    self._batches = None

  def _start(self) -> grain.DatasetIterator:
    batches = self._dataset.slice(slice(self._next_step, None)).to_iter_dataset(_READ)
    if self._workers:
      batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
    return iter(batches)


class EvalBatches:
  """Every image of a source exactly once, canvas by canvas; a sized iterable."""

  def __init__(self, dataset: grain.MapDataset):
    self._dataset = dataset

  def __len__(self) -> int:
    return len(self._dataset)

  def __iter__(self) -> Iterator[Batch]:
    return self.start(0)

  def start(self, index: int) -> Iterator[Batch]:
    """The batches from number `index` on."""
    return iter(self._dataset.slice(slice(index, None)).to_iter_dataset(_READ))


def train_loader(
  data: Data,
  source: Source,
  *,
  seed: int,
  num_steps: int,
  process_index: int = 0,
  process_count: int = 1,
  batch_size: int | None = None,
) -> TrainIterator:
  """Training batches 0 .. num_steps - 1 of numpy arrays, with `get_state` and `set_state`.

  With `data.workers`, grain wants absl's flags parsed: run under `absl.app.run`.

  Args:
    process_index, process_count: this process gets its equal, consecutive share of the rows of each batch.
    batch_size: of all processes together; by default the experiment's.

  Raises:
    DataError: no images, a negative seed, masks asked for and absent, a batch that the processes cannot share
      equally, proposals that are not there or for other data; while iterating, an image that cannot be read.
  """
  if seed < 0:
    raise DataError(f"the seed is {seed}: it must not be negative")
  batch_size = batch_size or data.batch_size[0]
  share = _share(batch_size, process_index, process_count)
  found = pipeline.survey(data, source)
  canvases = [
    (index, pipeline.canvas_of(size, data))
    for index, size in enumerate(found.sizes)
    if (found.num_trainable[index] or not data.skip_empty)
    and (found.num_keypoints[index] >= data.min_keypoints or not data.load_keypoints)
  ]
  if not canvases:
    raise DataError("no images to train on")
  plan = TrainPlan(canvases, batch_size=batch_size, seed=seed, num_steps=num_steps)
  regions = open_proposals(data, source, 0)
  load = functools.partial(_load_rows, data, source, regions, found.max_objects, share, seed)
  return TrainIterator(grain.MapDataset.source(plan).map(load), data.workers)


def eval_batches(
  data: Data,
  source: Source,
  *,
  batch_size: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> EvalBatches:
  """Every image once, in batches of one canvas; rows that fill up a canvas' last batch have valid=False.

  Threads decode ahead. Arguments and errors are `train_loader`'s.
  """
  batch_size = batch_size or data.batch_size[1]
  share = _share(batch_size, process_index, process_count)
  found = pipeline.survey(data, source)
  groups: dict[tuple[int, int], list[int]] = {}
  for index, size in enumerate(found.sizes):
    groups.setdefault(pipeline.canvas_of(size, data), []).append(index)
  plan = []
  for canvas, members in sorted(groups.items()):
    members += [None] * (-len(members) % batch_size)
    plan += [Rows(0, tuple(members[at : at + batch_size]), canvas) for at in range(0, len(members), batch_size)]
  regions = open_proposals(data, source, 1)
  load = functools.partial(_load_rows, data, source, regions, found.max_objects, share, None)
  return EvalBatches(grain.MapDataset.source(plan).map(load))


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
  if batch_size % process_count:
    raise DataError(f"a batch of {batch_size} cannot be shared equally by {process_count} processes")
  rows = batch_size // process_count
  return slice(process_index * rows, (process_index + 1) * rows)


def open_proposals(data: Data, source: Source, which: int) -> StoredProposals | None:
  """The proposals of the training data (0) or of the evaluation data (1), where `data` names some.

  Raises:
    DataError: they are not there, or of another data set or version.
  """
  if data.proposals is None:
    return None
  return proposals.open_folder(
    data.proposals[which], (data.train, data.eval)[which], source, data.num_proposals[which]
  )


def _load_rows(
  data: Data,
  source: Source,
  regions: StoredProposals | None,
  max_objects: int,
  share: slice,
  seed: int | None,
  rows: Rows,
) -> Batch:
  """This process' share of a batch; `seed` is None in evaluation, which draws nothing."""
  examples = []
  for index in rows.indices[share]:
    if index is None:
      examples.append(pipeline.blank(data, source, rows.canvas, max_objects, regions))
      continue
    rng = None
    if seed is not None:
      image_id = source.annotations(index, masks=False).image_id
      rng = np.random.default_rng((seed, rows.epoch, image_id))
    examples.append(pipeline.load(data, source, index, rows.canvas, max_objects, rng, regions))
  return pipeline.stack(examples)

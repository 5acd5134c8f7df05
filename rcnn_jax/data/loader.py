"""Batches: which images stand in which, as a pure function of the seed and the step, and their loading by grain.

A training batch is a function of (seed, step) alone: not of the number of worker threads or processes, nor of where
the run was interrupted. Each image's random draws are seeded by (seed, epoch, image id), so that splitting a batch
over more processes changes none of them.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator, Sequence

import grain
import numpy as np

from rcnn_jax.data import pipeline, proposals, sampling, worker
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.proposals import StoredProposals
from rcnn_jax.data.source import Source
from rcnn_jax.data.transforms import PaddedToMultiple
from rcnn_jax.types import Batch

logger = logging.getLogger(__name__)

_WORKER_GONE = "a worker process of the loader is gone (out of memory? fewer data.workers or data.prefetch need less)"
MANY_CANVASES = 8  # compiling a detector's step for one takes about a minute


@dataclasses.dataclass(frozen=True)
class Rows:
  """Which images make up a batch: `indices` into the source, all on one canvas.

  They are at most as many as the batch has rows, and none of them occurs twice; the other rows are not valid.
  """

  epoch: int
  indices: tuple[int, ...]
  canvas: tuple[int, int]
  times: tuple[int, ...] | None = None  # how often each image has been seen in the epoch before; None: never


@dataclasses.dataclass(frozen=True, eq=False)
class Epoch:
  """One pass over all images that are trained on, in batches of one canvas: each once, or as a sampler has it."""

  groups: dict[tuple[int, int], np.ndarray]  # canvas -> i64[n], the images on it, as indices into the source
  batch_size: int  # of all processes together
  max_objects: int
  factors: dict[tuple[int, int], np.ndarray] | None = None  # canvas -> f64[n], how often each is seen on average

  @property
  def images(self) -> np.ndarray:
    """i64[n], all images that are trained on, by number."""
    return np.sort(np.concatenate(list(self.groups.values())))

  @property
  def num_images(self) -> int:
    """How many images are trained on."""
    return sum(len(members) for members in self.groups.values())

  @property
  def num_steps(self) -> int:
    """How many batches an epoch has. The last one of each canvas may have rows that are not valid."""
    return sum(map(self.num_batches, self.groups))

  def num_batches(self, canvas: tuple[int, int]) -> int:
    """How many batches of an epoch are of this canvas; no batch has an image twice, however often it is repeated."""
    if self.factors is None:
      return -(-len(self.groups[canvas]) // self.batch_size)
    factors = self.factors[canvas]
    return max(-(-sampling.num_draws(factors) // self.batch_size), sampling.most_draws(factors))


class TrainPlan:
  """The rows of every training batch, by step: each epoch is one shuffled pass over all images, or a sampler's draws.

  The images of a canvas are shuffled and cut into batches; the last of these is as short as need be, as PyTorch's
  DataLoader has it. So an image stands in exactly one batch of each epoch, and a step is found without replaying the
  epochs before it. The batches of the canvases are shuffled among each other. A sampler's draws are dealt out to the
  batches of their canvas in turn, those of one image one after the other, so that no batch gets two of them.
  """

  def __init__(self, epoch: Epoch, *, seed: int, num_steps: int):
    self._whole, self._seed, self._num_steps = epoch, seed, num_steps
    # A plan is read in order, so that two epochs suffice, whatever the threads; the cache is no part of its value.
    self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

  def __len__(self) -> int:
    return self._num_steps

  def __getitem__(self, step: int) -> Rows:
    number, place = divmod(step, self._whole.num_steps)
    return self._epoch(number)[place]

  def __reduce__(self):
    return functools.partial(TrainPlan, seed=self._seed, num_steps=self._num_steps), (self._whole,)

  def _make_epoch(self, number: int) -> list[Rows]:
    rng = np.random.default_rng((self._seed, number))
    size, batches = self._whole.batch_size, []
    for canvas in sorted(self._whole.groups):
      if self._whole.factors is not None:
        batches += self._dealt(number, canvas, rng)
        continue
      order = tuple(rng.permutation(self._whole.groups[canvas]).tolist())
      batches += [Rows(number, order[at : at + size], canvas) for at in range(0, len(order), size)]
    return [batches[position] for position in rng.permutation(len(batches))]

  def _dealt(self, number: int, canvas: tuple[int, int], rng: np.random.Generator) -> list[Rows]:
    members, num_batches = self._whole.groups[canvas], self._whole.num_batches(canvas)
    counts = sampling.draws(self._whole.factors[canvas], rng)
    order = rng.permutation(len(members))
    places = np.repeat(order, counts[order])
    times = np.arange(len(places)) - np.repeat(np.cumsum(counts[order]) - counts[order], counts[order])
    hands = [(members[places[at::num_batches]], times[at::num_batches]) for at in range(num_batches)]
    return [Rows(number, tuple(hand.tolist()), canvas, tuple(seen.tolist())) for hand, seen in hands]


class TrainIterator(Iterator[Batch]):
  """Training batches from any step on. The state is the number of the next step, for any number of workers."""

  def __init__(self, dataset: grain.MapDataset, workers: int, read: grain.ReadOptions):
    self._dataset, self._workers, self._read = dataset, workers, read
    self._next_step, self._batches = 0, None

  def __next__(self) -> Batch:
    if self._batches is None:
      self._batches = self._start()
    try:
      batch = next(self._batches)
    except RuntimeError as error:
      if "Worker process was terminated" not in str(error):
        raise
      raise DataError(f"{_WORKER_GONE}: {str(error).partition('.')[0]}") from error
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

  def _start(self) -> grain.DatasetIterator | worker.ReadApart:
    batches = self._dataset.slice(slice(self._next_step, None)).to_iter_dataset(self._read)
    if not self._workers:
      return iter(batches)
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers), worker.begin)
    return worker.ReadApart(lambda: iter(batches))


class EvalBatches:
  """Every image of a source exactly once, canvas by canvas; a sized iterable."""

  def __init__(self, dataset: grain.MapDataset, read: grain.ReadOptions):
    self._dataset, self._read = dataset, read

  def __len__(self) -> int:
    return len(self._dataset)

  def __iter__(self) -> Iterator[Batch]:
    return self.start(0)

  def start(self, index: int) -> Iterator[Batch]:
    """The batches from number `index` on."""
    return iter(self._dataset.slice(slice(index, None)).to_iter_dataset(self._read))


def training_epoch(data: Data, source: Source, batch_size: int | None = None) -> Epoch:
  """What is trained on in one epoch. Lengths of trainings that are given in epochs are measured by its `num_steps`.

  Logs one line where no image has an object to train on.

  Raises:
    DataError: no images, masks or keypoints asked for and absent.
  """
  pipeline.check_augmentations(data)
  found = pipeline.survey(data, source)
  chosen = np.ones(len(found.sizes), bool)
  if data.skip_empty:
    chosen &= found.num_trainable > 0
  if data.load_keypoints:
    chosen &= found.num_keypoints >= data.min_keypoints
  if not chosen.any():
    raise DataError(f"no images to train on: {_why_none(data, found)}")
  if found.untrainable is not None:
    logger.warning("the training data: %s", found.untrainable)
  images, factors = np.flatnonzero(chosen), None
  if data.sampler is not None:
    images, factors = _sampled(data, source, images)
  by_canvas = _by_canvas(data, found.sizes, images.tolist(), train=True)
  _warn_of_many(data, by_canvas)
  groups = {canvas: np.array(members) for canvas, members in by_canvas.items()}
  if factors is not None:
    factors = {canvas: factors[np.searchsorted(images, members)] for canvas, members in groups.items()}
  room = pipeline.room_for_objects(data, found.max_objects)
  return Epoch(groups, batch_size or data.batch_size[0], room, factors)


def _sampled(data: Data, source: Source, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The images that the sampler draws, i64[n], and how often each is seen in an epoch on average, f64[n]."""
  factors = data.sampler.factors(sampling.pairs(source, images), len(images))
  drawn = factors > 0
  if not drawn.any():
    raise DataError(f"no images to train on: {type(data.sampler).__name__} draws none, for want of an object")
  return images[drawn], factors[drawn]


def train_loader(
  data: Data,
  source: Source,
  *,
  seed: int,
  num_steps: int,
  process_index: int = 0,
  process_count: int = 1,
  batch_size: int | None = None,
  epoch: Epoch | None = None,
) -> TrainIterator:
  """Training batches 0 .. num_steps - 1 of numpy arrays, with `get_state` and `set_state`.

  Rows that fill up a short batch have valid=False and repeat its images, each time with other draws: losses leave
  them out, and batch norm sees photographs. With `data.workers`, grain wants absl's flags parsed: run under
  `absl.app.run`.

  Args:
    process_index, process_count: this process gets its equal, consecutive share of the rows of each batch.
    batch_size: of all processes together; by default the experiment's.
    epoch: `training_epoch` of these arguments, where it is at hand.

  Raises:
    DataError: as `training_epoch`; a negative seed, a batch that the processes cannot share equally, proposals that
      are not there or for other data; while iterating, an image that cannot be read.
  """
  if seed < 0:
    raise DataError(f"the seed is {seed}: it must not be negative")
  epoch = epoch or training_epoch(data, source, batch_size)
  share = _share(epoch.batch_size, process_index, process_count)
  regions = open_proposals(data, source, 0)
  load = functools.partial(_load_rows, data, source, regions, epoch.max_objects, share, seed, epoch.images)
  plan = TrainPlan(epoch, seed=seed, num_steps=num_steps)
  return TrainIterator(grain.MapDataset.source(plan).map(load), data.workers, _read_options(data))


def eval_batches(
  data: Data,
  source: Source,
  *,
  batch_size: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> EvalBatches:
  """Every image once, in batches of one canvas; rows that fill up a canvas' last batch are blank, with valid=False.

  Threads decode ahead. Arguments and errors are `train_loader`'s.
  """
  batch_size = batch_size or data.batch_size[1]
  share = _share(batch_size, process_index, process_count)
  found = pipeline.survey(data, source)
  plan = [
    Rows(0, tuple(members[at : at + batch_size]), canvas)
    for canvas, members in sorted(_by_canvas(data, found.sizes, range(len(found.sizes)), train=False).items())
    for at in range(0, len(members), batch_size)
  ]
  regions = open_proposals(data, source, 1)
  load = functools.partial(_load_rows, data, source, regions, found.max_objects, share, None, None)
  return EvalBatches(grain.MapDataset.source(plan).map(load), _read_options(data))


def _read_options(data: Data) -> grain.ReadOptions:
  for name, least in (("workers", 0), ("read_threads", 1), ("prefetch", 1)):
    if getattr(data, name) < least:
      raise DataError(f"data.{name} is {getattr(data, name)}: it must be at least {least}")
  return grain.ReadOptions(data.read_threads, max(data.prefetch, data.read_threads))


def _by_canvas(
  data: Data, sizes: Sequence[tuple[int, int]], indices: Iterable[int], train: bool
) -> dict[tuple[int, int], list[int]]:
  """The images at `indices`, in that order, by the canvas that each stands on."""
  canvas_of = functools.cache(lambda size: pipeline.canvas_of(size, data, train))
  groups: dict[tuple[int, int], list[int]] = {}
  for index in indices:
    groups.setdefault(canvas_of(sizes[index]), []).append(index)
  return groups


def _why_none(data: Data, found: pipeline.Survey) -> str:
  if not found.sizes:
    return "the data set is empty"
  if data.load_keypoints and found.num_keypoints.max() < data.min_keypoints:
    most = int(found.num_keypoints.max())
    return f"data.min_keypoints is {data.min_keypoints}, and no image has more than {most} labelled joints"
  return found.untrainable or "data.skip_empty and data.min_keypoints leave out every image"


def _warn_of_many(data: Data, canvases: Iterable[tuple[int, int]]) -> None:
  """One line where each image has its own canvas in training too, and these are many, with few that hold them all."""
  found = sorted(canvases)
  if not isinstance(data.canvases, PaddedToMultiple) or len(found) <= MANY_CANVASES:
    return
  sides = [max(max(canvas) for canvas in found), max(min(canvas) for canvas in found)]
  few = (sides[1], sides[0]), (sides[0], sides[1])
  logger.warning(
    "the training images have %d canvases, and the step is compiled for each of them; all images fit into "
    "data.canvases.training=%s",
    len(found),
    few if few[0] != few[1] else few[:1],
  )


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
  others: np.ndarray | None,
  rows: Rows,
) -> Batch:
  """This process' share of a batch; `seed` and `others` are None in evaluation, which draws nothing."""
  examples = []
  for row in range(share.start, share.stop):
    real = row < len(rows.indices)
    if seed is None and not real:
      examples.append(pipeline.blank(data, source, rows.canvas, max_objects, regions))
      continue
    repetition, place = divmod(row, len(rows.indices))
    rng = None
    if seed is not None:
      image_id = source.annotations(rows.indices[place], masks=False).image_id
      before = 0 if rows.times is None else rows.times[place]
      again = (repetition, before) if before else (repetition,) if repetition else ()
      rng = np.random.default_rng((seed, rows.epoch, image_id, *again))
    example = pipeline.load(data, source, rows.indices[place], rows.canvas, max_objects, rng, regions, others)
    examples.append(example.replace(valid=np.array(real)))
  return pipeline.stack(examples)

"""From a source's image and annotations to a `Batch`: the data of an experiment, and what is done to one image."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rcnn_jax.data import transforms
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.images import size_problem
from rcnn_jax.data.object_masks import Masks
from rcnn_jax.data.proposals import Regions, StoredProposals
from rcnn_jax.data.selective_search import SelectiveSearch
from rcnn_jax.data.source import (
  Annotations,
  Source,
  clean,
  overview,
  require_masks,
  unfollowed_orientation,
  untrainable,
)
from rcnn_jax.data.transforms import Example
from rcnn_jax.types import Batch, GroundTruth, Proposals

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Data:
  """The data of an experiment, as plain values; `train` and `eval` are specs with an `open()`.

  Every image is resized, then augmented (training only; an augmentation that resizes, such as LargeScaleJitter, does
  so in the place of `resize`), then put into the top left corner of the smallest of the `canvases` (height, width)
  that holds it, and one that fits none is shrunk; or into the canvas that `PaddedToMultiple` makes for it alone. The
  canvas is that of the resized image: what an augmentation has made larger is shrunk to it. Each canvas is compiled
  once. Batch sizes are those of all processes together.
  """

  train: Any
  eval: Any
  resize: transforms.Resize = transforms.Resize()
  canvases: tuple[tuple[int, int], ...] | transforms.PaddedToMultiple = ((480, 640), (640, 480))
  augmentations: tuple = (transforms.HorizontalFlip(0.5),)
  batch_size: tuple[int, int] = (2, 2)  # (train, eval)
  sampler: Any = None  # how often an epoch shows each image: RepeatFactor(), ClassBalanced(); None: once
  max_objects: int | None = None  # None: the most that an image of the source has, rounded up to a multiple of 8
  skip_empty: bool = False  # leave images without a trainable object out of training, as Detectron2 does
  load_masks: bool = False
  load_keypoints: bool = False
  # Pixels of the original, added to labelled joints for the model and taken from those that it gives: 0.5 as in
  # Detectron2, where joints are read as pixel numbers.
  joint_offset: float = 0.0
  min_keypoints: int = 0  # with load_keypoints: leave images with fewer labelled joints out of training
  proposals: tuple[str, str] | None = (
    None  # (train, eval) folders of launch.prepare_data; None: the model makes its own
  )
  num_proposals: tuple[int, int] = (2000, 2000)  # (train, eval): so many of an image's best stand in a batch
  search: SelectiveSearch | None = None  # how launch.prepare_data finds them, unless its options say otherwise
  # What decodes, and how far ahead; batches do not depend on it. In training it is `workers` processes, or this one
  # where there are none, in evaluation always this one; each has so many threads, and holds so many finished batches.
  workers: int = 0
  read_threads: int = 2
  prefetch: int = 4


@dataclasses.dataclass(frozen=True)
class Survey:
  """What the loaders have to know about a source of n images before the first of them is decoded."""

  sizes: tuple[tuple[int, int], ...]  # n original sizes, (height, width)
  num_trainable: np.ndarray  # i32[n], objects that are neither faulty nor crowds
  num_keypoints: np.ndarray  # i32[n], labelled joints of these
  max_objects: int
  untrainable: str | None = None  # why there is nothing to train on, if so


def survey(data: Data, source: Source) -> Survey:
  """Looks through all annotations; logs one line about faulty objects and one about objects beyond `max_objects`.

  Raises:
    DataError: masks or keypoints are asked for and the source has none.
  """
  if data.load_keypoints and source.keypoints is None:
    raise DataError("load_keypoints is set, but the data set names no keypoints")
  found = overview(source, data.load_masks)
  if found.num_faulty:
    logger.warning("faulty objects dropped: %d (first: %s)", found.num_faulty, found.first_fault)
  max_objects = data.max_objects
  if max_objects is None:
    max_objects = -(-max(found.num_objects.max(initial=0), 1) // 8) * 8
  excess = np.flatnonzero(found.num_objects > max_objects)
  if len(excess):
    name = source.annotations(int(excess[0]), masks=False).file_name
    total = int((found.num_objects[excess] - max_objects).sum())
    logger.warning("objects beyond max_objects=%d dropped: %d (first: %s)", max_objects, total, name)
  sizes = tuple((height, width) for height, width in found.sizes.tolist())
  return Survey(sizes, found.num_trainable, found.num_keypoints, int(max_objects), untrainable(found))


def check_augmentations(data: Data) -> None:
  """Raises DataError where the data lack what an augmentation needs."""
  for operation in data.augmentations:
    name = type(operation).__name__
    if getattr(operation, "needs_masks", False) and not data.load_masks:
      raise DataError(f"data.augmentations: {name} needs the objects' masks: set data.load_masks")
    if getattr(operation, "takes_others", False) and data.proposals is not None:
      raise DataError(f"data.augmentations: {name} makes images of which data.proposals knows nothing")


def room_for_objects(data: Data, max_objects: int) -> int:
  """How many objects a training image may have where an image of the source has `max_objects` at most.

  As many as stand in all images of which one is made, unless the experiment names a number.
  """
  images = math.prod(getattr(operation, "max_images", 1) for operation in data.augmentations)
  return max_objects * images if data.max_objects is None else max_objects


def canvas_of(size: tuple[int, int], data: Data, train: bool = False) -> tuple[int, int]:
  """The canvas (height, width) of an image of `size`; that of its largest short side, whichever is drawn."""
  resized, canvases = transforms.resized_size(size, data.resize), data.canvases
  if isinstance(canvases, transforms.PaddedToMultiple):
    if not (train and canvases.training):
      return canvases.around(resized)
    canvases = canvases.training
  return transforms.choose_canvas(resized, canvases)


def example_canvas(data: Data) -> tuple[int, int]:
  """One of the canvases (height, width), for tracing shapes: the first, or that of a photograph of 480 x 640."""
  if not isinstance(data.canvases, transforms.PaddedToMultiple):
    return data.canvases[0]
  return data.canvases.training[0] if data.canvases.training else canvas_of((480, 640), data)


def load(
  data: Data,
  source: Source,
  index: int,
  canvas,
  max_objects: int,
  rng: np.random.Generator | None,
  proposals: StoredProposals | None = None,
  others: np.ndarray | None = None,
) -> Batch:
  """One image of the source as an unbatched `Batch` (no leading B) of numpy arrays.

  Args:
    canvas: (height, width) on which it stands at the end.
    rng: the image's own generator in training; None in evaluation, which draws and augments nothing.
    proposals: of the source; the `limit` best of each image.
    others: i64[n], the images from which augmentations that take others draw them, by number; None: all.

  Raises:
    DataError: an image cannot be decoded, or has another size than its annotations say.
  """
  opened = lambda number: _opened(data, source, number, canvas, proposals)
  image_id, example = opened(index)
  drawn = lambda: opened(int(rng.integers(len(source)) if others is None else rng.choice(others)))[1]
  chain = (data.resize,) if rng is None else operations(data)
  example = _augmented(example, rng, chain, drawn)
  return _placed(example, image_id, max_objects, None if proposals is None else proposals.limit)


def operations(data: Data) -> tuple:
  """What is done to an image in training, in order: `data.resize` first, unless an augmentation resizes itself."""
  resized = any(getattr(operation, "resizes", False) for operation in data.augmentations)
  return data.augmentations if resized else (data.resize, *data.augmentations)


def _augmented(example: Example, rng, chain: Sequence, drawn: Callable[[], Example]) -> Example:
  """`drawn()` is another image of the source. One that an operation takes has gone through all that came before."""
  for place, operation in enumerate(chain):
    if getattr(operation, "takes_others", False):
      before = chain[:place]
      example = operation(example, rng, lambda before=before: _augmented(drawn(), rng, before, drawn))
    else:
      example = operation(example, rng)
  return example


def _opened(data: Data, source: Source, index: int, canvas, proposals: StoredProposals | None) -> tuple[int, Example]:
  """Image `index` and its sound objects as they were stored, and the image's id."""
  raw = source.annotations(index, masks=data.load_masks)
  if data.load_masks:
    require_masks(raw)
  annotations = clean(raw)
  image = source.image(index)
  if image.shape[:2] != tuple(annotations.size):
    problem = size_problem(image.shape[:2], annotations.size, unfollowed_orientation(source, index))
    raise DataError(f"{annotations.file_name}: {problem}")
  regions = None if proposals is None else proposals[index]
  return annotations.image_id, _unplaced(data, source, image, annotations, canvas, regions)


def blank(data: Data, source: Source, canvas, max_objects: int, proposals: StoredProposals | None = None) -> Batch:
  """What fills up a short batch: like `load`, a black image without objects or proposals, with valid=False."""
  num_joints = len(source.keypoints.names) if source.keypoints else 0
  no_regions = Regions(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
  none = _without_objects(data, np.zeros((*canvas, 3), np.uint8), canvas, no_regions)
  if data.load_masks:
    none = dataclasses.replace(none, masks=Masks.of((), none.boxes))
  if data.load_keypoints:
    none = dataclasses.replace(none, keypoints=np.zeros((0, num_joints, 3), np.float32))
  blank_batch = _placed(data.resize(none, None), 0, max_objects, None if proposals is None else proposals.limit)
  return blank_batch.replace(valid=np.array(False))


def image_batch(
  images: Sequence[np.ndarray],
  data: Data,
  image_ids: Sequence[int] | None = None,
  proposals: Sequence[Regions] | None = None,
) -> Batch:
  """A batch of bare images u8[H, W, 3] (RGB), prepared as for evaluation, with no objects.

  The batch has the canvas of its first image, into which the others are fitted too: group the images by
  `canvas_of` to give each its full size. `proposals` are those of each image, for a model that makes none itself.
  """
  canvas = canvas_of(images[0].shape[:2], data)
  ids = range(1, len(images) + 1) if image_ids is None else image_ids
  found = [None] * len(images) if proposals is None else proposals
  room = None if proposals is None else data.num_proposals[1]
  examples = [_without_objects(data, image, canvas, regions) for image, regions in zip(images, found)]
  return stack([_placed(data.resize(each, None), int(number), 8, room) for each, number in zip(examples, ids)])


def stack(examples: Sequence[Batch]) -> Batch:
  """Unbatched batches of equal shapes, with a leading B."""
  import jax

  return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def _unplaced(data: Data, source, image, annotations: Annotations, canvas, regions: Regions | None) -> Example:
  """The image and its objects as they were stored."""
  objects = {name: getattr(annotations, name) for name in ("boxes", "classes", "crowd", "difficult")}
  example = dataclasses.replace(_without_objects(data, image, canvas, regions), **objects)
  if data.load_masks:
    example = dataclasses.replace(example, masks=Masks.of(annotations.segmentations or (), annotations.boxes))
  if data.load_keypoints:
    labelled = annotations.keypoints[..., 2:] > 0
    joints = annotations.keypoints + labelled * np.array([data.joint_offset, data.joint_offset, 0], np.float32)
    example = dataclasses.replace(example, keypoints=joints, flip_order=source.keypoints.flip_order)
  return example


def _without_objects(data: Data, image: np.ndarray, canvas, regions: Regions | None = None) -> Example:
  none = np.zeros(0, np.int32)
  boxes, scores = (None, None) if regions is None else (regions.boxes, regions.scores)
  return Example(
    image=image.astype(data.resize.pixels, copy=False),
    boxes=np.zeros((0, 4), np.float32),
    classes=none,
    crowd=none.astype(bool),
    difficult=none.astype(bool),
    canvas=canvas,
    proposals=boxes,
    proposal_scores=scores,
  )


def _placed(example: Example, image_id: int, max_objects: int, num_proposals: int | None) -> Batch:
  """On its canvas, whatever its size has become; objects and proposals for which there is no room are left out."""
  size = transforms.fit(example.image.shape[:2], example.canvas)
  if size != example.image.shape[:2]:
    example = transforms.scaled(example, size)
  example = example.take(np.arange(min(len(example.boxes), max_objects)))
  truth = GroundTruth(
    boxes=_pad(example.boxes, max_objects),
    classes=_pad(example.classes, max_objects),
    crowd=_pad(example.crowd, max_objects),
    difficult=_pad(example.difficult, max_objects),
    valid=np.arange(max_objects) < len(example.boxes),
    masks=None if example.masks is None else _pad(example.masks.crops(example.boxes), max_objects),
    keypoints=None if example.keypoints is None else _pad(example.keypoints, max_objects),
  )
  height, width = size
  pixels = np.zeros((*example.canvas, 3), example.image.dtype)
  pixels[:height, :width] = example.image
  return Batch(
    image=pixels,
    image_size=np.array([height, width], np.int32),
    scale=example.scale,
    image_id=np.array(image_id, np.int32),
    valid=np.array(True),
    truth=truth,
    proposals=None if num_proposals is None else _proposals(example, num_proposals),
  )


def _proposals(example: Example, length: int) -> Proposals:
  """The best that there is room for."""
  scores = np.asarray(example.proposal_scores[:length], np.float32)
  return Proposals(_pad(example.proposals[:length], length), _pad(scores, length), np.arange(length) < len(scores))


def _pad(rows: np.ndarray, length: int) -> np.ndarray:
  """Zeros behind the rows, up to `length` of them."""
  padded = np.zeros((length, *rows.shape[1:]), rows.dtype)
  padded[: len(rows)] = rows
  return padded

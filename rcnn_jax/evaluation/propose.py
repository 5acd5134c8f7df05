"""The proposals of a trained model, in pixels of the original images: what `data.proposals` folders are filled with.

Only what turns a model and a data source into regions may live here: no metric, no file.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from rcnn_jax.data import loader
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.proposals import Regions
from rcnn_jax.data.source import Source
from rcnn_jax.types import Batch, Proposals


def finder(model, variables, data: Data, source: Source) -> Callable[[Sequence[int]], Iterator[tuple[int, Regions]]]:
  """What `data.prepare.prepare` asks for proposals: those that the model makes at evaluation, NMS included.

  Args:
    model: with `apply(variables, batch, method='propose') -> Proposals`.
    variables: of the model.
    data: whose canvases, resizing and evaluation batch size are taken.
    source: the opened data set, whichever it is.
  """
  # The model sees neither objects nor other proposals.
  bare = dataclasses.replace(data, load_masks=False, load_keypoints=False, max_objects=None, proposals=None)
  annotations = [source.annotations(index, masks=False) for index in range(len(source))]
  index_of = {a.image_id: index for index, a in enumerate(annotations)}

  def find(missing: Sequence[int]) -> Iterator[tuple[int, Regions]]:
    wanted, compiled = set(missing), set()
    for batch in loader.eval_batches(bare, source):
      places = {int(row): index_of[int(batch.image_id[row])] for row in np.flatnonzero(batch.valid)}
      if not wanted & set(places.values()):
        continue
      batch = batch.replace(truth=None)
      if batch.image.shape not in compiled:  # so that no image's time is that of compiling
        jax.block_until_ready(_propose_step(model, variables, batch))
        compiled.add(batch.image.shape)
      began = time.perf_counter()
      found = jax.device_get(_propose_step(model, variables, batch))
      seconds = (time.perf_counter() - began) / len(places)
      for row, index in places.items():
        if index in wanted:
          one = jax.tree.map(lambda values: values[row], found)
          yield index, regions(one, batch.scale[row], annotations[index].size, seconds)

  return find


@functools.partial(jax.jit, static_argnums=0)
def _propose_step(model, variables, batch: Batch) -> Proposals:
  return model.apply(variables, batch, method="propose")


def regions(found: Proposals, scale: np.ndarray, size: tuple[int, int], seconds: float) -> Regions:
  """One image's valid proposals by falling score, clipped to the original.

  Args:
    found: of one image, boxes in pixels of the canvas.
    scale: f32[2], canvas pixels per pixel of the original, (vertical, horizontal).
    size: (height, width) of the original.
    seconds: handed on.
  """
  rows = np.flatnonzero(found.valid)
  rows = rows[np.argsort(-found.scores[rows], kind="stable")]
  boxes = np.clip(found.boxes[rows] / np.tile(scale[::-1], 2), 0, np.tile(size[::-1], 2)).astype(np.float32)
  kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)
  return Regions(boxes[kept], found.scores[rows][kept].astype(np.float32), seconds)

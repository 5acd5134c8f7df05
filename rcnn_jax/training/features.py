"""The features of all training regions on disk: computed once, chunk by chunk, read memory-mapped.

A chunk is one batch of images. It is done when its `rows.npz` is there, so that a killed computation goes on where it
was. The folder is bound to the parameters that the features come from; features of others are thrown away.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rcnn_jax.files import write_json
from rcnn_jax.models.detector import trainable
from rcnn_jax.ops import boxes
from rcnn_jax.training import optim, svm
from rcnn_jax.types import Array, Batch, GroundTruth

VERSION = 2


@dataclasses.dataclass(frozen=True)
class Regions:
  """The training images, as the fits see them: `start(i)` gives the batches from number i on, of `count` in all.

  The batches are those of evaluation (each image once, not augmented), with proposals and objects.
  """

  start: Callable[[int], Iterator[Batch]]
  count: int
  pair_iou: float  # pooled features are kept of proposals that overlap an object by more


@dataclasses.dataclass(frozen=True)
class Pairs:
  """P proposals of one chunk that overlap an object, to regress boxes by."""

  pooled: np.ndarray  # f32[P, C], memory-mapped
  boxes: np.ndarray  # f32[P, 4], canvas pixels
  overlaps: np.ndarray  # f32[P, K], the highest IoU with an object of each class
  targets: np.ndarray  # f32[P, K, 4], that object of each class


class Cache:
  """A folder of features, complete."""

  def __init__(self, folder: pathlib.Path, count: int):
    self._folder, self._count = folder, count

  def rows(self) -> Iterator[svm.Rows]:
    """The trunk's features of all regions, chunk by chunk."""
    for index in range(self._count):
      rows = np.load(_path(self._folder, index, "rows.npz"))
      yield svm.Rows(_mapped(self._folder, index, "trunk.npy"), rows["truth"], rows["overlaps"])

  def pairs(self) -> Iterator[Pairs]:
    """The pooled features of proposals that overlap an object, chunk by chunk."""
    for index in range(self._count):
      rows = np.load(_path(self._folder, index, "rows.npz"))
      overlaps = rows["overlaps"][rows["pairs"]]
      yield Pairs(_mapped(self._folder, index, "pooled.npy"), rows["boxes"], overlaps, rows["targets"])

  def seconds(self) -> float:
    """What it took to compute them, in whatever sessions."""
    return sum(float(np.load(_path(self._folder, index, "rows.npz"))["seconds"]) for index in range(self._count))


def cache(
  folder: pathlib.Path, model: nn.Module, variables: dict, regions: Regions, log_line: Callable[[str], None]
) -> Cache:
  """Computes what of the features is not on disk yet; `log_line` logs a line of progress."""
  settings = {
    "version": VERSION,
    "parameters": checksum(variables),
    "batches": regions.count,
    "pair_iou": regions.pair_iou,
  }
  _claim(folder, settings, log_line)
  first = next((i for i in range(regions.count) if not _path(folder, i, "rows.npz").exists()), regions.count)
  variables = jax.device_put(variables)
  if 0 < first < regions.count:
    log_line(f"features: {first} of {regions.count} batches are on disk already")
  began = time.perf_counter()
  for index, batch in zip(range(first, regions.count), regions.start(first) if first < regions.count else ()):
    seen = jax.device_get(_look(model, variables, batch))
    _write(folder, index, batch, seen, regions.pair_iou, time.perf_counter() - began)
    began = time.perf_counter()
    if (index + 1) % max(regions.count // 10, 1) == 0 or index + 1 == regions.count:
      log_line(f"features: {index + 1} of {regions.count} batches")
  return Cache(folder, regions.count)


def checksum(variables: dict) -> str:
  """Of all that features depend on: the parameters without the head's."""
  digest = hashlib.sha256()
  for path, leaf in sorted(optim.flatten(variables).items()):
    if not path.startswith("params/box/"):
      digest.update(path.encode() + np.asarray(leaf).tobytes())
  return digest.hexdigest()


def class_overlaps(rois: Array, truth: GroundTruth, num_classes: int) -> tuple[Array, Array]:
  """(f32[R, K] highest IoU of each region with an object of each class, f32[R, K, 4] that object's box).

  rois: f32[R, 4]. Where an image has no object of the class, the overlap is 0 and the box is any.
  """
  of_class = (truth.classes == jnp.arange(1, num_classes + 1)[:, None]) & truth.valid  # [K, M]
  overlaps = jnp.where(of_class, boxes.iou(rois, truth.boxes)[:, None], 0.0)  # [R, K, M]
  return overlaps.max(-1), truth.boxes[overlaps.argmax(-1)]


@functools.partial(jax.jit, static_argnums=0)
def _look(model: nn.Module, variables: dict, batch: Batch) -> dict[str, Array]:
  """All that is kept of a batch's proposals and objects, the rows that are not valid still among them."""
  truth = trainable(batch)
  rois = jnp.concatenate([batch.proposals.boxes, truth.boxes], axis=1)
  trunk, pooled = model.apply(variables, batch, rois, method="regions")
  overlaps, targets = jax.vmap(lambda r, t: class_overlaps(r, t, model.num_classes))(rois, truth)
  proposed = batch.proposals.valid & batch.valid[:, None]
  return {
    "boxes": rois,
    "trunk": trunk,
    "pooled": pooled,
    "overlaps": overlaps,
    "targets": targets,
    "valid": jnp.concatenate([proposed, truth.valid], axis=1),
    "truth": jnp.concatenate([jnp.zeros_like(proposed, jnp.int32), jnp.where(truth.valid, truth.classes, 0)], axis=1),
  }


def _write(
  folder: pathlib.Path, index: int, batch: Batch, seen: dict[str, np.ndarray], pair_iou: float, seconds: float
) -> None:
  rows = {name: values[seen["valid"]] for name, values in seen.items()}
  pairs = np.flatnonzero((rows["truth"] == 0) & (rows["overlaps"] > pair_iou).any(-1))
  for name in ("trunk", "pooled"):
    if not np.isfinite(rows[name]).all():
      ids = batch.image_id.tolist()
      raise optim.TrainingError(f"the {name} features of images {ids} are not finite: has the training diverged?")
  np.save(_path(folder, index, "trunk.npy"), rows["trunk"])
  np.save(_path(folder, index, "pooled.npy"), rows["pooled"][pairs])
  partial = _path(folder, index, "partial.npz")
  np.savez(
    partial,
    truth=rows["truth"],
    overlaps=rows["overlaps"],
    pairs=pairs,
    boxes=rows["boxes"][pairs],
    targets=rows["targets"][pairs],
    seconds=seconds,
  )
  partial.replace(_path(folder, index, "rows.npz"))


def _claim(folder: pathlib.Path, settings: dict[str, Any], log_line: Callable[[str], None]) -> None:
  """Makes the folder one for these settings, emptied where it was for others."""
  path = folder / "settings.json"
  if path.exists() and json.loads(path.read_text()) != settings:
    log_line(f"features: those in {folder} are of other parameters, and are computed anew")
    shutil.rmtree(folder)
  write_json(path, settings)


def _path(folder: pathlib.Path, index: int, name: str) -> pathlib.Path:
  return folder / f"{index:06d}.{name}"


def _mapped(folder: pathlib.Path, index: int, name: str) -> np.ndarray:
  return np.load(_path(folder, index, name), mmap_mode="r")

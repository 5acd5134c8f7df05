"""A run's detection as one portable program (StableHLO): from images of any size to objects in their own pixels.

The program is JAX's own serialised form of a function whose weights are constants in it. It stands in a zip beside
`about.json`, which says what it takes and gives. It runs with jax, numpy and flatbuffers, without this project.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

import rcnn_jax
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import PaddedToMultiple, resized_size
from rcnn_jax.experiment import Views
from rcnn_jax.files import writing
from rcnn_jax.models.detector import Detector
from rcnn_jax.ops import resize
from rcnn_jax.types import Array, Batch

PLATFORMS = ("cpu", "cuda", "tpu")
RESIZES = {"linear": resize.linear, "pillow": resize.pillow}  # by Resize.interpolation
FORMAT = 1  # of about.json


class ExportError(ValueError):
  """A run whose detection cannot be exported as asked."""


def write(
  run: Any,
  output: pathlib.Path,
  batch_size: int | None = None,
  platforms: Sequence[str] = PLATFORMS,
  image_sizes: Sequence[tuple[int, int]] = (),
) -> dict[str, Any]:
  """Writes the detection of a `training.checkpoint` Run into a file, whole or not at all; returns its about.json.

  Args:
    run: its model makes its own proposals.
    output: the zip to be made.
    batch_size: of the images that the program takes; None: any.
    platforms: of PLATFORMS, those that it is lowered for.
    image_sizes: (height, width) of images whose canvases it has, where each image has a canvas of its own.

  Raises:
    ExportError: this run cannot be exported so.
  """
  model, data = run.experiment.model.with_data(run.categories, run.keypoints), run.experiment.data
  check(model, data, batch_size, run.experiment.evaluation.views)
  canvases = canvases_for(data, image_sizes)
  exported = lowered(detection(model, run.variables, data, canvases), batch_size, platforms)
  said = about(run, exported, canvases, batch_size)
  with writing(output) as file, zipfile.ZipFile(file, "w") as archive:
    archive.writestr(zipfile.ZipInfo("about.json"), json.dumps(said, indent=2) + "\n")
    archive.writestr(zipfile.ZipInfo("program.bin"), bytes(exported.serialize()))
  return said


def check(model: Detector, data: Data, batch_size: int | None, views: Views = Views()) -> None:
  """Raises ExportError for what no program can be made of."""
  if importlib.util.find_spec("flatbuffers") is None:
    raise ExportError("jax.export writes its files with the package flatbuffers: pip install flatbuffers")
  if views != Views():
    raise ExportError(
      f"the run sees each image by several views ({views}): a program sees it once; --set takes them away"
    )
  if data.proposals is not None:
    raise ExportError(
      "the model takes its proposals from outside (data.proposals): only one with its own is exported"
    )
  if data.resize.interpolation not in RESIZES:
    known = " and ".join(RESIZES)
    raise ExportError(f"data.resize.interpolation={data.resize.interpolation!r}: only {known} can be exported")
  if batch_size is None and getattr(model, "heads", ()):
    heads = ", ".join(type(head).__name__ for head in model.heads)
    raise ExportError(f"with {heads}, the program's batch size must be fixed: --batch_size=1, say")


def lowered(detect: Callable, batch_size: int | None, platforms: Sequence[str] = PLATFORMS) -> export.Exported:
  """The function as a program for images of any height and width, and of any number where `batch_size` is None."""
  shape = export.symbolic_shape(f"{'b' if batch_size is None else batch_size}, h, w, 3")
  images, sizes = jax.ShapeDtypeStruct(shape, jnp.uint8), jax.ShapeDtypeStruct((shape[0], 2), jnp.int32)
  return export.export(jax.jit(detect), platforms=tuple(platforms))(images, sizes)


def about(run: Any, exported: export.Exported, canvases: Sequence[tuple[int, int]], batch_size: int | None) -> dict:
  """What travels with the program, as JSON has it."""
  model, data = run.experiment.model, run.experiment.data
  gives = jax.tree.unflatten(exported.out_tree, [f"{out.dtype}{list(out.shape)}" for out in exported.out_avals])
  said = {
    "format": FORMAT,
    "experiment": run.experiment.name,
    "step": run.step,
    "classes": [{"class": k, "id": one.id, "name": one.name} for k, one in enumerate(run.categories, start=1)],
    "keypoints": list(run.keypoints.names) if run.keypoints else None,
    "pasting": next((head.pasting for head in getattr(model, "heads", ()) if head.field == "masks"), None),
    "score_threshold": getattr(getattr(model, "box", None), "score_threshold", None),
    "canvases": [list(canvas) for canvas in canvases],
    "resize": dataclasses.asdict(data.resize),
    "batch_size": batch_size,
    "platforms": list(exported.platforms),
    "takes": {"images": f"uint8[{batch_size or 'b'}, h, w, 3]", "sizes": f"int32[{batch_size or 'b'}, 2]"},
    "gives": gives,
    "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    | {"rcnn_jax": rcnn_jax.__version__, "calling_convention": exported.calling_convention_version},
  }
  return json.loads(json.dumps(said, default=str))


def canvases_for(data: Data, image_sizes: Sequence[tuple[int, int]] = ()) -> tuple[tuple[int, int], ...]:
  """The canvases of a program: the experiment's own, or those that it has for images of some sizes (height, width).

  Raises:
    ExportError: each image has a canvas of its own, and no sizes are given.
  """
  if not isinstance(data.canvases, PaddedToMultiple):
    return data.canvases
  if not image_sizes:
    raise ExportError(
      "each image has its own canvas in this run: name the sizes of the images (--image_sizes=480x640)"
    )
  return tuple(dict.fromkeys(data.canvases.around(resized_size(size, data.resize)) for size in image_sizes))


def detection(model: Detector, variables: dict, data: Data, canvases: Sequence[tuple[int, int]]) -> Callable:
  """The function that is exported: (images u8[B, H, W, 3], sizes i32[B, 2]) -> a dictionary of what is found.

  An image stands in the top left corner of its array, RGB, and has the size (height, width); a size of 0 says that
  there is none. A batch stands on the canvas of its first image, as in `pipeline.image_batch`. The dictionary holds

      boxes f32[B, D, 4], xyxy in pixels of the image, clipped to it, by falling score
      scores f32[B, D]; classes i32[B, D], 1..K; valid bool[B, D], which rows exist
      masks f32[B, D, P, P], probabilities in the frame of the box, where the model finds masks
      keypoints f32[B, D, J, 3]: x, y, score, where it finds joints
  """

  def on(canvas: tuple[int, int], images: Array, sizes: Array) -> dict[str, Array]:
    batch = prepared(images, sizes, data, canvas)
    found = model.apply(variables, batch, method="detect")
    return in_the_image(found, batch.scale, sizes, data.joint_offset)

  def detect(images: Array, sizes: Array) -> dict[str, Array]:
    sizes = jnp.clip(sizes, 0, jnp.array(images.shape[1:3]))
    branches = [lambda *inputs, canvas=canvas: on(canvas, *inputs) for canvas in canvases]
    return jax.lax.switch(chosen_canvas(sizes[0], data, canvases), branches, images, sizes)

  return detect


def prepared(images: Array, sizes: Array, data: Data, canvas: tuple[int, int]) -> Batch:
  """The batch that the input pipeline makes of images u8[B, H, W, 3] of sizes i32[B, 2] for evaluation."""
  there = jnp.maximum(sizes, 1)
  new, scale = jax.vmap(lambda size: new_size(size, data, canvas))(there)
  resized = lambda image, old, new: RESIZES[data.resize.interpolation](image, old, new, canvas)
  pixels = jax.vmap(resized)(images.astype(data.resize.pixels), there, new)
  numbers = jnp.arange(1, images.shape[0] + 1, dtype=jnp.int32)
  return Batch(pixels, new, scale, numbers, valid=(sizes > 0).all(axis=1), truth=None)


def new_size(size: Array, data: Data, canvas: tuple[int, int]) -> tuple[Array, Array]:
  """i32[2], the size (height, width) of an image on a canvas, and f32[2], the factor by which it has changed.

  Computed in float64, operation by operation as the host does: rounded down, a size would else be a pixel off.
  """
  with jax.enable_x64(True):
    sides = size[0].astype(jnp.float64), size[1].astype(jnp.float64)
    sized = _resized(sides, data)
    shrink = jnp.minimum(canvas[0] / sized[0], canvas[1] / sized[1])
    fits = (sized[0] <= canvas[0]) & (sized[1] <= canvas[1])
    fitted = lambda side, most: jnp.minimum(jnp.maximum(1.0, jnp.floor(side * shrink)), float(most))
    new = [jnp.where(fits, side, fitted(side, most)) for side, most in zip(sized, canvas)]
    scale = [(after / before).astype(jnp.float32) for after, before in zip(new, sides)]
    return jnp.stack([side.astype(jnp.int32) for side in new]), jnp.stack(scale)


def chosen_canvas(size: Array, data: Data, canvases: Sequence[tuple[int, int]]) -> Array:
  """i32[]: the place of the canvas that an image of `size` i32[2] gets, as `transforms.choose_canvas` chooses."""
  with jax.enable_x64(True):
    size = jnp.maximum(size, 1)
    height, width = _resized((size[0].astype(jnp.float64), size[1].astype(jnp.float64)), data)
    best, least = jnp.int32(0), jnp.float64(-1.0)
    for place in sorted(range(len(canvases)), key=lambda place: math.prod(canvases[place])):
      rows, columns = canvases[place]
      shrink = jnp.minimum(1.0, jnp.minimum(rows / height, columns / width))
      best, least = jnp.where(shrink > least, jnp.int32(place), best), jnp.maximum(shrink, least)
    return best


def _resized(sides: tuple[Array, Array], data: Data) -> tuple[Array, Array]:
  """`transforms.resized_size` of an image's sides f64[]: whole numbers."""
  rule = data.resize
  least, most = jnp.minimum(*sides), jnp.maximum(*sides)
  short_side, long_side = float(max(rule.short_side)), float(rule.long_side)
  if rule.rounding == "down":
    scale = jnp.minimum(short_side / least, long_side / most)
    return tuple(jnp.maximum(1.0, jnp.floor(side * scale)) for side in sides)
  grown = [jnp.where(side == least, short_side, side * (short_side / least)) for side in sides]
  shrink = jnp.minimum(1.0, long_side / jnp.maximum(*grown))
  return tuple(jnp.maximum(1.0, jnp.floor(side * shrink + 0.5)) for side in grown)


def in_the_image(found: Any, scale: Array, sizes: Array, joint_offset: float) -> dict[str, Array]:
  """Detections [B, D] on the canvas, in pixels of the images: what `detection` gives.

  Args:
    found: Detections [B, D].
    scale: f32[B, 2], canvas pixels per pixel of the image, (vertical, horizontal).
    sizes: i32[B, 2], (height, width) of the images.
    joint_offset: pixels of the image taken from each joint.
  """
  across = scale[:, None, ::-1]
  limits = jnp.tile(sizes[:, ::-1], 2)[:, None].astype(jnp.float32)
  boxes = jnp.clip(found.boxes / jnp.tile(across, 2), 0, limits)
  gives = {"boxes": boxes, "scores": found.scores, "classes": found.classes, "valid": found.valid}
  if found.masks is not None:
    gives["masks"] = found.masks
  if found.keypoints is not None:
    places = found.keypoints[..., :2] / across[:, :, None] - joint_offset
    gives["keypoints"] = jnp.concatenate([places, found.keypoints[..., 2:]], axis=-1)
  return gives

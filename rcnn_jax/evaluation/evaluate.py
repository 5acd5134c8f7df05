"""One evaluation, whole: detect, measure, write the files, draw the pictures, print the tables."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rcnn_jax.data.source import Annotations
from rcnn_jax.evaluation import coco, detect, draw, outputs, voc
from rcnn_jax.evaluation.classes import class_keys
from rcnn_jax.evaluation.results import Results
from rcnn_jax.evaluation.tables import text_table
from rcnn_jax.evaluation.tiled_source import TiledSource
from rcnn_jax.evaluation.tiles import Tiles
from rcnn_jax.evaluation.view_masks import Masker, split
from rcnn_jax.evaluation.views import Merging, check_views, merged_images, views_of
from rcnn_jax.experiment import Evaluation, Views
from rcnn_jax.files import naming, writing

PICTURE_MIN_SCORE = 0.5
OUTPUTS = ("metrics.json", "detections.json", "curves.json", "table.txt")
# What stands in the printed table, in this order; the rest of metrics.json goes unprinted.
SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "ARs", "ARm", "ARl")
MEANINGS = {
  "AP": "mean over IoU 0.50:0.95",
  "AP50": "IoU 0.50",
  "AP75": "IoU 0.75",
  "APs": "area below 32²",
  "APm": "area 32² to 96²",
  "APl": "area above 96²",
  "ARs": "area below 32²",
  "ARm": "area 32² to 96²",
  "ARl": "area above 96²",
}


def evaluate(
  model, variables, data, source, outdir, settings: Evaluation = Evaluation(), mesh=None, tiles: Tiles | None = None
) -> dict[str, float | None]:
  """Evaluates a model on every image of a source, once.

  Writes into `outdir`: metrics.json (the returned metrics), detections.json (COCO results entries), curves.json
  (precision at IoU 0.5 over 101 recalls, by kind and class), table.txt (what is printed) and pictures/*.png (ground
  truth beside detections). What an earlier evaluation left there is replaced, and nothing else: a picture gets
  another name where a file that is not of an evaluation has its own.

  Args:
    model: with `apply(variables, batch, method='detect')`.
    variables: of the model.
    data: `rcnn_jax.data` Data: canvases, resizing, batch size.
    source: opened data source, with ground truth.
    outdir: made if need be.
    settings: by which views each image is seen, how many detections are counted, and how many pictures drawn.
    mesh: with an axis 'data' over which each batch is shared out.
    tiles: look at each image by these, and not at it as a whole.

  Returns:
    Flat metrics in 0..1; None where the ground truth has nothing to be found.

  Raises:
    EvaluationError: `outdir` holds files of these names that no evaluation wrote; or `check_views` raises it.
  """
  outdir = pathlib.Path(outdir)
  _check_outdir(outdir)
  check_views(settings.views, tiles, model, source.keypoints)
  annotations = [source.annotations(index, masks=False) for index in range(len(source))]
  start = time.perf_counter()
  if tiles is None:
    results = detect_by_views(model, variables, data, source, settings.views, annotations, mesh)
  else:
    results = detect_by_tiles(model, variables, data, source, tiles)
  seconds = time.perf_counter() - start
  if "segm" in results.kinds:
    annotations = [source.annotations(index) for index in range(len(source))]
  truth = coco.truth_dataset(annotations, source.categories)
  metrics, curves = measure(truth, results, settings.max_detections)
  if jax.process_index() > 0:  # one process writes for all
    return metrics
  keys = class_keys((c.id, c.name) for c in source.categories)
  table = tables(metrics, list(keys.values()), settings.max_detections)
  file_ids = {one.image_id: one.file_id for one in annotations if one.file_id is not None}
  _write_files(outdir, metrics, results.encoded(file_ids), curves, table)
  _write_pictures(outdir / "pictures", source, truth, results, settings.pictures)
  print(
    f"{len(source)} images, {len(results)} detections, {seconds:.1f} s "
    f"({len(source) / seconds:.1f} images/s, compilation included)"
  )
  print(table)
  return metrics


def _write_files(outdir: pathlib.Path, metrics: dict, detections: Iterable[bytes], curves: dict, table: str) -> None:
  """The OUTPUTS; all of them take the place of the earlier ones, or none.

  The metrics come first, by which the files are known as ours: a kill in the midst of it bars no later evaluation.
  """
  text = lambda form, indent=None: [json.dumps(form, indent=indent, allow_nan=False).encode() + b"\n"]
  contents = (text(metrics, indent=1), detections, text(curves), [table.encode() + b"\n"])
  with contextlib.ExitStack() as stack:
    opened = {name: stack.enter_context(writing(outdir / name)) for name in reversed(OUTPUTS)}  # the last ends first
    for (name, file), parts in zip(reversed(opened.items()), contents, strict=True):
      with naming(outdir / name):
        file.writelines(parts)
        file.flush()


def _check_outdir(outdir: pathlib.Path) -> None:
  there = [outdir / name for name in OUTPUTS if os.path.lexists(outdir / name)]
  if there and not outputs.is_own_metrics(outdir / OUTPUTS[0]):
    raise detect.EvaluationError(f"{there[0]}: no evaluation wrote this file; choose another folder, or move it away")


def check_categories(trained: Sequence[Any], evaluated: Sequence[Any]) -> None:
  """Raises EvaluationError unless the classes that a model is trained on are those it is to be evaluated on."""
  for number, (ours, theirs) in enumerate(zip(trained, evaluated), start=1):
    if (ours.id, ours.name) != (theirs.id, theirs.name):
      raise detect.EvaluationError(
        f"class {number} of the model is {ours.name!r} (id {ours.id}), "
        f"of the evaluation data {theirs.name!r} (id {theirs.id})"
      )
  if len(trained) != len(evaluated):
    raise detect.EvaluationError(f"the model has {len(trained)} classes, the evaluation data have {len(evaluated)}")


def detect_source(
  model, variables, data, source, annotations: Sequence[Annotations] | None = None, mesh=None
) -> Results:
  """The model's results over the whole source.

  The batch is rounded up to a multiple of the mesh's devices; with several processes, each decodes and converts its
  share of it. `annotations` are those of all images, if they have been read before.
  """
  from rcnn_jax.data import loader

  annotations = annotations or [source.annotations(index, masks=False) for index in range(len(source))]
  shares = mesh.shape["data"] if mesh is not None else 1
  batch_size = -(-data.batch_size[1] // shares) * shares
  sizes = {int(a.image_id): (int(a.size[0]), int(a.size[1])) for a in annotations}
  # The model never sees the truth, and the metrics count all of it: no mask is loaded, no object is one too many.
  without_truth = dataclasses.replace(data, load_masks=False, load_keypoints=False, max_objects=None)
  processes = (jax.process_index(), jax.process_count()) if mesh is not None else (0, 1)
  batches = loader.eval_batches(
    without_truth, source, batch_size=batch_size, process_index=processes[0], process_count=processes[1]
  )
  ids = [c.id for c in source.categories]
  return detect.detect(model, variables, batches, sizes, ids, joint_offset=data.joint_offset, mesh=mesh)


def detect_by_views(
  model,
  variables,
  data,
  source,
  settings: Views,
  annotations: Sequence[Annotations] | None = None,
  mesh=None,
) -> Results:
  """The model's results over the whole source, each image seen by several views, one view of all images at a time.

  Arguments are those of `detect_source`; the model has a `box` head, by whose NMS the views are merged. A single view
  is left as it is.

  Raises:
    EvaluationError: there are several views, masks and processes.
  """
  from rcnn_jax.data import loader

  annotations = annotations or [source.annotations(index, masks=False) for index in range(len(source))]
  views = views_of(settings, data)
  if len(views) == 1:
    return detect_source(model, variables, views[0].data, source, annotations, mesh)
  without_masks, of_masks = split(model)
  if of_masks is not None and jax.process_count() > 1:
    raise detect.EvaluationError("masks of several views (evaluation.views) are made by one process alone")
  found = [(view, detect_source(without_masks, variables, view.data, source, annotations, mesh)) for view in views]
  sizes = {int(one.image_id): (int(one.size[0]), int(one.size[1])) for one in annotations}
  images = merged_images(found, sizes, Merging(model.box, source.keypoints, data.joint_offset))
  if of_masks is not None:
    masker = Masker(of_masks, variables, [category.id for category in source.categories], views)
    bare = {"load_masks": False, "load_keypoints": False, "max_objects": None, "proposals": None}
    again = lambda view: loader.eval_batches(dataclasses.replace(view.data, **bare), source)
    images = masker.of_source(images, ((view, again(view)) for view in views))
  return Results.of(images)


def detect_by_tiles(model, variables, data, source, tiles: Tiles) -> Results:
  """The model's results over the whole source, each image seen by tiles, on one device.

  Raises:
    EvaluationError: the model needs proposals, or there are several processes.
  """
  from rcnn_jax.data import loader

  if data.proposals is not None:
    raise detect.EvaluationError("tiles need a model that makes its own proposals")
  if jax.process_count() > 1:
    raise detect.EvaluationError("tiles are evaluated by one process alone")
  tiled = TiledSource(source, tiles)
  without_truth = dataclasses.replace(data, load_masks=False, load_keypoints=False, max_objects=None)
  sizes = {index + 1: tiled.annotations(index).size for index in range(len(tiled))}
  ids = [category.id for category in source.categories]
  batches = loader.eval_batches(without_truth, tiled)
  found = detect.find(model, variables, batches, sizes, ids, joint_offset=data.joint_offset)
  return Results.of(tiled.whole(found))


def measure(
  truth: dict,
  results: Results,
  max_detections: int = 100,
) -> tuple[dict[str, float | None], dict[str, dict[str, list[float]]]]:
  """COCO's metrics of each kind that model and ground truth both have, then VOC's; and curves by kind and class."""
  needed = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
  metrics, curves = {}, {}
  for kind in results.kinds:
    if all(needed[kind] in a for a in truth["annotations"]):
      numbers, curves[kind] = coco.coco_metrics(truth, results, kind, max_detections)
      metrics |= numbers
  return metrics | voc.voc_metrics(truth, results), curves


def tables(metrics: Mapping[str, float | None], keys: Sequence[str], max_detections: int = 100) -> str:
  """Metrics as text, percent: one table of summary numbers, one of classes; every column names its metric.

  `keys` are those of the classes in `metrics` (`classes.class_keys`), in class order.
  """
  kinds = [kind for kind in ("bbox", "segm", "keypoints") if f"{kind}/AP" in metrics]
  rows = []
  for row in SUMMARY:
    for name in [f"AR{n}" for n in (1, 10, 20, max_detections)] if row == "AR" else [row]:
      if any(f"{kind}/{name}" in metrics for kind in kinds):
        meaning = MEANINGS.get(name, f"at most {name[2:]} detections an image")
        rows.append([f"{name:<5}  {meaning}", *(_percent(metrics, f"{kind}/{name}") for kind in kinds)])
  summary = text_table(["COCO metric, %", *kinds], rows)
  columns = [*(f"{kind}/AP" for kind in kinds), "voc/AP_area", "voc/AP_11pt"]
  headers = [*(f"COCO {kind} AP" for kind in kinds), "VOC AP area, IoU 0.5", "VOC AP 11 points, IoU 0.5"]
  classes = [[key, *(_percent(metrics, f"{column}/{key}") for column in columns)] for key in keys]
  means = [_percent(metrics, name) for name in (*columns[:-2], "voc/mAP_area", "voc/mAP_11pt")]
  return summary + "\n\n" + text_table(["class, %", *headers], [*classes, ["mean over classes", *means]])


def _percent(metrics: Mapping[str, float | None], name: str) -> str:
  value = metrics.get(name)
  return "-" if value is None else f"{100 * value:.1f}"


def _write_pictures(outdir: pathlib.Path, source, truth: dict, results: Results, count: int) -> None:
  outdir.mkdir(parents=True, exist_ok=True)
  for stale in sorted(outdir.glob("*.png")):
    if outputs.is_own_picture(stale):
      stale.unlink()
  names = class_keys((c["id"], c["name"]) for c in truth["categories"])
  skeleton, taken = source.keypoints.skeleton if source.keypoints else (), set()
  for index in np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)):
    image = truth["images"][index]
    objects = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
    picture = draw.side_by_side(
      source.image(int(index)),
      objects,
      results.of_image(image["id"]),
      names,
      skeleton=skeleton,
      title=image["file_name"],
      min_score=PICTURE_MIN_SCORE,
    )
    # Two folders may hold images of one name.
    name = "_".join(pathlib.PurePath(image["file_name"]).parts).strip("/_")
    outputs.write_picture(outputs.picture_path(outdir, name, taken), picture)

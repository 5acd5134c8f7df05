"""`launch.benchmark --suite=input`: what a data set costs before and beside the device.

Measured are opening and surveying a COCO folder, first and from the cache; the memory of loader processes; the time
to the first batch; masks to entries; and detections to AP. What starts with an empty process is measured in one of
its own (`python -m launch.benchmark_input WHAT IMAGES ANNOTATIONS`), which prints its numbers as JSON.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

MASKS, MASK_SIZE, MASK_SIDE = 100, (480, 640), 28
IMAGES, DETECTIONS, CLASSES, OBJECTS = 5_000, 100, 80, 7
TARGETS = {
  "open_first_s": 45,
  "open_cached_s": 3,
  "worker_more_MiB": 300,
  "first_batch_s": 10,
  "masks_s": 0.05,
  "ap_s": 5,
}
LABELS = {
  "open_first_s": "open and survey with masks, first time, s",
  "open_first_cpu_s": "  of the processor, s",
  "open_first_peak_MiB": "  peak memory, MiB",
  "open_cached_s": "open and survey with masks, from the cache, s",
  "open_cached_cpu_s": "  of the processor, s",
  "open_cached_peak_MiB": "  peak memory, MiB",
  "first_batch_s": "open to first batch, 2 workers, from the cache, s",
  "worker_empty_MiB": "an empty worker (private memory), MiB",
  "worker_more_MiB": "a worker that loads masks, more than an empty one, MiB",
  "worker_more_shared_MiB": "  the same with its share of shared memory, MiB",
  "masks_s": f"{MASKS} masks of one {MASK_SIZE[0]} x {MASK_SIZE[1]} image to entries, one core, s",
  "ap_s": f"{IMAGES:,} images x {DETECTIONS} boxes x {CLASSES} classes to AP, s",
  "ap_referee_s": "  pycocotools, s",
  "ap_difference": "  greatest difference to pycocotools",
}


class MeasurementError(RuntimeError):
  """A measurement in a process of its own that failed."""


def measure(images: str, annotations: str, repeats: int, referee: bool) -> dict[str, float]:
  """All numbers of the suite.

  Args:
    images, annotations: a COCO folder; `python -m tests.large_coco` draws one of COCO's size.
    repeats: of what takes no time; the median counts.
    referee: let pycocotools compute the AP too, which takes minutes.
  """
  found = {}
  with tempfile.TemporaryDirectory() as cache:
    for name in ("first", "cached"):
      found |= {f"open_{name}_{key}": value for key, value in _apart("open", images, annotations, cache).items()}
    found |= _apart("workers", images, annotations, cache)
  return found | {"masks_s": masks_to_entries(repeats)} | detections_to_ap(referee)


def table(found: dict[str, float]) -> str:
  """The numbers for people, with the targets beside."""
  lines = []
  for name, label in LABELS.items():
    if name in found:
      value = "exactly 0" if found[name] == 0 else f"{found[name]:.4g}"
      target = f"   target {TARGETS[name]:g}" if name in TARGETS else ""
      lines.append(f"  {label:<66}{value:>10}{target}")
  return "\n".join(lines)


def _apart(what: str, images: str, annotations: str, cache: str) -> dict[str, float]:
  """The numbers of a process of its own. Raises MeasurementError with the last line of one that fails."""
  root = pathlib.Path(__file__).parents[1]
  paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
  environment = os.environ | {"PYTHONPATH": paths, "RCNN_JAX_CACHE": cache, "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-m", "launch.benchmark_input", what, images, annotations]
  ended = subprocess.run(command, env=environment, capture_output=True, text=True)
  if ended.returncode:
    last = (ended.stderr.strip().splitlines() or ["ended early"])[-1]
    raise MeasurementError(re.sub(r"^[\w.]+Error: ", "", last))
  return json.loads(ended.stdout.splitlines()[-1])


def open_and_survey(images: str, annotations: str) -> dict[str, float]:
  """Seconds of both, on the clock and of the processor, and the peak of this process's memory."""
  from rcnn_jax.data import pipeline

  data = _data(images, annotations)
  began, busy = time.perf_counter(), time.process_time()
  pipeline.survey(data, data.train.open())
  seconds = time.perf_counter() - began
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
  return {"s": seconds, "cpu_s": time.process_time() - busy, "peak_MiB": peak}


def workers(images: str, annotations: str) -> dict[str, float]:
  """Seconds from opening to the first batch of two workers, and what each of them holds after some batches."""
  import grain

  from rcnn_jax.data import loader

  data = _data(images, annotations)
  began = time.perf_counter()
  batches = loader.train_loader(data, data.train.open(), seed=0, num_steps=1000)
  next(batches)
  seconds = time.perf_counter() - began
  for _ in range(20):
    next(batches)
  held = [_memory(process) for process in _children(os.getpid())]
  batches.close()
  options = grain.MultiprocessingOptions(num_workers=1)
  idle = iter(grain.MapDataset.range(1000).to_iter_dataset().mp_prefetch(options))
  next(idle)
  empty = [_memory(process) for process in _children(os.getpid())]
  idle.close()
  # The greatest of each: multiprocessing has a small process of its own beside the workers.
  private, shared = (max(each[kind] for each in held) for kind in (0, 1))
  empty_private, empty_shared = (max(each[kind] for each in empty) for kind in (0, 1))
  return {
    "first_batch_s": seconds,
    "worker_empty_MiB": empty_private,
    "worker_more_MiB": private - empty_private,
    "worker_more_shared_MiB": shared - empty_shared,
  }


def _data(images: str, annotations: str) -> Any:
  from rcnn_jax.data.coco import CocoFolder
  from rcnn_jax.data.pipeline import Data
  from rcnn_jax.data.transforms import Resize

  folder = CocoFolder(images, annotations)
  return Data(train=folder, eval=folder, resize=Resize((480,), 640), load_masks=True, workers=2)


def _children(process: int) -> Iterator[int]:
  """The processes below one, from /proc."""
  for folder in pathlib.Path("/proc").iterdir():
    if folder.name.isdigit():
      try:
        parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
      except OSError:  # it has just ended
        continue
      if parent == process:
        yield int(folder.name)
        yield from _children(int(folder.name))


def _memory(process: int) -> tuple[float, float]:
  """MiB of a process: what it holds alone, and with its share of what it holds with others."""
  lines = pathlib.Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
  sizes = {line.split(":")[0]: int(line.split()[1]) / 2**10 for line in lines}
  return sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Pss"]


def masks_to_entries(repeats: int) -> float:
  """Seconds, on one core, from an image's masks in the frames of their boxes to COCO results entries."""
  from rcnn_jax.evaluation.paste import run_lengths
  from rcnn_jax.evaluation.results import Found
  from rcnn_jax.synthetic import random_boxes

  rng = np.random.default_rng(0)
  boxes = random_boxes(rng, MASK_SIZE, (1, MASKS))[0].astype(np.float64)
  grid = np.linspace(-1, 1, MASK_SIDE, dtype=np.float32)
  blob = 1 / (1 + np.exp(8 * (np.hypot(grid[:, None], grid) - 0.8)))
  masks = np.clip(blob + rng.uniform(-0.2, 0.2, (MASKS, MASK_SIDE, MASK_SIDE)), 0, 1).astype(np.float32)
  scores, ids = np.linspace(1, 0, MASKS), np.ones(MASKS, np.int64)
  cores = os.sched_getaffinity(0)
  os.sched_setaffinity(0, {min(cores)})
  try:
    seconds = []
    for _ in range(repeats + 1):
      began = time.perf_counter()
      found = Found(1, MASK_SIZE, boxes, scores, ids, run_lengths(masks, boxes, MASK_SIZE))
      assert len(found.entries) == MASKS
      seconds.append(time.perf_counter() - began)
  finally:
    os.sched_setaffinity(0, cores)
  return statistics.median(seconds[1:])


def detections_to_ap(referee: bool) -> dict[str, float]:
  """Seconds from drawn detections to COCO's metrics of boxes; with `referee`, also pycocotools' and the difference."""
  from rcnn_jax.evaluation import coco

  truth, results = drawn_results(np.random.default_rng(0), IMAGES, DETECTIONS, CLASSES)
  began = time.perf_counter()
  metrics, _ = coco.coco_metrics(truth, results, "bbox")
  found = {"ap_s": time.perf_counter() - began}
  if referee:
    began = time.perf_counter()
    theirs = _referee(truth, results.entries)
    found["ap_referee_s"] = time.perf_counter() - began
    found["ap_difference"] = max(abs(metrics[f"bbox/{name}"] - value) for name, value in theirs.items())
  return found


def drawn_results(rng: np.random.Generator, num_images: int, num_detections: int, num_classes: int) -> tuple:
  """(ground truth in COCO's form, Results): seven objects an image; half the detections lie about an object."""
  from rcnn_jax.evaluation.results import Found, Results

  images, objects, found = [], [], []
  for image_id in range(1, num_images + 1):
    images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": 480, "width": 640})
    sides = rng.uniform(8, 200, (OBJECTS, 2))
    boxes = np.concatenate([rng.uniform(0, 1, (OBJECTS, 2)) * ([640, 480] - sides), sides], axis=1)
    classes = rng.integers(1, num_classes + 1, OBJECTS)
    for box, one in zip(boxes.tolist(), classes.tolist()):
      known = {"image_id": image_id, "category_id": one, "bbox": box, "area": box[2] * box[3]}
      objects.append({"id": len(objects) + 1, "iscrowd": int(rng.random() < 0.01), "difficult": 0, **known})
    chosen = rng.integers(0, OBJECTS, num_detections)
    near = boxes[chosen] * rng.uniform(0.8, 1.2, (num_detections, 4))
    labels = np.where(rng.random(num_detections) < 0.5, classes[chosen], rng.integers(1, num_classes + 1))
    scores = np.sort(rng.uniform(0, 1, num_detections).astype(np.float32))[::-1].astype(np.float64)
    found.append(Found(image_id, (480, 640), near, scores, labels))
  named = [{"id": number, "name": f"class {number}"} for number in range(1, num_classes + 1)]
  return {"info": {}, "images": images, "annotations": objects, "categories": named}, Results.of(found)


def _referee(truth: dict, entries: list[dict]) -> dict[str, float]:
  """pycocotools' twelve numbers of boxes by our names."""
  import contextlib
  import io

  from pycocotools.coco import COCO
  from pycocotools.cocoeval import COCOeval

  with contextlib.redirect_stdout(io.StringIO()):
    known = COCO()
    known.dataset = truth
    known.createIndex()
    evaluation = COCOeval(known, known.loadRes(entries), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
  return dict(zip(names, map(float, evaluation.stats)))


def main(argv: list[str]) -> None:
  """Prints the numbers of one measurement."""
  _, what, images, annotations = argv
  print(json.dumps({"open": open_and_survey, "workers": workers}[what](images, annotations)))


if __name__ == "__main__":
  from absl import app

  app.run(main)

"""What is fuzzed: each reader as a function of bytes that lets nothing out but a failed assertion.

A reader may refuse an input with an error of the project's own, which is then one line. Whatever else it raises is a
fault, as is a file that it opens outside the folders that it was told of.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import random
import shutil
import tempfile
import zipfile
from collections.abc import Callable

import cv2
import numpy as np

from rcnn_jax.data import proposals
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.source import clean, overview
from rcnn_jax.experiment import Experiment, ExperimentError, flatten, from_json, to_json
from rcnn_jax.files import FileError
from rcnn_jax.training import claim, log
from tests import fuzz_targets_voc, fuzz_targets_weights
from tests.fuzz import mutate
from tests.fuzz.mutate import zipped

CASES = pathlib.Path(__file__).parents[3] / "shared" / "cases"
LONGEST = 3000  # characters of a message


@dataclasses.dataclass(frozen=True)
class Target:
  """A reader."""

  run: Callable[[bytes], None]
  seeds: Callable[[], list[bytes]]  # sound inputs
  mutate: Callable[[bytes, random.Random], bytes]  # a damaged input
  long_runs: int  # inputs of the long suite


def one_line(error: Exception) -> None:
  """Asserts that what a reader says is a line that a terminal can show."""
  said = str(error)
  assert said and "\n" not in said and len(said) < LONGEST, said[:500]


@functools.cache
def folder() -> pathlib.Path:
  """A folder in memory, where there is such a place, that goes with the process."""
  memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
  root = pathlib.Path(os.path.realpath(tempfile.mkdtemp(prefix="fuzzed-", dir=memory)))
  atexit.register(shutil.rmtree, root, ignore_errors=True)
  return root


# ---------------------------------------------------------------------------------------------- COCO


def coco(data: bytes) -> None:
  """An annotation file beside two images; in the folder above lies one that nobody named."""
  for strict in (False, True):
    try:
      source = CocoFolder(str(_images()), str(_annotations(data))).open(strict)
    except DataError as error:
      one_line(error)
      continue
    for fault in source.faults:
      one_line(fault)
    _read_coco(source)


def _read_coco(source) -> None:
  for masks in (False, True):
    try:
      view = overview(source, masks)
    except DataError as error:
      one_line(error)
    else:
      assert len(view.sizes) == len(view.num_objects) == len(source)
    for index in range(min(len(source), 6)):
      try:
        annotations = source.annotations(index, masks=masks)
        kept = clean(annotations)
      except DataError as error:
        one_line(error)
        continue
      assert np.isfinite(kept.boxes).all() and np.isfinite(kept.areas).all() and 0 <= annotations.image_id < 2**31
      assert kept.keypoints is None or np.isfinite(kept.keypoints).all()
      assert kept.classes.size == 0 or 1 <= kept.classes.min() <= kept.classes.max() <= len(source.categories)
  for index in range(min(len(source), 3)):
    try:
      source.image(index)
    except DataError as error:
      one_line(error)


@functools.cache
def _images() -> pathlib.Path:
  place = folder() / "coco" / "images"
  place.mkdir(parents=True)
  for name in ("a.png", "b.png", "../secret.png"):
    cv2.imwrite(str(place / name), np.zeros((6, 8, 3), np.uint8))
  return place


def _annotations(data: bytes) -> pathlib.Path:
  path = _images().parent / "annotations" / "fuzzed.json"
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(data)
  return path


def coco_seeds() -> list[bytes]:
  """Boxes, polygons, run lengths of both kinds, crowds, joints; and the cases that once failed."""
  one = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 1, 4, 3], "area": 12, "iscrowd": 0}
  shapes = [
    {"segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]},
    {"segmentation": {"size": [6, 8], "counts": [7, 3, 3, 3, 32]}, "iscrowd": 1},
    {"segmentation": {"size": [6, 8], "counts": "71313P1"}},
    {"segmentation": [], "ignore": 1, "attributes": {"occluded": False}},
    {"keypoints": [2, 2, 2, 4, 3, 1, 0, 0, 0], "num_keypoints": 2, "segmentation": [[1, 1, 5, 1, 5, 4]]},
  ]
  joints = {"keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [1, 3]]}
  categories = [{"id": 2, "name": "dog", "supercategory": "animal"}, {"id": 7, "name": "照"}]
  images = [{"id": n, "file_name": f"{name}.png", "height": 6, "width": 8} for n, name in ((1, "a"), (5, "b"))]
  objects = [one | shape | {"id": n} for n, shape in enumerate(shapes)]
  drawn = [
    {"images": images, "categories": categories, "annotations": objects},
    {"images": images, "categories": [categories[0] | joints], "annotations": [one | shapes[4] | {"id": "x"}]},
    {"info": {}, "licenses": [], "images": images[:1], "categories": categories, "annotations": [one]},
  ]
  known = [path.read_bytes() for path in sorted(CASES.glob("*/ann.json"))]
  return [json.dumps(form).encode() for form in drawn] + [text for text in known if len(text) < 6000]


# ---------------------------------------------------------------------------------------------- runs


@functools.cache
def demo() -> Experiment:
  """An experiment with every kind of part."""
  from experiments.faster_rcnn_squeezenet_bccd_alternating import experiment

  return experiment


def experiment(data: bytes) -> None:
  """A run's experiment.json."""
  run = folder() / "run"
  (run / "checkpoints" / "3").mkdir(parents=True, exist_ok=True)
  (run / "experiment.json").write_bytes(data)
  for use in (claim.read_experiment, lambda place: claim.check_experiment(place, demo())):
    try:
      use(run)
    except claim.CheckpointError as error:
      one_line(error)


def experiment_seeds() -> list[bytes]:
  """As a training writes it."""
  from rcnn_jax.data.source import Category, KeypointNames

  names = KeypointNames.from_names(("left_eye", "right_eye"), ((0, 1),))
  parts = {"experiment": demo(), "categories": (Category(1, "dog"), Category(7, "cat")), "keypoints": names}
  form = {name: to_json(part) for name, part in parts.items()}
  form["fingerprints"] = {"train": {"images": 4, "objects": 9, "crc32": 7}}
  return [json.dumps(form).encode()]


def trial(data: bytes) -> None:
  """A trial's trial.json, and the same bytes as a ladder's ladder.json."""
  from launch import ladder
  from rcnn_jax.sweeping import trials

  (folder() / "trial.json").write_bytes(data)
  with contextlib.redirect_stderr(io.StringIO()):
    trials.result_of(folder(), demo())
    assert isinstance(ladder.past_timing(folder() / "trial.json"), dict)


def trial_seeds() -> list[bytes]:
  """As a sweep and a ladder write them."""
  timing = {"rungs": [["a", 4, 123]], "images": 8, "repeats": 5, "seconds": {"a": [0.1, 0.1, 0.2]}}
  finished = {"experiment": to_json(demo()), "metrics": {"bbox/AP": 0.5, "segm/AP": None}}
  return [json.dumps(form).encode() for form in (finished, {"rungs": [], "proposals": {}, "timing": timing})]


def metrics(data: bytes) -> None:
  """A run's metrics.jsonl."""
  (folder() / "metrics.jsonl").write_bytes(data)
  try:
    found = log.rows(folder())
    log.best_step(folder(), "bbox/AP", [1, 2])
  except FileError as error:
    one_line(error)
  else:
    assert all(isinstance(row["step"], int) for row in found)


def metrics_seeds() -> list[bytes]:
  """Two rows of training and one of evaluation."""
  rows = [{"step": 1, "kind": "train", "loss": 2.5}, {"step": 2, "kind": "train", "loss": None}]
  return ["".join(json.dumps(row) + "\n" for row in [*rows, {"step": 2, "kind": "eval", "bbox/AP": 0.5}]).encode()]


def assignment(data: bytes) -> None:
  """What follows --set=."""
  try:
    changed = demo().set([data.decode("utf-8", "surrogateescape")])
  except ExperimentError as error:
    one_line(error)
  else:
    assert from_json(to_json(changed)) == changed


def assignment_seeds() -> list[bytes]:
  """Every value of an experiment, set to itself."""
  return [f"{path}={value}".encode() for path, value in flatten(demo()).items()]


# ---------------------------------------------------------------------------------------------- proposals


@dataclasses.dataclass(frozen=True)
class Spec:
  """Stands for a data set of two images."""

  split: str = "train"


def proposal_folder(data: bytes) -> None:
  """The files of a folder of proposals, packed into an archive."""
  place = folder() / "proposals"
  shutil.rmtree(place, ignore_errors=True)
  place.mkdir()
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      files = {pathlib.PurePath(name).name: archive.read(name) for name in archive.namelist()}
  except Exception:  # the archive is the fuzzer's own
    return
  for name, contents in files.items():
    if name in ("settings.json", *(f"{array}.npy" for array in proposals.ARRAYS)):
      (place / name).write_bytes(contents)
  try:
    stored = proposals.open_folder(place, Spec(), _two_images(), limit=2)
    for index in range(len(stored)):
      found = stored[index]
      assert found.boxes.shape == (len(found.scores), 4) and len(found.boxes) <= 2
  except DataError as error:
    one_line(error)


@functools.cache
def _two_images():
  path = folder() / "two.json"
  images = [{"id": n, "file_name": f"{name}.png", "height": 6, "width": 8} for n, name in ((1, "a"), (5, "b"))]
  path.write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "dog"}], "annotations": []}))
  return CocoFolder(str(_images()), str(path)).open()


def proposal_seeds() -> list[bytes]:
  """Three boxes of two images."""
  place = folder() / "sound"
  shutil.rmtree(place, ignore_errors=True)
  boxes, scores = np.float32([[0, 0, 4, 4], [1, 1, 5, 5]]), np.float32([0.9, 0.5])
  regions = [proposals.Regions(boxes, scores, 0.5), proposals.Regions(boxes[:1], scores[:1], 0.5)]
  head = proposals.header({"method": "selective_search", "parameters": {"mode": "fast"}}, Spec(), _two_images())
  proposals.write(place, head, [1, 5], regions)
  return [zipped({file.name: file.read_bytes() for file in sorted(place.iterdir())})]


# ---------------------------------------------------------------------------------------------- all of them


def of_kind(kind: str) -> Callable[[bytes, random.Random], bytes]:
  """The function that damages inputs of a kind."""
  return functools.partial(mutate.mutated, kind)


def targets() -> dict[str, Target]:
  """name -> reader; those of VOC, images, TFDS and weights are told in files of their own."""
  of_voc = fuzz_targets_voc.seeds()
  found = {
    "coco": Target(coco, coco_seeds, of_kind("json"), 30_000),
    "experiment": Target(experiment, experiment_seeds, of_kind("json"), 6_000),
    "trial": Target(trial, trial_seeds, of_kind("json"), 4_000),
    "metrics": Target(metrics, metrics_seeds, of_kind("lines"), 10_000),
    "assignment": Target(assignment, assignment_seeds, of_kind("text"), 10_000),
    "proposal_folder": Target(proposal_folder, proposal_seeds, of_kind("zip"), 6_000),
    "voc_xml": Target(fuzz_targets_voc.voc_xml, lambda: of_voc["voc_xml"], of_kind("xml"), 12_000),
    "split_file": Target(fuzz_targets_voc.split_file, lambda: of_voc["split_file"], of_kind("text"), 8_000),
    "image": Target(fuzz_targets_voc.image, lambda: of_voc["image"], of_kind("bytes"), 12_000),
    "tfds_record": Target(fuzz_targets_voc.tfds_record, lambda: of_voc["tfds_record"], of_kind("bytes"), 6_000),
  }
  damage = {"pth": of_zip_or_pickle, "pkl": fuzz_targets_weights.mutate, "safetensors": of_safetensors}
  for kind, changed in damage.items():
    seeds = functools.partial(fuzz_targets_weights.seeds, kind)
    found[kind] = Target(fuzz_targets_weights.TARGETS[kind], seeds, changed, 6_000)
  return found


def of_zip_or_pickle(seed: bytes, draw: random.Random) -> bytes:
  """PyTorch's files damaged as archives, whose checksums are right, or as pickles."""
  return mutate.mutated("zip", seed, draw) if draw.random() < 0.4 else fuzz_targets_weights.mutate(seed, draw)


def of_safetensors(seed: bytes, draw: random.Random) -> bytes:
  """Damaged in their header's values, or as bytes."""
  kind = "safetensors" if draw.random() < 0.6 else "bytes"
  return mutate.mutated(kind, seed, draw) if draw.random() < 0.8 else fuzz_targets_weights.mutate(seed, draw)

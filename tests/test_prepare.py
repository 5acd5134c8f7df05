"""Preparing proposals: killed and resumed, in processes or not, by search or by a model; and training on them."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
from test_loader import Rectangles, data
from test_voc import write_squares

from launch import prepare_data
from rcnn_jax.data import prepare, proposals
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.proposals import Regions
from rcnn_jax.data.selective_search import SelectiveSearch
from rcnn_jax.data.transforms import Resize
from rcnn_jax.data.voc import VocFolder
from rcnn_jax.evaluation import propose
from rcnn_jax.experiment import Evaluation, Experiment
from rcnn_jax.models.detector import RoiSampler
from rcnn_jax.models.pooling import RoiMaxPool
from rcnn_jax.models.proposers import External, ProposalError
from rcnn_jax.training import mesh as meshes
from rcnn_jax.training.optim import Constant
from rcnn_jax.training.run import train
from rcnn_jax.training.stages import Sgd
from rcnn_jax.types import Proposals
from tests.small_detector import small_detector, variables

ROOT = pathlib.Path(__file__).parents[1]
SEARCH = SelectiveSearch(width=None, base_k=50, min_side=4)


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> VocFolder:
  root = tmp_path_factory.mktemp("voc")
  write_squares(root)
  return VocFolder(str(root), "train")


def prepared(folder, spec, find=None, search=SEARCH):
  source = spec.open()
  return prepare.prepare(folder, search.settings(), spec, source, find or prepare.searcher(spec, source, search, 0))


def same(first, second) -> bool:
  names = [name for name in proposals.ARRAYS if name != "seconds"]
  return all(np.array_equal(first.arrays[name], second.arrays[name]) for name in names)


def test_processes_find_what_one_process_finds(voc, tmp_path):
  alone = prepared(tmp_path / "alone", voc)
  together = prepared(tmp_path / "together", voc, prepare.searcher(voc, voc.open(), SEARCH, 2))
  assert same(alone, together) and len(alone) == 4
  rows, num_objects = proposals.recall(alone, voc.open(), (0.7,), (2000,))
  assert (rows, num_objects) == ([[1.0]], 4)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "together"]


@pytest.mark.parametrize("processes", [0, 2])
def test_images_that_cannot_be_read_stop_no_other_and_are_named(tmp_path, processes):
  write_squares(tmp_path / "voc")
  spec = VocFolder(str(tmp_path / "voc"), "train")
  photograph = tmp_path / "voc/JPEGImages/1.png"
  whole = photograph.read_bytes()
  photograph.write_bytes(whole[:-20])
  source = spec.open()
  find = prepare.searcher(spec, source, SEARCH, processes)
  with pytest.raises(DataError, match="1.png: not an image, or truncated .* 1 image cannot be read; what the others"):
    prepared(tmp_path / "found", spec, find)
  kept = sorted(path.name for path in (tmp_path / "found.unfinished").iterdir())
  assert kept == ["0.npz", "2.npz", "3.npz", "settings.json"]
  photograph.write_bytes(whole)
  stored = prepared(tmp_path / "found", spec, lambda missing: find(missing) if missing == [1] else [])
  assert len(stored) == 4 and not (tmp_path / "found.unfinished").exists()


KILLED = """
import os, pathlib, signal
from rcnn_jax.data import prepare
from rcnn_jax.data.selective_search import SelectiveSearch
from rcnn_jax.data.voc import VocFolder

spec, search = VocFolder({root!r}, "train"), SelectiveSearch(width=None, base_k=50, min_side=4)
source = spec.open()
inner = prepare.searcher(spec, source, search, 0)

def find(missing):
  for count, found in enumerate(inner(missing)):
    if count == 2:
      os.kill(os.getpid(), signal.SIGKILL)
    yield found

prepare.prepare(pathlib.Path({folder!r}), search.settings(), spec, source, find)
"""


def test_a_killed_preparation_goes_on_where_it_was(voc, tmp_path):
  folder = tmp_path / "p"
  script = KILLED.format(root=voc.root, folder=str(folder))
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
  assert ended.returncode == -signal.SIGKILL, ended.stderr
  assert not folder.exists()  # whole or not at all
  with pytest.raises(DataError, match="p.unfinished: holds proposals of other settings: base_k 50 where 90 is asked"):
    prepared(folder, voc, search=dataclasses.replace(SEARCH, base_k=90))
  searched = []

  def find(missing):
    searched.extend(missing)
    return prepare.searcher(voc, voc.open(), SEARCH, 0)(missing)

  assert same(prepared(folder, voc, find), prepared(tmp_path / "whole", voc))
  assert searched == [2, 3]
  assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "whole"]


def test_what_is_there_is_not_searched_again_and_other_settings_are_refused(voc, tmp_path):
  first = prepared(tmp_path / "p", voc)

  def find(missing):
    raise AssertionError("searched again")

  assert same(prepared(tmp_path / "p", voc, find), first)
  with pytest.raises(
    DataError, match="p: holds proposals of other settings: min_side 4.* where 9 is asked for; remove"
  ):
    prepared(tmp_path / "p", voc, search=dataclasses.replace(SEARCH, min_side=9))
  with pytest.raises(DataError, match="these proposals are for .*'train'.*, not for .*'val'"):
    prepared(tmp_path / "p", dataclasses.replace(voc, split="val"))


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_kept(tmp_path):
  spec = Rectangles(broken=3)
  with pytest.raises(DataError, match="3.png: not an image"):
    prepared(tmp_path / "p", spec)
  assert not (tmp_path / "p").exists()
  kept = sorted(path.name for path in (tmp_path / "p.unfinished").glob("*.npz"))
  assert kept == [f"{index}.npz" for index in (0, 1, 2, 4, 5, 6)]


def test_the_report_says_recall_and_cost(tmp_path):
  one = Regions(np.array([[0, 2, 4, 8]], np.float32), np.ones(1, np.float32), seconds=0.5)
  find = lambda missing: ((index, one) for index in missing)
  stored = prepare.prepare(tmp_path / "p", {"method": "by hand"}, Rectangles(), Rectangles(), find)
  report = prepare_data.measured(stored, Rectangles())
  # Images 1 to 6 hold that box as their first object; of 21 objects 4 are crowds; [1, 2, 5, 8] has IoU 0.6 with it.
  assert report["num_objects"] == 17 and report["seconds_per_image"] == 0.5 and report["boxes_per_image"] == 1
  assert report["recall"]["0.5"]["100"] == pytest.approx(11 / 17)
  assert report["recall"]["0.7"]["2000"] == pytest.approx(6 / 17)
  lines = prepare_data.table_of(report).splitlines()
  assert lines[0] == "7 images, 17 objects; 1 boxes an image (1 to 1), 0.50 s an image"
  assert lines[3] == "  at IoU 0.7             35.3  35.3  35.3  35.3"


# ---- a model's proposals -----------------------------------------------------------------------------------------


def test_a_models_proposals_are_mapped_to_the_original_image():
  boxes = np.array([[6, 4, 30, 20], [0, 0, 9, 8], [60, 0, 70, 10], [3, 2, 6, 4]], np.float32)
  found = Proposals(boxes, np.array([0.2, 0.9, 0.8, 0.7], np.float32), np.array([True, True, True, False]))
  regions = propose.regions(found, np.array([2, 3], np.float32), (10, 20), seconds=0.25)
  # By falling score, divided by (3, 2), clipped to 20 x 10; what then has no width and what is not valid is left out.
  assert regions.boxes.tolist() == [[0, 0, 3, 4], [2, 2, 10, 10]]
  assert regions.scores.tolist() == pytest.approx([0.9, 0.2]) and regions.seconds == 0.25


def test_a_models_proposals_fill_a_folder_image_by_image(tmp_path):
  settings = data(resize=Resize((48,), 64), canvases=((48, 64),))
  experiment = types.SimpleNamespace(name="small", model=small_detector(num_classes=None), data=settings)
  run = types.SimpleNamespace(experiment=experiment, step=7, variables=variables(), categories="ab", keypoints=None)
  find = prepare_data.rpn_finder(run, Rectangles())
  stored = prepare.prepare(tmp_path / "p", prepare_data.rpn_settings(run), Rectangles(), Rectangles(), find)
  made_by = stored.settings["parameters"]
  assert (made_by["experiment"], made_by["step"], made_by["max_boxes"]) == ("small", 7, 20)
  for index in range(len(stored)):
    height, width = Rectangles().annotations(index).size
    boxes = stored[index].boxes
    assert 0 < len(boxes) <= 20 and (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
    assert (np.diff(stored[index].scores) <= 0).all()
  again = dict(find([5]))
  assert list(again) == [5]
  np.testing.assert_array_equal(again[5].boxes, stored[5].boxes)


# ---- Fast R-CNN from end to end ----------------------------------------------------------------------------------


def test_a_fast_rcnn_trains_on_prepared_proposals_and_not_without(voc, tmp_path):
  val = dataclasses.replace(voc, split="val")
  folders = tuple(str(tmp_path / name) for name in ("train", "eval"))
  experiment = Experiment(
    name="fast",
    data=Data(voc, val, Resize((48,), 64), ((48, 64),), batch_size=(2, 2), num_proposals=(40, 30)),
    model=small_detector(
      proposer=External(),
      pool=RoiMaxPool(output_size=3),
      sampler=RoiSampler(num_samples=8, background_floor=0.1),
      num_classes=None,
    ),
    stages=(Sgd(steps=3, schedule=Constant(0.01)),),
    evaluation=Evaluation(pictures=1),
  )
  run = lambda changed: train(changed, str(tmp_path / "run"), meshes.data_mesh(1))
  with pytest.raises(ProposalError, match="set data.proposals to folders of launch.prepare_data"):
    run(experiment)
  with_folders = experiment.override({"data.proposals": folders})
  with pytest.raises(DataError, match="train: no proposals here"):
    run(with_folders)
  for folder, spec in zip(folders, (voc, val)):
    prepared(pathlib.Path(folder), spec)
  with pytest.raises(DataError, match="these proposals are for .*'train'.*, not for .*'val'"):
    run(experiment.override({"data.proposals": (folders[0], folders[0])}))
  assert not (tmp_path / "run").exists()
  run(with_folders)
  assert "bbox/AP" in json.loads((tmp_path / "run/eval/3/metrics.json").read_text())
  lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  assert any("roi_box" in name for line in lines for name in line)

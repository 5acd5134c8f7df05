"""Inputs on which evaluation and prediction once failed, one test each, named after the folder that holds it."""

from __future__ import annotations

import pathlib
import shutil
import time
import types

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.evaluation import draw
from rcnn_jax.evaluation.coco import truth_dataset
from rcnn_jax.evaluation.detect import EvaluationError
from rcnn_jax.evaluation.evaluate import evaluate, measure
from rcnn_jax.evaluation.image_files import matching_files
from rcnn_jax.evaluation.predict import predict, write
from rcnn_jax.evaluation.results import Found, Results
from rcnn_jax.experiment import Evaluation
from tests import scenes

CASES = pathlib.Path(__file__).parents[2] / "shared" / "cases"


def case(name: str) -> pathlib.Path:
  folder = CASES / name
  if not folder.is_dir():
    pytest.skip(f"the inputs that failed (../shared/cases/{name}) are not here")
  return folder


def evaluated(outdir, source=None, pictures=2):
  return evaluate(
    scenes.ColourFinder(),
    scenes.VARIABLES,
    scenes.DATA,
    source or scenes.Scenes(num_images=3),
    outdir,
    Evaluation(pictures=pictures),
  )


def test_duplicate_category_names():
  folder = case("duplicate_category_names")
  source = CocoFolder(str(folder / "images"), str(folder / "ann.json")).open()
  images = [source.annotations(index) for index in range(len(source))]
  truth = truth_dataset(images, source.categories)
  for one in truth["annotations"]:  # two used classes of one name: the third, which has an object, becomes a square
    assert one["category_id"] in (1, 2)
  truth["categories"] = [{**category, "name": "square"} for category in truth["categories"]]
  found = [{**one, "score": 0.9} for one in truth["annotations"] if one["category_id"] == 1]
  metrics, curves = measure(truth, Results.from_entries(found))
  assert [metrics[name] for name in ("bbox/AP", "voc/mAP_area", "voc/mAP_11pt")] == pytest.approx([0.5] * 3)
  assert [metrics[f"voc/AP_area/square (id {number})"] for number in (0, 1, 2)] == [None, 1, 0]
  assert list(curves["bbox"]) == ["square (id 1)", "square (id 2)"]


def test_evaluate_outdir_deletes_pngs(tmp_path):
  holiday = case("evaluate_outdir_deletes_pngs") / "holiday.png"
  pictures = tmp_path / "pictures"
  pictures.mkdir()
  # One file has the very name of a picture that is to be written.
  for name in ("holiday.png", "100.png"):
    shutil.copy(holiday, pictures / name)
  evaluated(tmp_path)
  assert {path.name for path in pictures.iterdir()} == {"holiday.png", "100.png", "100.png.png", "102.png"}
  evaluated(tmp_path, pictures=1)
  assert {path.name for path in pictures.iterdir()} == {"holiday.png", "100.png", "100.png.png"}
  for name in ("holiday.png", "100.png"):
    assert (pictures / name).read_bytes() == holiday.read_bytes()


@pytest.mark.parametrize("name", ["metrics.json", "detections.json", "curves.json", "table.txt"])
def test_an_evaluation_into_a_folder_with_files_of_the_user_is_refused_before_it_begins(tmp_path, name):
  (tmp_path / name).write_text('{"accuracy": 1}')
  with pytest.raises(EvaluationError, match=f"{name}: no evaluation wrote this file; choose another folder"):
    evaluated(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == [name]
  assert (tmp_path / name).read_text() == '{"accuracy": 1}'


def predicted(images, output):
  run = types.SimpleNamespace(
    experiment=types.SimpleNamespace(model=scenes.ColourFinder(), data=scenes.DATA, evaluation=Evaluation()),
    categories=scenes.CATEGORIES,
    keypoints=None,
    variables=scenes.VARIABLES,
  )
  return predict(run, matching_files(str(images), output), output, 0.05)


def test_predict_overwrites_input(tmp_path):
  photograph = case("predict_overwrites_input") / "a.png"
  shutil.copy(photograph, tmp_path)
  for _ in range(2):
    assert predicted(tmp_path / "*.png", tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.png.png", "detections.json"}
    assert (tmp_path / "a.png").read_bytes() == photograph.read_bytes()


def test_predict_patterns(tmp_path, monkeypatch):
  folder = case("predict_patterns")
  name = "has [1] brackets.jpg"
  monkeypatch.setenv("HOME", str(folder.parent))
  for images in (folder / name, folder, "~/predict_patterns/*.jpg", folder / "*"):
    found = [relative for _, relative in matching_files(str(images))]
    assert found == (["case.md", name] if images == folder / "*" else [name])


def test_predict_quadratic(tmp_path, monkeypatch):
  """The time of an image is the same among many as among few; drawing, which it hides behind, is left out."""
  case("predict_quadratic")
  monkeypatch.setattr(draw, "draw", lambda image, *_, **__: image)
  Image.fromarray(scenes.Scenes(2).image(0)).save(tmp_path / "one.png")

  def seconds_an_image(count: int) -> float:
    run = types.SimpleNamespace(categories=scenes.CATEGORIES, keypoints=None)
    files = [(tmp_path / "one.png", f"{number}.png") for number in range(count)]
    boxes, ids = np.ones((100, 4)), np.full(100, scenes.CATEGORY_IDS[0])
    found = (Found(number + 1, (24, 32), boxes, np.ones(100), ids) for number in range(count))
    reader = types.SimpleNamespace(take=lambda _: np.zeros((8, 8, 3), np.uint8))
    began = time.process_time()
    assert write(run, files, reader, found, tmp_path / str(count), 0.05, tqdm(disable=True)) == 100 * count
    return (time.process_time() - began) / count

  few, many = seconds_an_image(100), seconds_an_image(1000)
  assert many < 2 * few


def test_predict_huge_image(tmp_path, capsys):
  folder = case("predict_huge_image")
  unread = predicted(folder, tmp_path)
  assert [path.name for path in unread] == ["slide.png"]
  (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
  assert line.startswith(f"warning: {folder / 'slide.png'}: ")
  assert {path.name for path in tmp_path.iterdir()} == {"rgb.png", "detections.json"}


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", ["metrics.json", "detections.json", "table.txt"])
def test_disk_full(tmp_path, name):
  """An evaluation that cannot be written leaves the earlier one whole, and says which file found no room."""
  case("disk_full")
  evaluated(tmp_path)
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
  (tmp_path / f"{name}.partial").symlink_to("/dev/full")
  with pytest.raises(OSError, match="No space left on device") as told:
    evaluated(tmp_path)
  assert told.value.filename == str(tmp_path / name)
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before

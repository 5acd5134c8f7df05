"""Inputs on which evaluation and prediction once failed, one test each, named after the folder that holds it."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.evaluation.coco import truth_dataset
from rcnn_jax.evaluation.detect import EvaluationError, Results
from rcnn_jax.evaluation.evaluate import evaluate, measure
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
  metrics, curves = measure(truth, Results(found, ("bbox",)))
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

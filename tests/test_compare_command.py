"""launch.compare: what it writes, and what it refuses, from run directories, sweeps and bare files."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from experiments.demo import experiment as demo
from rcnn_jax.evaluation import coco
from rcnn_jax.evaluation.compare import bootstrap, comparison, costs, files, inputs, page
from rcnn_jax.evaluation.compare.end import end
from rcnn_jax.evaluation.compare.files import ComparisonError
from rcnn_jax.evaluation.compare.matching import detection_areas
from rcnn_jax.experiment import Experiment, to_json
from rcnn_jax.files import FileError, write_json

SHAPES = demo.override({"data.eval.num_eval": 12})


def truth_of(experiment: Experiment) -> dict:
  source = experiment.data.eval.open()
  return coco.truth_dataset([source.annotations(n) for n in range(len(source))], source.categories)


def detections(truth: dict, seed: int, recall: float = 0.8) -> list[dict]:
  """Some of the objects, a little beside their place, and one false detection an image."""
  draw = np.random.default_rng(seed)
  found = []
  for one in truth["annotations"]:
    if draw.random() < recall:
      box = np.array(one["bbox"]) + draw.normal(0, 0.05, 4) * one["bbox"][2]
      found.append({"image_id": one["image_id"], "category_id": one["category_id"], "bbox": box.tolist()})
      found[-1] |= {"score": float(draw.uniform(0.5, 1)), "segmentation": one["segmentation"]}
  false = [{**found[0], "image_id": one["id"], "score": 0.4} for one in truth["images"]]
  return found + false


def run_directory(folder: pathlib.Path, experiment: Experiment, entries: list[dict], step: int = 10) -> str:
  write_json(folder / "experiment.json", {"experiment": to_json(experiment)})
  write_json(folder / "eval" / str(step) / "detections.json", entries)
  write_json(folder / "eval" / str(step) / "metrics.json", {"bbox/AP": 0.5, "voc/mAP_area": 0.5})
  return str(folder)


def test_runs_that_differ_in_their_seed_are_one_variant_and_the_page_has_it_all(tmp_path):
  truth = truth_of(SHAPES)
  other = SHAPES.override({"model.box.nms_iou": 0.3, "name": "other"})
  runs = [
    run_directory(tmp_path / f"{one.name}{seed}", one.override({"seed": seed}), detections(truth, seed, recall))
    for one, recall in ((SHAPES, 0.9), (other, 0.5))
    for seed in (0, 1)
  ]
  found = inputs.read(runs)
  assert [(one.name, len(one.detectors)) for one in found.variants] == [(SHAPES.name, 2), ("other", 2)]
  compared = comparison.compare(found, resamples=40)
  assert list(compared.kinds) == ["bbox", "segm", "boundary"]
  difference = compared.kinds["bbox"].differences["other"]["AP"]
  assert difference.both.value < 0 and difference.seeds is not None
  path = page.write(found, compared, tmp_path / "out", num_pictures=1)
  text = path.read_text()
  assert "model.box.nms_iou" in text
  assert "40 draws of images are too few to show that one class differs" in text  # three of them: 60 would do
  assert "http://" not in text and "https://" not in text and "src=" in text  # in one file, and offline
  written = json.loads((tmp_path / "out" / "comparison.json").read_text())
  assert written["kinds"]["bbox"]["differences"]["other"]["AP"]["both"]["value"] == pytest.approx(
    difference.both.value
  )
  assert (tmp_path / "out" / "table.md").read_text().startswith("| bbox, %")
  assert (tmp_path / "out" / "numbers.csv").read_text().count("\n") > 50
  page.write(found, compared, tmp_path / "out", num_pictures=0)  # once more over its own files


def test_checkpoints_of_a_run_and_the_rungs_of_a_ladder_are_variants_of_their_own(tmp_path):
  truth = truth_of(SHAPES)
  for step, recall in ((10, 0.5), (20, 0.9)):
    run = run_directory(tmp_path / "one", SHAPES, detections(truth, step, recall), step)
  found = inputs.read([f"{run}@10", f"late={run}@20"])
  assert [(one.name, one.detectors[0].step) for one in found.variants] == [("one@10", 10), ("late", 20)]
  times = {"seconds": 0.5, "proposal_seconds": 0.1, "detection_seconds": [0.4, 0.3, 0.6]}
  rung = {"name": "one", "label": "First", "step": 10, "parameters": 7, "training_seconds": 60.0, **times}
  where = {"device": "1 x cpu", "cores": 2, "date": "2026-11-27"}
  ladder = {"rungs": [rung, rung | {"label": "Second", "step": 20, "seconds": 1.0}], "timing": {"environment": where}}
  write_json(tmp_path / "ladder.json", ladder)
  known = costs.of_ladder(tmp_path)
  assert (known["First"].seconds, known["Second"].spread) == (0.5, pytest.approx((0.4, 0.7)))
  said = end(tmp_path / "out", [str(tmp_path)], costs=known)
  assert said == f"comparison: {tmp_path}/out/index.html"
  assert (tmp_path / "out" / "plots" / "cost_seconds.png").is_file()
  assert end(tmp_path / "out2", [run]) == f"no comparison: only {SHAPES.name} to compare: at least two are needed"


def test_a_file_of_somebody_else_is_not_replaced(tmp_path):
  (tmp_path / "index.html").write_text("mine")
  with pytest.raises(ComparisonError, match="index.html: no comparison wrote this file"):
    page.check_output(tmp_path)


def test_a_sweep_is_compared_by_its_settings(tmp_path):
  truth = truth_of(SHAPES)
  trials = {}
  for value in (0.3, 0.5):
    for seed in (0, 1):
      name = f"nms_iou={value}/seed={seed}"
      experiment = SHAPES.override({"model.box.nms_iou": value, "seed": seed})
      run_directory(tmp_path / name, experiment, detections(truth, seed))
      write_json(tmp_path / name / "trial.json", {"experiment": to_json(experiment), "metrics": {}})
      trials[name] = {}
  write_json(tmp_path / "sweep.json", {"trials": trials})
  found = inputs.read(sweep=str(tmp_path))
  assert [(one.name, len(one.detectors), one.paired) for one in found.variants] == [
    ("nms_iou=0.3", 2, False),
    ("nms_iou=0.5", 2, False),
  ]


def bare(folder: pathlib.Path, **changes) -> tuple[str, list[str]]:
  truth = truth_of(SHAPES)
  form = {name: truth[name] for name in ("images", "annotations", "categories")} | changes
  write_json(folder / "truth.json", form)
  write_json(folder / "a.json", detections(truth, 0))
  write_json(folder / "b.json", detections(truth, 1))
  return str(folder / "truth.json"), [f"ours={folder}/a.json", f"theirs={folder}/b.json"]


def test_bare_files_give_the_ap_of_the_evaluation(tmp_path):
  path, named = bare(tmp_path)
  found = inputs.read(truth=path, detections=named)
  compared = comparison.compare(found, resamples=10)
  metrics, _ = coco.coco_metrics(truth_of(SHAPES), found.variants[0].detectors[0].results)
  assert compared.kinds["bbox"].values("ours", "AP")[0, 0] == pytest.approx(metrics["bbox/AP"], abs=1e-12)
  assert page.write(found, compared, tmp_path / "out").is_file()


@pytest.mark.parametrize(
  "entry, said",
  [
    ({"image_id": 999, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}, "entry 0 is of image 999, which"),
    ({"image_id": 1, "category_id": 99, "bbox": [0, 0, 1, 1], "score": 1}, "entry 0 is of category 99, which"),
    ({"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}, "entry 0 is no detection"),
    ({"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1e999], "score": 1}, "not finite"),
    ({"image_id": 1, "category_id": 1, "bbox": [0, 0, 1], "score": 1}, "entry 0 is no detection"),
    (7, "entry 0 is no detection"),
  ],
)
def test_what_is_wrong_with_a_file_of_detections_is_said_in_one_line(tmp_path, entry, said):
  path, _ = bare(tmp_path)
  truth = files.read_truth(pathlib.Path(path))
  entry = (
    {**entry, "image_id": truth["images"][0]["id"]} if isinstance(entry, dict) and entry["image_id"] == 1 else entry
  )
  (tmp_path / "x.json").write_text(json.dumps([entry]))
  with pytest.raises(FileError, match=said):
    files.read_detections(tmp_path / "x.json", truth, {})


def test_what_is_wrong_with_a_file_of_truth_is_said_in_one_line(tmp_path):
  (tmp_path / "t.json").write_text('{"images": [], "annotations": []}')
  with pytest.raises(FileError, match="t.json: no COCO annotation file"):
    files.read_truth(tmp_path / "t.json")
  path, _ = bare(tmp_path, annotations=[{"image_id": 5, "category_id": 1}])
  with pytest.raises(FileError, match=r"annotations\[0\]"):
    files.read_truth(pathlib.Path(path))


def test_runs_on_other_images_or_objects_are_refused_with_what_differs(tmp_path):
  truth = truth_of(SHAPES)
  first = run_directory(tmp_path / "a", SHAPES, detections(truth, 0))
  cases = {
    "same images: .*b lacks 4": SHAPES.override({"data.eval.num_eval": 8}),
    "other objects, the first of them in": SHAPES.override({"data.eval.seed": 99}),
  }
  for said, experiment in cases.items():
    second = run_directory(tmp_path / "b", experiment.override({"name": "b"}), [])
    with pytest.raises(ComparisonError, match=said):
      inputs.read([first, second])
  fewer = {**truth, "categories": truth["categories"][1:]}
  with pytest.raises(ComparisonError, match=f"same classes: y lacks 1, e.g. {truth['categories'][0]['name']}"):
    files.check_same_truth(truth, fewer, "x", "y")


def test_a_class_that_a_variant_never_finds_is_named(tmp_path):
  truth = truth_of(SHAPES)
  absent = truth["categories"][0]
  entries = [one for one in detections(truth, 0) if one["category_id"] != absent["id"]]
  runs = [
    run_directory(tmp_path / "a", SHAPES, detections(truth, 0)),
    f"b={run_directory(tmp_path / 'b', SHAPES, entries)}",
  ]
  assert f'b finds no object of the class "{absent["name"]}"' in inputs.read(runs).warnings


def test_masks_of_other_libraries_may_be_polygons_or_uncompressed(tmp_path):
  path, _ = bare(tmp_path)
  truth = files.read_truth(pathlib.Path(path))
  image = truth["images"][0]
  entry = {"image_id": image["id"], "category_id": truth["categories"][0]["id"], "bbox": [0, 0, 2, 2], "score": 1}
  left = {"size": [image["height"], image["width"]], "counts": [0, 2, image["height"] * image["width"] - 2]}
  for mask, area in (([[0, 0, 2, 0, 2, 2, 0, 2]], 4), (left, 2)):
    write_json(tmp_path / "x.json", [{**entry, "segmentation": mask}])
    found = files.read_detections(tmp_path / "x.json", truth, {})
    assert found.kinds == ("bbox", "segm") and detection_areas(found, "segm").tolist() == [area]
  (tmp_path / "x.json").write_text(json.dumps([{**entry, "segmentation": {"size": [2, 2], "counts": 5}}]))
  with pytest.raises(FileError, match="entry 0 is no detection"):
    files.read_detections(tmp_path / "x.json", truth, {})


def test_nothing_to_compare_is_said(tmp_path):
  for options, said in (
    ({}, "nothing to compare"),
    ({"runs": [str(tmp_path)]}, "is no run directory"),
    ({"runs": [str(tmp_path / "no")]}, "no such folder"),
    ({"sweep": str(tmp_path)}, "holds no finished sweep"),
    ({"truth": "x", "runs": ["y"]}, "--truth goes with"),
  ):
    with pytest.raises(ComparisonError, match=said):
      inputs.read(**options)
  run = run_directory(tmp_path / "a", SHAPES, [])
  with pytest.raises(ComparisonError, match="at least two are needed"):
    inputs.read([run])
  with pytest.raises(ComparisonError, match="no detections of checkpoint '7'; there are those of step 10"):
    inputs.read([run, run], checkpoint="7")


def test_a_run_with_itself(tmp_path):
  run = run_directory(tmp_path / "a", SHAPES, detections(truth_of(SHAPES), 0))
  found = inputs.read([run, run])
  compared = comparison.compare(found, resamples=20)
  for one in compared.kinds.values():
    for difference in one.differences[found.variants[1].name].values():
      assert difference.both.p in (1, None) and not difference.both.value > 0
  assert bootstrap.holm({"a": 1.0}) == {"a": 1.0}

"""Prediction on files as people have them: which are found, how they are read, what is written."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from rcnn_jax.data import images
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.selective_search import SelectiveSearch
from rcnn_jax.data.transforms import PaddedToMultiple
from rcnn_jax.evaluation import draw
from rcnn_jax.evaluation.detect import EvaluationError
from rcnn_jax.evaluation.image_files import matching_files
from rcnn_jax.evaluation.predict import DetectionsFile, predict
from rcnn_jax.evaluation.readers import Reader
from rcnn_jax.experiment import Evaluation
from rcnn_jax.types import Detections
from tests import scenes

EXPERIMENT = types.SimpleNamespace(model=scenes.ColourFinder(masks=True), data=scenes.DATA, evaluation=Evaluation())
RUN = types.SimpleNamespace(
  experiment=EXPERIMENT, categories=scenes.CATEGORIES, keypoints=None, variables=scenes.VARIABLES
)


def scene():
  """A red rectangle, xyxy (4, 6, 20, 18), in an image of 24 x 32."""
  image = np.full((24, 32, 3), 20, np.uint8)
  image[6:18, 4:20, 0] = 255
  return image


def run(folder, pattern="*", min_score=0.05):
  output = folder / "out"
  unread = predict(RUN, matching_files(str(folder / pattern)), output, min_score)
  return unread, json.loads((output / "detections.json").read_text())


def test_entries_are_coco_results_with_the_names_of_file_and_category_beside(tmp_path):
  Image.fromarray(scene()).save(tmp_path / "a.png")
  Image.fromarray(scene().transpose(1, 0, 2)).save(tmp_path / "b.png")
  unread, entries = run(tmp_path)
  assert unread == []
  plain = [{k: v for k, v in e.items() if k not in ("segmentation", "score")} for e in entries]
  assert plain == [
    {"image_id": 1, "category_id": 7, "bbox": [4, 6, 16, 12], "category": "red", "file_name": "a.png"},
    {"image_id": 2, "category_id": 7, "bbox": [6, 4, 12, 16], "category": "red", "file_name": "b.png"},
  ]
  assert [e["segmentation"]["size"] for e in entries] == [[24, 32], [32, 24]]
  assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.png", "b.png", "detections.json"}


def test_scores_below_the_least_are_left_out(tmp_path):
  Image.fromarray(scene()).save(tmp_path / "a.png")
  assert len(run(tmp_path, min_score=0.89)[1]) == 1  # the stand-in's score of red is 0.9
  assert run(tmp_path, pattern="a.png", min_score=0.91)[1] == []


def test_a_file_that_is_no_image_is_named_and_the_others_are_worked_on(tmp_path, capsys):
  Image.fromarray(scene()).save(tmp_path / "good.png")
  (tmp_path / "bad.png").write_text("not an image")
  (tmp_path / "empty.png").write_bytes(b"")
  whole = (tmp_path / "good.png").read_bytes()
  (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
  unread, entries = run(tmp_path)
  assert [p.name for p in unread] == ["bad.png", "empty.png", "torn.png"]
  assert [e["file_name"] for e in entries] == ["good.png"]
  warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
  assert [str(tmp_path / n) in w for n, w in zip(("bad.png", "empty.png", "torn.png"), warnings, strict=True)] == [
    True,
    True,
    True,
  ]


def test_no_file_that_can_be_read_still_writes_an_empty_list(tmp_path):
  (tmp_path / "bad.png").write_text("not an image")
  assert run(tmp_path) == ([tmp_path / "bad.png"], [])


class Repeater:
  """Gives the proposals back as detections of the first class."""

  def with_data(self, categories, keypoints):
    return self

  def apply(self, variables, batch, method):
    found = batch.proposals
    return Detections(found.boxes, 0 * found.scores + 0.9, jnp.ones(found.scores.shape, jnp.int32), found.valid)


def run_on_proposals(folder, settings):
  proposals = folder / "proposals"
  proposals.mkdir()
  (proposals / "settings.json").write_text(json.dumps({"version": 1} | settings))
  Image.fromarray(scene()).save(folder / "a.png")
  data = dataclasses.replace(scenes.DATA, proposals=("elsewhere", str(proposals)), num_proposals=(1, 50))
  experiment = types.SimpleNamespace(model=Repeater(), data=data, evaluation=Evaluation())
  output = folder / "out"
  predict(
    types.SimpleNamespace(**vars(RUN) | {"experiment": experiment}), matching_files(f"{folder}/*.png"), output, 0
  )
  return json.loads((output / "detections.json").read_text())


def test_a_model_that_takes_proposals_gets_those_of_the_runs_own_search(tmp_path):
  search = SelectiveSearch(width=None, base_k=50, min_side=5, max_boxes=40)
  entries = run_on_proposals(tmp_path, search.settings())
  x1, y1, x2, y2 = search(scene(), "a.png").boxes.T
  expected = np.stack([x1, y1, x2 - x1, y2 - y1], axis=-1)
  np.testing.assert_allclose(sorted(e["bbox"] for e in entries), sorted(expected.tolist()), atol=1e-4)
  assert [4, 6, 16, 12] in expected.round().tolist()  # the red rectangle


def test_proposals_that_cannot_be_made_for_other_images_are_refused(tmp_path):
  with pytest.raises(DataError, match="proposals made by 'rpn': for other images than those, only selective_search"):
    run_on_proposals(tmp_path, {"method": "rpn", "parameters": {}})
  assert not (tmp_path / "out").exists()


def test_no_match_is_told(tmp_path):
  with pytest.raises(EvaluationError, match=r"no file matches --images=.*\*\.jpg"):
    matching_files(str(tmp_path / "*.jpg"))


def test_names_are_relative_to_the_folder_before_the_first_wildcard(tmp_path):
  for name in ("x.png", "sub/x.png", "sub/y.jpg"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.fromarray(scene()).save(tmp_path / name)
  names = lambda pattern: [name for _, name in matching_files(str(tmp_path / pattern))]
  assert names("**/*.png") == ["sub/x.png", "x.png"]
  assert names("sub/*") == ["x.png", "y.jpg"]
  assert names("sub/x.png") == ["x.png"]


def test_what_exists_is_taken_literally(tmp_path, monkeypatch):
  in_a_folder = [f"folder [2]/{name}" for name in ("x.png", "deep/y.PNG", "notes.txt")]
  for name in ("has [1] brackets.png", "a*b.png", *in_a_folder):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene()).save(tmp_path / name, "PNG")
  names = lambda pattern: [name for _, name in matching_files(str(tmp_path / pattern))]
  assert names("has [1] brackets.png") == ["has [1] brackets.png"]
  assert names("a*b.png") == ["a*b.png"]
  assert names("folder [2]") == ["x.png"]
  assert names("folder [2]/*.png") == ["x.png"]
  assert names("folder [2]/**/*.[pP]*") == ["deep/y.PNG", "x.png"]
  monkeypatch.setenv("HOME", str(tmp_path))
  assert [name for _, name in matching_files("~/folder [2]/deep")] == ["y.PNG"]
  monkeypatch.chdir(tmp_path / "folder [2]")
  assert [name for _, name in matching_files("x.png")] == [name for _, name in matching_files("*.png")] == ["x.png"]


def test_a_folder_without_images_says_how_its_sub_folders_are_reached(tmp_path):
  (tmp_path / "notes.txt").write_text("no image")
  with pytest.raises(EvaluationError, match=r"holds no image; --images='.*/\*\*/\*\.jpg' also looks into"):
    matching_files(str(tmp_path))


def contents(folder):
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
  "images, output", [(".", "."), (".", "sub"), ("sub", "."), ("**/*.png", "."), ("a.png", ".")]
)
def test_no_file_that_was_there_is_changed_wherever_the_output_lies_and_a_second_run_replaces_its_own(
  tmp_path, images, output
):
  (tmp_path / "sub").mkdir()
  for name in ("a.png", "b.bmp", "b.png", "sub/a.png", "sub/c.png"):
    Image.fromarray(scene()).save(tmp_path / name)
  (tmp_path / "b.bmp.png").symlink_to("a.png")
  before = contents(tmp_path)

  def once():
    files = matching_files(str(tmp_path / images), tmp_path / output)
    assert predict(RUN, files, tmp_path / output, 0.05) == []
    return len(files)

  drawn = once()
  after = contents(tmp_path)
  assert {name: after[name] for name in before} == before
  assert len(after) == len(before) + drawn + 1
  assert once() == drawn
  assert contents(tmp_path) == after


def test_a_detections_file_of_the_user_is_refused_before_anything_is_computed(tmp_path):
  Image.fromarray(scene()).save(tmp_path / "a.png")
  for name in ("detections.json", "detections.json.partial"):
    output = tmp_path / f"out {name}"
    output.mkdir()
    (output / name).write_text('[{"image_id": 1, "bbox": [1, 2, 3, 4]}]')
    with pytest.raises(EvaluationError, match=f"{name}: no prediction wrote this file; choose another --output"):
      predict(None, matching_files(str(tmp_path / "a.png")), output, 0.05)
    assert [path.name for path in output.iterdir()] == [name]
  with pytest.raises(EvaluationError, match="a.png is a file; it must be a folder"):
    predict(None, [], tmp_path / "a.png", 0.05)


@pytest.mark.parametrize("canvases", [scenes.DATA.canvases, PaddedToMultiple(32)])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_the_batch_size_changes_no_entry(tmp_path, batch_size, canvases):
  for number in range(5):  # two canvases
    image = scene() if number % 2 else scene().transpose(1, 0, 2)
    Image.fromarray(image).save(tmp_path / f"{number}.png")
  data = dataclasses.replace(scenes.DATA, canvases=canvases)
  setting = types.SimpleNamespace(**vars(EXPERIMENT) | {"data": data})
  one = types.SimpleNamespace(**vars(RUN) | {"experiment": setting})
  predict(one, matching_files(str(tmp_path)), tmp_path / "out", 0.05, batch_size)
  entries = json.loads((tmp_path / "out" / "detections.json").read_text())
  found = {entry["file_name"]: (entry["image_id"], entry["bbox"]) for entry in entries}
  boxes = ([6, 4, 12, 16], [4, 6, 16, 12])
  assert found == {f"{number}.png": (number + 1, boxes[number % 2]) for number in range(5)}


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (5000, 40)])
def test_an_image_of_any_proportions_is_looked_at_and_drawn(tmp_path, size):
  Image.fromarray(np.full((*size, 3), 255, np.uint8)).save(tmp_path / "a.png")
  unread, entries = run(tmp_path)
  assert unread == [] and [e["bbox"] for e in entries] == [pytest.approx([0, 0, size[1], size[0]])] * 3
  assert (tmp_path / "out" / "a.png").is_file()


def test_pictures_and_entries_are_there_when_a_later_image_ends_the_run(tmp_path, monkeypatch):
  for number in range(4):
    Image.fromarray(scene()).save(tmp_path / f"{number}.png")
  draw_one, count = draw.draw, iter(range(9))

  def interrupted(*args, **options):
    if next(count) == 3:
      raise KeyboardInterrupt
    return draw_one(*args, **options)

  monkeypatch.setattr(draw, "draw", interrupted)
  with pytest.raises(KeyboardInterrupt):
    predict(RUN, matching_files(str(tmp_path)), tmp_path / "out", 0.05, 1)
  assert {p.name for p in (tmp_path / "out").iterdir()} == {"0.png", "1.png", "2.png", "detections.json.partial"}
  entries = json.loads((tmp_path / "out" / "detections.json.partial").read_text())
  assert [entry["file_name"] for entry in entries] == ["0.png", "1.png", "2.png"]
  monkeypatch.undo()
  assert predict(RUN, matching_files(str(tmp_path)), tmp_path / "out", 0.05, 1) == []
  assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 4
  assert not (tmp_path / "out" / "detections.json.partial").exists()


def test_few_images_are_in_memory_whatever_the_order_of_their_canvases(tmp_path):
  files = []
  for number in range(60):
    image = scene() if number % 3 else scene().transpose(1, 0, 2)
    Image.fromarray(image).save(tmp_path / f"{number}.png")
    files.append((tmp_path / f"{number}.png", f"{number}.png"))
  reader, held = Reader(files, scenes.DATA, None, 4, tqdm(disable=True)), []
  for batch in reader.batches():
    held.append(len(reader.sizes))
    for image_id in batch.image_id[batch.valid]:
      reader.take(int(image_id))
  assert max(held) <= 4 * 4 + 1 and not reader.sizes


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
  Image.fromarray(scene()).save(tmp_path / "a.png")
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "a.png.partial").symlink_to("/dev/full")
  with pytest.raises(OSError, match="No space left on device") as told:
    predict(RUN, matching_files(str(tmp_path / "a.png")), tmp_path / "out", 0.05)
  assert told.value.filename == str(tmp_path / "out" / "a.png")


def test_entries_for_which_there_is_no_room_leave_those_before(tmp_path, monkeypatch):
  path = tmp_path / "detections.json"
  with pytest.raises(OSError, match="No space left on device"), DetectionsFile(path) as detections:
    detections.add([{"image_id": 1}])
    write = detections._file.write

    class Full:  # takes three bytes, then none
      room = 3

      def __getattr__(self, name):
        return getattr(real, name)

      def write(self, text):
        if not text.startswith(b"\n]"):
          if not self.room:
            raise OSError(28, "No space left on device")
          taken, self.room = self.room, 0
          return write(text[:taken])
        return write(text)

    real = detections._file
    detections._file = Full()
    detections.add([{"image_id": 2}])
  assert json.loads(path.with_name("detections.json.partial").read_text()) == [{"image_id": 1}]
  assert not path.exists()


def test_pictures_of_files_of_one_stem_do_not_overwrite_each_other(tmp_path):
  Image.fromarray(scene()).save(tmp_path / "a.png")
  Image.fromarray(scene()).save(tmp_path / "a.bmp")
  run(tmp_path)
  assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"a.png", "a.png.png"}


RED = scene()
GREY = np.asarray(Image.fromarray(RED).convert("L"))


@pytest.mark.parametrize(
  "name, image, expected",
  [
    ("colour", Image.fromarray(RED), RED),
    ("grey", Image.fromarray(GREY), np.dstack([GREY] * 3)),
    ("alpha", Image.fromarray(np.dstack([RED, GREY])), RED),
    ("palette", Image.fromarray(RED).convert("P", palette=Image.Palette.ADAPTIVE), RED),
    ("sixteen_bits", Image.fromarray(GREY.astype(np.uint16) * 257), np.dstack([GREY] * 3)),
  ],
)
def test_every_kind_of_image_is_read_as_rgb(tmp_path, name, image, expected):
  path = pathlib.Path(tmp_path, f"{name}.png")
  image.save(path)
  assert np.array_equal(images.read(path, upright=True), expected)


def test_a_photograph_is_turned_upright(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was held sideways: to be turned clockwise
  Image.fromarray(RED).save(tmp_path / "sideways.jpg", exif=exif)
  Image.fromarray(RED).save(tmp_path / "stored.jpg")
  stored = images.read(tmp_path / "stored.jpg")
  assert np.array_equal(images.read(tmp_path / "sideways.jpg"), stored)
  assert np.array_equal(images.read(tmp_path / "sideways.jpg", upright=True), np.rot90(stored, -1))

"""What is written beside the user's files: none of them is ever replaced."""

from __future__ import annotations

import os
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from rcnn_jax.evaluation import outputs
from rcnn_jax.files import write_json

PICTURE = np.full((4, 5, 3), 77, np.uint8)


def names(folder, relatives, kept=frozenset()):
  """The names that pictures of these images get in one run."""
  taken = set()
  return [outputs.picture_path(folder, name, taken, kept).relative_to(folder).as_posix() for name in relatives]


def test_a_written_picture_is_known_as_one_and_a_photograph_is_not(tmp_path):
  outputs.write_picture(tmp_path / "ours.png", PICTURE)
  Image.fromarray(PICTURE).save(tmp_path / "theirs.png")
  (tmp_path / "link.png").symlink_to("ours.png")
  (tmp_path / "folder.png").mkdir()
  assert np.array_equal(np.asarray(Image.open(tmp_path / "ours.png")), PICTURE)
  own = [path.name for path in sorted(tmp_path.iterdir()) if outputs.is_own_picture(path)]
  assert own == ["ours.png"]
  assert not outputs.is_own_picture(tmp_path / "nowhere.png")


def test_a_picture_is_named_like_its_image(tmp_path):
  assert names(tmp_path, ["cat.jpg", "sub/cat.jpg", "noending", "a.b.webp"]) == [
    "cat.png",
    "sub/cat.png",
    "noending.png",
    "a.b.png",
  ]


def test_images_of_one_stem_get_pictures_of_their_own_on_every_file_system(tmp_path):
  given = ["cat.bmp", "cat.jpg", "Cat.jpg", "CAT.JPG", "cafe\u0301.jpg", "café.jpg"]
  assert names(tmp_path, given) == [
    "cat.png",
    "cat.jpg.png",
    "Cat.drawn.png",
    "CAT.drawn.2.png",
    "cafe\u0301.png",
    "café.jpg.png",
  ]


def test_a_file_that_is_no_picture_of_ours_keeps_its_place(tmp_path):
  Image.fromarray(PICTURE).save(tmp_path / "cat.png")
  (tmp_path / "dog.png").symlink_to("nowhere")
  outputs.write_picture(tmp_path / "hen.png", PICTURE)
  assert names(tmp_path, ["cat.png", "dog.png", "hen.png"]) == ["cat.png.png", "dog.png.png", "hen.png"]
  Image.fromarray(PICTURE).save(tmp_path / "cat.png.png")
  Image.fromarray(PICTURE).save(tmp_path / "cat.drawn.png")
  assert names(tmp_path, ["cat.png"]) == ["cat.drawn.2.png"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_an_image_of_the_run_keeps_its_place_even_if_an_earlier_run_drew_it_and_under_any_link(tmp_path, link):
  outputs.write_picture(tmp_path / "in.png", PICTURE)
  (tmp_path / "out").mkdir()
  link(tmp_path / "in.png", tmp_path / "out" / "in.png")
  assert names(tmp_path / "out", ["in.png"], outputs.file_ids([tmp_path / "in.png"])) == ["in.png.png"]
  assert names(tmp_path, ["in.png"], outputs.file_ids([tmp_path / "in.png"])) == ["in.png.png"]


def test_names_as_long_as_file_systems_take_can_be_written(tmp_path):
  path = outputs.picture_path(tmp_path, f"{'猫' * 83}.jpg", set())
  outputs.write_picture(path, PICTURE)
  assert path.is_file() and len(path.name.encode()) <= 204


@hypothesis.given(st.lists(st.text(st.sampled_from("aAé.ß\u0301"), min_size=1, max_size=6), max_size=12))
def test_no_two_images_share_a_place(relatives):
  folder = pathlib.Path("/nowhere")
  relatives = [name for name in relatives if name.strip(".")]
  given = names(folder, relatives)
  assert len({name.casefold() for name in given}) == len(relatives)


@pytest.mark.parametrize(
  "text, own",
  [
    ("", True),
    ("[]", True),
    ("[\n]\n", True),
    ('[{"image_id": 1, "category_id": 7, "bbox": [1], "score": 1, "category": "a", "file_name": "b"}]', True),
    ('[\n{"image_id":1,"category":"a","file_name":"b"},\n{"image', True),
    ('[{"image_id": 1, "category_id": 7, "bbox": [1], "score": 1}]', False),
    ('[{"file_name": "b", "category": "a"}]', False),
    ('{"images": []}', False),
    ("[1, 2]", False),
    ("[" * 100_000, False),
    ("\x00\xff", False),
  ],
)
def test_detections_are_known_by_their_entries(tmp_path, text, own):
  (tmp_path / "detections.json").write_text(text)
  assert outputs.is_own_detections(tmp_path / "detections.json") == own


def test_metrics_are_known_by_their_names(tmp_path):
  for number, (form, own) in enumerate([({"voc/mAP_area": None}, True), ({"accuracy": 1}, False), ([1], False)]):
    write_json(tmp_path / f"{number}.json", form)
    assert outputs.is_own_metrics(tmp_path / f"{number}.json") == own
  assert not outputs.is_own_metrics(tmp_path / "nowhere.json")


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  assert not outputs.is_own_detections(tmp_path / "pipe")
  assert not outputs.is_own_metrics(tmp_path / "pipe")
  assert not outputs.is_own_picture(tmp_path / "pipe")

"""Sheets of examples: truth over the pixels of the canvas, a caption each, and no file of the user's replaced."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image
from test_loader import Rectangles, data, train

from launch import show_data
from rcnn_jax.data import loader
from rcnn_jax.evaluation import draw, sheets

NAMES = {1: "rectangle"}


def first_example(**values):
  batch = next(iter(loader.eval_batches(data(load_masks=True, load_keypoints=True, **values), Rectangles())))
  return list(sheets.examples(batch))


def test_an_examples_objects_are_where_its_truth_says():
  example = first_example()[1]  # image 2, of two rectangles that overlap, on a canvas of 24 x 32
  found = sheets.objects(example, np.array([2.0, 2.0]), (48, 64))
  assert [one["bbox"] for one in found] == [[0, 4, 8, 12], [2, 4, 8, 12]]
  assert [one["category_id"] for one in found] == [1, 1]
  assert found[0]["segmentation"]["size"] == [48, 64] and found[1]["keypoints"] == [2, 4, 2, 10, 4, 2]


def test_a_picture_shows_the_whole_canvas_and_where_no_image_stands():
  narrow = first_example(canvases=((24, 64), (64, 24)))[1]
  drawn = sheets.picture(narrow, NAMES, 640)
  assert drawn.shape == (240, 640, 3)
  assert (drawn[:, 330:] == sheets.NOTHING).all()
  assert tuple(drawn[50, 0]) == draw.class_colours(NAMES)[1]  # the left edge of the first rectangle
  assert (drawn[200, 100:300] == 60).all()  # image 2 is filled with 60


def test_rows_that_fill_up_a_batch_are_not_shown():
  settings = data(batch_size=(8, 8))
  shown = [int(one.image_id) for batch in train(settings, num_steps=2) for one in sheets.examples(batch)]
  assert sorted(shown) == [1, 2, 3, 4, 5, 6, 7]


def test_sheets_are_numbered_counted_and_replace_their_own_alone(tmp_path):
  examples = lambda: (one for batch in train(data(load_masks=True), num_steps=8) for one in sheets.examples(batch))
  own = tmp_path / "train_001.png"
  own.write_bytes(b"mine")
  for _ in range(2):
    number, counts = show_data.write_sheets(
      itertools.islice(examples(), 6), Rectangles(), tmp_path, "train", columns=2, side=64
    )
    assert number == 2 and set(counts) == {"rectangle"}
  assert sorted(path.name for path in tmp_path.iterdir()) == ["train_000.png", "train_001.png", "train_001.png.png"]
  assert own.read_bytes() == b"mine"
  assert Image.open(tmp_path / "train_000.png").size[0] == 2 * (64 + sheets.GAP) + sheets.GAP


@pytest.mark.parametrize("text", ["a.png: 4 x 4", "a/very/long/name/of/a/file/in/many/folders.png: 4 x 4, 1 object"])
def test_a_caption_keeps_its_end(text):
  blank = np.zeros((8, 96, 3), np.uint8)
  assert sheets.sheet([blank], [text], 96, 1).shape == (8 + sheets.HEAD + 2 * sheets.GAP, 96 + 2 * sheets.GAP, 3)
  assert sheets._shortened(text, 90)[-8:] == text[-8:]

"""Tiles: they cover the image, and what was found in them becomes one answer, whatever a border cuts."""

from __future__ import annotations

import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from test_predict import RUN

from rcnn_jax.evaluation import evaluate
from rcnn_jax.evaluation.detect import EvaluationError
from rcnn_jax.evaluation.image_files import matching_files
from rcnn_jax.evaluation.predict import predict
from rcnn_jax.evaluation.results import Found
from rcnn_jax.evaluation.tiles import Tiles, merged
from rcnn_jax.experiment import Evaluation
from tests import scenes

settings = hypothesis.settings(max_examples=60, deadline=None)
SIZE = (100, 300)


@settings
@hypothesis.given(st.tuples(st.integers(1, 500), st.integers(1, 500)), st.integers(20, 200), st.floats(0, 0.8))
def test_tiles_cover_the_image_and_overlap_enough(size, side, overlap):
  windows = Tiles(side, overlap).windows(size)
  seen = np.zeros(size, bool)
  for x1, y1, x2, y2 in windows:
    assert (y2 - y1, x2 - x1) == (min(side, size[0]), min(side, size[1]))
    seen[y1:y2, x1:x2] = True
  assert seen.all()
  for axis in (0, 1):
    starts = sorted({window[axis] for window in windows})
    assert all(b - a <= side * (1 - overlap) + 1 for a, b in zip(starts, starts[1:]))


def test_an_image_smaller_than_a_tile_is_one_tile():
  assert Tiles(800).windows((480, 640)) == [(0, 0, 640, 480)]
  assert Tiles(100, 0.5).windows((80, 200)) == [(0, 0, 100, 80), (50, 0, 150, 80), (100, 0, 200, 80)]


def seen_by(tiles: Tiles, boxes, size=SIZE, least=4, ids=None):
  """What a perfect detector finds in each tile: the part of every box (xyxy) that shows, full masks."""
  parts = []
  for window in tiles.windows(size):
    x1, y1, x2, y2 = window
    tile, rows, scores, kinds, counts = (y2 - y1, x2 - x1), [], [], [], []
    for number, box in enumerate(boxes):
      a, b, c, d = (max(box[0], x1), max(box[1], y1), min(box[2], x2), min(box[3], y2))
      if c - a < least or d - b < least:
        continue
      pixels = np.zeros(tile, np.uint8)
      pixels[b - y1 : d - y1, a - x1 : c - x1] = 1
      rows.append([a - x1, b - y1, c - a, d - b])
      scores.append(0.9 - 0.1 * number - 0.01 * (c - a < box[2] - box[0]))
      kinds.append(1 if ids is None else ids[number])
      counts.append(coco_mask.encode(np.asfortranarray(pixels))["counts"])
    arrays = np.array(rows, np.float64).reshape(-1, 4), np.array(scores, np.float64), np.array(kinds, np.int64)
    parts.append((window, Found(0, tile, *arrays, tuple(counts))))
  return parts


@pytest.mark.parametrize(
  "boxes",
  [
    [(10, 10, 30, 40)],  # in one tile alone
    [(85, 10, 95, 40)],  # whole in two tiles
    [(70, 10, 130, 40)],  # cut by both, within both there is a part of 20 pixels
    [(10, 10, 290, 90)],  # longer than any tile
    [(70, 10, 130, 40), (75, 50, 128, 80), (200, 5, 260, 95)],
  ],
)
def test_objects_across_borders_are_found_once_and_whole(boxes):
  found = merged(seen_by(Tiles(100, 0.2), boxes), 5, SIZE)
  assert found.image_id == 5 and found.size == SIZE
  expected = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]
  assert sorted(found.boxes.tolist()) == sorted(map(list, expected))
  assert (np.diff(found.scores) <= 0).all()
  for box, counts in zip(found.boxes.astype(int), found.counts):
    whole = np.zeros(SIZE, np.uint8)
    whole[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
    np.testing.assert_array_equal(coco_mask.decode({"size": list(SIZE), "counts": counts}), whole)


def test_other_classes_and_neighbours_in_one_tile_are_not_joined():
  two = [(70, 10, 130, 40), (72, 10, 130, 40)]
  assert len(merged(seen_by(Tiles(100, 0.2), two, ids=[1, 2]), 1, SIZE)) == 2
  assert len(merged(seen_by(Tiles(100, 0.2), two), 1, SIZE)) == 2
  nothing = merged(seen_by(Tiles(100, 0.2), []), 1, SIZE)
  assert len(nothing) == 0 and nothing.counts == ()


def test_an_image_is_predicted_by_tiles(tmp_path):
  image = np.full((24, 90, 3), 20, np.uint8)
  image[6:18, 20:50, 0] = 255  # red, across the borders of tiles of 32
  Image.fromarray(image).save(tmp_path / "a.png")
  Image.fromarray(image[:, :30]).save(tmp_path / "b.png")  # smaller than a tile
  output = tmp_path / "out"
  assert predict(RUN, matching_files(str(tmp_path / "*.png")), output, 0.05, 2, Tiles(32, 0.25)) == []
  entries = json.loads((output / "detections.json").read_text())
  assert [(one["file_name"], one["bbox"]) for one in entries] == [
    ("a.png", [20, 6, 30, 12]),
    ("b.png", [20, 6, 10, 12]),
  ]
  assert [one["segmentation"]["size"] for one in entries] == [[24, 90], [24, 30]]
  assert (output / "a.png").exists() and (output / "b.png").exists()


def test_evaluation_by_tiles_finds_what_evaluation_finds(tmp_path):
  source, model = scenes.Scenes(), scenes.ColourFinder(masks=True)
  arguments = (model, scenes.VARIABLES, scenes.DATA, source)
  whole = evaluate.detect_source(*arguments)
  same = evaluate.detect_by_tiles(*arguments, Tiles(64))  # no image is larger
  assert same.entries == sorted(whole.entries, key=lambda one: one["image_id"])
  tiled = evaluate.detect_by_tiles(*arguments, Tiles(20, 0.5))
  assert {one["image_id"] for one in tiled.entries} == {one["image_id"] for one in whole.entries}
  evaluate.evaluate(*arguments, tmp_path, Evaluation(pictures=0), None, Tiles(20, 0.5))
  assert (tmp_path / "metrics.json").exists()
  with pytest.raises(EvaluationError, match="tiles need a model that makes its own proposals"):
    data = dataclasses.replace(scenes.DATA, proposals=("here", "there"))
    evaluate.detect_by_tiles(model, scenes.VARIABLES, data, source, Tiles(64))


@pytest.mark.parametrize("side, overlap, message", [(0, 0.2, "a tile of 0 pixels"), (9, 1.0, "an overlap of 1: ")])
def test_tiles_that_make_no_sense_are_told(side, overlap, message):
  with pytest.raises(ValueError, match=message):
    Tiles(side, overlap)

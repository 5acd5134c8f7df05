"""Files are whole or not there."""

from __future__ import annotations

import math

import pytest

from rcnn_jax.files import write_json, write_text


def test_folders_are_made_and_no_other_file_is_left(tmp_path):
  write_text(tmp_path / "a/b/table.txt", "one\n")
  write_text(tmp_path / "a/b/table.txt", "two\n")
  assert [(path.name, path.read_text()) for path in (tmp_path / "a/b").iterdir()] == [("table.txt", "two\n")]


def test_what_cannot_be_written_leaves_what_stood_there(tmp_path):
  path = tmp_path / "metrics.json"
  write_json(path, {"AP": 0.5})
  with pytest.raises(ValueError, match="JSON"):
    write_json(path, {"AP": math.nan})
  with pytest.raises(TypeError, match="JSON"):
    write_json(path, {"AP": object()})
  assert path.read_text() == '{\n "AP": 0.5\n}\n'


def test_settings_may_be_infinite_and_long_lists_in_one_line(tmp_path):
  write_json(tmp_path / "a.json", [1, math.inf], indent=None, allow_nan=True)
  assert (tmp_path / "a.json").read_text() == "[1, Infinity]\n"

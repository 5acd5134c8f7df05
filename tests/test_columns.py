"""The cache of annotations: shared by path, written whole or not at all, and rebuilt where it cannot be trusted."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import threading

import numpy as np
import pytest

from rcnn_jax.data import columns
from rcnn_jax.data.columns import Columns, Writer


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> pathlib.Path:
  """Every file counts as large, and the cache is a folder of the test's own."""
  monkeypatch.setattr(columns, "SMALL", 0)
  monkeypatch.setenv("RCNN_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache" / "annotations"


class Builder:
  """Builds columns from a file of numbers, and counts how often."""

  def __init__(self, path: pathlib.Path):
    self.path, self.count = path, 0
    path.write_text("1 2 3")

  def __call__(self, writer: Writer) -> Columns:
    self.count += 1
    for number in self.path.read_text().split():  # piece by piece
      writer.append("numbers", np.array([[int(number), 7]], np.int32))
    writer.append("nothing", np.zeros((0, 4), np.float32))
    return writer.finish({"name": "ünlü"})

  def open(self) -> Columns:
    return columns.cached(self.path, self.path.stat(), self)


@pytest.fixture
def builder(tmp_path) -> Builder:
  return Builder(tmp_path / "numbers.txt")


def check(held: Columns, numbers=(1, 2, 3)) -> None:
  assert held["numbers"].tolist() == [[number, 7] for number in numbers]
  assert held["nothing"].shape == (0, 4) and held.values == {"name": "ünlü"}


def folders(home: pathlib.Path) -> list[pathlib.Path]:
  return [place for path in home.iterdir() for place in path.iterdir()]


def test_columns_are_built_once_and_then_mapped(builder, home):
  check(builder.open())
  check(builder.open())
  assert builder.count == 1 and len(folders(home)) == 1
  assert isinstance(builder.open()["numbers"].base, np.memmap)


def test_they_are_pickled_by_their_path_and_in_memory_by_value(builder, home):
  encoded = pickle.dumps(builder.open())
  assert len(encoded) < 300 and str(home).encode() in encoded
  check(pickle.loads(encoded))
  check(pickle.loads(pickle.dumps(builder(Writer(None)))))


def test_a_small_file_is_not_cached(builder, home, monkeypatch):
  monkeypatch.setattr(columns, "SMALL", 100)
  check(builder.open())
  check(builder.open())
  assert builder.count == 2 and not home.exists()


def test_a_file_that_has_changed_is_built_anew_and_its_old_columns_go(builder, home):
  builder.open()
  builder.path.write_text("4 5")
  check(builder.open(), (4, 5))
  builder.path.write_text("6 7")  # of the same size
  os.utime(builder.path, ns=(1, 1))
  check(builder.open(), (6, 7))
  assert builder.count == 3 and len(folders(home)) == 1


@pytest.mark.parametrize(
  "damage",
  [
    lambda place: (place / "numbers.bin").write_bytes(b"\0" * 24),
    lambda place: (place / "numbers.bin").write_bytes(b"\0" * 23),
    lambda place: (place / "numbers.bin").unlink(),
    lambda place: (place / "nothing.bin").write_bytes(b"x"),
    lambda place: (place / "columns.json").write_text('{"version": 3'),
    lambda place: (place / "columns.json").write_text("[]"),
    lambda place: (place / "columns.json").write_text('{"version": 3, "arrays": {"numbers": 3}, "values": {}}'),
    lambda place: (place / "columns.json").unlink(),
    lambda place: (place / "columns.json").write_bytes(b"\xff\xfe"),
  ],
)
def test_damaged_columns_are_built_anew(builder, home, damage):
  builder.open()
  damage(folders(home)[0])
  check(builder.open())
  check(builder.open())
  assert builder.count == 2 and len(folders(home)) == 1


def test_another_version_of_the_format_is_built_anew(builder, home, monkeypatch):
  builder.open()
  monkeypatch.setattr(columns, "VERSION", columns.VERSION + 1)
  check(builder.open())
  assert builder.count == 2 and len(folders(home)) == 1


def test_two_that_build_at_the_same_time_leave_one_whole_folder(builder, home):
  both, held = threading.Barrier(2), []

  def build(writer: Writer) -> Columns:
    both.wait(timeout=10)
    return builder(writer)

  open_one = lambda: held.append(columns.cached(builder.path, builder.path.stat(), build))
  threads = [threading.Thread(target=open_one) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(held) == 2 and builder.count == 2 and len(folders(home)) == 1
  for one in held:
    check(one)


def test_what_was_never_finished_is_removed_a_day_later(builder, home):
  builder.open()
  of_file = folders(home)[0].parent
  for name, age in ((".being_written-now", 60), (".being_written-then", 2 * columns.ABANDONED)):
    (of_file / name).mkdir()
    os.utime(of_file / name, (os.stat(of_file).st_mtime - age,) * 2)
  builder.path.write_text("4")
  builder.open()
  assert (of_file / ".being_written-now").exists() and not (of_file / ".being_written-then").exists()
  assert len(folders(home)) == 2


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_folder(builder, home, tmp_path, monkeypatch):
  home.parent.write_text("a file where the cache should be")
  monkeypatch.setattr(columns.tempfile, "tempdir", str(tmp_path))
  held = builder.open()
  check(held)
  check(pickle.loads(pickle.dumps(held)))  # a worker maps the same folder
  temporary = pathlib.Path(held.folder)
  assert temporary.is_dir() and temporary.parent == tmp_path
  del held
  assert not temporary.exists()


def test_with_no_disk_at_all_they_are_in_memory(builder, home, monkeypatch):
  def full(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(columns.pathlib.Path, "mkdir", full)
  monkeypatch.setattr(columns.tempfile, "mkdtemp", full)
  held = builder.open()
  check(held)
  assert held.folder is None and not home.exists()


def test_a_disk_that_is_full_half_way_leaves_nothing_behind(builder, home, tmp_path, monkeypatch):
  finish = Writer.finish

  def full(writer: Writer, values) -> Columns:
    if writer._folder is not None:
      raise OSError(28, "No space left on device")
    return finish(writer, values)

  monkeypatch.setattr(Writer, "finish", full)
  monkeypatch.setattr(columns.tempfile, "tempdir", str(tmp_path / "temporary"))
  (tmp_path / "temporary").mkdir()
  held = builder.open()
  check(held)
  assert held.folder is None and folders(home) == [] and not any((tmp_path / "temporary").iterdir())


def test_where_the_cache_is(tmp_path, monkeypatch):
  assert columns.cache_folder() == tmp_path / "cache" / "annotations"
  monkeypatch.delenv("RCNN_JAX_CACHE")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  assert columns.cache_folder() == tmp_path / "xdg" / "rcnn_jax" / "annotations"
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", str(tmp_path / "me"))
  assert columns.cache_folder() == tmp_path / "me" / ".cache" / "rcnn_jax" / "annotations"


def test_the_head_says_what_the_arrays_are(builder, home):
  builder.open()
  head = json.loads((folders(home)[0] / "columns.json").read_text())
  assert head["version"] == columns.VERSION
  assert {name: (form["dtype"], form["shape"]) for name, form in head["arrays"].items()} == {
    "numbers": ("<i4", [3, 2]),
    "nothing": ("<f4", [0, 4]),
  }

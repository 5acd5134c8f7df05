"""Image files by the names that annotation files give them."""

from __future__ import annotations

import pathlib
import unicodedata

import pytest

from rcnn_jax.data import file_names

FILES = ("a.JPG", "my photo.jpg", "100%.jpg", "sub dir/b.png", "Sub2/c.jpg", "é.jpg", "twice.jpg", "Twice.jpg")


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  for name in (*(f"data/images/{name}" for name in FILES), "data/secret.jpg", "data/images2/a.JPG"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"")
  return tmp_path / "data" / "images"


@pytest.mark.parametrize(
  "name, path",
  [
    *((name, None) for name in FILES),
    ("my%20photo.jpg", "my photo.jpg"),
    ("100%25.jpg", "100%.jpg"),
    ("sub dir\\b.png", "sub dir/b.png"),
    ("sub%20dir%2Fb.png", "sub dir/b.png"),
    (".\\sub dir\\b.png", "sub dir/b.png"),
    ("images/a.JPG", "a.JPG"),
    ("images\\a.JPG", "a.JPG"),
    ("data/images/sub dir/b.png", "sub dir/b.png"),
    ("./a.JPG", None),
    ("sub dir/../a.JPG", "a.JPG"),
    ("../images/a.JPG", "a.JPG"),
    ("a.jpg", "a.JPG"),
    ("A.jpg", "a.JPG"),
    ("sub2/C.JPG", "Sub2/c.jpg"),
    (unicodedata.normalize("NFD", "é.jpg"), "é.jpg"),
  ],
)
def test_what_is_plainly_meant_is_found(folder, name, path):
  assert file_names.find([name], folder) == ({} if path is None else {0: path}, {})


def test_an_absolute_path_into_the_folder_is_one_of_its_files(folder):
  assert file_names.find([str(folder / "sub dir/b.png")], folder) == ({0: "sub dir/b.png"}, {})


OUTSIDE = "lies outside the folder of images"
MISSING = "no such image file"


@pytest.mark.parametrize(
  "name, problem",
  [
    ("../secret.jpg", OUTSIDE),
    ("..\\secret.jpg", MISSING),  # with backslashes, a name like any other first
    ("sub dir/../../secret.jpg", OUTSIDE),
    ("/etc/passwd", OUTSIDE),
    ("../images2/a.JPG", OUTSIDE),
    ("..", OUTSIDE),
    ("", OUTSIDE),
    (".", OUTSIDE),
    ("sub dir", MISSING),  # a folder
    ("nothing.jpg", MISSING),
    ("TWICE.jpg", MISSING),  # two files may be meant
    ("a\0.jpg", MISSING),
    ("\ud800.jpg", MISSING),
    ("x" * 5000, MISSING),
    ("a.JPG/b.jpg", MISSING),
  ],
)
def test_what_is_not_there_or_not_in_the_folder_is_refused(folder, name, problem):
  assert file_names.find([name, "a.JPG"], folder) == ({}, {0: problem})


def test_a_name_that_a_line_cannot_show_is_escaped():
  assert file_names.readable("über 照片.jpg") == "über 照片.jpg"
  assert file_names.readable("a\nb\ud800.jpg") == "a\\nb\\ud800.jpg"

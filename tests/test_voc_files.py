"""Which files the names of a split mean: encodings, columns, sub-folders, ends, repeats, and names outside."""

from __future__ import annotations

import os
import pathlib

import pytest
from test_voc import write_image, write_object

from rcnn_jax.data import voc_files
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.voc import VocFolder


def folder(root: pathlib.Path, *names: str, end: str = "jpg") -> pathlib.Path:
  """A folder with an image and an annotation file of each name."""
  for sub in ("Annotations", "JPEGImages", "ImageSets/Main"):
    (root / sub).mkdir(parents=True, exist_ok=True)
  for name in names:
    for sub in ("Annotations", "JPEGImages"):
      (root / sub / name).parent.mkdir(parents=True, exist_ok=True)
    write_image(root, name, write_object("dog", (1, 1, 20, 20)), end)
  return root


def read(root: pathlib.Path, split: str | bytes) -> tuple[tuple[str, ...], list[str]]:
  """(the image files, the faults without the root) of a split file's contents."""
  (root / "ImageSets/Main/train.txt").write_bytes(split if isinstance(split, bytes) else split.encode())
  source = VocFolder(str(root), "train").open(strict=False)
  return source.table.file_names, [str(fault).replace(f"{root}/", "") for fault in source.faults]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_ends_of_lines(tmp_path, encoding, end):
  root = folder(tmp_path, "im0", "Käfer", "方块")
  text = end.join(["im0", "Käfer", "", "方块", "  ", ""])
  assert read(root, text.encode(encoding)) == (("im0.jpg", "Käfer.jpg", "方块.jpg"), [])


@pytest.mark.parametrize(
  "encoding, names",
  [("latin-1", ("Käfer", "im0")), ("gbk", ("方块", "镕")), ("cp932", ("犬①",)), ("big5", ("方塊",))],
)
def test_lists_that_are_not_unicode_are_read_as_what_names_files(tmp_path, encoding, names):
  root = folder(tmp_path, *names)
  assert read(root, "\n".join(names).encode(encoding)) == (tuple(f"{name}.jpg" for name in names), [])


def test_names_of_files_that_are_no_text_are_found(tmp_path):
  root = folder(tmp_path, "im0")
  for sub, end in (("Annotations", "xml"), ("JPEGImages", "jpg")):
    os.rename(root / sub / f"im0.{end}", os.fsencode(root / sub) + b"/\xb7\xbd." + end.encode())  # GBK on disk
  files, faults = read(root, b"\xb7\xbd\n")
  assert [os.fsencode(file) for file in files] == [b"\xb7\xbd.jpg"] and faults == []


def test_second_columns_names_with_spaces_and_comments(tmp_path):
  root = folder(tmp_path, "a", "b", "c", "my photo (0)", "trip 1", "#5", "d.v2", "x 1 0")
  split = "a  1\nb -1\nc\t0\nmy photo (0)\ntrip 1\n#5\n# a comment\nd.v2 1\nx 1 0\n"
  assert read(root, split) == (
    ("a.jpg", "b.jpg", "c.jpg", "my photo (0).jpg", "trip 1.jpg", "#5.jpg", "d.v2.jpg", "x 1 0.jpg"),
    [],
  )
  assert read(root, "a 2\nmissing 1\n") == (
    (),
    [
      "ImageSets/Main/train.txt: none of the images that it names can be used: "
      "Annotations/a 2.xml: no such annotation file",
      "Annotations/a 2.xml: no such annotation file",
      "Annotations/missing.xml: no such annotation file",
    ],
  )


@pytest.mark.parametrize(
  "line",
  [
    "cam1/im0",
    "cam1/im0.jpg",
    "cam1/im0.xml",
    "./cam1/im0",
    "cam1//im0",
    "cam1\\im0.jpg",
    "JPEGImages/cam1/im0.jpg",
    "./JPEGImages/cam1/im0.jpg ./Annotations/cam1/im0.xml",
    "cam1/im0 1",
    "cam1/IM0",
    "cam1/im0.JPG",
  ],
)
def test_folders_ends_and_capitals(tmp_path, line):
  assert read(folder(tmp_path, "cam1/im0", "cam2/im0"), line) == (("cam1/im0.jpg",), [])


def test_accents_may_be_composed_in_the_one_and_not_in_the_other(tmp_path):
  root = folder(tmp_path, "Cafe\u0301")
  assert read(root, "Caf\u00e9") == (("Cafe\u0301.jpg",), [])


def test_files_that_differ_in_capitals_alone_are_each_found(tmp_path):
  root = folder(tmp_path, "a", "A")
  assert read(root, "A\na\n") == (("A.jpg", "a.jpg"), [])


@pytest.mark.parametrize("line", ["/etc/a", "../a", "cam1/../../a", "C:\\a", "\\\\host\\a", "..", "a/..", "a\0b"])
def test_names_outside_the_folder_are_faults(tmp_path, line):
  root = folder(tmp_path / "set", "a")
  folder(tmp_path, "a")
  files, faults = read(root, f"# the images to train on\na\n{line}\n")
  assert files == ("a.jpg",) and len(faults) == 1
  assert faults[0].startswith("ImageSets/Main/train.txt: ") and "outside the folder of the data set" in faults[0]


def test_a_name_that_stands_31_times_is_read_once(tmp_path):
  root = folder(tmp_path, "a", "b", "c")
  split = "\n".join(["c", *["a"] * 30, "b", "a.jpg", "b", "a 1"])
  assert read(root, split) == (
    ("c.jpg", "a.jpg", "b.jpg"),
    ["ImageSets/Main/train.txt: names 2 images more than once (a 32 times): each is read once"],
  )
  source = VocFolder(str(root), "train").open()
  assert source.table.image_ids.tolist() == [1, 2, 3]
  assert read(root, "a\na\nb\n")[1] == [
    "ImageSets/Main/train.txt: names 1 image more than once (a 2 times): each is read once"
  ]


def test_of_images_of_one_name_filename_decides(tmp_path):
  root = folder(tmp_path, "a")
  write_image(root, "a", write_object("dog", (1, 1, 20, 20)), "png")
  xml = root / "Annotations/a.xml"
  several = "JPEGImages/a: several images of that name (a.jpg, a.png), and <filename> names none of them"
  assert several in read(root, "a")[1]
  for said in ("a.png", "a.jpg", "C:\\pictures\\a.JPG", "/x/a.png"):
    write_image(root, "a", f"<filename>{said}</filename>")
    xml.write_text(xml.read_text().replace("</size>", f"</size>{write_object('dog', (1, 1, 20, 20))}"))
    assert read(root, "a") == ((f"a.{said[-3:].lower()}",), [])
  write_image(root, "a", "<filename>../../a.gif</filename>")
  assert several in read(root, "a")[1]


def test_an_image_of_a_type_that_is_not_read_is_named(tmp_path):
  root = folder(tmp_path, "a", "b")
  (root / "JPEGImages/a.jpg").rename(root / "JPEGImages/a.heic")
  assert read(root, "a\nb\n") == (("b.jpg",), ["JPEGImages/a: a.heic is of no type that is read"])


def test_an_image_of_another_name_is_found_by_filename(tmp_path):
  root = folder(tmp_path, "a")
  (root / "JPEGImages/a.jpg").rename(root / "JPEGImages/photo 7.jpg")
  assert "JPEGImages/a: no image of that name (.jpg, .png, ...)" in read(root, "a")[1]
  xml = root / "Annotations/a.xml"
  xml.write_text(xml.read_text().replace("<size>", "<filename>photo 7.jpg</filename><size>"))
  assert read(root, "a") == (("photo 7.jpg",), [])


def test_an_image_that_two_annotation_files_name_is_read_for_the_first(tmp_path):
  root = folder(tmp_path, "a", "b", "photo")
  for name in ("a", "b"):
    (root / f"JPEGImages/{name}.jpg").unlink()
    xml = root / f"Annotations/{name}.xml"
    xml.write_text(xml.read_text().replace("<size>", "<filename>photo.jpg</filename><size>"))
  assert read(root, "b\na\n") == (
    ("photo.jpg",),
    ["Annotations/a.xml: its image photo.jpg is that of b.xml too"],
  )


def test_annotation_files_may_keep_the_end_of_the_images_name(tmp_path):
  root = folder(tmp_path, "a")
  (root / "Annotations/a.xml").rename(root / "Annotations/a.jpg.XML")
  assert read(root, "a.jpg") == (("a.jpg",), [])


def test_hidden_files_and_links_to_the_folder_itself_are_passed_over(tmp_path):
  root = folder(tmp_path, "a")
  (root / "Annotations/._a.xml").write_bytes(b"\0\5\26\7")
  (root / "JPEGImages/._a.jpg").write_bytes(b"\0\5\26\7")
  (root / "Annotations/again").symlink_to(root / "Annotations")
  assert read(root, "a") == (("a.jpg",), [])
  assert list(voc_files.xml_files(root).all()) == ["a.xml"]


def test_a_pipe_is_no_annotation_file(tmp_path):
  root = folder(tmp_path, "a")
  os.mkfifo(root / "Annotations/b.xml")  # reading it would never end
  assert read(root, "a\nb\n") == (("a.jpg",), ["Annotations/b.xml: no such annotation file"])


@pytest.mark.parametrize("contents", [b"\xff\xfea", b"a\0", b"\xff\xfe\0\xd8"])
def test_a_split_file_that_is_no_text_is_told(tmp_path, contents):
  with pytest.raises(DataError, match=r"train.txt: (no text: cannot be decoded as|none of the images)"):
    read(folder(tmp_path, "im0"), contents)
    VocFolder(str(tmp_path), "train").open()

"""Pascal VOC folders: coordinates, classes, flags and faults."""

from __future__ import annotations

import pathlib
import re

import cv2
import numpy as np
import pytest

from rcnn_jax.data.errors import DataError
from rcnn_jax.data.source import clean, object_faults
from rcnn_jax.data.voc import VocFolder

BCCD = pathlib.Path(__file__).parents[2] / "shared" / "data" / "bccd"
needs_bccd = pytest.mark.skipif(not BCCD.is_dir(), reason="the blood-smear images (shared/data/bccd) are not here")


def write_object(name: str, corners, difficult: int = 0) -> str:
  box = "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), corners))
  return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def write_squares(root: pathlib.Path) -> None:
  """Six images of 64 x 48, each with a dark square on light grey, which is its one object; four are to train on."""
  for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
    (root / folder).mkdir(parents=True)
  for number in range(6):
    x, y = 4 + 5 * number, 4 + 3 * number
    image = np.full((48, 64, 3), 200, np.uint8)
    image[y : y + 20, x : x + 20] = 40
    cv2.imwrite(str(root / f"JPEGImages/{number}.png"), image)
    size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
    item = write_object("square", (x + 1, y + 1, x + 20, y + 20))
    (root / f"Annotations/{number}.xml").write_text(f"<annotation>{size}{item}</annotation>")
  (root / "ImageSets/Main/train.txt").write_text("0\n1\n2\n3\n")
  (root / "ImageSets/Main/val.txt").write_text("4\n5\n")


def write_image(root: pathlib.Path, name: str, objects: str, extension: str = "jpg") -> None:
  size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
  (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
  red = np.zeros((40, 60, 3), np.uint8)
  red[..., 2] = 255  # OpenCV writes BGR
  cv2.imwrite(str(root / "JPEGImages" / f"{name}.{extension}"), red)


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
  for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
    (tmp_path / folder).mkdir(parents=True)
  write_image(tmp_path, "a", write_object("dog", (1, 1, 60, 40)) + write_object("cat", (11, 5, 20, 8), difficult=1))
  write_image(tmp_path, "b", "", extension="png")
  write_image(tmp_path, "c", write_object("bird", (5, 5, 9, 9)))
  (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
  (tmp_path / "ImageSets/Main/val.txt").write_text("c\n")
  return tmp_path


def test_one_based_inclusive_corners_become_continuous_pixels(root):
  annotations = VocFolder(str(root), "train").open().annotations(0)
  # The whole image of 60 x 40 as VOC writes it, and columns 11..20, rows 5..8: 10 x 4 pixels.
  assert annotations.boxes.tolist() == [[0, 0, 60, 40], [10, 4, 20, 8]]
  assert annotations.areas.tolist() == [2400, 40]
  zero_based = VocFolder(str(root), "train", one_based=False).open().annotations(0)
  assert zero_based.boxes.tolist() == [[1, 1, 60, 40], [11, 5, 20, 8]]


def test_flags_sizes_and_images(root):
  source = VocFolder(str(root), "train").open()
  first, empty = source.annotations(0), source.annotations(1)
  assert first.difficult.tolist() == [False, True] and not first.crowd.any()
  assert (first.image_id, first.file_name, first.size) == (1, "a.jpg", (40, 60))
  assert (empty.image_id, empty.file_name, empty.boxes.shape) == (2, "b.png", (0, 4))
  assert source.image(1)[0, 0].tolist() == [255, 0, 0]  # RGB


def test_difficult_objects_are_left_out_on_request_and_their_class_stays(root):
  source = VocFolder(str(root), "train", difficult=False).open()
  assert source.annotations(0).ids.tolist() == [1]
  assert "cat" in [category.name for category in source.categories]


def test_classes_are_all_names_of_the_folder_sorted_in_every_split(root):
  train, val = (VocFolder(str(root), split).open() for split in ("train", "val"))
  assert [category.name for category in train.categories] == ["bird", "cat", "dog"]
  assert train.categories == val.categories
  assert train.annotations(0).classes.tolist() == [3, 2]
  named = VocFolder(str(root), "train", class_names=("dog", "cat")).open()
  assert named.annotations(0).classes.tolist() == [1, 2]


def test_degenerate_boxes_are_kept_raw_told_by_object_and_dropped_by_clean(root):
  objects = [(10, 10, 10, 20), (30, 9, 20, 19), ("nan", 1, 5, 5), (61, 1, 70, 9), (50, 30, 99, 99)]
  write_image(root, "c", "".join(write_object("bird", corners) for corners in objects))
  annotations = VocFolder(str(root), "val").open().annotations(0)
  assert len(annotations.boxes) == 5
  faults = object_faults(annotations)
  assert list(faults) == [0, 1, 2, 3]
  assert faults[0] == "degenerate box [10, 10, 10, 20]: width 0, height 10"
  assert "not a number" in faults[2] and "outside the image of 60 x 40" in faults[3]
  assert clean(annotations).boxes.tolist() == [[49, 29, 60, 40]]  # clipped
  assert clean(annotations).ids.tolist() == [5]


LEFT_OUT = [
  (lambda root: (root / "JPEGImages/a.jpg").unlink(), "JPEGImages/a: no image of that name"),
  (lambda root: (root / "JPEGImages/a.jpg").write_bytes(b""), r"JPEGImages/a.jpg: not an image, .* \(0 bytes\)"),
  (lambda root: (root / "JPEGImages/a.jpg").write_text("no picture"), r"a.jpg: not an image, .* \(10 bytes\)"),
  (lambda root: cv2.imwrite(str(root / "JPEGImages/a.jpg"), np.zeros((9, 7, 3))), "the file is 7 x 9, its annot"),
  (lambda root: (root / "Annotations/a.xml").unlink(), "Annotations/a.xml: no such annotation file"),
  (lambda root: (root / "Annotations/a.xml").write_text("<annotation>"), "a.xml: not readable as XML: no element"),
  (lambda root: (root / "Annotations/a.xml").write_text("<html/>"), "a.xml: its root is 'html', not <annotation>"),
]


@pytest.mark.parametrize("spoil, message", LEFT_OUT)
def test_an_image_that_cannot_be_used_is_left_out_and_told_once(root, spoil, message, caplog):
  spoil(root)
  source = VocFolder(str(root), "train").open()
  assert [(source.annotations(row).file_name, source.annotations(row).image_id) for row in range(len(source))] == [
    ("b.png", 2)
  ]
  (line,) = caplog.messages
  assert line.startswith("1 fault; what cannot be read is left out") and re.search(message, line) and "\n" not in line
  assert [str(fault) for fault in source.faults] == [line.split("; the first: ")[1]]


@pytest.mark.parametrize(
  "item, message",
  [
    (write_object("x", ("left", 1, 2, 3)), "object 1: <bndbox>: xmin is 'left', no number"),
    (write_object("x", (1, 1, "", 3)), "object 1: <bndbox>: xmax is '', no number"),
    (write_object("x", (1, 1, "1_0", 3)), "object 1: <bndbox>: xmax is '1_0', no number"),
    (write_object("x", (1, 1, 3)), "object 1: <bndbox>: no <ymax>"),
    (write_object(" ", (1, 1, 2, 3)), "object 1: no <name>"),
    ("<object><name>x</name><polygon><x1>3</x1></polygon></object>", "object 1: no <bndbox>"),
    ("<object><name>x</name><part><bndbox><xmin>3</xmin></bndbox></part></object>", "object 1: no <bndbox>"),
  ],
)
def test_an_object_that_cannot_be_read_is_left_out(root, item, message):
  write_image(root, "c", item + write_object("bird", (5, 5, 9, 9)))
  source = VocFolder(str(root), "val").open()
  assert [str(fault) for fault in source.faults] == [f"{root}/Annotations/c.xml: {message}"]
  assert source.annotations(0).ids.tolist() == [2]


@pytest.mark.parametrize(
  "spoil, message",
  [
    (lambda root: (root / "ImageSets/Main/train.txt").write_text("\n"), r"train.txt: names no image"),
    (lambda root: (root / "ImageSets/Main/train.txt").unlink(), r"no such split; the folder has val"),
    (lambda root: (root / "ImageSets/Main/train.txt").write_text("x\ny\n"), "none of the images that it names"),
    (lambda root: [path.unlink() for path in (root / "Annotations").iterdir()], "none of the images that it names"),
    (lambda root: [path.unlink() for path in (root / "JPEGImages").iterdir()], "be used: .*JPEGImages/a: no image"),
    (lambda root: [(root / f"Annotations/{x}.xml").write_text("<annotation/>") for x in "abc"], "no object in any"),
  ],
)
def test_a_folder_of_which_nothing_can_be_used_is_refused_in_one_line(root, spoil, message):
  spoil(root)
  with pytest.raises(DataError, match=message) as error:
    VocFolder(str(root), "train").open()
  assert "\n" not in str(error.value)


def test_a_part_of_the_classes_is_chosen_in_any_order_and_the_others_are_told_in_one_line(root, caplog):
  write_image(root, "b", write_object("dog", (1, 1, 9, 9)) + write_object("bird", (1, 1, 9, 9)), "png")
  source = VocFolder(str(root), "train", class_names=("dog", "bird")).open()
  assert [(category.id, category.name) for category in source.categories] == [(1, "dog"), (2, "bird")]
  assert [source.annotations(row).classes.tolist() for row in range(2)] == [[1], [1, 2]]
  assert [source.annotations(row).ids.tolist() for row in range(2)] == [[1], [1, 2]]  # the cat was object 2 of a
  assert source.faults == ()
  assert caplog.messages == [f"{root}/ImageSets/Main/train.txt: objects of other classes left out: 1 (cat)"]


def test_a_class_that_another_split_has_may_be_chosen(root):
  source = VocFolder(str(root), "val", class_names=("cat", "bird")).open()  # the cat is in train alone
  assert source.annotations(0).classes.tolist() == [2]


@pytest.mark.parametrize(
  "names, message",
  [
    (("dog", "brid"), "Annotations: no object is of the class 'brid'; the nearest: bird"),
    (("Dog",), "Annotations: no object is of the class 'Dog'; the nearest: dog"),
    (("aeroplane",), "Annotations: no object is of the class 'aeroplane'; the nearest: bird, cat, dog"),
    ("dog", r"class_names='dog': several names are meant, like \('dog', 'cat'\)"),
    ((1,), r"class_names=\(1,\): several names are meant"),
    ((), r"Annotations: class_names=\(\): names one or more classes, each once"),
    (("dog", "dog "), "names one or more classes, each once"),
  ],
)
def test_classes_that_do_not_occur_are_refused_with_the_nearest(root, names, message):
  with pytest.raises(DataError, match=message):
    VocFolder(str(root), "train", class_names=names).open()


def test_a_home_folder_that_is_none_is_no_folder():
  with pytest.raises(DataError, match="~nobody_of_that_name/voc: no such folder"):
    VocFolder("~nobody_of_that_name/voc").open()


def test_a_missing_folder_is_named(root):
  with pytest.raises(DataError, match="nowhere: no such folder"):
    VocFolder(str(root / "nowhere"), "train").open()
  with pytest.raises(DataError, match="Annotations: no such folder"):
    VocFolder(str(root / "JPEGImages"), "train").open()


def test_an_image_whose_end_is_missing_names_the_file_when_it_is_read(root):
  path = root / "JPEGImages/a.jpg"
  path.write_bytes(path.read_bytes()[:670])  # of 679 bytes; the header is whole
  source = VocFolder(str(root), "train").open()
  assert source.faults == ()
  with pytest.raises(DataError, match=r"a.jpg: not an image, or truncated \(670 bytes\)"):
    source.image(0)


@needs_bccd
def test_blood_smears():
  source = VocFolder(str(BCCD), "trainval").open()
  assert len(source) == 292
  assert {category.name for category in source.categories} == {"WBC", "RBC", "Platelets"}
  faulty = {source.annotations(index).file_name: object_faults(source.annotations(index)) for index in range(292)}
  assert {name: list(rows) for name, rows in faulty.items() if rows} == {
    "BloodImage_00338.jpg": [12],
    "BloodImage_00343.jpg": [3],
  }

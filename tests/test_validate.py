"""`launch.validate_data` lists every fault by file and object, and its exit status says whether there was one."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from test_coco_source import contents, write
from test_voc import write_image, write_object

from rcnn_jax.data import validate
from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.voc import VocFolder

BCCD = pathlib.Path(__file__).parents[2] / "shared" / "data" / "bccd"


@pytest.fixture
def voc(tmp_path) -> pathlib.Path:
  for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
    (tmp_path / folder).mkdir(parents=True)
  for name in "abcde":
    write_image(tmp_path, name, write_object("dog", (1, 1, 20, 20)))
  (tmp_path / "ImageSets/Main/trainval.txt").write_text("a\nb\nc\nd\ne\n")
  return tmp_path


def test_a_sound_data_set_has_none(voc, tmp_path):
  assert list(validate.faults(VocFolder(str(voc)))) == []
  assert list(validate.faults(write(tmp_path, contents()))) == []


def test_every_fault_of_a_voc_folder(voc):
  write_image(voc, "a", write_object("dog", (5, 5, 5, 9)) + write_object("dog", (90, 1, 99, 9)))
  truncated = voc / "JPEGImages/b.jpg"
  truncated.write_bytes(truncated.read_bytes()[:670])
  (voc / "JPEGImages/c.jpg").write_text("no picture")
  (voc / "JPEGImages/d.jpg").unlink()
  cv2.imwrite(str(voc / "JPEGImages/e.jpg"), np.zeros((10, 20, 3), np.uint8))
  (voc / "ImageSets/Main/trainval.txt").write_text("a\nb\nc\nd\ne\nf\n")
  assert [line.replace(f"{voc}/", "") for line in validate.faults(VocFolder(str(voc)))] == [
    "JPEGImages/c.jpg: not an image, or truncated (10 bytes)",
    "JPEGImages/d: no image of that name (.jpg, .png, ...)",
    "JPEGImages/e.jpg: the file is 20 x 10, its annotations are for 60 x 40",
    "Annotations/f.xml: no such annotation file",
    "a.jpg: object 1: degenerate box [5, 5, 5, 9]: width 0, height 4",
    "a.jpg: object 2: degenerate box [89, 0, 99, 9]: outside the image of 60 x 40",
    "JPEGImages/b.jpg: not an image, or truncated (670 bytes)",
  ]


def turn(path: pathlib.Path, flag: int) -> None:
  """Sets the EXIF orientation of a photograph."""
  exif = Image.Exif()
  exif[0x0112] = flag
  with Image.open(path) as picture:
    picture.load()
  picture.save(path, exif=exif)


def test_an_orientation_flag_is_a_fault_unless_the_images_are_read_upright(voc):
  turn(voc / "JPEGImages/a.jpg", 3)  # upside down, of the same size
  turn(voc / "JPEGImages/b.jpg", 8)
  path = voc / "Annotations/b.xml"  # annotated as people see it: 40 x 60
  path.write_text(path.read_text().replace("60</width><height>40", "40</width><height>60"))
  turned = "that is the photograph turned as its EXIF orientation 8 says: set upright=True"
  assert [line.replace(f"{voc}/", "") for line in validate.faults(VocFolder(str(voc)))] == [
    f"JPEGImages/b.jpg: the file is 60 x 40, its annotations are for 40 x 60: {turned}",
    "a.jpg: its EXIF orientation 3 is not followed: its boxes are read as those of the image as it is stored "
    "(with upright=True, as those of the image turned upright)",
  ]
  upright = VocFolder(str(voc), upright=True)
  assert list(validate.faults(upright)) == []
  source = upright.open()
  assert source.annotations(1).size == source.image(1).shape[:2] == (60, 40)


def test_a_set_without_objects_is_told(voc):
  for name in "abcde":
    write_image(voc, name, "")
  write_image(voc, "f", write_object("dog", (1, 1, 20, 20)))
  assert list(validate.faults(VocFolder(str(voc)))) == [
    "no image has an object to train on: none of the 5 images has an object"
  ]


def test_every_fault_of_a_coco_folder(tmp_path):
  data = contents()
  data["annotations"][0].update(bbox=[10, 5, 0, 10])
  data["annotations"][1].update(category_id=1)
  data["annotations"][2].update(segmentation=[])
  data["annotations"].append({"id": 3, "image_id": 4, "category_id": 7, "bbox": [1, 1, 1, 1]})
  data["categories"][0]["keypoints"] = ["nose"]
  in_b = {"image_id": 3, "category_id": 90, "bbox": [1, 1, 9, 9]}
  data["annotations"].append({**in_b, "id": 4, "keypoints": [3, 4]})
  data["annotations"].append({**in_b, "id": 5, "segmentation": {"size": [40, 60], "counts": [2399]}})
  spec = write(tmp_path, data)
  (tmp_path / "images/b.png").write_bytes((tmp_path / "images/a.png").read_bytes()[:60])
  assert [line.replace(f"{tmp_path}/", "") for line in validate.faults(spec)] == [
    "instances.json: annotation 3: 2 annotations have this id",
    "a.png: annotation 2: category id 1 is not in the table of categories",
    "instances.json: annotation 3: belongs to image 4, which is not in the table of images",
    "b.png: annotation 4: keypoints are not 3 numbers, three for each of 1 joints",
    "b.png: annotation 5: the mask's run lengths are corrupt: they do not sum to the image's 2400 pixels",
    "a.png: object 1: degenerate box [10, 5, 10, 15]: width 0, height 10",
    "a.png: object 3: the segmentation is missing or empty",
    "b.png: object 4: the segmentation is missing or empty",
    "images/b.png: not an image, or truncated (60 bytes)",
  ]


def test_a_missing_folder_is_one_fault():
  assert list(validate.faults(CocoFolder("/nowhere", "/nowhere.json"))) == ["/nowhere: no such folder"]


def run(*arguments: str) -> subprocess.CompletedProcess:
  command = [sys.executable, "-m", "launch.validate_data", *arguments]
  return subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1], timeout=120)


def test_command(voc):
  sound = run(f"--voc={voc}")
  assert (sound.returncode, sound.stdout) == (0, "0 faults\n")
  write_image(voc, "a", write_object("dog", (5, 5, 5, 9)))
  faulty = run(f"--voc={voc}")
  assert faulty.returncode == 1
  assert faulty.stdout == "a.jpg: object 1: degenerate box [5, 5, 5, 9]: width 0, height 4\n1 fault\n"


@pytest.mark.skipif(not BCCD.is_dir(), reason="the blood-smear images (shared/data/bccd) are not here")
def test_blood_smears_have_two_stray_clicks():
  assert list(validate.faults(VocFolder(str(BCCD), "trainval"))) == [
    "BloodImage_00338.jpg: object 13: degenerate box [504, 337, 504, 337]: width 0, height 0",
    "BloodImage_00343.jpg: object 4: degenerate box [181, 329, 181, 329]: width 0, height 0",
  ]

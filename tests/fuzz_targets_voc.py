"""What is fuzzed of VOC folders, images and TFDS: functions that take any bytes and let nothing out but a DataError.

Each writes its bytes into a folder that it keeps, opens that as commands do, and reads what there is to read.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import logging
import os
import pathlib
import shutil
import tempfile

import cv2
import numpy as np
from PIL import Image

from rcnn_jax.data import images, tfds
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.source import Source, object_faults
from rcnn_jax.data.tfds_record import form_of
from rcnn_jax.data.voc import VocFolder

XML = """<?xml version="1.0" encoding="utf-8"?>
<annotation><filename>a.png</filename><size><width>8</width><height>6</height><depth/></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>6.5</xmax><ymax>5</ymax></bndbox></object></annotation>"""
SPLIT = "a\nb 1\ncam/c.png\n# a comment\nmy photo\n"


def voc_xml(data: bytes) -> None:
  """One annotation file among two."""
  root = _folder()
  (root / "Annotations" / "fuzzed.xml").write_bytes(data)
  _read_all(VocFolder(str(root), "fuzzed_xml"))


def split_file(data: bytes) -> None:
  """A split file of a folder of four images; nothing outside the folder is read."""
  root = _folder()
  (root / "ImageSets" / "Main" / "fuzzed_split.txt").write_bytes(data)
  for source in _read_all(VocFolder(str(root), "fuzzed_split", class_names=("dog",))):
    inside = [os.path.realpath(source.folder / name) for name in source.table.file_names]
    assert all(path.startswith(f"{root}/JPEGImages/") for path in inside)
    assert len(set(inside)) == len(inside)


def image(data: bytes) -> None:
  """The contents of an image file."""
  try:
    header = images.encoded_size(data, "fuzzed"), images.orientation(data)
    stored = images.decode(data, "fuzzed")
    upright = images.decode(data, "fuzzed", upright=True)
  except DataError as error:
    _check(error)
    return
  assert stored.dtype == np.uint8 and stored.shape == (*header[0], 3)
  assert upright.shape[:2] == images.turned_size(*header)


def tfds_record(data: bytes) -> None:
  """One record of a prepared data set, as array_record gives it."""
  features, form = _features()
  found, faults = tfds._read(_Records(features, data), 0, "fuzzed", form)
  assert all("\n" not in str(fault) for fault in faults) and (found is not None or faults)
  if found is not None:
    object_faults(found)
    assert len(found.boxes) == len(found.classes) == len(found.segmentations)
    assert found.classes.size == 0 or 1 <= found.classes.min() <= found.classes.max() <= 2


def seeds() -> dict[str, list[bytes]]:
  """Sound inputs of each function, to start from."""
  encodings = ("utf-8", "utf-16", "latin-1")
  declared = [XML.replace("utf-8", "gb2312").encode(), XML.replace("utf-8", "shift_jis").encode("cp932")]
  picture = cv2.resize(np.arange(0, 240, 4, np.uint8).reshape(5, 4, 3), (8, 6))
  ends = (".jpg", ".png", ".bmp", ".webp", ".tif", ".ppm", ".gif", ".sr", ".avif", ".pgm")
  return {
    "voc_xml": [XML.encode(encoding) for encoding in encodings] + declared,
    "split_file": [SPLIT.encode(encoding) for encoding in encodings],
    "image": [cv2.imencode(end, picture if end != ".pgm" else picture[..., 0])[1].tobytes() for end in ends]
    + _moving_and_turned(picture),
    "tfds_record": [_sound_record()],
  }


def _moving_and_turned(picture: np.ndarray) -> list[bytes]:
  """Animations, and files with EXIF, which have parts that others have not."""
  exif = Image.Exif()
  exif[0x0112] = 6
  first, more = Image.fromarray(picture), {"save_all": True, "append_images": [Image.fromarray(255 - picture)]}
  found = []
  for kind, choices in [
    *((kind, more) for kind in ("GIF", "WEBP", "PNG", "TIFF")),
    *((kind, {"exif": exif}) for kind in ("JPEG", "WEBP", "PNG")),
    ("JPEG", {"progressive": True}),
    ("TIFF", {"compression": "tiff_lzw"}),
  ]:
    file = io.BytesIO()
    first.save(file, kind, **choices)
    found.append(file.getvalue())
  return found


def _read_all(spec: VocFolder) -> list[Source]:
  opened = []
  for strict in (False, True):
    try:
      with _without_warnings():
        source = spec.open(strict)
    except DataError as error:
      _check(error)
      continue
    opened.append(source)
    assert all("\n" not in str(fault) for fault in source.faults)
    for index in range(len(source)):
      annotations = source.annotations(index)
      object_faults(annotations)
      assert source.image(index).shape[:2] == annotations.size
  return opened


@contextlib.contextmanager
def _without_warnings():
  logger = logging.getLogger("rcnn_jax.data")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


def _check(error: DataError) -> None:
  assert "\n" not in str(error) and len(str(error)) < 2000


@functools.cache
def _folder() -> pathlib.Path:
  """A folder in memory, where there is one, that goes with the process."""
  memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
  root = pathlib.Path(os.path.realpath(tempfile.mkdtemp(prefix="fuzzed-", dir=memory)))
  atexit.register(shutil.rmtree, root, ignore_errors=True)
  for sub in ("Annotations/cam", "JPEGImages/cam", "ImageSets/Main"):
    (root / sub).mkdir(parents=True)
  for name in ("a", "b", "cam/c", "my photo"):
    (root / "Annotations" / f"{name}.xml").write_text(XML)
  for name in ("a", "b", "cam/c", "my photo", "fuzzed"):
    cv2.imwrite(str(root / "JPEGImages" / f"{name}.png"), np.zeros((6, 8, 3), np.uint8))
  (root / "ImageSets/Main/fuzzed_xml.txt").write_text("fuzzed\na\n")
  return root


@functools.cache
def _features():
  import tensorflow_datasets as tfds

  objects = {
    "bbox": tfds.features.BBoxFeature(),
    "label": tfds.features.ClassLabel(names=["square", "disc"]),
    "is_crowd": np.bool_,
    "area": np.float32,
    "segmentation": tfds.features.Text(),
  }
  features = {
    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
    "image/id": np.int64,
    "image/filename": tfds.features.Text(),
    "objects": tfds.features.Sequence(objects),
  }
  features = tfds.features.FeaturesDict(features)
  return features, form_of(features, "fuzzed")


def _sound_record() -> bytes:
  features, _ = _features()
  encoded = io.BytesIO(cv2.imencode(".png", np.zeros((6, 8, 3), np.uint8))[1].tobytes())
  one = {"bbox": np.float32([0.1, 0.2, 0.5, 0.6]), "label": 1, "is_crowd": False, "area": 4.0, "segmentation": "`1"}
  example = {"image": encoded, "image/id": 7, "image/filename": "a.png", "objects": [one, one]}
  return features.serialize_example(features.encode_example(example))


class _Records:
  """What a data source of TFDS does with the bytes of a record."""

  def __init__(self, features, data: bytes):
    self._features, self._data = features, data

  def __getitem__(self, row: int) -> dict:
    import tensorflow_datasets as tfds

    return self._features.deserialize_example_np(self._data, decoders={"image": tfds.decode.SkipDecoding()})

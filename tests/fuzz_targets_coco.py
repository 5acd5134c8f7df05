"""What is fuzzed of COCO folders: each function takes any bytes, and lets nothing out but a DataError.

The bytes are written into a folder that is kept, opened as commands open it, and everything is read that is there.
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import pathlib
import shutil
import tempfile

import cv2
import numpy as np
from pycocotools import mask

from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.segmentations import check_runs, compress, run_lengths
from rcnn_jax.data.source import object_faults, overview

SIZE = (40, 60)


def coco_json(data: bytes) -> None:
  """An annotation file beside two images; nothing outside their folder is read, and no mask is of another size."""
  root = _folder()
  (root / "fuzzed.json").write_bytes(data)
  for strict in (False, True):
    try:
      source = CocoFolder(str(root / "images"), str(root / "fuzzed.json")).open(strict)
    except DataError as error:
      _check(str(error))
      continue
    for fault in source.faults:
      _check(str(fault))
    counts = []
    for index in range(len(source)):
      annotations = source.annotations(index)
      counts.append(len(annotations.boxes) - len(object_faults(annotations)))
      assert all(mask.decode(one).shape == annotations.size for one in annotations.segmentations or ())
      assert os.path.realpath(source._path(index)).startswith(f"{root}/images/")
      source.image(index)
    assert overview(source, source.has_masks).num_objects.tolist() == counts


def coco_runs(data: bytes) -> None:
  """Compressed run lengths: what is taken for sound, pycocotools decodes, and its area is the one that was told."""
  sound, areas = check_runs([data], np.array([SIZE[0] * SIZE[1]]))
  if sound[0]:
    assert int(mask.decode(run_lengths(data, SIZE)).sum()) == areas[0]


def seeds() -> dict[str, list[bytes]]:
  """Sound inputs of each function, to start from."""
  square = [10, 5, 30, 5, 30, 15, 10, 15]
  runs = {"size": list(SIZE), "counts": [405] + [10, 30] * 19 + [10, 1225]}
  packed = compress(runs["counts"], SIZE)
  entry = {"image_id": 10, "category_id": 90, "bbox": [10, 5, 20, 10], "iscrowd": 0, "area": 200}
  contents = {
    "images": [
      {"id": number, "file_name": name, "height": 40, "width": 60} for number, name in ((10, "a"), (3, "b"))
    ],
    "categories": [{"id": 90, "name": "ant", "keypoints": ["l_eye", "r_eye"], "skeleton": [[1, 2]]}],
    "annotations": [
      {**entry, "id": 1, "segmentation": [square, square], "keypoints": [1, 2, 2, 0, 0, 0], "ignore": 1},
      {**entry, "id": "two", "segmentation": runs},
      {**entry, "id": None, "segmentation": [{**runs, "counts": packed.decode()}], "bbox": None},
    ],
  }
  texts = [json.dumps(contents), json.dumps(contents | {"annotations": contents["annotations"][:1]}), "{}"]
  encoded = [text.encode(encoding) for text in texts for encoding in ("utf-8", "utf-8-sig", "utf-16")]
  return {"coco_json": encoded, "coco_runs": [packed, b"PXd0", b"0"]}


def _check(line: str) -> None:
  assert "\n" not in line and len(line) < 2000
  line.encode()


@functools.cache
def _folder() -> pathlib.Path:
  """A folder in memory, where there is one, that goes with the process."""
  logging.getLogger("rcnn_jax").setLevel(logging.ERROR)
  memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
  root = pathlib.Path(os.path.realpath(tempfile.mkdtemp(prefix="fuzzed-", dir=memory)))
  atexit.register(shutil.rmtree, root, ignore_errors=True)
  (root / "images").mkdir()
  picture = cv2.imencode(".png", np.zeros((*SIZE, 3), np.uint8))[1].tobytes()
  for name in ("a", "b", "../outside"):
    (root / "images" / name).write_bytes(picture)
  return root

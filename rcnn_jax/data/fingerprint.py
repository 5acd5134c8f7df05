"""What tells one data set from another, wherever its folder lies and whatever it is called."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np

from rcnn_jax.data.proposals import StoredProposals
from rcnn_jax.data.source import Source, overview

SAMPLE = 256  # images, evenly spaced, whose objects are compared one by one


def fingerprint(source: Source, proposals: StoredProposals | None = None) -> dict[str, int]:
  """Numbers of an open data set, and of its proposals, that two different ones are not to have in common.

  They are made of the size and the number of objects of every image, in order, and of the id, the file name, the
  classes and the boxes (to a hundredth of a pixel) of up to 256 images, so that a large data set costs no more.
  """
  view = overview(source, masks=False)
  crc = 0
  for counts in (view.sizes, view.num_objects, view.num_trainable, view.num_keypoints):
    crc = zlib.crc32(np.ascontiguousarray(counts, np.int64).tobytes(), crc)
  for index in np.unique(np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).round().astype(int)).tolist():
    image = source.annotations(index, masks=False)
    crc = zlib.crc32(f"{image.image_id} {image.file_name}".encode(errors="surrogateescape"), crc)
    crc = zlib.crc32(np.asarray(image.classes, np.int64).tobytes(), crc)
    crc = zlib.crc32((np.round(image.boxes, 2) + np.float32(0)).astype(np.float32).tobytes(), crc)
  found = {"images": len(source), "objects": int(view.num_objects.sum()), "crc32": crc}
  return found if proposals is None else found | {"proposals_crc32": _of_proposals(proposals)}


def _of_proposals(stored: StoredProposals) -> int:
  """Of how they were found and how many of them each image has; their data set is compared by itself."""
  settings = {name: value for name, value in stored.settings.items() if name != "data"}
  counts = np.ascontiguousarray(stored.arrays["offsets"], np.int64).tobytes()
  return zlib.crc32(counts, zlib.crc32(json.dumps(settings, sort_keys=True).encode()))


def of_file(path: str) -> dict[str, Any] | None:
  """The size and the checksum of a file's bytes; None where it is not there."""
  crc, size = 0, 0
  try:
    with open(path, "rb") as file:
      while chunk := file.read(1 << 24):
        crc, size = zlib.crc32(chunk, crc), size + len(chunk)
  except OSError:
    return None
  return {"bytes": size, "crc32": crc}

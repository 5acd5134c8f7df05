"""Makes a drawn data set of COCO's shape, of any size: to test at a small one and to measure at COCO's own.

    python -m tests.large_coco --output=DIR [--num_images=118287] [--num_objects=1090000] [--keypoints]

Writes DIR/annotations.json and DIR/images/*.jpg. Objects stand in no order of images, have polygons of 3 to 42 points
with two decimals, and one in a hundred is a crowd with run lengths: 1,090,000 objects are about 620 MB of JSON. The
image files are hard links to a few photographs of noise, so that 118,287 of them take less than 1 MB of disk.
"""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np

SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (375, 500))  # (height, width), the commonest of COCO's
NUM_CLASSES = 80
MOST_LINKS = 30_000  # to one file; ext4 allows 65,000
JOINTS = (
  "nose,left_eye,right_eye,left_ear,right_ear,left_shoulder,right_shoulder,left_elbow,right_elbow,left_wrist,"
  "right_wrist,left_hip,right_hip,left_knee,right_knee,left_ankle,right_ankle"
).split(",")
CROWD_SHARE = 0.01


def make(
  folder: str | os.PathLike, num_images: int, num_objects: int, seed: int = 0, keypoints: bool = False
) -> tuple[pathlib.Path, pathlib.Path]:
  """Draws a data set into `folder`; the same arguments give the same files.

  Args:
    keypoints: objects of class 1 have COCO's 17 joints.

  Returns:
    The folder of images and the annotation file.
  """
  folder = pathlib.Path(folder)
  rng = np.random.default_rng(seed)
  sizes = rng.choice(len(SIZES), num_images, p=[0.4, 0.15, 0.25, 0.1, 0.1])
  # COCO's ids have gaps and are in no order.
  ids = rng.permutation(np.arange(1, num_images + 1)) * 5 + 4
  names = [f"{number:012d}.jpg" for number in ids]
  _write_images(folder / "images", names, sizes, rng)
  with open(folder / "annotations.json", "w", encoding="utf-8") as file:
    file.write('{"info": {"description": "drawn"}, "images": [')
    for index, (name, number, size) in enumerate(zip(names, ids.tolist(), sizes)):
      height, width = SIZES[size]
      entry = {"license": 1, "file_name": name, "height": height, "width": width, "id": number}
      file.write((", " if index else "") + json.dumps(entry))
    file.write('], "categories": ' + json.dumps(_categories(keypoints)) + ', "annotations": [')
    _write_objects(file, num_objects, ids, sizes, rng, keypoints)
    file.write("]}")
  return folder / "images", folder / "annotations.json"


def _write_images(folder: pathlib.Path, names: list[str], sizes: np.ndarray, rng: np.random.Generator) -> None:
  import cv2

  folder.mkdir(parents=True)
  links: dict[int, list] = {}  # of each size: [the file to link to, how often it has been linked to]
  drawn = {}
  for name, size in zip(names, sizes.tolist()):
    if size not in drawn:
      height, width = SIZES[size]
      coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
      pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
      drawn[size] = cv2.imencode(".jpg", pixels + rng.integers(0, 16, pixels.shape, np.uint8))[1].tobytes()
    if size not in links or links[size][1] >= MOST_LINKS:
      (folder / name).write_bytes(drawn[size])
      links[size] = [folder / name, 0]
    else:
      os.link(links[size][0], folder / name)
      links[size][1] += 1


def _categories(keypoints: bool) -> list[dict]:
  named = [{"supercategory": "thing", "id": k + k // 9, "name": f"class {k}"} for k in range(1, NUM_CLASSES + 1)]
  if keypoints:
    named[0] |= {"keypoints": JOINTS, "skeleton": [[16, 14], [14, 12], [17, 15], [15, 13], [12, 13]]}
  return named


def _write_objects(file, num_objects: int, ids, sizes, rng: np.random.Generator, keypoints: bool) -> None:
  category_ids = [category["id"] for category in _categories(False)]
  first = True
  for start in range(0, num_objects, 10_000):
    count = min(10_000, num_objects - start)
    image = rng.integers(0, len(ids), count)
    classes = rng.integers(0, NUM_CLASSES, count)
    crowd = rng.random(count) < CROWD_SHARE
    unit = rng.random((count, 4))
    for row in range(count):
      height, width = SIZES[sizes[image[row]]]
      # Sides of 2 pixels to the whole image, small ones commoner.
      box_width, box_height = (2 + (side - 3) * share**3 for side, share in zip((width, height), unit[row, :2]))
      x, y = (width - box_width) * unit[row, 2], (height - box_height) * unit[row, 3]
      box = [round(value, 2) for value in (x, y, box_width, box_height)]
      if crowd[row]:
        segmentation, area = _run_lengths(box, height, width)
      else:
        segmentation, area = _polygons(box, rng)
      entry = {
        "segmentation": segmentation,
        "area": area,
        "iscrowd": int(crowd[row]),
        "image_id": int(ids[image[row]]),
        "bbox": box,
        "category_id": category_ids[classes[row]],
        "id": start + row + 1,
      }
      if keypoints and classes[row] == 0:
        joints = rng.random((len(JOINTS), 2)) * box[2:] + box[:2]
        labels = rng.integers(0, 3, (len(JOINTS), 1))
        numbers = np.round(np.concatenate([joints, labels], 1)) * (labels > 0)
        entry["keypoints"] = numbers.astype(int).ravel().tolist()
        entry["num_keypoints"] = int((labels > 0).sum())
      file.write(("" if first else ", ") + json.dumps(entry))
      first = False


def _polygons(box: list[float], rng: np.random.Generator) -> tuple[list[list[float]], float]:
  """One polygon, or for one object in ten two, side by side; (polygons, area of them together)."""
  x, y, width, height = box
  parts = 2 if rng.random() < 0.1 else 1
  polygons, area = [], 0.0
  for part in range(parts):
    corners = int(rng.integers(3, 43))
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = 0.5 - 0.15 * rng.random(corners)
    unit = np.stack([0.5 + radius * np.cos(angles), 0.5 + radius * np.sin(angles)], 1)
    points = np.round(unit * [width / parts, height] + [x + part * width / parts, y], 2)
    following = np.roll(points, -1, 0)
    area += abs(float((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum())) / 2
    polygons.append(points.ravel().tolist())
  return polygons, round(area, 4)


def _run_lengths(box: list[float], height: int, width: int) -> tuple[dict, int]:
  """The ellipse in the box as COCO writes a crowd: run lengths column by column; (segmentation, area)."""
  x, y, box_width, box_height = box
  rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
  inside = ((columns - x - box_width / 2) / box_width) ** 2 + ((rows - y - box_height / 2) / box_height) ** 2 <= 0.25
  flat = inside.ravel(order="F")
  changes = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
  return {"counts": np.diff(changes, prepend=0).tolist(), "size": [height, width]}, int(flat.sum())


if __name__ == "__main__":
  import argparse

  parser = argparse.ArgumentParser(description="Draws a data set of COCO's shape.")
  parser.add_argument("--output", required=True, help="A folder that is not there yet.")
  parser.add_argument("--num_images", type=int, default=118_287)
  parser.add_argument("--num_objects", type=int, default=1_090_000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--keypoints", action="store_true", help="Objects of class 1 have COCO's 17 joints.")
  chosen = parser.parse_args()
  images, annotations = make(chosen.output, chosen.num_images, chosen.num_objects, chosen.seed, chosen.keypoints)
  print(f"{images}: {chosen.num_images} images; {annotations}: {annotations.stat().st_size / 1e6:.0f} MB")

"""How far a detection and an object agree, 0..1, for each kind of output: IoU of boxes and masks, boundary IoU, OKS.

Everything is of one image and one class: D detections by G objects, as pycocotools' `computeIoU` has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as rle
from pycocotools.cocoeval import Params

from rcnn_jax.evaluation.coco import COCO_JOINTS, OTHER_JOINT_SIGMA

BOUNDARY_WIDTH = 0.02  # of the image's diagonal: the published width of the band (arXiv:2103.16562, section 4)


def box_iou(found: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
  """f64[D, G]: IoU of boxes f64[D, 4] and f64[G, 4], [x, y, w, h]; of a crowd, the detection's share in it."""
  return np.asarray(rle.iou(np.ascontiguousarray(found), np.ascontiguousarray(objects), crowd.astype(np.uint8)))


def mask_iou(found: Sequence[dict], objects: Sequence[dict], crowd: np.ndarray) -> np.ndarray:
  """f64[D, G]: IoU of masks in run lengths; of a crowd, the share of the detection within it."""
  return np.asarray(rle.iou(list(found), list(objects), crowd.astype(np.uint8)))


def boundary_iou(found: Sequence[dict], objects: Sequence[dict], crowd: np.ndarray) -> np.ndarray:
  """f64[D, G]: the smaller one of the IoU of two masks and that of their boundaries (arXiv:2103.16562, section 5).

  A mask's boundary are its pixels within 2 % of the image's diagonal from its contour; the image's border is contour
  as well, as in the authors' code.
  """
  edges = [[boundary(one) for one in side] for side in (found, objects)]
  return np.minimum(mask_iou(found, objects, crowd), mask_iou(*edges, crowd))


def boundary(mask: dict) -> dict:
  """The boundary of one mask, both in run lengths."""
  inside = np.ascontiguousarray(rle.decode(mask))
  width = max(1, int(round(BOUNDARY_WIDTH * float(np.hypot(*inside.shape)))))
  padded = cv2.copyMakeBorder(inside, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
  core = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
  return rle.encode(np.asfortranarray(inside - core))


def oks(found: np.ndarray, objects: np.ndarray, boxes: np.ndarray, areas: np.ndarray) -> np.ndarray:
  """f64[D, G]: object keypoint similarity (cocodataset.org, "Keypoint Evaluation"; `COCOeval.computeOks`).

  Args:
    found: f64[D, J, 3], joints x, y, score of detections.
    objects: f64[G, J, 3], joints x, y, visibility of objects; one that is not labelled (0) does not count.
    boxes: f64[G, 4], [x, y, w, h] of the objects. Where no joint of an object is labelled, each joint found counts by
      its distance from the box of twice the size.
    areas: f64[G] of the objects, in square pixels.
  """
  if not (len(found) and len(objects)):
    return np.zeros((len(found), len(objects)))
  joints = objects.shape[1]
  sigmas = Params("keypoints").kpt_oks_sigmas if joints == COCO_JOINTS else np.full(joints, OTHER_JOINT_SIGMA)
  labelled = objects[:, :, 2] > 0
  low, high = boxes[:, :2] - boxes[:, 2:], boxes[:, :2] + 2 * boxes[:, 2:]
  point, target = found[:, None, :, :2], objects[None, :, :, :2]
  beside = np.maximum(0, low[None, :, None] - point) + np.maximum(0, point - high[None, :, None])
  away = np.where(labelled.any(1)[None, :, None, None], point - target, beside)
  error = (away**2).sum(-1) / (2 * sigmas) ** 2 / (areas + np.spacing(1))[None, :, None] / 2
  counted = labelled | ~labelled.any(1, keepdims=True)
  return (np.exp(-error) * counted).sum(-1) / counted.sum(-1)

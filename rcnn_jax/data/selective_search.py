"""Selective search (Uijlings et al., IJCV 2013) by OpenCV's contrib module.

Only what turns one image into ordered boxes may live here.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any, Literal

import numpy as np

from rcnn_jax.data import transforms
from rcnn_jax.data.errors import DataError
from rcnn_jax.data.proposals import Regions

logger = logging.getLogger(__name__)

METHOD = "selective_search"
MAX_HEIGHT = 4  # widths: an image that is higher when it has been resized to `width` is made smaller than that


@dataclasses.dataclass(frozen=True)
class SelectiveSearch:
  """The settings of a search, to be called with an image. The defaults are those of R-CNN's published code.

  The order is the paper's (section 3.3): a box's place in the hierarchy times a random number, the smallest first.
  OpenCV does not tell that place, and its own order is another one in every run: here the boxes stand by their area,
  from the `first` end. 'large' is the paper's, which begins with the whole image; 'small' is OpenCV's, better
  where objects are small in their image. The draws are the same for every image and in every run.
  """

  mode: Literal["fast", "quality"] = "fast"  # the paper's: 2 colour spaces, 3 scales, 2 strategies; or 5, 5 and 4
  width: int | None = 500  # to which the image is resized before, pixels; None leaves it as it is
  base_k: int = 150  # the first scale of the graph segmentation, and the step to each next one
  min_side: float = 20.0  # boxes of a smaller width or height are left out; in pixels of the resized image
  max_boxes: int = 2000
  first: Literal["large", "small"] = "large"
  seed: int = 0

  def settings(self) -> dict[str, Any]:
    """What proposals that were made so are stored with."""
    return {"method": METHOD, "opencv": contrib().__version__, "parameters": dataclasses.asdict(self)}

  def __call__(self, image: np.ndarray, name: str) -> Regions:
    """u8[H, W, 3] RGB -> Regions, scores in 0..1. Where nothing is found, the whole image; `name` is for the log."""
    began = time.process_time()
    height, width = image.shape[:2]
    size = (height, width)
    if self.width is not None:
      scale = min(self.width / width, MAX_HEIGHT * self.width / height)
      size = (max(1, round(height * scale)), max(1, round(width * scale)))
    resized = transforms.resize(image, size, "area" if size[1] < width else "linear")
    rectangles = self._rectangles(resized)
    rectangles = rectangles[(rectangles[:, 2:] >= self.min_side).all(axis=1)]
    if not len(rectangles):
      logger.warning("%s: selective search finds no box: the whole image is the one proposal", name)
      rectangles = np.array([[0, 0, size[1], size[0]]])
    places, order = self._order(rectangles[:, 2] * rectangles[:, 3])
    corners = np.concatenate([rectangles[:, :2], rectangles[:, :2] + rectangles[:, 2:]], axis=1)[order]
    boxes = corners / np.tile([size[1] / width, size[0] / height], 2)
    return Regions(boxes.astype(np.float32), places[order].astype(np.float32), time.process_time() - began)

  def _rectangles(self, image: np.ndarray) -> np.ndarray:
    """The different rectangles that OpenCV finds, i64[n, 4]: x, y, width, height; in one order in every run."""
    search = contrib().ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    switch = {"fast": search.switchToSelectiveSearchFast, "quality": search.switchToSelectiveSearchQuality}
    switch[self.mode](self.base_k, self.base_k)
    return np.unique(np.asarray(search.process(), np.int64).reshape(-1, 4), axis=0)

  def _order(self, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scores f64[n], the rows of the best max_boxes by falling score) of boxes of some areas."""
    place = np.empty(len(areas))
    place[np.argsort(areas if self.first == "small" else -areas, kind="stable")] = np.arange(1, len(areas) + 1)
    draws = np.random.default_rng(self.seed).random(len(areas))
    scores = 1 - place * draws / len(areas)
    return scores, np.argsort(-scores, kind="stable")[: self.max_boxes]


def like(settings: dict[str, Any], folder: str) -> SelectiveSearch:
  """The search that made the proposals with these settings; `folder` is for the error.

  Raises:
    DataError: they were not made by selective search, so that for other images there are none.
  """
  if settings.get("method") != METHOD:
    method = settings.get("method")
    raise DataError(f"{folder}: proposals made by {method!r}: for other images than those, only {METHOD} makes some")
  return SelectiveSearch(**settings["parameters"])


def contrib() -> Any:
  """OpenCV with its contrib modules. Raises DataError where they are not installed."""
  import cv2

  if not hasattr(cv2, "ximgproc"):
    raise DataError(
      "selective search is in OpenCV's contrib modules: pip uninstall opencv-python-headless, "
      "then pip install opencv-contrib-python-headless"
    )
  return cv2

"""Reading image files: bytes to u8[H, W, 3] RGB, and the errors of doing so."""

from __future__ import annotations

import os

import cv2
import numpy as np

from rcnn_jax.data.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def decode(encoded: bytes, name: str) -> np.ndarray:
  """JPEG, PNG ... to u8[H, W, 3] RGB; `name` is for the error message.

  The orientation flag of the camera is ignored: annotations are written in the pixels as they are stored, and that
  is how COCO's own tools and torchvision read them.

  Raises:
    DataError: the bytes are no image, or end before the image does.
  """
  image = None
  if encoded:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
  if image is None:
    raise DataError(f"{name}: not an image, or truncated ({len(encoded)} bytes)")
  return image


def read(path: str | os.PathLike) -> np.ndarray:
  """The image file as u8[H, W, 3] RGB. Raises DataError when it is missing, truncated or no image."""
  try:
    with open(path, "rb") as file:
      encoded = file.read()
  except OSError as error:
    raise DataError(f"{path}: {error.strerror.lower() if error.strerror else error}") from error
  return decode(encoded, str(path))


def encoded_size(encoded: bytes, name: str) -> tuple[int, int]:
  """(height, width) from the header alone. Raises DataError where there is no image header."""
  import io

  from PIL import Image, UnidentifiedImageError

  try:
    with Image.open(io.BytesIO(encoded)) as image:
      return image.height, image.width
  except UnidentifiedImageError as error:
    raise DataError(f"{name}: not an image ({len(encoded)} bytes)") from error

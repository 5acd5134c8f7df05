"""Reading image files: bytes to u8[H, W, 3] RGB, and the errors of doing so."""

from __future__ import annotations

import os

import numpy as np

from rcnn_jax.data.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def decode(encoded: bytes, name: str, upright: bool = False) -> np.ndarray:
  """JPEG, PNG ... to u8[H, W, 3] RGB: grey, palette, alpha (left out) and 16 bits a channel alike.

  Args:
    encoded: the contents of the file.
    name: for the error message.
    upright: turn the image as the camera's orientation flag says. Annotations are written in the pixels as they are
      stored, and that is how COCO's own tools and torchvision read them: images with annotations stay as they are.

  Raises:
    DataError: the bytes are no image, or end before the image does.
  """
  import cv2

  flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
  image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags) if encoded else None
  if image is None:
    raise DataError(f"{name}: not an image, or truncated ({len(encoded)} bytes)")
  return image


def read(path: str | os.PathLike, upright: bool = False) -> np.ndarray:
  """The image file as `decode` gives it. Raises DataError when it is missing, truncated or no image."""
  try:
    with open(path, "rb") as file:
      encoded = file.read()
  except OSError as error:
    raise DataError(f"{path}: {error.strerror.lower() if error.strerror else error}") from error
  return decode(encoded, str(path), upright)


def encoded_size(encoded: bytes, name: str) -> tuple[int, int]:
  """(height, width) from the header alone. Raises DataError where there is no image header."""
  import io

  from PIL import Image, UnidentifiedImageError

  try:
    with Image.open(io.BytesIO(encoded)) as image:
      return image.height, image.width
  except UnidentifiedImageError as error:
    raise DataError(f"{name}: not an image ({len(encoded)} bytes)") from error

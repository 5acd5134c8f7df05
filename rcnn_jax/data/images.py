"""Reading image files: bytes to u8[H, W, 3] RGB, and the errors of doing so."""

from __future__ import annotations

import functools
import os
import stat

import numpy as np

from rcnn_jax.data.errors import DataError, reason_of
from rcnn_jax.data.image_header import Header, decodable, read_header, read_header_of

# What OpenCV reads, by the end of the file's name in small letters; the contents decide.
EXTENSIONS = (
  *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".jp2", ".gif", ".avif"),
  *(".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".sr", ".ras", ".hdr", ".pic"),
)
MAX_PIXELS = 2**28  # 16,384 x 16,384: more is refused before it is decoded, which takes 3 to 9 bytes a pixel
MAX_BYTES = 2**30  # of an encoded file


def is_image_name(name: str) -> bool:
  """Whether a file of this name is one that OpenCV reads, by its end in any case: a.jpg, b.Tiff."""
  return os.path.splitext(name)[1].lower() in EXTENSIONS


def decode(encoded: bytes, name: str, upright: bool = False) -> np.ndarray:
  """JPEG, PNG ... to u8[H, W, 3] RGB: grey, palette, alpha (left out), CMYK and 16 bits a channel alike.

  Of an animation, the first picture.

  Args:
    encoded: the contents of the file.
    name: for the error message.
    upright: turn the image as the camera's orientation flag says. Annotations are written in the pixels as they are
      stored, and that is how COCO's own tools and torchvision read them: images with annotations stay as they are.
      (TIFF files are always turned, as all their readers do.)

  Raises:
    DataError: the bytes are no image, end before the image does, or are an image of more than MAX_PIXELS.
  """
  header = _header(read_header_of(encoded), name, len(encoded))
  cv2 = _opencv()
  try:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    sound = decodable(encoded)
    image = cv2.imdecode(np.frombuffer(sound, np.uint8), flags) if sound else None
  except cv2.error:
    image = None
  if image is None or image.shape[:2] != header.size:
    raise DataError(f"{name}: not an image, or truncated ({len(encoded)} bytes)")
  return _turned(image, header.orientation) if upright else image


def read(path: str | os.PathLike, upright: bool = False) -> np.ndarray:
  """The image file as `decode` gives it. Raises DataError when it is missing, truncated, no image or too large."""
  with _opened(path) as file:
    encoded = file.read()
  return decode(encoded, str(path), upright)


def encoded_size(encoded: bytes, name: str) -> tuple[int, int]:
  """(height, width) from the header alone. Raises DataError: no image header, or more than MAX_PIXELS."""
  return _header(read_header_of(encoded), name, len(encoded)).size


def header(path: str | os.PathLike) -> Header:
  """The header of an image file. Raises DataError where it is missing, no image, or of more than MAX_PIXELS."""
  with _opened(path) as file:
    return _header(read_header(file), str(path), os.fstat(file.fileno()).st_size)


def orientation(image: str | os.PathLike | bytes) -> int:
  """EXIF's orientation flag, 1 to 8, of a file or the contents of one; 1 (upright) where it has none.

  2, 4, 5 and 7 are mirror images; 5 to 8 exchange width and height.

  Raises:
    DataError: the file cannot be opened, or is no image.
  """
  if isinstance(image, bytes):
    return _header(read_header_of(image), "image", len(image)).orientation
  return header(image).orientation


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
  """The size (height, width) of a stored image of `size` when it is turned upright."""
  return (size[1], size[0]) if orientation >= 5 else tuple(size)


def size_problem(size: tuple[int, int], said: tuple[int, int], orientation: int = 1) -> str | None:
  """What is wrong where a file is of `size` and its annotations are for `said` (height, width); None: nothing.

  `orientation` is the flag of the file where it was not followed.
  """
  if tuple(size) == tuple(said):
    return None
  problem = f"the file is {size[1]} x {size[0]}, its annotations are for {said[1]} x {said[0]}"
  if orientation > 1 and turned_size(size, orientation) == tuple(said):
    problem += f": that is the photograph turned as its EXIF orientation {orientation} says: set upright=True"
  return problem


def _opened(path: str | os.PathLike):
  """The file, open for reading; a pipe or device, which might never end, is refused."""
  try:
    status = os.stat(path)
    if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES:
      return open(path, "rb")
  except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
    raise DataError(f"{path}: {reason_of(error)}") from error
  if stat.S_ISDIR(status.st_mode):
    raise DataError(f"{path}: is a directory")
  large = status.st_size > MAX_BYTES
  raise DataError(f"{path}: {f'{status.st_size:,} bytes: more than {MAX_BYTES:,}' if large else 'not a file'}")


def _header(found: Header | None, name: str, num_bytes: int) -> Header:
  if found is None:
    raise DataError(f"{name}: not an image, or truncated ({num_bytes} bytes)")
  height, width = found.size
  if height * width > MAX_PIXELS:
    raise DataError(f"{name}: {width} x {height} pixels, more than the {MAX_PIXELS:,} that are read: scale it down")
  if min(height, width) <= 0:
    raise DataError(f"{name}: an image of {width} x {height} pixels")
  return found


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
  """The upright image of a stored one: first mirrored about the diagonal (5 to 8), then flipped."""
  if orientation >= 5:
    image = image.swapaxes(0, 1)
  rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
  return np.ascontiguousarray(image[:: -1 if rows else 1, :: -1 if columns else 1])


@functools.cache
def _opencv():
  """OpenCV, without the lines that it writes on stderr about each damaged file."""
  import cv2

  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
  return cv2

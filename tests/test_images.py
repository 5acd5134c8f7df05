"""Image files: every type that OpenCV reads, the camera's orientation, and files that are none or too large."""

from __future__ import annotations

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from rcnn_jax.data import images
from rcnn_jax.data.errors import DataError

# 40 x 60 pixels: dark, the left half red and the top right corner white.
PICTURE = np.full((40, 60, 3), 10, np.uint8)
PICTURE[:, :30, 0] = 200
PICTURE[:20, 30:] = 250


def encoded(end: str) -> bytes:
  if end == ".pam":  # OpenCV writes its own order of colours into it
    return b"P7\nWIDTH 60\nHEIGHT 40\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + PICTURE.tobytes()
  picture = PICTURE[..., ::-1].astype(np.float32) / 255 if end in (".hdr", ".pic") else PICTURE[..., ::-1]
  ok, contents = cv2.imencode(end, picture)
  assert ok
  return contents.tobytes()


def by_pillow(format: str, mode: str = "RGB", **choices) -> bytes:
  file = io.BytesIO()
  Image.fromarray(PICTURE).convert(mode).save(file, format, **choices)
  return file.getvalue()


def png_header(width: int, height: int) -> bytes:
  """The beginning of a PNG file that says its size, and nothing more."""
  chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("end", [end for end in images.EXTENSIONS if end not in (".jfif", ".pbm", ".pgm")])
def test_every_type_that_opencv_writes_is_read_and_its_header_says_its_size(end, tmp_path):
  contents = encoded(end)
  path = tmp_path / f"a{end.upper()}"
  path.write_bytes(contents)
  assert images.is_image_name(path.name)
  assert images.encoded_size(contents, "a") == images.header(path).size == (40, 60)
  # Compression, and the brightness that some formats do not keep, leave the middle of each part what it is.
  image = images.read(path).astype(int)
  assert image.shape == (40, 60, 3)
  assert image[20, 15, 0] - image[20, 15, 2] > 100 and image[10, 45].min() > 200 and image[30, 45].max() < 60


@pytest.mark.parametrize(
  "format, mode, choices",
  [
    ("PNG", "L", {}),
    ("PNG", "1", {}),
    ("PNG", "P", {"transparency": 0}),
    ("PNG", "LA", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "I;16", {}),
    ("JPEG", "L", {}),
    ("JPEG", "CMYK", {"quality": 95}),
    ("JPEG", "RGB", {"progressive": True}),
    ("TIFF", "CMYK", {}),
    ("TIFF", "I;16", {}),
    ("TIFF", "1", {}),
    ("TIFF", "P", {"compression": "tiff_lzw"}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("GIF", "P", {}),
    ("BMP", "P", {}),
    ("PPM", "L", {}),
    ("PPM", "1", {}),
  ],
)
def test_every_kind_of_pixel_becomes_three_channels(format, mode, choices):
  if mode == "I;16":
    file = io.BytesIO()
    Image.fromarray(np.asarray(Image.fromarray(PICTURE).convert("L")).astype(np.uint16) * 257).save(file, format)
    contents = file.getvalue()
  else:
    contents = by_pillow(format, mode, **choices)
  image = images.decode(contents, "a").astype(int)
  assert image.shape == (40, 60, 3) and images.encoded_size(contents, "a") == (40, 60)
  assert image[10, 45].min() > 200 and image[30, 45].max() < 60


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pictures_in_a_file_the_first_is_read(format):
  file = io.BytesIO()
  pictures = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
  pictures[0].save(file, format, save_all=True, append_images=pictures[1:])
  image = images.decode(file.getvalue(), "a")
  assert image[10, 45].min() > 200 and image[30, 45].max() < 60


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("flag", range(1, 9))
def test_orientation_is_read_and_followed_as_pillow_does(format, flag, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = flag
  path = tmp_path / "a"
  path.write_bytes(by_pillow(format, **({"tiffinfo": {0x0112: flag}} if format == "TIFF" else {"exif": exif})))
  with Image.open(path) as file:
    expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB")).astype(int)
  upright, stored = images.read(path, upright=True), images.read(path)
  assert upright.flags.c_contiguous and np.abs(upright - expected).max() <= 3
  assert images.header(path).size == stored.shape[:2]
  # Every reader turns TIFF files, whether it follows EXIF or not.
  assert images.orientation(path) == images.orientation(path.read_bytes()) == (1 if format == "TIFF" else flag)
  assert images.turned_size(images.header(path).size, images.orientation(path)) == upright.shape[:2]


@pytest.mark.parametrize("flag", [0, 9, 300])
def test_an_orientation_that_is_none_leaves_the_image_as_it_is(flag):
  exif = Image.Exif()
  exif[0x0112] = flag
  contents = by_pillow("JPEG", exif=exif)
  assert images.orientation(contents) == 1
  assert np.array_equal(images.decode(contents, "a", upright=True), images.decode(contents, "a"))
  assert images.orientation(by_pillow("JPEG", exif=b"Exif\0\0nonsense")) == 1


def test_sizes_that_differ_are_told_with_the_orientation_where_that_explains_them():
  assert images.size_problem((40, 60), (40, 60), orientation=6) is None
  assert images.size_problem((40, 60), (60, 40)) == "the file is 60 x 40, its annotations are for 40 x 60"
  assert images.size_problem((40, 60), (60, 40), orientation=3) == images.size_problem((40, 60), (60, 40))
  assert images.size_problem((40, 60), (60, 40), orientation=6) == (
    "the file is 60 x 40, its annotations are for 40 x 60: "
    "that is the photograph turned as its EXIF orientation 6 says: set upright=True"
  )


def test_a_picture_of_40000_by_30000_is_refused_before_it_takes_memory(capfd):
  for contents in (png_header(40_000, 30_000), b"P6 40000 30000 255\n", b"P5 40000 30000 255\n"):
    for read in (images.decode, images.encoded_size):
      with pytest.raises(DataError, match="big: 40000 x 30000 pixels, more than the 268,435,456 that are read"):
        read(contents, "big")
  assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("end", [".jpg", ".png", ".bmp", ".webp", ".tif", ".gif", ".jp2", ".ppm", ".hdr"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_one_error_and_no_other_line(end, share, capfd):
  contents = encoded(end)[: int(len(encoded(end)) * share)]
  with pytest.raises(DataError, match=rf"^a: not an image, or truncated \({len(contents)} bytes\)$"):
    images.decode(contents, "a")
  assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
  "contents", [b"<svg/>", b"no picture", b"%PDF-1.4", b"\0" * 100, b"\xff\xd8\xff", b"GIF89a", b"BM"]
)
def test_what_is_no_image_is_told(contents):
  for read in (images.decode, images.encoded_size):
    with pytest.raises(DataError, match="^a: (not an image|an image of)"):
      read(contents, "a")


def chunks(contents: bytes) -> list[tuple[bytes, bytes]]:
  """The parts of a PNG file: (name, contents)."""
  found, place = [], 8
  while place < len(contents):
    length, name = struct.unpack(">I4s", contents[place : place + 8])
    found.append((name, contents[place + 8 : place + 8 + length]))
    place += 12 + length
  return found


def png(parts: list[tuple[bytes, bytes]]) -> bytes:
  """A PNG file of parts, with the check sums that they have."""
  number = lambda value: struct.pack(">I", value)
  written = [number(len(inside)) + name + inside + number(zlib.crc32(name + inside)) for name, inside in parts]
  return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def test_a_part_that_says_to_be_longer_than_the_file_takes_no_memory():
  contents = by_pillow("PNG")
  place = contents.index(b"IDAT") - 4
  for length in (b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\xff\xff\xff"):  # OpenCV would allocate 2 GiB
    with pytest.raises(DataError, match="not an image, or truncated"):
      images.decode(contents[:place] + length + contents[place + 4 :], "a")


def test_a_damaged_animation_is_read_as_its_first_picture():
  pictures = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
  file = io.BytesIO()
  pictures[0].save(file, "PNG", save_all=True, append_images=pictures[1:])
  parts = chunks(file.getvalue())
  assert png(parts) == file.getvalue() and [name for name, _ in parts][:4] == [b"IHDR", b"acTL", b"fcTL", b"IDAT"]
  # Without the control of its first picture, OpenCV 5.0 crashes.
  damaged = png([(b"tEXt", b"a\0b") if place == 2 else part for place, part in enumerate(parts)])
  assert np.array_equal(images.decode(damaged, "a"), PICTURE)


def test_bits_that_have_changed_are_found_by_the_check_sum(capfd):
  contents = bytearray(by_pillow("PNG"))
  contents[contents.index(b"IDAT") + 10] ^= 1
  with pytest.raises(DataError, match="not an image, or truncated"):
    images.decode(bytes(contents), "a")
  assert capfd.readouterr() == ("", "")


def test_an_image_without_pixels_is_none():
  with pytest.raises(DataError, match="a: "):
    images.decode(png_header(0, 10), "a")


def test_paths_that_are_no_files_are_told(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for path, problem in [
    ("missing.jpg", "no such file or directory"),
    (".", "is a directory"),
    ("pipe", "not a file"),  # reading it would never end
    ("a\0b", "embedded null byte"),
    ("x" * 300, "file name too long"),
  ]:
    for read in (images.read, images.header, images.orientation):
      with pytest.raises(DataError, match=f": {problem}$"):
        read(str(tmp_path / path))


def test_a_file_of_more_bytes_than_an_image_has_is_not_read(tmp_path):
  with open(tmp_path / "huge.jpg", "wb") as file:
    file.truncate(2**30 + 1)  # takes no space
  with pytest.raises(DataError, match="huge.jpg: 1,073,741,825 bytes: more than 1,073,741,824"):
    images.read(tmp_path / "huge.jpg")

"""Files that are whole or not there, errors that name the file, and folders by paths that any library can use."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

# What libraries take for a pattern of names (Orbax globs) or for a separator (TensorStore: a backslash).
PATTERNS = re.compile(r"[\[*?\\]")


class FileError(ValueError):
  """A file that cannot be read as what it should be; the message names the file, and the place in it."""


def read_json(path: str | pathlib.Path) -> Any:
  """The value in a JSON file (UTF-8). Raises FileError where it is none, with the line and the column."""
  try:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
  except json.JSONDecodeError as error:
    place = f"line {error.lineno}, column {error.colno}"
    raise FileError(f"{path}: not readable as JSON: {error.msg} ({place})") from error
  except UnicodeDecodeError as error:
    raise FileError(f"{path}: not readable as JSON: no text in UTF-8, at byte {error.start}") from error
  except (RecursionError, ValueError) as error:  # nested without end, or a number of thousands of digits
    raise FileError(f"{path}: not readable as JSON: {error}") from error


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """A file of bytes that takes the place of `path` when the block ends; after an error nothing of it is left.

  Its folder is made if need be. What is written stands in `PATH.partial` until then; a link at `path` is replaced,
  not followed.

  Raises:
    OSError: with the path as its `filename`, where the disk is full, say, or the folder cannot be written.
  """
  partial = path.with_name(f"{path.name}.partial")
  with naming(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with open(partial, "wb") as file:
        yield file
      partial.replace(path)
    except BaseException:
      with contextlib.suppress(OSError):
        partial.unlink()
      raise


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
  """Within, an error of the system names this file where it names none: the error of a full disk names no file."""
  try:
    yield
  except OSError as error:
    if error.filename is None and error.errno is not None:
      error.filename = str(path)
    raise


@contextlib.contextmanager
def plain_path(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Within, a path of a folder that no library takes for a pattern: its own, or that of a link to it.

  The folder is made if it needs a link. The link lies in a private temporary folder, which is gone afterwards; for
  other processes, and on other machines, it means nothing.
  """
  if is_plain(folder):
    yield folder
    return
  folder.mkdir(parents=True, exist_ok=True)
  place = next(filter(lambda place: is_plain(pathlib.Path(place)), (tempfile.gettempdir(), "/tmp")))
  private = tempfile.mkdtemp(prefix="rcnn-jax-", dir=place)
  link = os.path.join(private, "folder")
  os.symlink(folder.absolute(), link, target_is_directory=True)
  try:
    yield pathlib.Path(link)
  finally:
    os.unlink(link)
    os.rmdir(private)


def is_plain(path: pathlib.Path) -> bool:
  """Whether every library takes this path for what it is."""
  try:
    str(path).encode()
  except UnicodeEncodeError:  # bytes that are no UTF-8
    return False
  return PATTERNS.search(str(path)) is None


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file in UTF-8, and makes its folder if need be; what UTF-8 has not is written as a backslash escape."""
  with writing(path) as file:
    file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: pathlib.Path, form: Any, indent: int | None = 1, allow_nan: bool = False) -> None:
  """Writes a value as JSON; in one line where `indent` is None.

  Raises:
    ValueError: for NaN and infinity, which JSON has not, unless `allow_nan`: for settings, which only we read.
  """
  write_text(path, json.dumps(form, indent=indent, allow_nan=allow_nan) + "\n")

"""Files that are whole or not there: a program that ends while it writes leaves what stood there before."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO


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
  """Within, an error of the system names this file where it names none: a full disk is told by no name."""
  try:
    yield
  except OSError as error:
    if error.filename is None and error.errno is not None:
      error.filename = str(path)
    raise


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

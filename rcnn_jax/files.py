"""Files that are whole or not there: a program that ends while it writes leaves what stood there before."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def naming(path: str | pathlib.Path) -> Iterator[None]:
  """Within, an error of the system names this file where it names none: a full disk is told by no name."""
  try:
    yield
  except OSError as error:
    if error.filename is None and error.errno is not None:
      error.filename = str(path)
    raise


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file in UTF-8, and makes its folder if need be."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.partial")
  with naming(path):
    partial.write_text(text, encoding="utf-8")
  partial.replace(path)


def write_json(path: pathlib.Path, form: Any, indent: int | None = 1, allow_nan: bool = False) -> None:
  """Writes a value as JSON; in one line where `indent` is None.

  Raises:
    ValueError: for NaN and infinity, which JSON has not, unless `allow_nan`: for settings, which only we read.
  """
  write_text(path, json.dumps(form, indent=indent, allow_nan=allow_nan) + "\n")

"""Numbers for people: a table of text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Lines of columns, the first to the left and the others to the right, under a ruled header.

  Columns are as wide as a terminal draws their text: characters of East Asian scripts take two places.
  """
  lines = [[re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", cell) for cell in row] for row in (header, *rows)]
  widths = [max(_width(row[n]) for row in lines) for n in range(len(header))]
  lines.insert(1, ["-" * width for width in widths])
  return "\n".join(_line(row, widths) for row in lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
  blanks = [" " * (width - _width(cell)) for cell, width in zip(row, widths)]
  return "  ".join([row[0] + blanks[0], *(blank + cell for blank, cell in zip(blanks[1:], row[1:]))]).rstrip()


def _width(text: str) -> int:
  """Places of a terminal: two for a wide character, none for an accent that stands on the one before."""
  return sum(
    0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
    for c in text
  )

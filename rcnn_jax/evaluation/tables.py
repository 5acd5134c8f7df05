"""Numbers for people: a table of text."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Lines of columns, the first to the left and the others to the right, under a ruled header."""
  widths = [max(len(row[n]) for row in (header, *rows)) for n in range(len(header))]
  line = lambda row: "  ".join([row[0].ljust(widths[0]), *(v.rjust(w) for v, w in zip(row[1:], widths[1:]))]).rstrip()
  return "\n".join([line(header), "  ".join("-" * w for w in widths), *(line(row) for row in rows)])

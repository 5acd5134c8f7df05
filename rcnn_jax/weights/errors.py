"""What the readers and the importers of weights raise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class WeightsError(ValueError):
  """A weights file that does not fit the model; the message names the file and the tensors."""


def shown(value: Any) -> str:
  """A value out of a file, in a few printable characters: text and numbers themselves, anything else by its type."""
  if isinstance(value, (str, bytes)):
    return repr(value if len(value) <= 80 else value[:80] + (b"..." if isinstance(value, bytes) else "..."))
  return repr(value) if value is None or isinstance(value, (bool, int, float)) else f"a {type(value).__name__}"


def printable(text: str, most: int = 600) -> str:
  """The text on one line, of at most so many characters."""
  line = "".join(character if character.isprintable() else " " for character in text[:most])
  return line + ("..." if len(text) > most else "")


def listed(names: Sequence[str], most: int = 4) -> str:
  """The first names, and how many more there are."""
  return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")

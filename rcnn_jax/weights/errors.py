"""What the readers and the importers of weights raise."""

from __future__ import annotations

from collections.abc import Sequence


class WeightsError(ValueError):
  """A weights file that does not fit the model; the message names the file and the tensors."""


def listed(names: Sequence[str], most: int = 4) -> str:
  """The first names, and how many more there are."""
  return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")

"""What can be wrong with a data set, and how it is said: one line naming the file and the object."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)
LONGEST = 400  # characters of a file's path that a message shows


class DataError(ValueError):
  """A data set that cannot be used. The message is one line that names the file, and the object if there is one."""


@dataclasses.dataclass(frozen=True)
class Fault:
  """One thing that is wrong with a data set.

  `item` names the object (or the annotation) within the file; `fatal` faults keep a source from opening, the others
  cost only what they concern: an object, or an image.
  """

  file: str
  problem: str
  item: str | None = None
  fatal: bool = True

  def __str__(self) -> str:
    file = self.file if len(self.file) <= LONGEST else f"{self.file[: LONGEST // 2]}...{self.file[-LONGEST // 2 :]}"
    return ": ".join(part for part in (file, self.item, self.problem) if part)


def raise_first(faults: Sequence[Fault]) -> None:
  """Raises DataError for the first fatal fault, with the number of the others."""
  fatal = next((fault for fault in faults if fault.fatal), None)
  if fatal is not None:
    more = f" (and {_count(len(faults) - 1, 'more fault')}: list them with launch.validate_data)"
    raise DataError(f"{fatal}{more if len(faults) > 1 else ''}")


def raise_or_warn(faults: Sequence[Fault]) -> None:
  """Raises DataError for the first fatal fault; where none is, logs one line: how many there are, and the first."""
  raise_first(faults)
  if faults:
    summary = f"{_count(len(faults), 'fault')}; what cannot be read is left out (launch.validate_data lists all)"
    logger.warning("%s; the first: %s", summary, faults[0])


def clipped(text: str | bytes, length: int = 80) -> str:
  """What an input says, fit for a line of a message: its repr, with the middle of a long one left out."""
  shown = repr(text if len(text) <= length else text[:length] + text[-length:])
  return shown if len(shown) <= length else f"{shown[: length // 2]}...{shown[-length // 2 :]}"


def reason_of(error: Exception) -> str:
  """Why a file cannot be used, as messages say it: in the system's words, or in the error's where it has none."""
  said = getattr(error, "strerror", None)
  return said.lower() if said else str(error)


def _count(number: int, what: str) -> str:
  return f"{number:,} {what}{'' if number == 1 else 's'}"

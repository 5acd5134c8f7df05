"""What can be wrong with a data set, and how it is said: one line naming the file and the object."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


class DataError(ValueError):
  """A data set that cannot be used. The message is one line that names the file, and the object if there is one."""


@dataclasses.dataclass(frozen=True)
class Fault:
  """One thing that is wrong with a data set.

  `item` names the object (or the annotation) within the file; `fatal` faults keep a source from opening, the others
  (a degenerate box) cost only the object.
  """

  file: str
  problem: str
  item: str | None = None
  fatal: bool = True

  def __str__(self) -> str:
    return ": ".join(part for part in (self.file, self.item, self.problem) if part)


def raise_first(faults: Sequence[Fault]) -> None:
  """Raises DataError for the first fatal fault and tells how many more there are."""
  fatal = [fault for fault in faults if fault.fatal]
  if fatal:
    more = f" (and {len(fatal) - 1} more faults: list them with launch.validate_data)" if len(fatal) > 1 else ""
    raise DataError(f"{fatal[0]}{more}")

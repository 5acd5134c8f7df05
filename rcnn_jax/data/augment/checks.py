"""What the values of an augmentation may be; others raise a ValueError that names class and field."""

from __future__ import annotations

from typing import Any


def share(value: Any, name: str) -> None:
  """Raises ValueError unless the field is within 0..1."""
  number = getattr(value, name)
  if not 0 <= number <= 1:
    raise ValueError(f"{type(value).__name__}: {name} is {number:g}: it must lie within 0 and 1")


def positive_range(value: Any, name: str, most: float = float("inf")) -> None:
  """Raises ValueError unless the field is a pair of numbers above 0, the lower first, none above `most`."""
  low, high = getattr(value, name)
  if not 0 < low <= high <= most:
    limit = "" if most == float("inf") else f" and at most {most:g}"
    problem = f"{name} is ({low:g}, {high:g}): it must be two numbers above 0{limit}, the lower first"
    raise ValueError(f"{type(value).__name__}: {problem}")


def at_least(value: Any, name: str, least: float) -> None:
  """Raises ValueError where the field is below `least`."""
  number = getattr(value, name)
  if not number >= least:
    raise ValueError(f"{type(value).__name__}: {name} is {number:g}: it must be at least {least:g}")

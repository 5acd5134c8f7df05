"""What stands for a class in metrics, tables, plots and pictures: its name, made distinct and put into one line."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable


def class_keys(categories: Iterable[tuple[int, str]]) -> dict[int, str]:
  """A text for each category id that no other class has.

  That is the class' name. Where several classes share a name, or the name is empty, the id stands behind it:
  `cell (id 3)`, `(id 3)`. Line breaks and other white space become one space, control characters become U+FFFD.

  Args:
    categories: (id, name) in class order.

  Returns:
    {id: text}, in class order.
  """
  plain = {key: one_line(str(name)) for key, name in categories}
  keys = dict(plain)
  while True:
    times = Counter(keys.values())
    shared = [key for key, text in keys.items() if not text or times[text] > 1]
    if not shared:
      return keys
    for key in shared:  # again where a class is really called "cell (id 3)"
      keys[key] = f"{keys[key]} (id {key})".strip()


def one_line(text: str) -> str:
  """The text without line breaks, tabs and what cannot be written in UTF-8 or seen."""
  spaced = " ".join(text.split())
  return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs", "Cn") else c for c in spaced)

"""Image files by the names that annotation files give them, which are not always those on the disk.

What is plainly meant is found: Windows' backslashes, names that are quoted as in a URL ("my%20photo.jpg"), the image
folder's own name in front, letters of another case, accents composed in another way. Nothing outside the folder is.
"""

from __future__ import annotations

import os
import pathlib
import posixpath
import unicodedata
import urllib.parse
from collections.abc import Iterator, Sequence


def find(names: Sequence[str], folder: pathlib.Path) -> tuple[dict[int, str], dict[int, str]]:
  """Looks for files below `folder`.

  Returns:
    The path within the folder of each file whose path is not its name, and the problem with each that is not found;
    both by the place in `names`.
  """
  disk = _Disk(folder)
  found, problems = {}, {}
  for place, name in enumerate(names):
    plain = not name.startswith("/") and ".." not in name
    if name in disk.top or (plain and "/" in name and _is_file(f"{folder}/{name}")):
      continue
    path = disk.find(name)
    if path is None:
      leaves = all(within is None for within in _spellings(name, folder))
      problems[place] = "lies outside the folder of images" if leaves else "no such image file"
    elif path != name:
      found[place] = path
  return found, problems


def readable(name: str) -> str:
  """A name as it is, or escaped where a line cannot show it."""
  return name if name.isprintable() else repr(name)[1:-1]


def _spellings(name: str, folder: pathlib.Path) -> Iterator[str | None]:
  """Paths within the folder that may be meant, the likeliest first; None for one that leads out of it."""
  for text in dict.fromkeys((name, name.replace("\\", "/"), urllib.parse.unquote(name.replace("\\", "/")))):
    yield _within(text, folder)
    parts = text.split("/")
    for count in range(1, min(len(parts), len(folder.parts) + 1)):
      if tuple(parts[:count]) == folder.parts[-count:]:
        yield _within("/".join(parts[count:]), folder)


def _within(path: str, folder: pathlib.Path) -> str | None:
  """A path relative to the folder, if it does not lead out of it."""
  home = os.path.abspath(folder)
  path = posixpath.relpath(posixpath.join(home, path), home) if path else "."
  return None if path in (".", "..") or path.startswith("../") else path


class _Disk:
  """The files below a folder; each folder is listed once, when it is first asked for."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._listed: dict[str, dict[str, str | None]] = {}
    self.top = self._files(folder)

  def find(self, name: str) -> str | None:
    """The path within the folder of the file that a name means; None where there is none, or more than one."""
    for spelling in _spellings(name, self._folder):
      if spelling is not None and _is_file(self._folder / spelling):
        return spelling
    for spelling in _spellings(name, self._folder):
      actual = spelling and self._in_another_case(spelling)
      if actual and _is_file(self._folder / actual):
        return actual
    return None

  def _in_another_case(self, path: str) -> str | None:
    actual = ""
    for part in path.split("/"):
      entry = self._list(actual).get(_folded(part))
      if entry is None:
        return None
      actual = posixpath.join(actual, entry)
    return actual

  def _list(self, within: str) -> dict[str, str | None]:
    """The names in a folder by their form without case; None where several have one form."""
    if within not in self._listed:
      names: dict[str, str | None] = {}
      try:
        for name in os.listdir(self._folder / within):
          names[_folded(name)] = None if _folded(name) in names else name
      except OSError:
        pass
      self._listed[within] = names
    return self._listed[within]

  @staticmethod
  def _files(folder: pathlib.Path) -> set[str]:
    with os.scandir(folder) as entries:
      return {entry.name for entry in entries if entry.is_file()}


def _folded(name: str) -> str:
  return unicodedata.normalize("NFC", name).casefold()


def _is_file(path: str | pathlib.Path) -> bool:
  try:
    return os.path.isfile(path)
  except ValueError:  # a zero byte, or half of a character
    return False

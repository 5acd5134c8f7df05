"""Which files a VOC folder's names mean: one lookup for every command."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import pathlib
import posixpath
import unicodedata
from collections.abc import Callable, Iterator

from rcnn_jax.data import images
from rcnn_jax.data.errors import DataError, Fault, clipped, reason_of
from rcnn_jax.data.text import encoding_of

ANNOTATIONS, IMAGES, SPLITS = "Annotations", "JPEGImages", "ImageSets/Main"
MAX_BYTES = 2**28  # of a split file: room for 10 million names
_FLAGS = ("-1", "0", "1")  # the second column of a split file of one class
# How lists of names are written, tried in turn where they are not UTF-8; the one that names most files is meant.
_ENCODINGS = ("gb18030", "cp950", "cp932", "cp949", "cp1252", "latin-1")


class Files:
  """The files under a folder whose names have one of some ends, looked up by name without that end.

  Each folder is listed once, when a name in it is first asked for.
  """

  def __init__(self, root: pathlib.Path, accepts: Callable[[str], bool]):
    self.root = root
    self._accepts = accepts
    self._folders: dict[str, tuple[dict[str, list[str]], dict[str, list[str]]]] = {}

  def find(self, name: str) -> list[str]:
    """The files that `name` means, as paths relative to the root: several where they differ in their ends.

    A name is one without its end ('cam1/im000'), or else a whole one ('im000.jpg'); where there is no such file, one
    that differs in capitals or in how accents are composed.
    """
    if not _is_inside(name):
      return []
    parent, base = posixpath.split(posixpath.normpath(name))
    exact, folded = self._folder(parent)
    found = exact.get(base) or folded.get(_folded(base)) or []
    return [posixpath.join(parent, file) for file in found]

  @functools.cached_property
  def of_other_kinds(self) -> Files:
    """The files with any other end."""
    return Files(self.root, lambda name: not self._accepts(name))

  def path(self, file: str) -> str:
    """Where a found file lies."""
    return os.path.join(self.root, file)

  def all(self) -> Iterator[str]:
    """Every file in the root and the folders under it."""
    seen, folders = set(), [""]
    while folders:
      parent = folders.pop()
      real = os.path.realpath(self.path(parent))
      if real not in seen:  # else a link, perhaps to a folder that it is in
        seen.add(real)
        files, inner = _listed(real)
        yield from (posixpath.join(parent, file) for file in files if self._is_meant(file))
        folders += [posixpath.join(parent, folder) for folder in inner]

  def _is_meant(self, file: str) -> bool:
    return not file.startswith(".") and self._accepts(file)  # macOS leaves ._im000.jpg beside im000.jpg

  def _folder(self, parent: str):
    """({name or stem: its files}, the same by folded names) of one folder."""
    if parent not in self._folders:
      by_name: dict[str, list[str]] = collections.defaultdict(list)
      for file in filter(self._is_meant, _listed(self.path(parent))[0]):
        by_name[posixpath.splitext(file)[0]].append(file)
      for file in [file for files in list(by_name.values()) for file in files]:
        if file not in by_name:  # as a stem it is another file's: a.jpg of a.jpg.xml
          by_name[file].append(file)
      folded = collections.defaultdict(list)
      for key, files in by_name.items():
        folded[_folded(key)].extend(files)
      self._folders[parent] = dict(by_name), dict(folded)
    return self._folders[parent]


@dataclasses.dataclass(frozen=True)
class Split:
  """The images that a split file names, each once, in its order."""

  names: tuple[str, ...]  # as the fault lines say them, without ends
  annotations: tuple[str | None, ...]  # of each, the file in Annotations/; None: there is none
  faults: tuple[Fault, ...]


def read_split(path: pathlib.Path, annotations: Files, pictures: Files) -> Split:
  """The split file; raises DataError where there is none, or it is no text."""
  if not path.is_file():
    have = sorted(file.stem for file in path.parent.glob("*.txt")) if path.parent.is_dir() else []
    raise DataError(f"{path}: no such split; the folder has {', '.join(have) or 'none'}")
  names: dict[str, str | None] = {}
  times: collections.Counter[str] = collections.Counter()
  faults = []
  for line, count in collections.Counter(_lines(path, annotations)).items():
    if line.startswith("#") and not annotations.find(line):
      continue
    if not any(map(_is_inside, _candidates(line))):
      faults.append(Fault(str(path), f"{clipped(line)} is outside the folder of the data set", fatal=False))
      continue
    name, file = _resolved(line, annotations, pictures)
    if (file or name) not in times:
      names[name] = file
    times[file or name] += count
  if not names:
    faults.insert(0, Fault(str(path), "names no image"))
  repeated = [name for name, number in times.items() if number > 1]
  if repeated:
    most = max(repeated, key=times.__getitem__)
    what = "1 image" if len(repeated) == 1 else f"{len(repeated):,} images"
    problem = f"names {what} more than once ({_stem(most)} {times[most]} times): each is read once"
    faults.append(Fault(str(path), problem, fatal=False))
  return Split(tuple(names), tuple(names.values()), tuple(faults))


def choose_image(name: str, image_name: str | None, pictures: Files) -> tuple[str | None, str]:
  """(the image of an annotation file or None, why there is none).

  Args:
    name: the image's, as the split has it.
    image_name: <filename> of the annotation file, which decides where several files differ in their ends, and is
      looked for where none has the name.
  """
  files, said = pictures.find(name), posixpath.basename((image_name or "").replace("\\", "/"))
  if not files and said:
    files = pictures.find(posixpath.join(posixpath.dirname(name), said))
  if len(files) > 1:
    said_ones = [file for file in files if _folded(posixpath.basename(file)) == _folded(said)]
    exact = [file for file in said_ones if posixpath.basename(file) == said]
    if len(exact or said_ones) != 1:
      names = ", ".join(posixpath.basename(file) for file in files)
      return None, f"several images of that name ({names}), and <filename> names none of them"
    return (exact or said_ones)[0], ""
  if files:
    return files[0], ""
  others = [posixpath.basename(file) for file in pictures.of_other_kinds.find(name)]
  return None, f"{others[0]} is of no type that is read" if others else "no image of that name (.jpg, .png, ...)"


def xml_files(root: pathlib.Path) -> Files:
  """The annotation files of a VOC folder."""
  return Files(root / ANNOTATIONS, lambda name: name.lower().endswith(".xml"))


def image_files(root: pathlib.Path) -> Files:
  """The images of a VOC folder."""
  return Files(root / IMAGES, images.is_image_name)


def _resolved(line: str, annotations: Files, pictures: Files) -> tuple[str, str | None]:
  """(name, file in Annotations/ or None) of one line."""
  candidates = [name for name in _candidates(line) if _is_inside(name)]
  for name in candidates:
    found = annotations.find(name)
    if found:
      return _stem(found[0]) if len(found) == 1 else name, found[0]
  pictured = (name for name in candidates if pictures.find(name))
  return _stem(next(pictured, candidates[-1])), None


def _candidates(line: str) -> Iterator[str]:
  """What a line may mean, the likeliest first: all of it, or without its second column; then without an end."""
  first, *last = line.rsplit(maxsplit=1)
  forms = [line]
  if last and last[0] in _FLAGS:
    forms.append(first)
  elif last and last[0].lower().endswith(".xml"):  # image and annotation file, as other readers want it
    forms.append(last[0])
  for form in forms:
    yield form
  for form in forms:
    path = posixpath.normpath(form.replace("\\", "/")) if ".." not in form else form
    for folder in (ANNOTATIONS, IMAGES):
      path = path.removeprefix(f"{folder}/")
    yield path
    if _stem(path) != path:
      yield _stem(path)


def _stem(name: str) -> str:
  """The name without the end of an image's or an annotation file's name; a dot within a name is none."""
  stem, end = posixpath.splitext(name)
  return stem if end.lower() in (*images.EXTENSIONS, ".xml") else name


def _is_inside(name: str) -> bool:
  """Whether a name stays within the folder that it is looked up in."""
  parts = name.replace("\\", "/").split("/")
  drive = len(parts[0]) == 2 and parts[0][1] == ":"
  return bool(parts[0]) and not drive and ".." not in parts and "\0" not in name


def _folded(name: str) -> str:
  return unicodedata.normalize("NFC", name).casefold()


def _listed(folder: str) -> tuple[list[str], list[str]]:
  """(files, folders) of a folder, sorted; pipes and devices, which may have no end, are neither."""
  files, folders = [], []
  try:
    with os.scandir(folder) as entries:
      for entry in entries:
        (files if entry.is_file() else folders if entry.is_dir() else []).append(entry.name)
  except (OSError, ValueError):  # no such folder, or one that may not be read
    pass
  return sorted(files), sorted(folders)


def _lines(path: pathlib.Path, annotations: Files) -> list[str]:
  """The lines of a list of names, without blank ones."""
  try:
    with open(path, "rb") as file:
      encoded = file.read(MAX_BYTES + 1)
  except OSError as error:
    raise DataError(f"{path}: {reason_of(error)}") from error
  if len(encoded) > MAX_BYTES:
    raise DataError(f"{path}: more than {MAX_BYTES:,} bytes: no list of names")
  encoding = encoding_of(encoded)
  try:
    return _split_lines(encoded.decode(encoding or "utf-8"))
  except ValueError as error:
    if encoding is not None:
      raise DataError(f"{path}: no text: cannot be decoded as {encoding}") from error
  readings = [_split_lines(os.fsdecode(encoded))]
  for encoding in _ENCODINGS:
    try:
      readings.append(_split_lines(encoded.decode(encoding)))
    except ValueError:
      continue
  known = lambda lines: sum(any(map(annotations.find, _candidates(line))) for line in lines[:1000])
  return max(readings, key=known)


def _split_lines(text: str) -> list[str]:
  # Not str.splitlines, which also splits at characters that may stand in names.
  lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
  return [line.strip() for line in lines if line.strip()]

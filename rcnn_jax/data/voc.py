"""Pascal VOC folders: Annotations/*.xml, JPEGImages/, ImageSets/Main/SPLIT.txt."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from xml.etree import ElementTree

import numpy as np

from rcnn_jax.data import images
from rcnn_jax.data.errors import DataError, Fault, raise_first
from rcnn_jax.data.source import Annotations, Category


@dataclasses.dataclass(frozen=True)
class VocFolder:
  """A data set in Pascal VOC's layout.

  `one_based=True` reads VOC's own convention, in which pixels count from 1 and the last one belongs to the box: a
  box becomes (xmin - 1, ymin - 1, xmax, ymax) in continuous pixels. Boxes whose xmax <= xmin or ymax <= ymin as
  written are degenerate in either convention. The classes are `class_names`, or else all names in Annotations/ (of
  every split, so that training and evaluation agree), sorted. The image id is the line in the split file, from 1.
  Objects marked difficult are ignored by the metrics; without `difficult` they are not read at all, as in the
  training of R-CNN to Faster R-CNN (Detectron2 trains on them).
  """

  root: str
  split: str = "trainval"
  one_based: bool = True
  class_names: tuple[str, ...] | None = None
  difficult: bool = True

  def open(self, strict: bool = True) -> VocSource:
    """Reads all annotations. Raises DataError for a missing folder or, when `strict`, for the first fatal fault."""
    root = pathlib.Path(self.root).expanduser()
    names = _split_names(root, self.split)
    files = sorted((root / "Annotations").glob("*.xml")) if self.class_names is None else []
    parsed = {path.stem: _parse(path) for path in files}
    parsed |= {name: _parse(root / "Annotations" / f"{name}.xml") for name in names if name not in parsed}
    known = self.class_names
    if known is None:
      known = tuple(sorted({item.name for record in parsed.values() for item in record.objects}))
    faults = _faults(root, names, parsed, known)
    if not names:
      faults.append(Fault(str(_split_file(root, self.split)), "names no image"))
    image_files = _image_files(root)
    if strict:
      raise_first(faults + _missing_images(root, names, image_files))
    paths = {name: image_files.get(name, root / "JPEGImages" / f"{name}.jpg") for name in names}
    usable = [(line, name) for line, name in enumerate(names, 1) if parsed[name].size]
    annotations = tuple(_annotations(line, paths[name].name, parsed[name], known, self) for line, name in usable)
    categories = tuple(Category(number, name) for number, name in enumerate(known, 1))
    return VocSource(categories, tuple(paths[name] for _, name in usable), annotations, tuple(faults))


@dataclasses.dataclass(frozen=True)
class VocSource:
  """An open VOC folder."""

  categories: tuple[Category, ...]
  paths: tuple[pathlib.Path, ...]
  records: tuple[Annotations, ...]
  faults: tuple[Fault, ...]
  keypoints: None = None

  def __len__(self) -> int:
    return len(self.records)

  def annotations(self, index: int, masks: bool = True) -> Annotations:
    """The objects of image `index`; VOC folders have no masks of objects here."""
    del masks
    return self.records[index]

  def image(self, index: int) -> np.ndarray:
    """u8[H, W, 3] RGB."""
    return images.read(self.paths[index])


@dataclasses.dataclass(frozen=True)
class _Object:
  number: int  # position in the file, from 1
  name: str
  corners: tuple[float, ...]  # xmin, ymin, xmax, ymax as written
  difficult: bool


@dataclasses.dataclass(frozen=True)
class _Record:
  """One annotation file; `size` is None where the file cannot be used."""

  size: tuple[int, int] | None
  objects: tuple[_Object, ...]
  faults: tuple[Fault, ...]


def _split_names(root: pathlib.Path, split: str) -> list[str]:
  for folder in (root, root / "Annotations", root / "JPEGImages"):
    if not folder.is_dir():
      raise DataError(f"{folder}: no such folder")
  path = _split_file(root, split)
  if not path.is_file():
    have = sorted(file.stem for file in path.parent.glob("*.txt"))
    raise DataError(f"{path}: no such split; the folder has {', '.join(have) or 'none'}")
  # A per-class split file has a second column (1, -1, 0): the name is the first word.
  return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def _split_file(root: pathlib.Path, split: str) -> pathlib.Path:
  return root / "ImageSets" / "Main" / f"{split}.txt"


def _image_files(root: pathlib.Path) -> dict[str, pathlib.Path]:
  files = sorted((root / "JPEGImages").iterdir(), key=lambda path: path.name)
  return {path.stem: path for path in files if path.suffix in images.EXTENSIONS}


def _missing_images(root: pathlib.Path, names: list[str], files: dict[str, pathlib.Path]) -> list[Fault]:
  missing = [name for name in names if name not in files]
  return [Fault(str(root / "JPEGImages" / name), "no image of that name (.jpg, .jpeg, .png)") for name in missing]


def _parse(path: pathlib.Path) -> _Record:
  try:
    root = ElementTree.parse(path).getroot()
  except FileNotFoundError:
    return _Record(None, (), (Fault(str(path), "no such annotation file"),))
  except ElementTree.ParseError as error:
    return _Record(None, (), (Fault(str(path), f"not readable as XML: {error}"),))
  try:
    size = int(root.findtext("size/height")), int(root.findtext("size/width"))
  except (TypeError, ValueError):
    size = (0, 0)
  if min(size) <= 0:
    return _Record(None, (), (Fault(str(path), "no <size> with a width and a height"),))
  objects, faults = [], []
  for number, node in enumerate(root.findall("object"), 1):
    try:
      corners = tuple(float(node.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
      difficult = bool(int(node.findtext("difficult") or 0))
    except (TypeError, ValueError):
      faults.append(Fault(str(path), "<bndbox> or <difficult> is missing or no number", f"object {number}"))
      continue
    name = (node.findtext("name") or "").strip()
    if not name:
      faults.append(Fault(str(path), "no <name>", f"object {number}"))
      continue
    objects.append(_Object(number, name, corners, difficult))
  return _Record(size, tuple(objects), tuple(faults))


def _faults(root, names, parsed, known) -> list[Fault]:
  faults = []
  for name, times in collections.Counter(names).items():
    if times > 1:
      faults.append(Fault(name, f"named {times} times by the split file"))
    faults.extend(parsed[name].faults)
    for item in parsed[name].objects:
      if item.name not in known:
        problem = f"class {item.name!r} is none of {', '.join(known)}"
        faults.append(Fault(str(root / "Annotations" / f"{name}.xml"), problem, f"object {item.number}"))
  return faults


def _annotations(line, file_name, record: _Record, known, folder: VocFolder) -> Annotations:
  objects = [item for item in record.objects if item.name in known and (folder.difficult or not item.difficult)]
  boxes = np.array([item.corners for item in objects], np.float32).reshape(-1, 4)
  if folder.one_based:
    # A box that is degenerate as written stays so: counting pixels would turn a stray click into a 1-pixel object.
    proper = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes[:, :2] -= proper[:, None].astype(np.float32)
  return Annotations(
    image_id=line,
    file_name=file_name,
    size=record.size,
    boxes=boxes,
    classes=np.array([known.index(item.name) + 1 for item in objects], np.int32),
    crowd=np.zeros(len(objects), bool),
    difficult=np.array([item.difficult for item in objects], bool),
    ids=np.array([item.number for item in objects], np.int64),
    areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
  )

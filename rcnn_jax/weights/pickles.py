"""PyTorch's and numpy's pickles of weights, read without PyTorch and without running what they ask for.

A pickle is a program that may call anything. Here it runs on a machine of our own (machine.py), and the only things
that it can name are those of `_ALLOWED`, none of which does more than note what it was called with; the tensors are
made from these notes, with bounds checked, when the pickle is done. Whatever else it names, it is refused by that
name before anything is called. The memory is bounded by a multiple of the file's size.
"""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rcnn_jax.weights.errors import WeightsError, listed, printable, shown
from rcnn_jax.weights.machine import CutShort, Fault, Machine, Stream, Value, checked_key

# The element types of PyTorch's storages; numpy has no bfloat16, whose bits are the upper half of a float32's.
STORAGES = {
  "DoubleStorage": "f8",
  "FloatStorage": "f4",
  "HalfStorage": "f2",
  "BFloat16Storage": "bfloat16",
  "LongStorage": "i8",
  "IntStorage": "i4",
  "ShortStorage": "i2",
  "CharStorage": "i1",
  "ByteStorage": "u1",
  "BoolStorage": "?",
}
# The weights stand beside other things in files of torchvision and Detectron2, Lightning, timm and Caffe2.
WRAPPERS = ("model", "state_dict", "state_dict_ema", "blobs")
# numpy's codes of the types of elements that weights may have.
NUMBERS = re.compile("[<>]?([fiu][1248]|b1)")
MOST_ELEMENTS = 1 << 48  # of an array, empty ones too: numpy counts their bytes in 63 bits
# What torch.save wrote before version 1.6 begins with this number and that of its protocol.
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Storage(NamedTuple):
  """Where a tensor's elements lie: `count` of them, under `key`."""

  dtype: str
  key: str
  count: int


class Tensor(NamedTuple):
  """A view of a storage, in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


Raw = Callable[[Storage], bytes]  # gives the bytes of a storage, at least as many as its elements take

# ------------------------------------------------------------------------------------------------------- the files


def read(path: str) -> dict[str, np.ndarray]:
  """The tensors by name that torch.save wrote (in either of its formats), or those of a plain pickle of arrays.

  They may stand in a dict of their own beside other plain values (WRAPPERS). bfloat16 becomes float32.

  Raises:
    WeightsError: a damaged file, a name that is not allowed, a tensor that reaches beyond its storage, something
      else than tensors among them, tensors that take far more bytes than the file.
  """
  with open(path, "rb") as file:
    try:
      if file.read(4) == b"PK\x03\x04":  # a zip archive, as torch.save has written since version 1.6
        with zipfile.ZipFile(file) as archive:
          return _read_archive(file, archive)
      file.seek(0)
      return _read_stream(file)
    except WeightsError as error:
      raise WeightsError(f"{path}: {printable(str(error))}") from error
    except Exception as error:  # a damaged file may fail in any way, and nothing in it is ever called
      cause = printable(f"{type(error).__name__}: {error}", 200)
      raise WeightsError(f"{path}: truncated or damaged ({cause})") from error


def _read_archive(file: BinaryIO, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
  names, most = set(archive.namelist()), _most_bytes(file)
  program = next((name for name in sorted(names) if name.count("/") == 1 and name.endswith("/data.pkl")), None)
  if program is None or program.replace("data.pkl", "constants.pkl") in names:
    raise WeightsError("an archive, but not of weights that torch.save wrote")
  folder = program.removesuffix("data.pkl")

  def record(name: str, size: int | None = None) -> bytes:
    if name not in names or (size is not None and archive.getinfo(name).file_size != size):
      raise WeightsError(f"truncated or damaged (no record {name!r} of {size} bytes)")
    if archive.getinfo(name).file_size > most:
      raise WeightsError(f"its record {name!r} claims {archive.getinfo(name).file_size:,} bytes, of a file of fewer")
    return archive.read(name)

  def raw(storage: Storage) -> bytes:
    return record(f"{folder}data/{storage.key}", storage.count * _item_size(storage.dtype))

  big_endian = f"{folder}byteorder" in names and record(f"{folder}byteorder") == b"big"
  tree, _ = _load(io.BytesIO(record(program)))
  return _arrays(tree, raw, ">" if big_endian else "<", most)


def _read_stream(file: BinaryIO) -> dict[str, np.ndarray]:
  """A plain pickle, or torch.save's former format: five pickles one after the other, then the storages."""
  first, _ = _load(file)
  if first != LEGACY_MAGIC:
    return _arrays(first, _storages({}), "<", _most_bytes(file))
  (protocol, _), (system, _), (tree, used), (keys, _) = (_load(file) for _ in range(4))
  if protocol != LEGACY_PROTOCOL or not isinstance(system, dict) or not isinstance(keys, list):
    raise WeightsError(f"not a file that torch.save wrote (protocol {shown(protocol)})")
  if not all(isinstance(key, str) for key in keys):
    raise WeightsError("truncated or damaged (the names of its storages)")
  order = "<" if system.get("little_endian", True) else ">"
  length, contents = os.fstat(file.fileno()).st_size, {}
  for key in keys:
    count = int.from_bytes(file.read(8), "little" if order == "<" else "big")
    size = count * _item_size(used[key].dtype) if key in used else length
    if size > length - file.tell():
      raise WeightsError(f"truncated or damaged (storage {shown(key)} is cut short)")
    contents[key] = file.read(size)
  return _arrays(tree, _storages(contents), order, _most_bytes(file))


def _storages(contents: dict[str, bytes]) -> Raw:
  def raw(storage: Storage) -> bytes:
    if len(contents.get(storage.key, b"")) < storage.count * _item_size(storage.dtype):
      raise WeightsError(f"truncated or damaged (storage {shown(storage.key)} is missing or cut short)")
    return contents[storage.key]

  return raw


def _most_bytes(file: BinaryIO) -> int:
  """How many bytes the tensors of a file may take: records may be compressed, storages shared, bfloat16 doubled."""
  return 8 * os.fstat(file.fileno()).st_size + (1 << 26)


# ------------------------------------------------------------------------------------------- from notes to arrays


def _arrays(tree: Any, raw: Raw, order: str, most: int) -> dict[str, np.ndarray]:
  """The arrays of the dict of tensors that `tree` is or holds; of the rest nothing is even looked at.

  Raises WeightsError where they take more than `most` bytes.
  """
  wrapper = next((key for key in WRAPPERS if isinstance(tree, dict) and isinstance(tree.get(key), dict)), None)
  notes = tree[wrapper] if wrapper else tree
  if not isinstance(notes, dict) or not notes:
    raise WeightsError("holds no tensors by name")
  named = {name: note for name, note in notes.items() if isinstance(name, str) and isinstance(note, (Tensor, _Array))}
  others = [f"{shown(name)} ({type(note).__name__})" for name, note in notes.items() if name not in named]
  if others:
    raise WeightsError(f"not only tensors: {listed(others)}")
  total, storages = 0, {}
  for name, note in named.items():
    total += note.num_bytes() if isinstance(note, _Array) else _num_bytes(name, note)
    if isinstance(note, Tensor):
      storages.setdefault(note.storage, []).append(name)
  if max(total, sum(storage.count * _item_size(storage.dtype) for storage in storages)) > most:
    raise WeightsError(f"its tensors take more than {most:,} bytes, many times as many as the file")
  # Storage after storage, since several tensors can be parts of one; a storage is let go of before the next is read.
  made = {name: note.array(name) for name, note in named.items() if isinstance(note, _Array)}
  for storage, parts in storages.items():
    elements = _elements(raw(storage), storage.dtype, order)
    made |= {name: _tensor(elements, named[name]) for name in parts}
  return {name: made[name] for name in named}


def _num_bytes(name: str, tensor: Tensor) -> int:
  """What a tensor takes; raises WeightsError where its numbers are none, or it reaches beyond its storage."""
  storage, offset, shape, strides = tensor
  if not (_counts((offset, storage.count, *strides)) and _is_shape(shape)) or len(shape) != len(strides):
    sizes, steps = (", ".join(map(shown, numbers[:8])) for numbers in (shape, strides))
    raise WeightsError(f"{name}: a tensor of shape ({sizes}) and strides ({steps})")
  end = offset + sum((side - 1) * stride for side, stride in zip(shape, strides)) + 1
  count = math.prod(shape)
  if count > storage.count or (count and end > storage.count):
    raise WeightsError(f"{name}: the tensor reaches beyond its storage of {storage.count} elements")
  return count * (4 if storage.dtype == "bfloat16" else _item_size(storage.dtype))


def _counts(numbers: Any) -> bool:
  """Whether these are numbers that counts of elements can be."""
  return all(type(number) is int and 0 <= number < MOST_ELEMENTS for number in numbers)


def _is_shape(sides: Any) -> bool:
  """Whether numpy can make an array of these sides, be it an empty one."""
  if not isinstance(sides, tuple) or len(sides) > 32 or not _counts(sides):
    return False
  return math.prod(side or 1 for side in sides) < MOST_ELEMENTS


def _tensor(elements: np.ndarray, tensor: Tensor) -> np.ndarray:
  """The part of a storage that a tensor is."""
  _, offset, shape, strides = tensor
  if not math.prod(shape):
    return np.zeros(shape, elements.dtype)
  steps = [stride * elements.itemsize if side > 1 else 0 for side, stride in zip(shape, strides)]
  return np.lib.stride_tricks.as_strided(elements[offset:], shape, steps).copy()


def _elements(raw: bytes, dtype: str, order: str) -> np.ndarray:
  if dtype == "bfloat16":
    return (np.frombuffer(raw, f"{order}u2").astype(np.uint32) << 16).view(np.float32)
  return np.frombuffer(raw, np.dtype(dtype).newbyteorder(order)).astype(dtype, copy=False)


def _item_size(dtype: str) -> int:
  return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


# ------------------------------------------------------------------------------------- what a pickle may name


class _Function(Value):
  """A function of arguments that are noted, and that a pickle cannot change."""

  __slots__ = ("function",)

  def __init__(self, function: Callable):
    self.function = function

  def call(self, arguments: tuple) -> Any:
    try:
      return self.function(*arguments)
    except TypeError as error:
      raise Fault(f"arguments that do not fit: {error}") from error

  def build(self, state: Any) -> None:
    raise Fault("a pickle must not set the state of a function")


class _Dict(dict, Value):
  """An OrderedDict or a Counter; attributes that are set on it (a state dict's `_metadata`) are dropped."""

  __slots__ = ()

  def build(self, state: Any) -> None:
    """Takes the attributes, and forgets them."""


class _Dtype(Value):
  """A numpy.dtype."""

  __slots__ = ("code",)

  def __init__(self, code: str, *flags: Any):
    if not isinstance(code, str):
      raise Fault("a numpy.dtype without a code")
    self.code = code

  def build(self, state: Any) -> None:
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
    if order in (">", "<") and not self.code.startswith((">", "<")):
      self.code = order + self.code


class _Array(Value):
  """A numpy.ndarray."""

  __slots__ = ("shape", "dtype", "order", "raw")

  def __init__(self, *ignored: Any):
    self.shape = self.dtype = self.order = self.raw = None

  def build(self, state: Any) -> None:
    if not isinstance(state, tuple) or len(state) != 5:
      raise Fault("the state of an array that is none")
    _, self.shape, self.dtype, fortran, self.raw = state
    self.order = "F" if fortran is True or fortran == 1 else "C"

  def num_bytes(self) -> int:
    return len(self.raw) if isinstance(self.raw, (str, bytes)) else 0

  def array(self, name: str) -> np.ndarray:
    """The array itself; raises WeightsError unless it is one of numbers and its bytes fill its shape."""
    code = self.dtype.code if isinstance(self.dtype, _Dtype) else None
    if not (isinstance(code, str) and NUMBERS.fullmatch(code) and isinstance(self.raw, (str, bytes))):
      raise WeightsError(f"{name}: not an array of numbers (its elements are {shown(code)})")
    raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
    if not _is_shape(self.shape) or math.prod(self.shape) * np.dtype(code).itemsize != len(raw):
      sides = ", ".join(map(shown, self.shape[:8])) if isinstance(self.shape, tuple) else shown(self.shape)
      raise WeightsError(f"{name}: a damaged array, of shape ({sides}) and {len(raw)} bytes")
    array = np.frombuffer(raw, code).reshape(self.shape, order=self.order)
    return array.astype(array.dtype.newbyteorder("="))


def _dict_of(*pairs: Any) -> _Dict:
  """An empty OrderedDict, or one of a list of pairs."""
  items = pairs[0] if pairs else []
  if len(pairs) > 1 or not isinstance(items, (list, dict)):
    raise Fault("a dict of what is no list of pairs")
  items = list(items.items()) if isinstance(items, dict) else items
  if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in items):
    raise Fault("a dict of what is no list of pairs")
  return _Dict((checked_key(key), value) for key, value in items)


def _from_parts(shape: tuple, dtype: _Dtype, raw: Any, order: str = "C") -> _Array:
  array = _Array()
  array.build((1, shape, dtype, order == "F", raw))
  return array


def _encoded(text: str, encoding: str) -> bytes:
  """Bytes, as the older protocols write them."""
  if encoding != "latin1" or not isinstance(text, str):
    raise Fault(f"bytes encoded as {shown(encoding)}")
  return text.encode("latin1")


def _rebuilt(storage: Storage, offset: int, shape: tuple, strides: tuple, *ignored: Any) -> Tensor:
  if not (isinstance(storage, Storage) and isinstance(shape, (tuple, list)) and isinstance(strides, (tuple, list))):
    raise Fault("a tensor without a storage, a shape or strides")
  return Tensor(storage, offset, tuple(shape), tuple(strides))


def _listed(items: Any, *ignored: Any) -> list:
  """A set, the sides of a tensor or a device, of which nothing is asked."""
  return items if isinstance(items, list) else [items]


def _tensor_of(tensor: Any, *ignored: Any) -> Any:
  return tensor


def _allowed() -> dict[tuple[str, str], Any]:
  allowed = {
    ("collections", "OrderedDict"): _Function(_dict_of),
    ("collections", "Counter"): _Function(_dict_of),  # in the state of learning-rate schedules
    ("argparse", "Namespace"): _Function(
      lambda: _Dict()
    ),  # the options, in the checkpoints of torchvision's own training
    ("torch", "Size"): _Function(_listed),
    ("torch", "device"): _Function(_listed),
    ("torch._utils", "_rebuild_tensor"): _Function(_rebuilt),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuilt),
    ("torch._utils", "_rebuild_parameter"): _Function(_tensor_of),
    ("numpy", "ndarray"): _Function(_Array),
    ("numpy", "dtype"): _Function(_Dtype),
    ("_codecs", "encode"): _Function(_encoded),
  }
  for builtins in ("builtins", "__builtin__"):
    allowed[builtins, "bytes"] = _Function(lambda: b"")  # which is how older protocols write none
    allowed |= {(builtins, kind): _Function(_listed) for kind in ("set", "frozenset")}
  for core in ("numpy.core", "numpy._core"):
    allowed[f"{core}.multiarray", "_reconstruct"] = _Function(_Array)
    allowed[f"{core}.multiarray", "scalar"] = _Function(lambda dtype, raw: _from_parts((), dtype, raw))
    allowed[f"{core}.numeric", "_frombuffer"] = _Function(
      lambda raw, dtype, shape, order: _from_parts(shape, dtype, raw, order)
    )
  return allowed | {("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()}


class _StorageType(str):
  """Stands for torch.FloatStorage and its like: the name of the elements' type."""

  __slots__ = ()


_ALLOWED = _allowed()


def _load(file: BinaryIO) -> tuple[Any, dict[str, Storage]]:
  """The next pickle of a file, and the storages that it refers to, by key.

  Raises WeightsError for what is not allowed, cut short or no pickle.
  """
  storages: dict[str, Storage] = {}

  def storage(reference: Any) -> Storage:
    known = isinstance(reference, tuple) and len(reference) > 4
    kind, dtype, key, _, count, *views = reference if known else [None] * 5
    if kind != "storage" or not isinstance(dtype, _StorageType) or not isinstance(key, str) or any(views):
      raise Fault("it refers to something outside of it that is no storage")
    return storages.setdefault(key, Storage(str(dtype), key, count))

  begin = file.tell()
  length = file.seek(0, os.SEEK_END)
  file.seek(begin)
  try:
    return Machine(Stream(file, length), _ALLOWED, storage).run(), storages
  except CutShort as error:
    raise WeightsError(f"truncated or damaged ({error})") from error
  except ValueError as error:
    raise WeightsError(f"refused: {error}") from error

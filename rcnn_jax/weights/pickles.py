"""PyTorch's and numpy's pickles of weights, read without PyTorch and without running what they ask for.

A pickle is a program that may call anything. Here the only things that it can name are those of `_ALLOWED`, none of
which does more than note what it was called with; the tensors are made from these notes, with bounds checked,
when the pickle is done. Whatever else it names, it is refused by that name before anything is called.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rcnn_jax.weights.errors import WeightsError, listed

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
      else than tensors among them.
  """
  with open(path, "rb") as file:
    if file.read(4) != b"PK\x03\x04":  # a zip archive, as torch.save has written since version 1.6
      file.seek(0)
      return _read_stream(path, file)
  try:
    with zipfile.ZipFile(path) as archive:
      return _read_archive(path, archive)
  except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # encrypted: a RuntimeError
    raise WeightsError(f"{path}: truncated or damaged ({error})") from error


def _read_archive(path: str, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
  names = set(archive.namelist())
  program = next((name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")), None)
  if program is None or program.replace("data.pkl", "constants.pkl") in names:
    raise WeightsError(f"{path}: an archive, but not of weights that torch.save wrote")
  folder = program.removesuffix("data.pkl")
  big_endian = f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") == b"big"

  def raw(storage: Storage) -> bytes:
    name = f"{folder}data/{storage.key}"
    expected = storage.count * _item_size(storage.dtype)
    if name not in names or archive.getinfo(name).file_size != expected:
      raise WeightsError(f"{path}: truncated or damaged (no record {name} of {expected} bytes)")
    return archive.read(name)

  tree, _ = _load(path, io.BytesIO(archive.read(program)))
  return _arrays(path, tree, raw, ">" if big_endian else "<")


def _read_stream(path: str, file: BinaryIO) -> dict[str, np.ndarray]:
  """A plain pickle, or torch.save's former format: five pickles one after the other, then the storages."""
  first, _ = _load(path, file)
  if first != LEGACY_MAGIC:
    return _arrays(path, first, _storages(path, {}), "<")
  (protocol, _), (system, _), (tree, used), (keys, _) = (_load(path, file) for _ in range(4))
  if protocol != LEGACY_PROTOCOL or not isinstance(system, dict) or not isinstance(keys, list):
    raise WeightsError(f"{path}: not a file that torch.save wrote (protocol {protocol!r})")
  if not all(isinstance(key, str) for key in keys):
    raise WeightsError(f"{path}: truncated or damaged (the names of its storages)")
  order = "<" if system.get("little_endian", True) else ">"
  length, contents = os.fstat(file.fileno()).st_size, {}
  for key in keys:
    count = int.from_bytes(file.read(8), "little" if order == "<" else "big")
    size = count * _item_size(used[key].dtype) if key in used else length
    if size > length - file.tell():
      raise WeightsError(f"{path}: truncated or damaged (storage {key} is cut short)")
    contents[key] = file.read(size)
  return _arrays(path, tree, _storages(path, contents), order)


def _storages(path: str, contents: dict[str, bytes]) -> Raw:
  def raw(storage: Storage) -> bytes:
    if len(contents.get(storage.key, b"")) < storage.count * _item_size(storage.dtype):
      raise WeightsError(f"{path}: truncated or damaged (storage {storage.key} is missing or cut short)")
    return contents[storage.key]

  return raw


# ------------------------------------------------------------------------------------------- from notes to arrays


def _arrays(path: str, tree: Any, raw: Raw, order: str) -> dict[str, np.ndarray]:
  """The arrays of the dict of tensors that `tree` is or holds; of the rest nothing is even looked at."""
  wrapper = next((key for key in WRAPPERS if isinstance(tree, dict) and isinstance(tree.get(key), dict)), None)
  notes = tree[wrapper] if wrapper else tree
  if not isinstance(notes, dict) or not notes:
    raise WeightsError(f"{path}: holds no tensors by name")
  named = {name: note for name, note in notes.items() if isinstance(name, str) and isinstance(note, (Tensor, _Array))}
  others = [f"{name!r} ({type(note).__name__})" for name, note in notes.items() if name not in named]
  if others:
    raise WeightsError(f"{path}: not only tensors: {listed(others)}")
  made = lambda name, note: (
    _tensor(path, name, note, raw, order) if isinstance(note, Tensor) else note.array(path, name)
  )
  return {name: made(name, note) for name, note in named.items()}


def _tensor(path: str, name: str, tensor: Tensor, raw: Raw, order: str) -> np.ndarray:
  storage, offset, shape, strides = tensor
  numbers = (offset, storage.count, *shape, *strides)
  counts = all(type(number) is int and number >= 0 for number in numbers)
  if not counts or len(shape) != len(strides) or len(shape) > 32:
    raise WeightsError(f"{path}: {name}: a tensor of shape {shape} and strides {strides}")
  end = offset + sum((side - 1) * stride for side, stride in zip(shape, strides)) + 1
  count = math.prod(shape)
  if count > storage.count or (count and end > storage.count):
    raise WeightsError(f"{path}: {name}: the tensor reaches beyond its storage of {storage.count} elements")
  elements = _elements(raw(storage), storage.dtype, order)
  steps = [stride * elements.itemsize for stride in strides]
  return np.lib.stride_tricks.as_strided(elements[offset:], shape, steps).copy()


def _elements(raw: bytes, dtype: str, order: str) -> np.ndarray:
  if dtype == "bfloat16":
    return (np.frombuffer(raw, f"{order}u2").astype(np.uint32) << 16).view(np.float32)
  return np.frombuffer(raw, np.dtype(dtype).newbyteorder(order)).astype(dtype, copy=False)


def _item_size(dtype: str) -> int:
  return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


# ------------------------------------------------------------------------------------- what a pickle may name


class _Dict(dict):
  """Stands for OrderedDict and Counter; attributes that were set on it (a state dict's `_metadata`) are dropped."""

  __slots__ = ()

  def __setstate__(self, state: Any) -> None:
    """Takes the attributes, and forgets them."""


class _Function:
  """A function that a pickle can call and not change."""

  __slots__ = ("function",)

  def __init__(self, function: Callable):
    self.function = function

  def __call__(self, *arguments: Any) -> Any:
    return self.function(*arguments)

  def __setstate__(self, state: Any) -> None:
    raise pickle.UnpicklingError("a pickle must not set the state of a function")


class _Dtype:
  """Stands for numpy.dtype."""

  __slots__ = ("code",)

  def __init__(self, code: str, *flags: Any):
    self.code = code

  def __setstate__(self, state: tuple) -> None:
    self.code = {">": ">", "<": "<"}.get(state[1], "") + self.code


class _Array:
  """Stands for numpy.ndarray."""

  __slots__ = ("shape", "dtype", "order", "raw")

  def __init__(self, *ignored: Any):
    self.shape = self.dtype = self.raw = None

  def __setstate__(self, state: tuple) -> None:
    _, self.shape, self.dtype, fortran, self.raw = state
    self.order = "F" if fortran else "C"

  def array(self, path: str, name: str) -> np.ndarray:
    """The array itself; raises WeightsError unless it is one of numbers and its bytes fill its shape."""
    code = self.dtype.code if isinstance(self.dtype, _Dtype) else None
    if not (isinstance(code, str) and NUMBERS.fullmatch(code) and isinstance(self.raw, (str, bytes, bytearray))):
      raise WeightsError(f"{path}: {name}: not an array of numbers (its elements are {code!r})")
    try:
      raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
      array = np.frombuffer(raw, code).reshape(self.shape, order=self.order)
    except (TypeError, ValueError) as error:
      raise WeightsError(f"{path}: {name}: a damaged array ({error})") from error
    return array.astype(array.dtype.newbyteorder("="))


def _from_parts(shape: tuple, dtype: _Dtype, raw: bytes, order: str = "C") -> _Array:
  array = _Array()
  array.__setstate__((1, shape, dtype, order == "F", raw))
  return array


def _encoded(text: str, encoding: str) -> bytes:
  """Bytes, as the older protocols write them."""
  if encoding != "latin1":
    raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
  return text.encode("latin1")


def _rebuilt(storage: Storage, offset: int, shape: tuple, strides: tuple, *ignored: Any) -> Tensor:
  if not isinstance(storage, Storage):
    raise pickle.UnpicklingError("a tensor without a storage")
  return Tensor(storage, offset, tuple(shape), tuple(strides))


def _allowed() -> dict[tuple[str, str], Any]:
  allowed = {
    ("collections", "OrderedDict"): _Dict,
    ("collections", "Counter"): _Dict,  # in the state of learning-rate schedules
    ("torch._utils", "_rebuild_tensor"): _Function(_rebuilt),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuilt),
    ("torch._utils", "_rebuild_parameter"): _Function(lambda tensor, *ignored: tensor),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Function(_encoded),
  }
  for core in ("numpy.core", "numpy._core"):
    allowed[f"{core}.multiarray", "_reconstruct"] = _Function(_Array)
    allowed[f"{core}.multiarray", "scalar"] = _Function(lambda dtype, raw: _from_parts((), dtype, raw))
    allowed[f"{core}.numeric", "_frombuffer"] = _Function(
      lambda raw, dtype, shape, order: _from_parts(shape, dtype, bytes(raw), order)
    )
  return allowed | {("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()}


class _StorageType(str):
  """Stands for torch.FloatStorage and its like: the name of the elements' type."""

  __slots__ = ()


_ALLOWED = _allowed()


class _Unpickler(pickle.Unpickler):
  """Knows no name but those of `_ALLOWED`; notes the storages that the pickle refers to."""

  def __init__(self, file: BinaryIO):
    super().__init__(file, encoding="latin1")
    self.storages: dict[str, Storage] = {}

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither a tensor nor a plain container")
    return _ALLOWED[module, name]

  def persistent_load(self, pid: Any) -> Storage:
    kind, dtype, key, _, count, *views = pid
    if kind != "storage" or not isinstance(dtype, _StorageType) or not isinstance(key, str) or any(views):
      raise pickle.UnpicklingError(f"it refers to {pid!r}, which is no storage")
    return self.storages.setdefault(key, Storage(str(dtype), key, count))


def _load(path: str, file: BinaryIO) -> tuple[Any, dict[str, Storage]]:
  """The next pickle of a file, and the storages that it refers to, by key.

  Raises WeightsError for what is not allowed, cut short or no pickle.
  """
  unpickler = _Unpickler(file)
  try:
    return unpickler.load(), unpickler.storages
  except EOFError as error:
    raise WeightsError(f"{path}: truncated or damaged (it ends in the middle of a pickle)") from error
  except Exception as error:  # a damaged pickle may fail in any way; nothing that it can call is to blame
    raise WeightsError(f"{path}: refused: {error or type(error).__name__}") from error

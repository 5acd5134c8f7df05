"""What fuzzing calls: the readers of weights on any bytes. Nothing but a WeightsError may come of them.

target = fuzz_targets_weights.TARGETS["pth"]
for seed in fuzz_targets_weights.seeds("pth"):
  target(fuzz_targets_weights.mutate(seed, random.Random(0)))
"""

from __future__ import annotations

import collections
import functools
import io
import pathlib
import pickle
import random
import struct
import tempfile

import numpy as np
from safetensors.numpy import save

from rcnn_jax.weights import files
from rcnn_jax.weights.errors import WeightsError

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
SPARE = 1 << 27  # bytes that the arrays of a small file may take all the same

# Instructions of pickles, numbers at their limits, and names: what mutations insert.
PIECES = [bytes([code]) for code in (*b".(0129ABCFGIJKLMNPQRSTUVX)]}abcdeghijlopqrstu", *range(0x80, 0x99))]
PIECES += [struct.pack("<I", number) for number in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)]
PIECES += [struct.pack("<Q", number) for number in (0, 2**31, 2**62, 2**63, 2**64 - 1)]
PIECES += [b"\x00" * 8, b"\xff" * 8, b"(" * 50, b"\x85" * 200, b"2\x86" * 60]
PIECES += [b"ccollections\nOrderedDict\n", b"cos\nsystem\n", b"cnumpy\ndtype\n"]
PIECES += [b"cnumpy.core.multiarray\n_reconstruct\n", b"ctorch._utils\n_rebuild_tensor_v2\n"]
PIECES += [b"ctorch\nFloatStorage\n"]
PIECES += [b'"dtype":"BF16"', b'"shape":[-1]', b'"shape":[18446744073709551615,2]', b'"data_offsets":[0,0]']
PIECES += [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"]


def _target(suffix: str, data: bytes) -> None:
  """Reads the bytes as a file with this suffix; what is read has to be arrays, and no more than the file can hold."""
  with tempfile.NamedTemporaryFile(suffix=suffix) as file:
    file.write(data)
    file.flush()
    try:
      tensors = files.read(file.name)
    except WeightsError as error:
      message = str(error)
      assert message.startswith(file.name) and message.isprintable() and len(message) < 1500, message
      return
  assert all(isinstance(name, str) and isinstance(tensor, np.ndarray) for name, tensor in tensors.items())
  assert all(tensor.dtype.kind in "fiub" for tensor in tensors.values())
  assert sum(tensor.nbytes for tensor in tensors.values()) <= 16 * len(data) + SPARE


TARGETS = {kind: functools.partial(_target, f".{kind}") for kind in ("pth", "pkl", "safetensors")}


def seeds(kind: str) -> list[bytes]:
  """Sound files of a format, small ones."""
  rng = np.random.default_rng(0)
  arrays = {"conv.weight": rng.normal(size=(2, 1, 3, 3)).astype(np.float32), "steps": np.array(7)}
  if kind == "safetensors":
    return [save(arrays), save({}), save({"half": np.zeros((2, 0), np.float16), "flags": np.ones(3, bool)})]
  if kind == "pth":
    return [(FIXTURES / name).read_bytes() for name in ("torch_zip.pth", "torch_legacy.pth", "torch_module.pt")]
  ordered = collections.OrderedDict(arrays | {"scalar": np.float32(0.5)})
  others = {"fortran": np.asfortranarray(np.eye(2)), "big_endian": np.arange(3, dtype=">f4")}
  trees = {"model": arrays, "iteration": 3}, ordered, others
  return [pickle.dumps(tree, protocol) for tree in trees for protocol in range(6)]


def mutate(data: bytes, rng: random.Random) -> bytes:
  """The bytes with a few of them changed, left out, doubled or cut, and pieces of the formats put in."""
  changed = io.BytesIO(data).getvalue()
  for _ in range(rng.randint(1, 6)):
    at, until = sorted(rng.randrange(len(changed) + 1) for _ in range(2))
    until = min(until, at + rng.choice((1, 4, 16, 10**6)))
    middle = changed[at:until]
    kind = rng.randrange(6)
    if kind == 0:
      middle = rng.randbytes(len(middle) or 1)
    elif kind == 1:
      middle = b""
    elif kind == 2:
      middle = middle * rng.randint(2, 5)
    elif kind == 3:
      middle = rng.choice(PIECES) + middle
    elif kind == 4:
      middle = rng.choice(PIECES)
    else:
      changed, middle = changed[:until], middle
    changed = (changed[:at] + middle + changed[until:])[: 1 << 20]
  return changed

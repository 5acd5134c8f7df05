"""Hostile files of weights: each ends in one line, in no time and little memory, and never in a crash."""

from __future__ import annotations

import json
import pickle
import random
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rcnn_jax.weights import files, machine, pickles
from rcnn_jax.weights.errors import WeightsError
from tests import fuzz_targets_weights as fuzz

STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%stQ"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87"


def tensor(shape, strides, offset=0, count=24) -> bytes:
  """The instructions that make a view of a storage."""
  parts = [pickle.dumps(part, 2)[2:-1].replace(b"q\x00", b"") for part in (offset, shape, strides, False, None)]
  storage = STORAGE % pickle.dumps(count, 2)[2:-1]
  return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"".join(parts) + b"tR"


def named(value: bytes, name: bytes = b"w") -> bytes:
  """The pickle of {name: what these instructions make}."""
  return b"\x80\x02}X" + struct.pack("<I", len(name)) + name + value + b"s."


def archive(path, program: bytes, records: dict, compression=zipfile.ZIP_STORED) -> None:
  with zipfile.ZipFile(path, "w", compression) as file:
    for name, content in {"data.pkl": program, **records}.items():
      file.writestr(f"weights/{name}", content)


UINT8 = b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R"
FOUR_BYTES = RECONSTRUCT + b"R(K\x01%s" + UINT8 + b"\x89C\x04abcdtb"  # an array of the shape that is put in

# What it is: the pickle, and what is said of it. In Python's own unpickler the first is a crash, the second and those
# of 60 levels and 100,000 times take for ever, and the lengths are allocated as claimed.
PICKLES = {
  "a key of 300,000 nested tuples": (b"}" + b")" + b"\x85" * 300_000 + b"Ns.", "a key that is"),
  "a key whose hash takes 2**60 steps": (b"}N" + b"2\x86" * 60 + b"Ns.", "a key that is"),
  "a place in the memory for 34 GB": (b"]r\xff\xff\xff\x7f.", "holds no tensors"),
  "bytes that nothing follows": (b"B\xff\xff\xff\x7f.", "in the middle of a pickle"),
  "a bytearray of 2**40": (b"\x96" + struct.pack("<Q", 2**40) + b".", "in the middle of a pickle"),
  "an array of bytes(2**33)": (
    named(
      b"cnumpy.core.numeric\n_frombuffer\n(\x8a\x05\x00\x00\x00\x00\x02" + UINT8 + b"K\x01\x85X\x01\x00\x00\x00CtR"
    ),
    "not an array of numbers",
  ),
  "an array without a state": (named(RECONSTRUCT + b"R"), "w: not an array of numbers"),
  "an array of -1 rows": (named(FOUR_BYTES % b"J\xff\xff\xff\xff\x85"), "damaged array"),
  "a list with itself twice, 60 times, that is shown": (b"]" + b"2a" * 3 + b"2\x86" * 60 + b".", "holds no tensors"),
  "the protocol is such a list": (
    pickle.dumps(pickles.LEGACY_MAGIC, 2) + b"]" + b"2\x86" * 60 + b"." + b"}." + b"}." + b"].",
    "protocol a tuple",
  ),
  "an integer of 2 GB": (b"\x8b\xff\xff\xff\x7f.", "an integer of"),
  "the same pairs, 100,000 times": (
    b"(" + b"K\x01K\x02\x86" * 10_000 + b"l\x85q\x00" + b"ccollections\nOrderedDict\nh\x00R" * 100_000 + b".",
    "the same arguments over and over",
  ),
  "pairs whose keys are nested tuples": (
    b"ccollections\nOrderedDict\n](]" + b")" + b"\x85" * 300_000 + b"aNae" + b"\x85R.",
    "a key that is|no list of pairs",
  ),
  "options made of such pairs": (
    b"cargparse\nNamespace\n](]" + b")" + b"\x85" * 300_000 + b"aNae" + b"\x85R.",
    "arguments that do not fit",
  ),
  "strides beyond 64 bits": (named(tensor((1,), (2**70,))), "w: a tensor of shape"),
  "an empty tensor of 2**94 rows": (named(tensor((0, 2**47, 2**47), (1, 1, 1))), "w: a tensor of shape"),
  "a shape of words": (named(tensor(("a",), (1,))), "w: a tensor of shape"),
  "negative strides": (named(tensor((2,), (-1,))), "w: a tensor of shape"),
  "a storage of -1 elements": (named(tensor((0,), (1,), count=-1)), "w: a tensor of shape"),
  "a name of two lines": (named(FOUR_BYTES % b"K\x04\x85", b"a\nb"), r"'a\\nb'"),
  "a name of 5,000 letters": (named(b"N", b"x" * 5000), "not only tensors: 'xxx"),
  "text for a state": (named(RECONSTRUCT + b"RX\x01\x00\x00\x00xb"), "the state of an array that is none"),
  "values that it has not made": (b"\x80\x02aaa.", "refused"),
  "a class of Python's": (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "names os.system"),
  "an instruction that makes objects": (b"(ios\nsystem\n.", "an instruction b'i'"),
  "a registered extension": (b"\x82\x01.", "an instruction"),
}


def refused(path, message) -> None:
  with pytest.raises(WeightsError, match=message) as caught:
    files.read(str(path))
  assert str(path) in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("program, message", PICKLES.values(), ids=PICKLES)
@pytest.mark.parametrize("container", ["pkl", "pth"])
def test_a_hostile_pickle_is_refused(tmp_path, container, program, message):
  path = tmp_path / f"weights.{container}"
  if container == "pkl":
    path.write_bytes(program)
  else:
    archive(path, program, {"data/0": b"\x00" * 96})
    message = message if "protocol" not in message else "holds no tensors"
  refused(path, message)


def test_an_archive_cannot_claim_more_than_its_bytes_can_hold(tmp_path):
  zeros = b"\x00" * (200 << 20)
  bomb = tmp_path / "bomb.pth"
  archive(bomb, named(tensor((1,), (1,), count=len(zeros) // 4)), {"data/0": zeros}, zipfile.ZIP_DEFLATED)
  assert bomb.stat().st_size < 1 << 20
  refused(bomb, "its tensors take more than")
  archive(bomb, zeros, {}, zipfile.ZIP_DEFLATED)
  refused(bomb, "claims 209,715,200 bytes")


def test_a_storage_that_many_tensors_share_is_read_once_and_cannot_multiply(tmp_path):
  whole = tensor((1 << 20,), (1,), count=1 << 20)
  part = tensor((2,), (1,), count=1 << 20)
  name = lambda i: b"X" + struct.pack("<I", 5) + b"%05d" % i
  path, storage = tmp_path / "shared.pth", np.arange(1 << 20, dtype=np.float32).tobytes()
  many = lambda instructions, count: b"\x80\x02}(" + b"".join(name(i) + instructions for i in range(count)) + b"u."
  archive(path, many(part, 2000), {"data/0": storage})
  tensors = files.read(str(path))
  assert len(tensors) == 2000 and tensors["01999"].tolist() == [0, 1]
  archive(path, many(whole, 100), {"data/0": storage})
  refused(path, "its tensors take more than")


def test_an_archive_whose_names_are_no_text_is_damaged(tmp_path):
  path = tmp_path / "names.pth"
  archive(path, named(tensor((1,), (1,))), {"data/0": b"\x00" * 96, "é": b""})
  path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xff"))
  refused(path, "truncated or damaged .UnicodeDecodeError")


@pytest.mark.parametrize(
  "header, message",
  [
    (struct.pack("<Q", 10 << 30) + b"{}", "not a readable safetensors file"),
    (struct.pack("<Q", 2**64 - 1) + b"{}", "not a readable safetensors file"),
    (b"", "not a readable safetensors file"),
    ({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, "not a readable safetensors file"),
    ({"w": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 0]}}, "not a readable safetensors file"),
    ({"a\nb": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, r"names that no tensor has: 'a\\nb'"),
    ({"w": {"dtype": "C64", "shape": [0], "data_offsets": [0, 0]}}, "complex64, which no weights"),
    ({"w": {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}}, "not a readable safetensors file|float8"),
  ],
)
def test_a_hostile_safetensors_file_is_refused(tmp_path, header, message):
  if isinstance(header, dict):
    text = json.dumps(header).encode()
    header = struct.pack("<Q", len(text)) + text
  path = tmp_path / "w.safetensors"
  path.write_bytes(header)
  refused(path, message)


def test_bfloat16_in_safetensors_becomes_float32(tmp_path):
  text = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
  path = tmp_path / "w.safetensors"
  path.write_bytes(struct.pack("<Q", len(text)) + text + b"\x80\x3f\x20\xc0")
  np.testing.assert_array_equal(files.read(str(path))["w"], np.float32([1, -2.5]), strict=True)


# ------------------------------------------------------------------------------------------------ what is not refused


PLAIN = st.recursive(
  st.none() | st.booleans() | st.integers(-(2**90), 2**90) | st.floats(allow_nan=False) | st.text() | st.binary(),
  lambda inner: (
    st.lists(inner) | st.tuples(inner, inner, inner) | st.dictionaries(st.text() | st.integers(0, 99), inner)
  ),
  max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(tree=PLAIN, protocol=st.integers(2, 5))
def test_plain_values_are_what_pythons_own_unpickler_makes_of_them(tmp_path_factory, tree, protocol):
  program = pickle.dumps(tree, protocol)
  path = tmp_path_factory.mktemp("plain") / "x"
  path.write_bytes(program)
  with open(path, "rb") as file:
    made = machine.Machine(machine.Stream(file, len(program)), pickles._ALLOWED, None).run()
  assert made == pickle.loads(program)


@settings(max_examples=30, deadline=None)
@given(
  text=st.text(alphabet=st.characters(codec="latin1")),
  number=st.integers(-(2**90), 2**90),
  x=st.floats(allow_nan=False),
)
def test_so_are_those_of_the_oldest_protocols(tmp_path_factory, text, number, x):
  path = tmp_path_factory.mktemp("plain") / "x"
  for protocol in (0, 1):
    tree = {"text": text, "number": number, "x": x, "more": [True, None, (number, [text])]}
    path.write_bytes(pickle.dumps(tree, protocol))
    with open(path, "rb") as file:
      assert machine.Machine(machine.Stream(file, path.stat().st_size), {}, None).run() == tree


# --------------------------------------------------------------------------------------------------------- any bytes


@pytest.mark.parametrize("kind", fuzz.TARGETS)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_changed_files_are_read_or_refused(kind, seed):
  rng = random.Random(seed)
  fuzz.TARGETS[kind](fuzz.mutate(rng.choice(fuzz.seeds(kind)), rng))


@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(st.sampled_from(fuzz.PIECES) | st.binary(max_size=4), max_size=40))
def test_any_instructions_are_carried_out_or_refused(pieces):
  fuzz.TARGETS["pkl"](b"".join(pieces) + b".")


LIMIT = 1 << 30  # bytes beyond those of a process that has only started
WITHIN = """
import random, resource, sys
from tests import fuzz_targets_weights as fuzz, test_fuzz_weights as cases
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + cases.LIMIT,) * 2)
for program, _ in cases.PICKLES.values():
  fuzz.TARGETS["pkl"](program)
rng = random.Random(7)
for kind in fuzz.TARGETS:
  for seed in fuzz.seeds(kind):
    for _ in range(40):
      fuzz.TARGETS[kind](fuzz.mutate(seed, rng))
print("all", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_all_of_it_happens_within_a_gigabyte():
  run = subprocess.run([sys.executable, "-c", WITHIN], capture_output=True, text=True, timeout=120)
  assert run.returncode == 0 and run.stdout.startswith("all"), run.stderr[-2000:]

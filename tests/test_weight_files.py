"""Files of weights: read without PyTorch, and nothing in them is ever run."""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rcnn_jax.weights import files
from rcnn_jax.weights.errors import WeightsError

FIXTURES = pathlib.Path(__file__).parent / "fixtures"  # written by record_weight_files.py
ZIP, LEGACY = FIXTURES / "torch_zip.pth", FIXTURES / "torch_legacy.pth"

BASE = np.arange(24, dtype=np.float32)
RECORDED = {
  "float32": BASE.reshape(2, 3, 4) / np.float32(7),
  "transposed": BASE.reshape(4, 6).T,
  "shifted": BASE[5:11],
  "float64": np.arange(3) / 7,
  "float16": (np.arange(3) / 7).astype(np.float16),
  "bfloat16": np.float32([0, 0.142578125, 0.28515625]),  # 1/7 and 2/7 to 8 bits
  "int64": np.int64(-(2**40)),
  "int32": np.int32([-7, 7]),
  "uint8": np.uint8([0, 255]),
  "bool": np.array([True, False]),
  "empty": np.zeros((0, 4), np.float32),
}


@pytest.mark.parametrize("path", [ZIP, LEGACY], ids=["zip", "legacy"])
def test_what_pytorch_wrote(path):
  tensors = files.read(str(path))
  assert list(tensors) == list(RECORDED)
  for name, expected in RECORDED.items():
    np.testing.assert_array_equal(tensors[name], expected, err_msg=name, strict=True)


def test_a_state_dict_of_a_parallel_model_loses_the_prefix():
  tensors = files.read(str(FIXTURES / "torch_module.pt"))
  assert {name: tensor.shape for name, tensor in tensors.items()} == {
    "0.weight": (2, 1, 3, 3),
    "1.weight": (2,),
    "1.bias": (2,),
    "1.running_mean": (2,),
    "1.running_var": (2,),
    "1.num_batches_tracked": (),
  }
  np.testing.assert_array_equal(tensors["1.running_var"], [1, 1])


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickled_arrays_as_detectron2_writes_them(tmp_path, protocol):
  arrays = {
    "backbone.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">f4"),
    "scalar": np.float32(0.5),
    "counter": np.array(7),
  }
  path = tmp_path / "model_final.pkl"
  path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody", "matching_heuristics": True}, protocol))
  tensors = files.read(str(path))
  for name, expected in arrays.items():
    np.testing.assert_array_equal(tensors[name], expected, err_msg=name)
    assert tensors[name].dtype == expected.dtype.newbyteorder("=")


def test_safetensors(tmp_path):
  save_file({"a": BASE}, tmp_path / "w.safetensors")
  np.testing.assert_array_equal(files.read(str(tmp_path / "w.safetensors"))["a"], BASE)


# ---------------------------------------------------------------------------------------------------- what is refused


class Runs:
  """When it is unpickled, `function(*arguments)` is called."""

  def __init__(self, function, *arguments):
    self.reduced = function, arguments

  def __reduce__(self):
    return self.reduced


def refused(path, message):
  with pytest.raises(WeightsError, match=message) as caught:
    files.read(str(path))
  assert "\n" not in str(caught.value)
  assert str(path) in str(caught.value)


@pytest.mark.parametrize(
  "name, payload",
  [
    ("posix.system", lambda proof: Runs(os.system, f"touch {proof}")),
    ("builtins.eval", lambda proof: Runs(eval, f"open({str(proof)!r}, 'w')")),
    ("builtins.getattr", lambda proof: Runs(getattr, "", "join")),
    ("builtins.exec", lambda proof: {"deep": [{"down": (Runs(exec, f"open({str(proof)!r}, 'w')"),)}]}),
    ("pathlib.*Path", lambda proof: {"model": {"w": proof}}),
  ],
)
@pytest.mark.parametrize("container", ["pickle", "zip"])
def test_a_pickle_that_names_anything_else_is_refused_by_that_name_and_runs_nothing(
  tmp_path, container, name, payload
):
  proof = tmp_path / "proof"
  program = pickle.dumps({"model": {"w": BASE, "x": payload(proof)}}, 4)
  path = tmp_path / "weights.pth"
  if container == "pickle":
    path.write_bytes(program)
  else:
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("weights/data.pkl", program)
  refused(path, f"names {name}, which is neither a tensor nor a plain container")
  assert not proof.exists()


def test_a_whole_model_is_refused_as_it_is_code():
  refused(FIXTURES / "torch_whole_model.pth", "names torch.nn.modules.linear.Linear, which is neither")


def test_the_functions_that_are_allowed_cannot_be_changed(tmp_path):
  path = tmp_path / "weights.pkl"
  # GLOBAL torch._utils._rebuild_tensor_v2, {'function': 'x'}, BUILD, STOP
  path.write_bytes(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00functionX\x01\x00\x00\x00xsb.")
  refused(path, "must not set the state of a function")
  np.testing.assert_array_equal(files.read(str(ZIP))["shifted"], RECORDED["shifted"])


def test_attributes_of_an_ordered_dict_are_dropped(tmp_path):
  path = tmp_path / "weights.pkl"
  tensors = collections.OrderedDict(w=BASE)
  tensors._metadata = {"version": 2}  # as a state_dict has
  path.write_bytes(pickle.dumps(tensors, 2))
  np.testing.assert_array_equal(files.read(str(path))["w"], BASE)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_checkpoints_of_torchvisions_own_training_hold_its_options(tmp_path, protocol):
  options = argparse.Namespace(lr=0.02, world_size=8, device="cuda", opts=None, names={"a", "b"})
  path = tmp_path / "model_25.pth"
  path.write_bytes(pickle.dumps({"model": {"w": BASE}, "args": options, "epoch": 25}, protocol))
  np.testing.assert_array_equal(files.read(str(path))["w"], BASE)


@pytest.mark.parametrize(
  "content, message",
  [
    ([1, 2], "holds no tensors by name"),
    ({}, "holds no tensors by name"),
    ({"model": {"w": BASE, "epoch": 3}}, r"not only tensors: 'epoch' \(int\)"),
    ({"w": BASE, 7: BASE}, r"not only tensors: 7"),
    ({"words": np.array(["a", "b"])}, "words: not an array of numbers"),
    ({"objects": np.array([{}, None])}, "objects: not an array of numbers"),
  ],
)
def test_contents_that_are_no_weights(tmp_path, content, message):
  path = tmp_path / "weights.pkl"
  path.write_bytes(pickle.dumps(content, 2))
  refused(path, message)


def test_a_list_that_holds_itself_is_only_not_a_tensor(tmp_path):
  loop = []
  loop.append(loop)
  path = tmp_path / "weights.pkl"
  path.write_bytes(pickle.dumps({"w": BASE, "loop": loop}, 2))
  refused(path, r"not only tensors: 'loop' \(list\)")


@pytest.mark.parametrize(
  "shape, strides, offset",
  [((25,), (1,), 0), ((2, 3), (24, 1), 0), ((3,), (1,), 22), ((10**12,), (0,), 0), ((-1,), (1,), 0)],
)
def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path, shape, strides, offset):
  path = tmp_path / "weights.pth"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("weights/data.pkl", _program(offset, shape, strides))
    archive.writestr("weights/data/0", BASE.tobytes())
  refused(path, "w: (the tensor reaches beyond its storage of 24 elements|a tensor of shape)")


def _program(offset, shape, strides) -> bytes:
  """The pickle of {'w': a view of a storage of 24 floats}, as torch.save writes it."""
  storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x18tQ"
  view = b"".join(
    pickle.dumps(part, 2)[2:-1] for part in (offset, shape, strides, False, None)
  )  # without PROTO, STOP
  return b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tRs."


@pytest.mark.parametrize("path", [ZIP, LEGACY, FIXTURES / "torch_module.pt"], ids=["zip", "legacy", "module"])
@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_anywhere_is_refused(tmp_path_factory, path, share):
  whole = path.read_bytes()
  cut = tmp_path_factory.mktemp("cut") / path.name
  cut.write_bytes(whole[: int(share * len(whole))])
  refused(cut, "truncated or damaged|refused")


@settings(max_examples=40, deadline=None)
@given(at=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_damaged_byte_is_refused_or_harmless(tmp_path_factory, at, value):
  damaged = bytearray(LEGACY.read_bytes())
  damaged[at % len(damaged)] = value
  path = tmp_path_factory.mktemp("damaged") / "w.pth"
  path.write_bytes(damaged)
  try:
    assert all(isinstance(tensor, np.ndarray) for tensor in files.read(str(path)).values())
  except WeightsError as error:
    assert str(path) in str(error)


def test_a_damaged_record_of_an_archive_is_named(tmp_path):
  whole = bytearray(ZIP.read_bytes())
  place = whole.find(RECORDED["float32"].tobytes())
  whole[place] ^= 1
  path = tmp_path / "torch_zip.pth"
  path.write_bytes(whole)
  refused(path, "data/0")


def test_files_that_are_something_else(tmp_path):
  refused(tmp_path / "absent.pth", "no such weights file")
  for name in ("w.pth", "w.safetensors"):
    (tmp_path / name).write_bytes(b"<html>not found</html>")
    refused(tmp_path / name, "refused|not a readable safetensors file")
  with zipfile.ZipFile(tmp_path / "code.pt", "w") as archive:  # TorchScript
    for record in ("code/constants.pkl", "code/data.pkl", "code/code/__torch__.py"):
      archive.writestr(record, b"")
  refused(tmp_path / "code.pt", "an archive, but not of weights")

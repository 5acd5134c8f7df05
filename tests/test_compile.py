"""Compiling for machines that are not there: what is read from a program's text, and how the command ends."""

import importlib.util
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import compile as compiling
from rcnn_jax import aot

TEXT = """HloModule jit_f, is_scheduled=true

FileNames
1 "/code/heads.py"
2 "/code/model.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=2 function_name_id=1 line=12 end_line=12 column=1 end_column=9}
2 {file_name_id=1 function_name_id=1 line=40 end_line=41 column=1 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}


%fused (p: f32[64,64]) -> f32[64,64] {
  %p = f32[64,64]{1,0} parameter(0)
  ROOT %huge = f32[4096,4096]{1,0} broadcast(%p), dimensions={}
}

ENTRY %main (x: f32[512,64], w: f32[64,64]) -> (f32[64,64], f32[]) {
  %x = f32[512,64]{1,0} parameter(0)
  %w = f32[64,64]{1,0} parameter(1)
  %y = f32[512,64]{1,0:T(8,128)} convolution(%x, %w), metadata={op_name="jit(f)/dot_general" stack_frame_id=2}
  %z = f32[512,256]{1,0:T(8,128)S(1)} add(%y, %y)
  %fusion.1 = (f32[64,64]{1,0}, bf16[64]{0}) fusion(%y), kind=kLoop, calls=%fused, METADATA
  %a = (f32[64,64]{1,0}, bf16[64]{0}) all-reduce(%fusion.1, %fusion.1), replica_groups={{0,1}}, to_apply=%sum
  %b = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}
  %c = f32[32]{0} all-gather-done(%b)
  %d = f32[10]{0} all-reduce-start(%x), to_apply=%sum
  %e = f32[10]{0} all-reduce-done(%d)
  %f = (f32[4096,64]{1,0}, f32[4096,64]{1,0:S(1)}, u32[]) copy-start(%y)
  %g = f32[4096,64]{1,0:S(1)} copy-done(%f)
  ROOT %t = (f32[64,64]{1,0}, f32[]) tuple(%w, %e)
}
""".replace("METADATA", 'metadata={op_name="jit(f)/mul" source_file="/code/loss.py" source_line=7}')


def test_collectives_are_counted_by_kind_and_a_start_is_not_counted_again_when_it_is_done():
  assert aot.collectives(TEXT) == {
    "all-reduce": {"count": 2, "bytes": 64 * 64 * 4 + 64 * 2 + 10 * 4},
    "all-gather": {"count": 1, "bytes": 32 * 4},
  }


def test_the_largest_buffers_are_those_in_main_memory_with_the_line_that_made_them():
  first, second = aot.largest_buffers(TEXT, 2)
  assert first == aot.Buffer(512 * 128 * 4, "f32[512,64]", "convolution", "jit(f)/dot_general", "/code/heads.py:40")
  assert second == aot.Buffer(64 * 64 * 4 + 128, "f32[64,64] bf16[64]", "fusion", "jit(f)/mul", "/code/loss.py:7")


def test_a_text_without_instructions_has_nothing():
  assert (aot.collectives(""), aot.largest_buffers("", 10), aot.source_lines("")) == ({}, [], {})


@pytest.mark.parametrize(
  "array, size",
  [
    (("f32", ""), 4),
    (("pred", "10"), 10),
    (("s4", "10"), 5),
    (("bf16", "2,3", "1,0"), 12),
    (("f32", "3,5", "1,0:T(8,128)"), 8 * 128 * 4),
    (("f32", "3,5", "0,1:T(8,128)"), 128 * 8 * 4),
    (("f32", "<=7", "0"), 28),
  ],
)
def test_bytes_of_an_array(array, size):
  assert aot.array_bytes(*array) == size


@given(st.integers(1, 300), st.integers(1, 300))
def test_tiles_only_add_bytes_and_less_than_a_tile_along_each_side(rows, columns):
  plain, tiled = (aot.array_bytes("f32", f"{rows},{columns}", layout) for layout in ("1,0", "1,0:T(8,128)"))
  assert plain == rows * columns * 4 <= tiled < (rows + 8) * (columns + 128) * 4


@given(st.floats(0, 1e18), st.floats(0, 1e15))
def test_the_roofline_is_the_longer_of_its_two_times(flops, moved):
  chip = compiling.CHIPS["v5e"]
  found = compiling.roofline(flops, moved, chip)
  assert found["s"] == max(flops / chip.peak, moved / chip.bandwidth) == found[f"{found['bound']}_s"]


def test_what_the_compiler_refuses_is_told_in_one_line():
  said = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (26.86G) exceeds available HBM (15.75G). HLO module: jit_f.\nSee https://openxla.org/xla/errors"
  )  # libtpu 0.0.52
  why = "the total memory required for HLO temporaries (26.86G) exceeds available HBM (15.75G)"
  assert compiling.refusal(said) == f"the program does not fit the device's memory: {why}"
  assert compiling.refusal("RESOURCE_EXHAUSTED: no").endswith("fit the device's memory: RESOURCE_EXHAUSTED: no")
  assert compiling.refusal("INTERNAL: tiling\nfailed") == "the compiler refuses the program: INTERNAL: tiling failed"


@pytest.mark.parametrize("topology", ["v9z:1x1", "v5e", "v5e:3x3", "", ":"])
def test_an_unknown_topology_ends_with_the_known_ones(topology):
  with pytest.raises(compiling.CompileError, match="is unknown; known are v5e:1x1.*v6e:1x1.*v5p:1x1x1"):
    compiling.described_devices(topology)


def test_a_missing_compiler_ends_with_the_name_of_the_extra(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(compiling.CompileError, match=r"rcnn-jax\[tpu\]"):
    compiling.described_devices("v5e:1x1")


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the extra `tpu`, is not installed")
def test_an_experiment_compiles_for_four_tpus(tmp_path):
  command = [sys.executable, "-m", "launch.compile", "--experiment=faster_rcnn_r18_fpn_bccd", "--topology=v5e:2x2"]
  done = subprocess.run(
    [*command, "--batch_size=4"], capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
  )
  assert done.returncode == 0, done.stderr
  assert "batch 4 on 4 device(s) of v5e:2x2" in done.stdout
  assert "all-reduce" in done.stdout
  assert "fits" in done.stdout

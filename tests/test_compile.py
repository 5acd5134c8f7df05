"""Compiling for machines that are not there: what is read from a program's text, and how the command ends."""

import dataclasses
import importlib.util
import itertools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import small_detector
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

from launch import compile as compiling
from rcnn_jax import aot, chips, compile_report, experiment, programs
from rcnn_jax.synthetic import largest_canvas
from rcnn_jax.training.optim import TrainingError

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
  assert (aot.custom_calls(""), aot.library_bytes("")) == ({}, 0)


# Products of 64 x 64 floats by a library: one at the top, one in a loop, and in a conditional one against two.
LIBRARY = """
%once (p: f32[64,64]) -> f32[64,64] {
  %p = f32[64,64]{1,0} parameter(0)
  ROOT %a = f32[64,64]{1,0} custom-call(%p, %p), custom_call_target="__cublas$gemm"
}

%twice (q: f32[64,64]) -> f32[64,64] {
  %q = f32[64,64]{1,0} parameter(0)
  %b = f32[64,64]{1,0} custom-call(%q, %q), custom_call_target="__cublas$gemm"
  ROOT %c = f32[64,64]{1,0} custom-call(%b, %b), custom_call_target="__cublas$gemm"
}

ENTRY %main (x: f32[64,64], i: s32[]) -> f32[64,64] {
  %x = f32[64,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %d = f32[64,64]{1,0} custom-call(%x, %x), custom_call_target="__cublas$gemm"
  %f = (f32[64,64]{1,0}, bf16[64]{0}) fusion(%d), kind=kLoop, calls=%named
  %w = f32[64,64]{1,0} while(%d), condition=%more, body=%once
  %e = f32[64,64]{1,0} conditional(%i, %w, %w), branch_computations={%once, %twice}
  ROOT %g = f32[64,64]{1,0} custom-call(%e), custom_call_target="Sharding"
}

%named (r: f32[64,64]) -> (f32[64,64], bf16[64]) {
  %r = f32[64,64]{1,0} parameter(0)
  %s = f32[64,64]{1,0} add(%r, %r), metadata={op_name="jit(f)/add" source_file="/code/sum.py" source_line=3}
}
"""


def test_a_library_reads_and_writes_what_goes_in_and_comes_out_and_the_largest_branch_counts():
  product, copy = 3 * 64 * 64 * 4, 2 * 64 * 64 * 4
  assert aot.library_bytes(LIBRARY) == product + product + 2 * product + copy
  assert aot.custom_calls(LIBRARY) == {"__cublas$gemm": 4, "Sharding": 1}


def test_a_fusion_without_a_name_has_that_of_what_it_computes():
  (buffer,) = [row for row in aot.largest_buffers(LIBRARY, 10) if row.opcode == "fusion"]
  assert (buffer.op_name, buffer.source) == ("jit(f)/add", "/code/sum.py:3")


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
  chip = chips.CHIPS["h100"]
  found = programs.roofline(flops, moved, chip, "bfloat16")
  assert found["s"] == max(flops / chip.bfloat16, moved / chip.bandwidth) == found[f"{found['bound']}_s"]
  assert programs.roofline(flops, 0.0, chip, "float32")["s"] == flops / chip.float32


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.integers(0, 9000), st.booleans())
def test_the_largest_batch_that_fits_is_found_however_memory_grows(growth, room, refused):
  needs = [0, *itertools.accumulate(growth)]
  asked = []

  def peak(count):
    asked.append(count)
    needed = needs[count] if count < len(needs) else 10_000 + count
    return None if refused and needed > room else needed

  fitting = max(count for count, needed in enumerate(needs) if needed <= room)
  assert programs.largest(peak, room) == fitting
  assert len(asked) == len(set(asked))


def test_where_memory_grows_evenly_four_programs_are_asked_about():
  asked = []
  assert programs.largest(lambda count: asked.append(count) or 30 + 10 * count, room=845) == 81
  assert asked == [1, 2, 81, 82]


def test_what_the_compiler_refuses_is_told_in_one_line():
  said = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (26.86G) exceeds available HBM (15.75G). HLO module: jit_f.\nSee https://openxla.org/xla/errors"
  )  # libtpu 0.0.52
  why = "the total memory required for HLO temporaries (26.86G) exceeds available HBM (15.75G)"
  assert programs.refusal(said) == f"the program does not fit the device's memory: {why}"
  assert programs.refusal("RESOURCE_EXHAUSTED: no").endswith("fit the device's memory: RESOURCE_EXHAUSTED: no")
  assert programs.refusal("INTERNAL: tiling\nfailed") == "the compiler refuses the program: INTERNAL: tiling failed"


@pytest.mark.parametrize("topology", ["v9z:1x1", "v5e", "v5e:3x3", "", ":", "h100:", "h100:3", "a100"])
def test_an_unknown_topology_ends_with_the_known_ones(topology):
  with pytest.raises(chips.CompileError, match=r"is unknown; known are v5e:1x1.*v6e:1x1.*v5p:1x1x1.*h100\[:1.*\]"):
    chips.described_devices(topology)


@pytest.mark.parametrize(
  "topology, said",
  [
    ("v5e:1x1", r"the TPU's compiler is missing; pip install 'rcnn-jax\[tpu\]' brings it \(missing: libtpu\)"),
    ("h100", r"the GPU's compiler is missing; pip install 'rcnn-jax\[cuda12-aot\]' .*jax-cuda12-pjrt, .*nvcc-cu12\)"),
  ],
)
def test_a_missing_compiler_ends_with_the_name_of_the_extra(monkeypatch, topology, said):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(chips.CompileError, match=said):
    chips.described_devices(topology)


REPORT = {
  "experiment": "mask",
  "what": "train",
  "topology": "h100",
  "batch_size": 2,
  "canvas": [800, 1344],
  "memory": {"peak": 3 * 2**29, "device": 2**40, "lent": 2**39},
  "flops": 7e9,
  "bytes": 2.5e9,
  "roofline": {"s": 0.012, "bound": "memory"},
  "compile_s": 61.0,
}


def test_the_table_has_a_row_for_each_program_and_says_which_could_not_be_compiled():
  refused = {**REPORT, "experiment": "large", "failed": "the program does not fit the device's memory: 20G"}
  rows = [line.split() for line in compile_report.table([REPORT, {}, refused]).splitlines()]
  assert rows[2] == ["mask", "train", "h100", "2", "800x1344", "1.50", "yes", "7", "2.5", "12.0", "memory", "61"]
  assert rows[3][:7] == ["large", "train", "h100", "2", "800x1344", "-", "no"] and len(rows) == 4


def small_program(**changes) -> tuple[programs.Asked, Mesh]:
  """(the train step of a small detector, two devices)."""
  demo = experiment.load("demo")
  data = dataclasses.replace(demo.data, canvases=(small_detector.CANVAS,))
  changed = dataclasses.replace(demo, model=small_detector.small_detector(), data=data, **changes)
  return programs.Asked(changed, "train", batch_size=2, num_objects=5), Mesh(np.array(jax.devices()[:2]), ("data",))


def test_a_mesh_that_the_devices_do_not_make_ends_in_one_line():
  with pytest.raises(TrainingError, match=r"mesh.model=3 does not divide the 2 device"):
    programs.lowered(*small_program(mesh=experiment.Mesh(model=3)))


@pytest.mark.long
def test_equal_programs_have_equal_fingerprints_and_the_mesh_is_the_experiments():
  first, second = (programs.lowered(*small_program()) for _ in range(2))
  assert programs.fingerprint(first) == programs.fingerprint(second)
  assert "2x48x64x3xui8" in first.as_text()
  divided = programs.lowered(*small_program(mesh=experiment.Mesh(rules=experiment.FULLY_SHARDED)))
  assert programs.fingerprint(divided) != programs.fingerprint(first)


def test_programs_are_compiled_for_the_largest_canvas():
  coco = experiment.load("torchvision_maskrcnn_resnet50_fpn").data
  assert largest_canvas(coco, "train") == (800, 1344)
  assert largest_canvas(coco, "detect") == (800, 1344)  # 1333 in 42 times 32
  assert largest_canvas(experiment.load("faster_rcnn_r18_fpn_bccd").data, "train") == (240, 320)


def test_a_program_of_the_table_has_its_batch_divided_over_sixteen_chips():
  assert compiling.options_of("faster_rcnn_r50_fpn_coco", "h100:8", "train")[-1] == "--batch_size=8"
  assert compiling.options_of("demo", "v5e:2x2", "detect")[-1] == "--batch_size=4"
  assert compiling.file_name("experiments/demo.py", "v5e:2x2", "train") == "demo.v5e-2x2.train.json"


HAS_GPU_COMPILER = all(map(chips._found, chips._needed(chips.CHIPS["h100"])))
REDUCED = ("demo", "faster_rcnn_r18_fpn_bccd", "mask_rcnn_squeezenet_fpn_nuclei")


def launched(*options: str) -> subprocess.CompletedProcess:
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-m", "launch.compile", *options]
  return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_flags_that_are_missing_or_wrong_end_in_one_line(tmp_path):
  ended = launched("--all", f"--workdir={tmp_path}", "--topologies=h100,v9z")
  assert ended.returncode == 1 and ended.stderr.splitlines()[-1].startswith("error: --topology=v9z is unknown; known")
  assert not (tmp_path / "lock").exists()


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the extra `tpu`, is not installed")
def test_an_experiment_compiles_for_four_tpus(tmp_path):
  done = launched("--experiment=faster_rcnn_r18_fpn_bccd", "--topology=v5e:2x2", "--batch_size=4")
  assert done.returncode == 0, done.stderr
  assert "batch 4 of 240x320 on 4 device(s) of v5e:2x2" in done.stdout
  assert "all-reduce" in done.stdout
  assert "fits" in done.stdout


@pytest.mark.long
@pytest.mark.skipif(not HAS_GPU_COMPILER, reason="the GPU's compiler, the extra `cuda12-aot`, is not installed")
def test_the_table_over_three_experiments_is_made_once_and_then_kept(tmp_path):
  options = ("--all", f"--workdir={tmp_path}", f"--experiments={','.join(REDUCED)}", "--topologies=h100,a100_80:2")
  done = launched(*options, "--programs=train")
  assert done.returncode == 0, done.stderr
  reports = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
  assert len(reports) == 6 and all(report["memory"]["peak"] > 0 for report in reports)
  for report in reports:
    assert report["flops"] > 1e9 and report["bytes"] > 1e8 and len(report["buffers"]) == 10
    assert set(report["collectives"]) == ({"all-reduce"} if report["devices"] == 2 else set())
  again = launched(*options, "--programs=train")
  assert again.returncode == 0 and (tmp_path / "table.txt").read_text().strip() in again.stdout
  assert [json.loads(path.read_text())["compile_s"] for path in sorted(tmp_path.glob("*.json"))] == [
    report["compile_s"] for report in reports
  ]

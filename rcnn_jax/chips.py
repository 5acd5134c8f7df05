"""Accelerators that programs are compiled for: what is known of each, and devices of them that need not be there.

Sources, all opened on 2026-11-27. TPUs: docs.cloud.google.com/tpu/docs/v5e, cloud.google.com/tpu/docs/v6e and
docs.cloud.google.com/tpu/docs/v5p-training (peak compute in bf16, capacity and bandwidth of a chip's HBM). GPUs: the
descriptions that XLA compiles for, github.com/openxla/xla, xla/backends/gpu/target_config/specs/{h100_sxm,h200,
a100_sxm_80}.txtpb (memory, bandwidth, cores and clocks; H100 and H200: 132 cores x 4 units x 512 multiply-adds of
bfloat16, 256 of TensorFloat-32, x 1.83 GHz), and for the A100's products glennklockwood.com/garden/processors/A100,
which cites NVIDIA's data sheet.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os

import jax
import numpy as np
from jax.sharding import Mesh

LONGEST = 300  # characters of what a compiler says


class CompileError(RuntimeError):
  """A topology, a compiler or a program that cannot be had."""


@dataclasses.dataclass(frozen=True)
class Chip:
  """What is known of one device."""

  bfloat16: float  # FLOP/s of products
  float32: float  # FLOP/s of products at JAX's usual precision: bfloat16 on a TPU, TensorFloat-32 on a GPU
  bandwidth: float  # bytes/s of its main memory
  memory: int  # bytes of its main memory
  topologies: tuple[str, ...]  # what may stand behind the colon; '' for nothing
  kind: str  # its name in JAX, `device_kind`
  lent: float = 1.0  # the share of its memory that JAX gives to programs unless told otherwise
  target: str = ""  # of a GPU: what XLA compiles for, a GpuTargetConfigProto


SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("1x1x1", "2x2x1", "2x2x2")
COUNTS = ("", "1", "2", "4", "8")
TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {shared_most}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} device_memory_size: {memory}
  cuda_compute_capability {{ major: {capability} }} device_vendor: "NVIDIA Corporation"
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""
HOPPER = {
  "shared": 233472,
  "shared_most": 232448,
  "cores": 132,
  "fpus": 128,
  "clock": 1.98,
  "cache": 52428800,
  "capability": "9 feature_extension: ACCELERATED_FEATURES",
}
AMPERE = {
  "shared": 167936,
  "shared_most": 166912,
  "cores": 108,
  "fpus": 64,
  "clock": 1.41,
  "cache": 41943040,
  "capability": "8",
}


def _gpu(bfloat16: float, float32: float, bandwidth: int, memory: int, name: str, family: dict) -> Chip:
  target = TARGET.format(bandwidth=bandwidth, memory=memory, name=name, **family)
  return Chip(bfloat16, float32, bandwidth, memory, COUNTS, name, lent=0.75, target=target)


CHIPS = {
  "v5e": Chip(197e12, 197e12, 819e9, 16 * 2**30, SQUARES, "TPU v5 lite"),
  "v6e": Chip(918e12, 918e12, 1640e9, 32 * 2**30, SQUARES, "TPU v6 lite"),
  "v5p": Chip(459e12, 459e12, 2765e9, 95 * 2**30, CUBES, "TPU v5"),
  "h100": _gpu(989.4e12, 494.7e12, 3352320000000, 84942979072, "NVIDIA H100 80GB HBM3", HOPPER),
  "h200": _gpu(989.4e12, 494.7e12, 4800000000000, 151397597184, "NVIDIA H200", HOPPER),
  "a100_80": _gpu(312e12, 156e12, 2039040000000, 85100068864, "NVIDIA A100-SXM4-80GB", AMPERE),
}

# libtpu looks for a machine of Google's cloud and logs that it finds none; and only one process may hold it, as is
# right for one that runs a TPU and needless for one that compiles. XLA logs that there is no driver, too.
# What the environment says goes before.
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TF_CPP_MIN_LOG_LEVEL": "3",
}


def known_topologies() -> str:
  """The names of all topologies, in a line."""
  return ", ".join(
    kind + (f"[:{'|'.join(chip.topologies[1:])}]" if chip.target else f":{'|'.join(chip.topologies)}")
    for kind, chip in CHIPS.items()
  )


def chip_of(topology: str) -> tuple[str, Chip, str]:
  """('h100', what is known of it, '8') of 'h100:8'. Raises CompileError for a topology that is unknown."""
  kind, colon, shape = topology.partition(":")
  if kind not in CHIPS or shape not in CHIPS[kind].topologies or (colon and not shape):
    raise CompileError(f"--topology={topology} is unknown; known are {known_topologies()}")
  return kind, CHIPS[kind], shape


def check_compiler(chip: Chip) -> None:
  """Raises CompileError where a package of the chip's compiler is missing, with the extra that brings it."""
  missing = [name for module, name in _needed(chip).items() if not _found(module)]
  if missing:
    extra = "cuda12-aot" if chip.target else "tpu"
    what = f"the {'GPU' if chip.target else 'TPU'}'s compiler is missing"
    raise CompileError(f"{what}; pip install 'rcnn-jax[{extra}]' brings it (missing: {', '.join(missing)})")


def described_devices(topology: str) -> tuple[Chip, Mesh]:
  """(what is known of the chip, a mesh of devices that can be compiled for and hold no arrays).

  From here on JAX runs on the CPU: tracing needs a device, and an accelerator of this machine is not touched.

  Raises:
    CompileError: the topology is unknown, or the packages with its compiler are missing or refuse it.
  """
  _, chip, shape = chip_of(topology)
  check_compiler(chip)
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")
  from jax.experimental import topologies

  try:
    if chip.target:
      options = {"topology": f"1x1x{shape or 1}", "target_config": chip.target}
      devices = topologies.get_topology_desc(platform="cuda", **options).devices
    else:
      devices = topologies.get_topology_desc(topology, platform="tpu").devices
  except (RuntimeError, ValueError, NotImplementedError) as error:
    raise CompileError(f"the compiler refuses {topology}: {' '.join(str(error).split())[:LONGEST]}") from error
  return chip, Mesh(np.array(devices), ("data",))


def compiler_options(chip: Chip) -> dict[str, bool]:
  """The compiler's options beside its defaults.

  XLA of jax below 0.12 ends the process on matrix products of some of our detectors when it fuses them by Triton
  (openxla/xla#47381). Where that happens on a machine with a GPU, XLA_FLAGS=--xla_gpu_enable_triton_gemm=false helps.
  """
  return {"xla_gpu_enable_triton_gemm": False} if chip.target and jax.__version_info__ < (0, 12) else {}


def _needed(chip: Chip) -> dict[str, str]:
  """{module: the package that brings it}."""
  if not chip.target:
    return {"libtpu": "libtpu"}
  plugin = {"jax_plugins.xla_cuda12": "jax-cuda12-pjrt", "jax_cuda12_plugin": "jax-cuda12-plugin"}
  return plugin | {"nvidia.cuda_nvcc": "nvidia-cuda-nvcc-cu12"}


def _found(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # of the package that it is in
    return False

"""This machine's cores and devices, divided between trials that run at the same time."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import subprocess
from collections.abc import Mapping

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # XLA takes as many as the process has cores


@dataclasses.dataclass(frozen=True)
class Slot:
  """The share of one trial."""

  cores: tuple[int, ...]  # their numbers; none: all
  environment: Mapping[str, str]  # what makes the process see its share of the devices alone


def slots(at_once: int, cores: tuple[int, ...], gpus: tuple[str, ...] = (), num_tpus: int = 0) -> tuple[Slot, ...]:
  """The shares of `at_once` trials; a single one has the whole machine.

  Cores and GPUs are divided as evenly as they can be. Where there are fewer than trials, several trials share one; of
  a shared GPU each takes its part of the memory. A TPU is not shared: with several trials, each has one chip.

  Raises:
    ValueError: fewer TPU chips than trials.
  """
  if at_once == 1:
    return (Slot((), {}),)
  if 0 < num_tpus < at_once:
    raise ValueError(f"--at_once={at_once}: this machine has {num_tpus} TPU chips, and a chip runs one trial")
  found = []
  for number in range(at_once):
    mine = _share(cores, number, at_once)
    environment = dict.fromkeys(THREADS, str(max(len(mine), 1)))
    if gpus:
      environment["CUDA_VISIBLE_DEVICES"] = ",".join(_share(gpus, number, at_once))
      sharing = -(-at_once // len(gpus))
      if sharing > 1:
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / sharing:.2f}"
    if num_tpus:
      alone = {
        "TPU_VISIBLE_CHIPS": str(number),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
      }
      environment |= alone
    found.append(Slot(mine, environment))
  return tuple(found)


def _share(things: tuple, number: int, parts: int) -> tuple:
  """The part `number` of `parts`, as even as can be; where there are fewer things than parts, one thing."""
  if len(things) < parts:
    return (things[number % len(things)],) if things else ()
  return things[number * len(things) // parts : (number + 1) * len(things) // parts]


def my_cores() -> tuple[int, ...]:
  """The numbers of the cores that this process may use; none where the system does not tell."""
  return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def my_gpus() -> tuple[str, ...]:
  """The NVIDIA GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes; no device is opened."""
  chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
  if chosen is not None:
    return tuple(filter(None, chosen.split(",")))
  if shutil.which("nvidia-smi") is None:
    return ()
  listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
  lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
  return tuple(str(number) for number in range(len(lines)))


def my_tpus() -> int:
  """How many TPU chips this machine has; no device is opened."""
  return len(list(pathlib.Path("/dev").glob("accel[0-9]*"))) or len(list(pathlib.Path("/dev/vfio").glob("[0-9]*")))
